/** A model from a hub becomes a directory: what to take, in parallel, resumed, and never half of it taken for whole. */

import { statfs } from "node:fs/promises";
import { join } from "@std/path";
import { type ModelFiles, RequestError } from "../lib/mod.ts";
import { checksumOf, download, partPath, writing } from "./download.ts";
import { cancelled, failed, Hub, type HubOptions, type RemoteFile, type Source } from "./hub.ts";

/** Where a directory came from: written when the first byte is, so that it can be resumed, and kept for `verify`. */
export interface PullRecord {
  readonly repo: string;
  /** Branch or tag as it was asked for. */
  readonly revision: string;
  /** The commit it stood for, to which all files belong; absent where the hub told none. */
  readonly commit?: string;
  readonly files: readonly Pick<RemoteFile, "name" | "sizeBytes" | "checksum">[];
}

/** Name of the record in the directory. */
export const RECORD = "pull.json";
/** Held, in the sense of flock, by the process that pulls. */
const LOCK = ".pull.lock";

/** Files downloaded at the same time. */
const LANES = 4;

const INDEX = "model.safetensors.index.json";
/** What this program reads beside weights, as far as a repository has it. */
const SMALL = [
  "config.json",
  "preprocessor_config.json",
  "generation_config.json",
  "tokenizer.model",
  "tokenizer.json",
];
/** Weights of which a repository has one kind, in the order they are looked for. */
const WEIGHTS = ["model.safetensors", INDEX, "adapter_model.safetensors"];

/** How to pull. */
export interface PullOptions extends HubOptions {
  /** Called with the bytes that are there and the bytes in all. */
  readonly progress?: (done: number, total: number) => void;
}

/**
 * Downloads the files of a repository that this program reads into the directory `out`. A file has its name only when
 * it is whole and its checksum is right; a call after a failure goes on where the last one stopped, at the same commit.
 *
 * @throws {RequestError} `download_failed`, `storage_failed`, `cancelled`; `parameter_invalid` for a directory that
 * holds something else.
 */
export async function pull(source: Source, out: string, options: PullOptions): Promise<PullRecord> {
  await writing(out, () => Deno.mkdir(out, { recursive: true }));
  using lock = await writing(out, () => Deno.open(join(out, LOCK), { write: true, create: true }));
  if (!await lock.tryLock(true)) {
    throw new RequestError("storage_failed", `Cannot write ${out}: another process is pulling into it`);
  }
  const earlier = await readRecord(out);
  if (!earlier) await checkEmpty(out);
  if (earlier && (earlier.repo !== source.repo || earlier.revision !== source.revision)) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot pull ${source.repo} at ${source.revision} into ${out}: it holds ${earlier.repo} at ` +
        `${earlier.revision}; choose another --out`,
    );
  }
  const stop = new AbortController(); // one file that fails stops the others
  const signal = AbortSignal.any([stop.signal, ...options.signal ? [options.signal] : []]);
  const hub = new Hub({ ...options, signal });
  const at = { ...source, revision: earlier?.commit ?? source.revision };
  const { files, pinned, commit } = await choose(hub, at, out).catch((error) => {
    stop.abort(error);
    throw error;
  });
  const record: PullRecord = { ...source, commit, files: files.map(({ commit: _, ...it }) => it) };
  checkSame(earlier, record, out);
  await writeWhole(join(out, RECORD), JSON.stringify(record, undefined, 1));

  const total = files.reduce((sum, it) => sum + it.sizeBytes, 0);
  const missing: RemoteFile[] = [];
  let done = 0;
  const advance = (bytes: number) => {
    done += bytes;
    options.progress?.(done, total);
  };
  for (const file of files) {
    if (await isWhole(join(out, file.name), file, signal)) advance(file.sizeBytes);
    else missing.push(file);
  }
  await checkSpace(out, missing);
  const queue = missing.toSorted((a, b) => b.sizeBytes - a.sizeBytes);
  const lane = async () => {
    for (let file; (file = queue.shift());) await download(hub, pinned, file, join(out, file.name), advance);
  };
  const lanes = Array.from({ length: LANES }, () =>
    lane().catch((error) => {
      queue.length = 0;
      if (!signal.aborted) stop.abort(error);
      throw error;
    }));
  const settled = await Promise.allSettled(lanes);
  if (stop.signal.aborted) throw stop.signal.reason;
  const broken = settled.find((it) => it.status === "rejected");
  if (broken) throw broken.reason;
  return record;
}

/** The record of a directory, where it has one that can be read. */
export async function readRecord(directory: string): Promise<PullRecord | undefined> {
  try {
    const record = JSON.parse(await Deno.readTextFile(join(directory, RECORD)));
    return typeof record?.repo === "string" && Array.isArray(record.files) ? record : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Holds a directory's files to its record: sizes, and checksums where the hub named them.
 *
 * @throws {RequestError} `model_invalid` naming the first file that differs; `cancelled`.
 */
export async function verifyRecord(
  files: ModelFiles,
  record: PullRecord,
  { progress, signal }: Pick<PullOptions, "progress" | "signal"> = {},
): Promise<void> {
  const total = record.files.reduce((sum, it) => sum + it.sizeBytes, 0);
  let done = 0;
  for (const file of record.files) {
    const size = await files.size(file.name);
    if (size !== file.sizeBytes) {
      const found = size === undefined ? "no such file" : `${size}`;
      invalid(files.place, file.name, `${file.sizeBytes} bytes`, found);
    }
    const found = await checksumOf(join(files.place, file.name), file, (bytes) => {
      if (signal?.aborted) throw new RequestError("cancelled", "Verification stopped");
      progress?.(done += bytes, total);
    });
    if (found !== file.checksum) invalid(files.place, file.name, file.checksum!, found!);
  }
}

/** What to take of a repository, looked up at one commit. */
async function choose(hub: Hub, source: Source, out: string) {
  const list = await hub.list(source);
  let pinned = { ...source, revision: list?.commit ?? source.revision };
  const look = async (names: readonly string[]) => {
    const chosen = list ? names.filter((it) => list.names.includes(it)) : names;
    return (await Promise.all(chosen.map((it) => hub.look(pinned, it)))).filter((it) => it !== undefined);
  };
  const files: RemoteFile[] = [];
  // Where there are no lists, the first answer tells the commit.
  files.push(...await look(["config.json"]));
  const commit = list?.commit ?? files[0]?.commit;
  pinned = { ...source, revision: commit ?? source.revision };
  files.push(...await look(SMALL.slice(1)));
  if (files.some((it) => it.name === "tokenizer.model")) {
    const twin = files.findIndex((it) => it.name === "tokenizer.json"); // up to 35 MB that nobody reads
    if (twin >= 0) files.splice(twin, 1);
  }
  files.push(...await look(["mask_decoder.safetensors"]));
  const [weights] = await look(WEIGHTS);
  if (weights) files.push(weights);
  if (weights?.name === "adapter_model.safetensors") files.push(...await look(["adapter_config.json"]));
  if (weights?.name === INDEX) {
    const path = join(out, INDEX);
    if (!await isWhole(path, weights)) await download(hub, pinned, weights, path);
    const shards = shardNames(await Deno.readTextFile(path));
    const found = await look(shards);
    const lost = shards.find((it) => !found.some(({ name }) => name === it));
    if (lost) throw failed(source, `its index names ${lost}, which it does not have`);
    files.push(...found);
  }
  if (!weights && list) files.push(...await look(list.names.filter((it) => /^[^/]+\.npz$/.test(it))));
  if (!files.some((it) => /\.(safetensors|npz)$/.test(it.name))) {
    const found = list?.names.slice(0, 20).join(", ") ?? "none of them";
    throw failed(source, `expected safetensors, an adapter or an .npz in it, found ${found || "nothing"}`);
  }
  return { files, pinned, commit };

  function shardNames(text: string): string[] {
    let map: unknown;
    try {
      map = JSON.parse(text).weight_map;
    } catch {
      // told below
    }
    const names = [...new Set(Object.values(Object(map)))];
    // A name from outside becomes a path: nothing but a plain file name will do.
    if (
      !names.length || !names.every((it) => typeof it === "string" && /^[\w-][\w.-]*\.safetensors$/.test(it))
    ) {
      throw failed(
        source,
        `expected a weight_map to names of safetensors in ${INDEX}, found ${text.slice(0, 80)}`,
      );
    }
    return names as string[];
  }
}

/** A model that came from elsewhere is not to be written over. */
async function checkEmpty(out: string): Promise<void> {
  const names = (await Array.fromAsync(Deno.readDir(out))).map((it) => it.name);
  const found = names.find((it) => it === "config.json" || /\.(safetensors|npz)$/.test(it));
  if (!found) return;
  throw new RequestError(
    "parameter_invalid",
    `Cannot pull into ${out}: expected no model or one that was pulled, found ${found}; choose another --out`,
  );
}

/** Files of two states of a repository must not come to lie side by side. */
function checkSame(earlier: PullRecord | undefined, record: PullRecord, out: string): void {
  for (const { name, checksum } of record.files) {
    const before = earlier?.files.find((it) => it.name === name);
    if (!before || before.checksum === checksum) continue;
    throw new RequestError(
      "download_failed",
      `Cannot go on in ${out}: ${name} changed at the hub since; choose another --out, or delete it`,
    );
  }
}

async function isWhole(path: string, file: RemoteFile, signal?: AbortSignal): Promise<boolean> {
  const size = await Deno.stat(path).then((it) => it.size, () => undefined);
  // Without a checksum, a file of the right size has its name because it was whole.
  return size === file.sizeBytes && await checksumOf(path, file, () => {
        if (signal?.aborted) throw cancelled();
      }) === file.checksum;
}

/** @throws {RequestError} `storage_failed` before anything is downloaded, where the system tells what is free. */
async function checkSpace(out: string, missing: readonly RemoteFile[]): Promise<void> {
  const free = await statfs(out).then(({ bavail, bsize }) => bavail * bsize, () => Infinity);
  let needed = 0;
  for (const file of missing) {
    const there = await Deno.stat(partPath(join(out, file.name), file)).then((it) => it.size, () => 0);
    needed += Math.max(0, file.sizeBytes - there);
  }
  if (needed <= free) return;
  const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(2)} GB`;
  throw new RequestError(
    "storage_failed",
    `Cannot write ${out}: ${gigabytes(needed)} are still to come, ${gigabytes(free)} are free`,
  );
}

async function writeWhole(path: string, text: string): Promise<void> {
  await writing(path, async () => {
    {
      using file = await Deno.open(`${path}.part`, { write: true, create: true, truncate: true });
      const bytes = new TextEncoder().encode(text);
      for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
      await file.sync();
    }
    await Deno.rename(`${path}.part`, path);
  });
}

function invalid(place: string, name: string, expected: string, found: string): never {
  throw new RequestError(
    "model_invalid",
    `Cannot trust ${name} of ${place}: expected ${expected}, found ${found}`,
  );
}
