/**
 * A model directory on its way into the R2 bucket of a Worker (lib/http/uploads.ts), file by file and part by part.
 *
 * What arrived is noted beside each file, so that an upload that broke off goes on with the parts that are missing. The
 * configuration goes last, and away first where other files change: what is not whole is no model.
 */

import { join, resolve } from "@std/path";
import { createHash } from "node:crypto";
import { type ModelFiles, RequestError } from "../lib/mod.ts";
import { UPLOADS } from "../lib/http/uploads.ts";
import { readConfig } from "../lib/weights/config.ts";
import { openWeights } from "../lib/weights/load.ts";

/** R2 wants at least 5 MiB of all parts but the last, all of one size. */
const PART_BYTES = 8 * 2 ** 20;
const AT_ONCE = 4;
const ATTEMPTS = 6;
/** The last of a model's files to come, and the first to go. */
const LAST = "config.json";
const OF_A_MODEL =
  /^(config|preprocessor_config|generation_config)\.json$|^tokenizer\.(model|json)$|\.safetensors(\.index\.json)?$/;

/** Where to, and what to tell. */
export interface UploadOptions {
  /** The Worker's address. */
  readonly url: string;
  /** Its `UPLOAD_KEY`. */
  readonly key: string;
  /** The model's name there. */
  readonly name: string;
  readonly signal?: AbortSignal;
  /** Told bytes done and in all, first of what is read for checksums, then of what is there. */
  readonly progress?: (done: number, total: number) => void;
}

/** What became of one file. */
export interface Uploaded {
  readonly name: string;
  readonly sizeBytes: number;
  /** Bytes that an earlier upload had brought already. */
  readonly knownBytes: number;
}

/** An upload under way, as it is noted. */
interface Note {
  readonly url: string;
  readonly sha256: string;
  readonly upload: string;
  readonly parts: { readonly partNumber: number; readonly etag: string }[];
}

interface File {
  readonly name: string;
  readonly path: string;
  readonly sizeBytes: number;
  readonly sha256: string;
  readonly there: boolean;
}

/**
 * Uploads what is not there yet.
 *
 * @throws {RequestError} `model_invalid` for a directory that is no model, `upload_failed` when the Worker does not take
 * it, `cancelled` when the signal aborts; the same call then goes on.
 */
export async function upload(
  files: ModelFiles,
  directory: string,
  options: UploadOptions,
): Promise<Uploaded[]> {
  const { signal, progress = () => {} } = options;
  await openWeights(files, await readConfig(files));
  const names = (await files.list()).filter((it) => OF_A_MODEL.test(it)).sort((a, b) =>
    Number(a === LAST) - Number(b === LAST)
  );
  const sizes = await Promise.all(names.map(async (it) => (await files.size(it))!));
  const total = sizes.reduce((a, b) => a + b);
  const ask = asking(options);
  let summed = 0;
  const all: File[] = [];
  for (const [i, name] of names.entries()) {
    const path = join(resolve(directory), name);
    const sha256 = await sumOf(path, signal, (bytes) => progress(summed += bytes, total));
    const found = await ask("GET", name);
    const there = found.status === 404
      ? await found.body?.cancel() ?? false
      : (await json(found, name)).sha256 === sha256;
    all.push({ name, path, sizeBytes: sizes[i], sha256, there });
  }
  if (all.some((it) => it.name !== LAST && !it.there)) await json(await ask("DELETE", LAST), LAST);
  let sent = 0;
  const results: Uploaded[] = [];
  for (const file of all) {
    const { name, sizeBytes } = file;
    // Where others changed, it was taken away above.
    const there = file.there && (name !== LAST || all.every((it) => it.there));
    const advance = (bytes: number) => progress(sent += bytes, total);
    const knownBytes = there ? sizeBytes : await sendFile(files, file, ask, options, advance);
    if (there) advance(sizeBytes);
    results.push({ name, sizeBytes, knownBytes });
  }
  return results;
}

/** Brings one file there; gives the bytes that were there already. */
async function sendFile(
  files: ModelFiles,
  file: File,
  ask: Ask,
  { url, name: model }: UploadOptions,
  advance: (bytes: number) => void,
): Promise<number> {
  const { name, sha256, sizeBytes } = file;
  const path = join(file.path, "..", `.${name}.upload`);
  const to = `${url}/${model}/${name}`;
  const found = readNote(path);
  for (let note = found?.url === to && found.sha256 === sha256 ? found : undefined;; note = undefined) {
    const resumed = note !== undefined;
    const partBytes = (partNumber: number) => Math.min(PART_BYTES, sizeBytes - (partNumber - 1) * PART_BYTES);
    note ??= {
      url: to,
      sha256,
      upload: (await json(await ask("POST", name, { sha256 }), name)).upload,
      parts: [],
    };
    const knownBytes = note.parts.reduce((sum, it) => sum + partBytes(it.partNumber), 0);
    advance(knownBytes);
    if (await sendParts(files, file, ask, note, path, advance)) {
      Deno.removeSync(path);
      return knownBytes;
    }
    // The other side has forgotten it: once more, from the beginning.
    const lost = note.parts.reduce((sum, it) => sum + partBytes(it.partNumber), 0);
    advance(-lost);
    if (!resumed) throw failed(`the upload of ${name} to go on`, "one that the Worker does not know");
  }
}

/** Sends the parts that are missing, several at a time, and ends the upload; false when nobody knows of it there. */
async function sendParts(
  files: ModelFiles,
  { name, sizeBytes }: File,
  ask: Ask,
  note: Note,
  path: string,
  advance: (bytes: number) => void,
): Promise<boolean> {
  const query = `?upload=${encodeURIComponent(note.upload)}`;
  const have = new Set(note.parts.map((it) => it.partNumber));
  const missing = Array.from({ length: Math.ceil(sizeBytes / PART_BYTES) }, (_, i) => i + 1)
    .filter((it) => !have.has(it)).values();
  let [gone, over] = [false, false];
  const lanes = Array.from({ length: AT_ONCE }, async () => {
    try {
      for (const partNumber of missing) {
        const start = (partNumber - 1) * PART_BYTES;
        const bytes = await files.read(name, start, Math.min(sizeBytes, start + PART_BYTES));
        const response = await ask("PUT", `${name}${query}&part=${partNumber}`, bytes);
        if (response.status === 404) {
          await response.body?.cancel();
          return gone = over = true;
        }
        note.parts.push({ partNumber, etag: (await json(response, name)).etag });
        writeNote(path, note);
        advance(bytes.length);
        if (over) return;
      }
    } catch (error) {
      over = true; // the others stop after the part that they are at
      throw error;
    }
  });
  const ended = await Promise.allSettled(lanes);
  for (const it of ended) if (it.status === "rejected") throw it.reason;
  if (gone) return false;
  const parts = note.parts.toSorted((a, b) => a.partNumber - b.partNumber);
  const response = await ask("POST", `${name}${query}`, { parts });
  if (response.status === 404) return await response.body?.cancel(), false;
  const { sizeBytes: found } = await json(response, name);
  if (found !== sizeBytes) throw failed(`${sizeBytes} bytes of ${name} to be there`, `${found}`);
  return true;
}

/** Asks for a path below the model's; what passes by itself is tried again. */
type Ask = (method: string, path: string, body?: Uint8Array | object) => Promise<Response>;

function asking({ url, key, name, signal }: UploadOptions): Ask {
  return async (method, path, body) => {
    const target = `${url}${UPLOADS}${encodeURIComponent(name)}/${path}`;
    const init = {
      method,
      body: body instanceof Uint8Array ? body as BodyInit : body && JSON.stringify(body),
      headers: { authorization: `Bearer ${key}` },
      signal,
    };
    for (let attempt = 1;; attempt++) {
      let response: Response | undefined;
      let found = "";
      try {
        response = await fetch(target, init);
        if (response.status !== 429 && response.status < 500 || attempt === ATTEMPTS) return response;
        await response.body?.cancel();
      } catch (cause) {
        found = (cause as Error).message;
      }
      if (signal?.aborted) throw cancelled();
      if (attempt === ATTEMPTS) throw failed(`an answer of ${url}`, found);
      const waitMs = Number(response?.headers.get("retry-after") ?? 0) * 1000 || 250 * 2 ** attempt;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(go, waitMs);
        function go() {
          clearTimeout(timer);
          signal?.removeEventListener("abort", go);
          resolve();
        }
        signal?.addEventListener("abort", go);
      });
      if (signal?.aborted) throw cancelled();
    }
  };
}

/** The body of an answer that says yes. */
// deno-lint-ignore no-explicit-any -- JSON
async function json(response: Response, name: string): Promise<any> {
  const text = await response.text();
  if (!response.ok) {
    const detail = /"detail":"((?:[^"\\]|\\.)*)"/.exec(text)?.[1] ?? text.slice(0, 200);
    throw failed(`${name} to be taken`, `${response.status} ${detail}`);
  }
  try {
    return text && JSON.parse(text);
  } catch {
    throw failed(`an answer of PaliGemma Edge about ${name}`, `${response.status} ${text.slice(0, 80)}`);
  }
}

async function sumOf(path: string, signal: AbortSignal | undefined, read: (bytes: number) => void) {
  const hash = createHash("sha256");
  using file = await Deno.open(path);
  const chunk = new Uint8Array(2 ** 20);
  for (let count; (count = await file.read(chunk)) !== null;) {
    if (signal?.aborted) throw cancelled();
    hash.update(chunk.subarray(0, count));
    read(count);
  }
  return hash.digest("hex");
}

/** What was noted; undefined where there is nothing, or what broke off: then the upload begins anew. */
function readNote(path: string): Note | undefined {
  try {
    return JSON.parse(Deno.readTextFileSync(path));
  } catch {
    return undefined;
  }
}

function writeNote(path: string, note: Note): void {
  Deno.writeTextFileSync(`${path}.new`, JSON.stringify(note));
  Deno.renameSync(`${path}.new`, path);
}

function failed(expected: string, found: string): RequestError {
  return new RequestError("upload_failed", `Cannot upload: expected ${expected}, found ${found}`);
}

function cancelled(): RequestError {
  return new RequestError("cancelled", "Interrupted: the same command goes on where it was");
}
