/** Model directories in R2: read by ranges, and written in parts, of which nothing is seen before the last one is there. */

import { RequestError } from "../errors.ts";
import type { ModelFiles } from "../types.ts";

/** What R2 tells of a file, as far as it is used. */
export interface ModelObject {
  readonly key: string;
  readonly size: number;
  /** Another one for every content. */
  readonly etag: string;
  readonly customMetadata?: Readonly<Record<string, string>>;
}

/** A file on its way. */
export interface ModelUpload {
  readonly uploadId: string;
  uploadPart(part: number, bytes: ReadableStream<Uint8Array>): Promise<{ readonly etag: string }>;
  complete(parts: readonly { partNumber: number; etag: string }[]): Promise<ModelObject>;
}

/** An R2 bucket, as far as models use it. Files are `NAME/FILE`. */
export interface ModelBucket {
  head(key: string): Promise<ModelObject | null>;
  /** Without a body where the condition does not hold. */
  get(key: string, options: {
    readonly range: { readonly offset: number; readonly length: number };
    readonly onlyIf: { readonly etagMatches: string };
  }): Promise<{ readonly body?: ReadableStream<Uint8Array<ArrayBuffer>> } | null>;
  list(options: { readonly prefix: string }): Promise<{ readonly objects: readonly ModelObject[] }>;
  delete(key: string): Promise<void>;
  createMultipartUpload(
    key: string,
    options: { readonly customMetadata: Readonly<Record<string, string>> },
  ): Promise<ModelUpload>;
  resumeMultipartUpload(key: string, uploadId: string): ModelUpload;
}

/** What lies between R2 and the memory that is read into. */
const SCRATCH_BYTES = 256 * 1024;

/** R2 fails now and then, and asks to be asked again. */
const ATTEMPTS = 3;

/** Who is told what. */
export interface R2Told {
  /** A file is no longer the one that it was, which also is an error of the read. */
  changed?(): void;
  /** So much was read, while nothing else was or beside other reads, which then took no time of their own. */
  read?(bytes: number, ms: number): void;
}

/** The files of one model, as they are when they are first asked for. */
export function createR2Files(bucket: ModelBucket, name: string, told: R2Told = {}): ModelFiles {
  const place = `${name} in R2`;
  let [under, since] = [0, 0];
  let listed: Promise<ReadonlyMap<string, ModelObject>> | undefined;
  const list = () =>
    listed ??= again(`list ${place}`, async () => {
      const { objects } = await bucket.list({ prefix: `${name}/` });
      return new Map(objects.map((it) => [it.key.slice(name.length + 1), it]));
    });
  return {
    place,
    list: async () => [...(await list()).keys()].sort(),
    size: async (file) => (await list()).get(file)?.size,
    async read(file, start = 0, end, room) {
      const known = (await list()).get(file);
      const length = (end ?? known?.size ?? 0) - start;
      const bytes = room?.subarray(0, length) ?? new Uint8Array(length);
      if (known && length === 0) return bytes; // R2 has no empty ranges
      if (under++ === 0) since = performance.now();
      return await again(`read ${file} of ${place}`, async () => {
        const found = known && await bucket.get(known.key, {
          range: { offset: start, length },
          onlyIf: { etagMatches: known.etag },
        });
        if (!found?.body) {
          told.changed?.();
          throw invalid(file, known ? "the file that was there" : "a file of that name", "another or none");
        }
        const count = await fill(bytes, found.body);
        if (count < length) throw invalid(file, `${length} bytes from ${start}`, `${count}`);
        return bytes;
      }).finally(() => {
        const now = performance.now();
        told.read?.(length, --under ? 0 : now - since);
      });
    },
  };

  function invalid(file: string, expected: string, found: string): RequestError {
    return new RequestError(
      "model_invalid",
      `Cannot read ${file} of ${place}: expected ${expected}, found ${found}`,
    );
  }
}

/** Reads a stream into `bytes` through memory that is used over and over: nothing is left to be collected. */
async function fill(bytes: Uint8Array, body: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<number> {
  const reader = body.getReader({ mode: "byob" });
  let scratch = new Uint8Array(Math.min(SCRATCH_BYTES, bytes.length));
  for (let at = 0;;) {
    const { done, value } = await reader.read(scratch, {
      min: Math.max(1, Math.min(scratch.length, bytes.length - at)),
    });
    if (value) {
      bytes.set(value, at);
      at += value.length;
      scratch = new Uint8Array(value.buffer);
    }
    if (done) return at;
  }
}

/** @throws {RequestError} `storage_failed` when nothing comes of it, again and again. */
async function again<T>(action: string, work: () => Promise<T>): Promise<T> {
  for (let attempt = 1;; attempt++) {
    try {
      return await work();
    } catch (cause) {
      if (cause instanceof RequestError) throw cause;
      if (attempt < ATTEMPTS) continue;
      throw new RequestError("storage_failed", `Cannot ${action}: ${(cause as Error).message}`, { cause });
    }
  }
}
