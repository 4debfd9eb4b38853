/** Blobs as files: one each, below one directory, by the words of its key. */

import { dirname, join, relative } from "@std/path";
import { RequestError } from "../errors.ts";
import { type BlobInfo, type Blobs, checkKey } from "./store.ts";

/** What is being written has this at its end, and a key cannot (it would need a `~`). */
const UNFINISHED = "~";

/**
 * Blobs below a directory, which is made when the first is put.
 *
 * A blob is written under another name, brought to the disk, and renamed: whatever happens, a reader finds the old one or
 * the new one. Directories end in `.d` where files do not, so that `a` and `a/b` can both be.
 */
export function createFileBlobs(directory: string): Blobs {
  function path(key: string): string {
    checkKey(key);
    const words = key.split("/");
    return join(directory, ...words.slice(0, -1).map((it) => `${it}.d`), `${words.at(-1)}.blob`);
  }

  /** Removes directories that are left empty, from `at` upwards. */
  async function prune(at: string): Promise<void> {
    for (let it = at; it.length > directory.length; it = dirname(it)) {
      if (!await Deno.remove(it).then(() => true, () => false)) return;
    }
  }

  async function write(place: string, bytes: Uint8Array): Promise<void> {
    const unfinished = `${place}.${crypto.randomUUID()}${UNFINISHED}`;
    await Deno.mkdir(dirname(place), { recursive: true });
    try {
      {
        using file = await Deno.open(unfinished, { write: true, createNew: true });
        for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
        await file.sync();
      }
      await Deno.rename(unfinished, place);
    } catch (error) {
      await Deno.remove(unfinished).catch(() => {});
      await prune(dirname(place));
      throw error;
    }
  }

  async function* walk(at: string): AsyncGenerator<BlobInfo> {
    for await (const { name, isDirectory } of Deno.readDir(at)) {
      const full = join(at, name);
      if (isDirectory) yield* quietly(walk(full));
      else if (name.endsWith(".blob")) {
        const info = await Deno.stat(full).catch(missing);
        const key = relative(directory, full).replaceAll("\\", "/").replaceAll(".d/", "/").slice(
          0,
          -".blob".length,
        );
        if (info) yield { key, sizeBytes: info.size, writtenAt: info.mtime?.getTime() ?? 0 };
      } else if (name.endsWith(UNFINISHED)) await sweep(full);
    }
  }

  return {
    async get(key) {
      return await Deno.readFile(path(key)).catch(missing);
    },
    async put(key, bytes) {
      const place = path(key);
      try {
        // Between making a directory and writing into it, somebody may find it empty and remove it.
        let left = 20;
        const again = (error: unknown): Promise<void> => {
          const { NotFound, AlreadyExists } = Deno.errors;
          if (!(error instanceof NotFound || error instanceof AlreadyExists) || left-- === 0) throw error;
          return write(place, bytes).catch(again);
        };
        await write(place, bytes).catch(again);
      } catch (cause) {
        throw new RequestError(
          "storage_failed",
          `Cannot store ${bytes.length} bytes in ${directory}: ${(cause as Error).message}`,
          { cause },
        );
      }
    },
    async delete(key) {
      const place = path(key);
      await Deno.remove(place).catch(missing);
      await prune(dirname(place));
    },
    async *list(prefix) {
      // A prefix may end within a word: only the words before it name a directory.
      const words = prefix.split("/").slice(0, -1).map((it) => `${it}.d`);
      for await (const blob of quietly(walk(join(directory, ...words)))) {
        if (blob.key.startsWith(prefix)) yield blob;
      }
    },
  };
}

/** Passes on what a walk finds; a directory that is not there, or no longer, holds nothing. */
async function* quietly(found: AsyncGenerator<BlobInfo>): AsyncGenerator<BlobInfo> {
  try {
    yield* found;
  } catch (error) {
    missing(error);
  }
}

/** What a process left behind that was killed while it wrote; younger than an hour, it may still be written. */
async function sweep(unfinished: string): Promise<void> {
  const info = await Deno.stat(unfinished).catch(missing);
  if (info?.mtime && Date.now() - info.mtime.getTime() > 3_600_000) {
    await Deno.remove(unfinished).catch(missing);
  }
}

function missing(error: unknown): undefined {
  if (error instanceof Deno.errors.NotFound) return undefined;
  throw error;
}
