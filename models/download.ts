/** One file from a hub to the disk, resumed where an earlier attempt broke off, and checked before it has its name. */

import { createHash, type Hash } from "node:crypto";
import { RequestError } from "../lib/mod.ts";
import { cutShort, type Hub, type RemoteFile, type Source } from "./hub.ts";

/**
 * What a file is called while it is not whole. The checksum is part of the name, so that only the same bytes are ever
 * continued.
 */
export function partPath(path: string, { checksum }: RemoteFile): string {
  return `${path}.${checksum?.split(":")[1].slice(0, 16) ?? "unchecked"}.part`;
}

/**
 * Writes a file to `path`; nothing is there before it is whole, checked and on the disk. What was downloaded stays
 * beside it when this fails, and is continued by the next call. `progress` is told how many more bytes are there, fewer
 * when they had to be dropped.
 *
 * @throws {RequestError} `download_failed`, `storage_failed` or `cancelled`.
 */
export async function download(
  hub: Hub,
  source: Source,
  file: RemoteFile,
  path: string,
  progress: (bytes: number) => void = () => {},
): Promise<void> {
  const { name, sizeBytes, checksum } = file;
  const part = partPath(path, file);
  {
    using out = await writing(part, () => Deno.open(part, { read: true, write: true, create: true }));
    let digest = digestFor(file);
    let [at, furthest] = [0, 0];
    const startAgain = async () => {
      progress(-at);
      at = 0;
      digest = digestFor(file);
      await writing(part, () => out.truncate(0));
      await writing(part, () => out.seek(0, Deno.SeekMode.Start));
    };
    const there = (await out.stat()).size;
    if (checksum === undefined || there > sizeBytes) await startAgain();
    else if (there) {
      for await (const bytes of chunks(out)) digest?.update(bytes);
      progress(at = furthest = there);
    }
    const fetchRest = async () => {
      let etag: string | undefined;
      await hub.patiently(async () => {
        if (at === sizeBytes) return; // whole, or empty
        const body = await hub.open(source, file, at, etag);
        if (body.start !== at) await startAgain();
        etag = body.etag;
        for await (const bytes of body.bytes) {
          if (at + bytes.length > sizeBytes) throw wrong(name, `${sizeBytes} bytes`, "more");
          for (let from = 0; from < bytes.length;) {
            from += await writing(part, () => out.write(bytes.subarray(from)));
          }
          digest?.update(bytes);
          at += bytes.length;
          furthest = Math.max(furthest, at);
          progress(bytes.length);
        }
        if (at < sizeBytes) throw cutShort(name, at, sizeBytes);
      }, () => furthest);
    };
    const resumed = at > 0;
    await fetchRest();
    if (resumed && checksum !== described(file, digest)) {
      await startAgain(); // what an earlier run left was damaged
      await fetchRest();
    }
    const found = described(file, digest);
    if (found !== checksum) {
      await startAgain();
      throw wrong(name, checksum!, found!);
    }
    await writing(part, () => out.sync());
  }
  await writing(path, () => Deno.rename(part, path));
}

/**
 * The checksum of a file on disk, of the kind that `file` has; undefined where it has none. `onRead` is told the bytes
 * of every piece.
 */
export async function checksumOf(
  path: string,
  file: Pick<RemoteFile, "checksum" | "sizeBytes">,
  onRead: (bytes: number) => void = () => {},
): Promise<string | undefined> {
  const digest = digestFor(file);
  if (!digest) return undefined;
  using opened = await Deno.open(path);
  for await (const bytes of chunks(opened)) {
    digest.update(bytes);
    onRead(bytes.length);
  }
  return described(file, digest);
}

/** Failures of the file system, a full disk first of all, as a sentence. */
export async function writing<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (cause) {
    throw new RequestError("storage_failed", `Cannot write ${path}: ${(cause as Error).message}`, { cause });
  }
}

function digestFor({ checksum, sizeBytes }: Pick<RemoteFile, "checksum" | "sizeBytes">): Hash | undefined {
  if (checksum === undefined) return undefined;
  if (checksum.startsWith("sha256:")) return createHash("sha256");
  return createHash("sha1").update(`blob ${sizeBytes}\0`); // as git names what it stores
}

function described({ checksum }: Pick<RemoteFile, "checksum">, digest: Hash | undefined): string | undefined {
  return digest && `${checksum!.split(":")[0]}:${digest.copy().digest("hex")}`;
}

async function* chunks(file: Deno.FsFile): AsyncGenerator<Uint8Array> {
  const buffer = new Uint8Array(2 ** 20);
  for (let count; (count = await file.read(buffer)) !== null;) yield buffer.subarray(0, count);
}

function wrong(name: string, expected: string, found: string): RequestError {
  return new RequestError(
    "download_failed",
    `Cannot download ${name}: expected ${expected}, found ${found}; nothing of it is kept`,
  );
}
