/**
 * Members of a zip archive by byte range, stored or deflated, with the 64-bit extension (PKWARE APPNOTE 6.3.10, §4.3
 * and §4.5.3). Sizes come from the central directory, so archives written as streams can be read too.
 */

import { type ModelFiles, RequestError } from "../lib/mod.ts";

/** One member. */
export interface ZipMember {
  readonly sizeBytes: number;
  /** Where its data begin in the archive. */
  readonly offset: number;
  /** Bytes [start, end) of the unpacked member. A deflated one is read forward; going back starts it again. */
  read(start: number, end: number): Promise<Uint8Array>;
}

/**
 * The members of an archive by name.
 *
 * @throws {RequestError} `model_invalid` for what is not a whole zip archive, or packed another way.
 */
export async function openZip(files: ModelFiles, name: string): Promise<Map<string, ZipMember>> {
  const fail = (detail: string): never => {
    throw new RequestError("model_invalid", `Cannot read ${name} of ${files.place}: ${detail}`);
  };
  const size = await files.size(name);
  if (size === undefined) {
    return fail(`expected the file, found ${(await files.list()).join(", ") || "nothing"}`);
  }
  const start = await files.read(name, 0, Math.min(4, size));
  if (start[0] !== 0x50 || start[1] !== 0x4b) {
    if (start[0] === 0x80) return fail("it is a pickle, which could run code and is never unpickled");
    return fail("expected a zip archive (.npz), found something else");
  }
  const tail = await view(Math.max(0, size - 65557), size);
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) return fail("the archive's directory at its end is missing: the file is truncated");
  let [count, bytes, at] = [
    tail.getUint16(end + 10, true),
    tail.getUint32(end + 12, true),
    tail.getUint32(end + 16, true),
  ];
  if (end >= 20 && tail.getUint32(end - 20, true) === 0x07064b50) {
    const record = Number(tail.getBigUint64(end - 12, true));
    if (record + 56 > size) return fail("its 64-bit directory lies beyond its end: the file is truncated");
    const long = await view(record, record + 56);
    [count, bytes, at] = [32, 40, 48].map((it) => Number(long.getBigUint64(it, true)));
  }
  if (at + bytes > size) {
    return fail(`its directory ends at ${at + bytes}, the file has ${size} bytes: it is truncated`);
  }
  const directory = await view(at, at + bytes);
  const members = new Map<string, ZipMember>();
  for (let i = 0, p = 0; i < count; i++) {
    if (p + 46 > bytes || directory.getUint32(p, true) !== 0x02014b50) {
      return fail("its directory is damaged");
    }
    const [flags, method] = [directory.getUint16(p + 8, true), directory.getUint16(p + 10, true)];
    let [packed, whole, header] = [p + 20, p + 24, p + 42].map((it) => directory.getUint32(it, true));
    const [nameLength, extraLength, noteLength] = [p + 28, p + 30, p + 32].map((it) =>
      directory.getUint16(it, true)
    );
    const member = new TextDecoder().decode(new Uint8Array(directory.buffer, p + 46, nameLength));
    for (let e = p + 46 + nameLength, stop = e + extraLength; e + 4 <= stop;) {
      let field = e + 4;
      const next = () => Number(directory.getBigUint64((field += 8) - 8, true));
      if (directory.getUint16(e, true) === 1) {
        if (whole === 0xffffffff) whole = next();
        if (packed === 0xffffffff) packed = next();
        if (header === 0xffffffff) header = next();
      }
      e += 4 + directory.getUint16(e + 2, true);
    }
    p += 46 + nameLength + extraLength + noteLength;
    if (flags & 1) return fail(`"${member}" is encrypted`);
    if (method !== 0 && method !== 8) {
      return fail(`"${member}" is packed by method ${method}, expected 0 or 8`);
    }
    if (header + 30 + packed > size) return fail(`"${member}" reaches beyond the end: the file is truncated`);
    const local = await view(header, header + 30);
    const data = header + 30 + local.getUint16(26, true) + local.getUint16(28, true);
    if (data + packed > size) return fail(`"${member}" reaches beyond the end: the file is truncated`);
    const stored = (from: number, to: number) => files.read(name, data + from, data + to);
    members.set(member, {
      sizeBytes: whole,
      offset: data,
      read: method === 0 ? stored : inflated(stored, packed, (detail) => fail(`"${member}": ${detail}`)),
    });
  }
  return members;

  async function view(from: number, to: number): Promise<DataView> {
    return new DataView((await files.read(name, from, to)).slice().buffer);
  }
}

/** A forward reader over a deflated member. */
function inflated(
  read: (start: number, end: number) => Promise<Uint8Array>,
  packedSize: number,
  fail: (detail: string) => never,
): (start: number, end: number) => Promise<Uint8Array> {
  let reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
  let rest = new Uint8Array(0);
  let position = 0;
  const begin = () => {
    let at = 0;
    const source = new ReadableStream<Uint8Array<ArrayBuffer>>({
      async pull(controller) {
        if (at >= packedSize) return controller.close();
        const bytes = await read(at, Math.min(packedSize, at + 2 ** 20));
        at += bytes.length;
        controller.enqueue(bytes as Uint8Array<ArrayBuffer>);
      },
    });
    reader = source.pipeThrough(new DecompressionStream("deflate-raw")).getReader();
    rest = new Uint8Array(0);
    position = 0;
  };
  return async (start, end) => {
    if (!reader || start < position) {
      await reader?.cancel().catch(() => {});
      begin();
    }
    const out = new Uint8Array(end - start);
    while (position < end) {
      if (!rest.length) {
        try {
          const { value, done } = await reader!.read();
          if (done) return fail(`expected ${end} bytes, found ${position}`);
          rest = value as Uint8Array<ArrayBuffer>;
        } catch (cause) {
          if (cause instanceof RequestError) throw cause;
          return fail(`its packed data are damaged: ${(cause as Error).message}`);
        }
      }
      const skip = Math.min(rest.length, Math.max(0, start - position));
      const take = Math.min(rest.length - skip, end - position - skip);
      if (take > 0) out.set(rest.subarray(skip, skip + take), position + skip - start);
      const used = skip + Math.max(0, take);
      position += used;
      rest = rest.subarray(used);
    }
    return out;
  };
}
