/** `models …` on the command line: parsing and wiring. */

import { basename, dirname } from "@std/path";
import { parseArgs } from "node:util";
import type { ModelFiles } from "../lib/mod.ts";
import { convert, type Format } from "../models/convert.ts";
import { SHAPES } from "../models/published.ts";
import { synth } from "../models/synth.ts";
import { directoryFiles } from "./model.ts";

/** A command line that cannot be understood. */
export class UsageError extends Error {}

const FORMATS: readonly Format[] = ["int8", "int4", "f16", "f32"];

/**
 * Runs `models convert` or `models synth`.
 *
 * @throws {UsageError} for arguments that cannot be understood; {RequestError} for a model that cannot be converted.
 */
export async function modelsCommand(
  args: readonly string[],
  print: (text: string) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const { values: flags, positionals: [action, subject] } = parse(args);
  if (action !== "convert" && action !== "synth") {
    throw new UsageError(`models: expected convert or synth, found "${action ?? "nothing"}"`);
  }
  if (!subject || !flags.out) {
    throw new UsageError(
      `models ${action}: expected ${action === "synth" ? "SHAPE" : "DIR or FILE.npz"} --out DIR`,
    );
  }
  if (action === "synth") {
    if (!SHAPES.includes(subject)) {
      throw new UsageError(`models synth: expected ${SHAPES.join(", ")}, found "${subject}"`);
    }
    const decoder = oneOf<"int4" | "int8">("decoder", flags.decoder, ["int4", "int8"]);
    const sizeBytes = await synth(subject, flags.out, { decoder });
    return await print(`${flags.out}: ${(sizeBytes / 1e9).toFixed(2)} GB of random weights\n`);
  }
  const alone = subject.endsWith(".npz");
  const files = directoryFiles(alone ? dirname(subject) : subject);
  await convert(files, flags.out, {
    vision: oneOf("vision", flags.vision, FORMATS),
    decoder: oneOf("decoder", flags.decoder, FORMATS),
    group: Number(oneOf("group", flags.group, ["32", "64", "128"])),
    npz: alone ? basename(subject) : await onlyNpz(files),
    adapter: flags.adapter === undefined ? undefined : directoryFiles(flags.adapter),
    signal,
    progress: meter(),
  });
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        out: { type: "string" },
        vision: { type: "string", default: "int8" },
        decoder: { type: "string", default: "int4" },
        group: { type: "string", default: "32" },
        adapter: { type: "string" },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

function oneOf<T extends string>(flag: string, value: string, allowed: readonly T[]): T {
  if (allowed.includes(value as T)) return value as T;
  throw new UsageError(`--${flag}: expected ${allowed.join(" or ")}, found "${value}"`);
}

/** The .npz of a directory that holds one and no safetensors. */
async function onlyNpz(files: ModelFiles): Promise<string | undefined> {
  const names = await files.list();
  const found = names.filter((it) => it.endsWith(".npz"));
  return found.length === 1 && !names.some((it) => it.endsWith(".safetensors")) ? found[0] : undefined;
}

/** Share done, speed and remaining time on the terminal; silent where stderr is not one. */
function meter(): ((done: number, total: number) => void) | undefined {
  if (!Deno.stderr.isTerminal()) return undefined;
  const start = performance.now();
  let shown = -Infinity;
  return (done, total) => {
    const now = performance.now();
    if (done < total && now - shown < 100) return;
    shown = now;
    const speed = done / Math.max(1, now - start) * 1000;
    const left = Math.round((total - done) / speed);
    const line = `\r${Math.floor(done / total * 100)} % of ${(total / 1e6).toFixed(0)} MB · ` +
      `${(speed / 1e6).toFixed(0)} MB/s · ${left} s left\x1b[K${done === total ? "\n" : ""}`;
    Deno.stderr.writeSync(new TextEncoder().encode(line));
  };
}
