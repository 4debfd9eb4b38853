/** Answers on disk as they come, so that a run that was interrupted goes on where it was. */

import { RequestError } from "../../lib/mod.ts";
import type { Answered } from "./score.ts";

/** One answer, without its row. */
export type Said = Omit<Answered, "row">;

/** What was answered, and a place for what is to come. */
export interface AnswerLog {
  /** By the row's line in the data. */
  readonly said: ReadonlyMap<number, Said>;
  add(line: number, said: Said): Promise<void>;
  close(): void;
}

/**
 * Opens the log of one run, a JSON object a line: first what is run, then the answers. A last line without its end, left by
 * a run that was killed while writing, is cut off.
 *
 * @param what the model, the data and the settings; answers of anything else are not taken
 * @throws {RequestError} `parameter_invalid` when the file holds something else, `storage_failed` when it cannot be written.
 */
export async function openAnswerLog(
  path: string,
  what: Readonly<Record<string, unknown>>,
): Promise<AnswerLog> {
  try {
    const text = await Deno.readTextFile(path).catch((error) => {
      if (error instanceof Deno.errors.NotFound) return "";
      throw error;
    });
    const whole = text.slice(0, text.lastIndexOf("\n") + 1);
    const [header, ...lines] = whole.split("\n").slice(0, -1);
    if (header !== undefined && header !== JSON.stringify(what)) {
      throw new RequestError(
        "parameter_invalid",
        `Cannot go on with ${path}: expected answers of ${JSON.stringify(what)}, found ${
          header.slice(0, 300)
        }; remove the file to begin anew`,
      );
    }
    const said = new Map(lines.map((it, i) => {
      try {
        const { line, ...rest } = JSON.parse(it);
        return [line as number, rest as Said];
      } catch {
        throw new RequestError(
          "parameter_invalid",
          `Cannot go on with ${path}, line ${i + 2}: expected an answer, found ${
            JSON.stringify(it.slice(0, 100))
          }`,
        );
      }
    }));
    const file = await Deno.open(path, { write: true, create: true });
    const bytes = new TextEncoder();
    await file.truncate(bytes.encode(whole).length);
    await file.seek(0, Deno.SeekMode.End);
    const write = async (value: unknown) => {
      const line = bytes.encode(JSON.stringify(value) + "\n");
      for (let at = 0; at < line.length;) at += await file.write(line.subarray(at));
    };
    if (header === undefined) await write(what);
    return { said, add: (line, it) => write({ line, ...it }), close: () => file.close() };
  } catch (error) {
    if (error instanceof RequestError) throw error;
    throw new RequestError("storage_failed", `Cannot write ${path}: ${(error as Error).message}`);
  }
}
