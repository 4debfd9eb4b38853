/**
 * safetensors, read by byte range: one file or many with an index.
 *
 * Format: https://github.com/huggingface/safetensors (README, "Format"): 8 bytes little-endian header length N,
 * N bytes of JSON, then the data; offsets count from the end of the header.
 */

import { RequestError } from "../errors.ts";
import type { ModelFiles } from "../types.ts";

/** Bytes per element of the types that occur in checkpoints. */
const ELEMENT_BYTES: Readonly<Record<string, number>> = { F64: 8, F32: 4, F16: 2, BF16: 2, I8: 1, U8: 1 };

const MAX_HEADER_BYTES = 100_000_000;

/** Where one tensor lies. */
export interface TensorInfo {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly file: string;
  /** Byte range in the file. */
  readonly start: number;
  readonly end: number;
}

/** The tensors of a model directory, by name. */
export interface TensorFiles {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** `__metadata__` of all files together. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The bytes of a tensor as they lie in the file. */
  bytes(name: string): Promise<Uint8Array>;
  /** A tensor as f32, whatever float type it is stored in. */
  f32(name: string): Promise<Float32Array>;
  /**
   * The same tensors, those named read already, in as few reads as their places in the files allow. With a `room` they
   * lie there, and what was gathered into it before is lost.
   */
  gather(names: readonly string[], room?: Room): Promise<TensorFiles>;
}

/** Memory that reads use again and again; it grows to the largest of them. */
export interface Room {
  bytes: Uint8Array;
}

/**
 * Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
 *
 * @throws {RequestError} `model_invalid` when a shard is missing or truncated, or a header does not fit its file.
 */
export async function openTensors(files: ModelFiles): Promise<TensorFiles> {
  const tensors = new Map<string, TensorInfo>();
  const metadata: Record<string, string> = {};
  for (const file of await shards(files)) {
    const { entries, meta } = await header(files, file);
    Object.assign(metadata, meta);
    for (const [name, info] of entries) {
      const twin = tensors.get(name);
      if (twin) invalid(files, `tensor "${name}" stands in both ${twin.file} and ${file}`);
      tensors.set(name, info);
    }
  }
  return new Tensors(files, tensors, metadata, new Map());
}

class Tensors implements TensorFiles {
  constructor(
    private readonly files: ModelFiles,
    readonly tensors: ReadonlyMap<string, TensorInfo>,
    readonly metadata: Readonly<Record<string, string>>,
    private readonly gathered: ReadonlyMap<string, Uint8Array>,
  ) {}

  #info(name: string): TensorInfo {
    return this.tensors.get(name) ??
      invalid(this.files, `expected tensor "${name}", found none of that name`);
  }

  async bytes(name: string): Promise<Uint8Array> {
    const { file, start, end } = this.#info(name);
    return this.gathered.get(name) ?? await this.files.read(file, start, end);
  }

  async f32(name: string): Promise<Float32Array> {
    try {
      return toFloat32(this.#info(name).dtype, await this.bytes(name));
    } catch (cause) {
      if (!(cause instanceof TypeError)) throw cause;
      invalid(this.files, `tensor "${name}": ${cause.message}`);
    }
  }

  async gather(names: readonly string[], room?: Room): Promise<TensorFiles> {
    const infos = names.map((name) => ({ name, ...this.#info(name) }));
    infos.sort((a, b) => a.file < b.file ? -1 : a.file > b.file ? 1 : a.start - b.start);
    const runs: (typeof infos)[] = [];
    for (const info of infos) {
      const last = runs.at(-1)?.at(-1);
      if (last?.file === info.file && last.end === info.start) runs.at(-1)!.push(info);
      else runs.push([info]);
    }
    const gathered = new Map<string, Uint8Array>();
    const sizes = runs.map((run) => run.at(-1)!.end - run[0].start);
    // Each run begins at a multiple of 64, as tensors do in a file made by this project.
    const places = sizes.reduce((at, size) => [...at, Math.ceil((at.at(-1)! + size) / 64) * 64], [0]);
    if (room && room.bytes.length < places.at(-1)!) room.bytes = new Uint8Array(places.at(-1)!);
    await Promise.all(runs.map(async (run, i) => {
      const { file, start } = run[0];
      const into = room?.bytes.subarray(places[i], places[i] + sizes[i]);
      const bytes = await this.files.read(file, start, start + sizes[i], into);
      for (const it of run) gathered.set(it.name, bytes.subarray(it.start - start, it.end - start));
    }));
    return new Tensors(this.files, this.tensors, this.metadata, gathered);
  }
}

/** One tensor to be written. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly sizeBytes: number;
}

/**
 * The bytes before the data of a safetensors file whose tensors follow in the order given, without gaps. The header
 * is padded with spaces, as the format allows, so that the data starts at a multiple of 64.
 */
export function encodeHeader(entries: readonly TensorEntry[], metadata: Record<string, string>): Uint8Array {
  const json: Record<string, unknown> = { __metadata__: metadata };
  let at = 0;
  for (const { name, dtype, shape, sizeBytes } of entries) {
    json[name] = { dtype, shape, data_offsets: [at, at += sizeBytes] };
  }
  const text = new TextEncoder().encode(JSON.stringify(json));
  const bytes = new Uint8Array(Math.ceil((8 + text.length) / 64) * 64).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(bytes.length - 8), true);
  bytes.set(text, 8);
  return bytes;
}

/**
 * Little-endian floats of a safetensors type as f32. Exact for F32, F16 and BF16.
 *
 * @example
 * ```ts
 * import { toFloat32 } from "./safetensors.ts";
 * console.assert(toFloat32("BF16", new Uint8Array([0x80, 0x3f]))[0] === 1);
 * ```
 */
export function toFloat32(dtype: string, bytes: Uint8Array): Float32Array {
  const aligned = bytes.byteOffset % 8 ? bytes.slice() : bytes;
  const { buffer, byteOffset, byteLength } = aligned;
  switch (dtype) {
    case "F32":
      return new Float32Array(buffer as ArrayBuffer, byteOffset, byteLength / 4);
    case "F64":
      return Float32Array.from(new Float64Array(buffer as ArrayBuffer, byteOffset, byteLength / 8));
    case "BF16": {
      const halves = new Uint16Array(buffer as ArrayBuffer, byteOffset, byteLength / 2);
      const out = new Uint32Array(halves.length);
      for (let i = 0; i < halves.length; i++) out[i] = halves[i] << 16;
      return new Float32Array(out.buffer);
    }
    case "F16":
      return Float32Array.from(new Float16Array(buffer as ArrayBuffer, byteOffset, byteLength / 2));
    default:
      throw new TypeError(`expected one of F32, F16, BF16, F64, found ${dtype}`);
  }
}

async function shards(files: ModelFiles): Promise<string[]> {
  const index = "model.safetensors.index.json";
  if (await files.size("model.safetensors") !== undefined) return ["model.safetensors"];
  if (await files.size(index) === undefined) {
    invalid(
      files,
      `expected model.safetensors or ${index}, found ${(await files.list()).join(", ") || "nothing"}`,
    );
  }
  const map = parseJson(files, index, await files.read(index)).weight_map;
  if (typeof map !== "object" || map === null) invalid(files, `${index}: expected a weight_map, found none`);
  const names = [...new Set(Object.values(map as Record<string, string>))].sort();
  for (const name of names) {
    if (await files.size(name) !== undefined) continue;
    const first = Object.entries(map).find(([, file]) => file === name)?.[0];
    invalid(files, `shard ${name} is missing; ${index} says it holds tensor "${first}"`);
  }
  return names;
}

async function header(files: ModelFiles, file: string) {
  const size = (await files.size(file))!;
  if (size < 8) invalid(files, `${file}: expected at least 8 bytes, found ${size}`);
  const length = Number(new DataView((await files.read(file, 0, 8)).slice().buffer).getBigUint64(0, true));
  if (length > MAX_HEADER_BYTES || 8 + length > size) {
    invalid(files, `${file}: its header says it takes ${length} bytes, the file has ${size}`);
  }
  const json = parseJson(files, file, await files.read(file, 8, 8 + length));
  const entries: [string, TensorInfo][] = [];
  for (const [name, value] of Object.entries(json)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>;
    const plausible = typeof dtype === "string" && Array.isArray(shape) && Array.isArray(offsets) &&
      [...shape, ...offsets].every((it) => Number.isSafeInteger(it) && it >= 0);
    if (!plausible) invalid(files, `${file}: the header's entry of tensor "${name}" cannot be read`);
    const [start, end] = offsets.map((it: number) => it + 8 + length);
    const element = ELEMENT_BYTES[dtype];
    const bytes = element && shape.reduce((product: number, it: number) => product * it, element);
    if (element && bytes !== end - start) {
      invalid(
        files,
        `tensor "${name}" in ${file}: ${dtype} [${shape}] takes ${bytes} bytes, found ${end - start}`,
      );
    }
    if (end > size) {
      invalid(files, `tensor "${name}" in ${file}: expected bytes up to ${end}, the file ends at ${size}`);
    }
    entries.push([name, { dtype, shape, file, start, end }]);
  }
  return { entries, meta: (json.__metadata__ ?? {}) as Record<string, string> };
}

/** JSON of a model file, which must be an object. */
export function parseJson(files: ModelFiles, name: string, bytes: Uint8Array): Record<string, unknown> {
  try {
    const value = JSON.parse(new TextDecoder().decode(bytes));
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
  } catch (cause) {
    throw new RequestError(
      "model_invalid",
      `Cannot read ${name} of ${files.place}: ${(cause as Error).message}`,
      {
        cause,
      },
    );
  }
  invalid(files, `${name}: expected a JSON object`);
}

function invalid(files: ModelFiles, detail: string): never {
  throw new RequestError("model_invalid", `Cannot load the model in ${files.place}: ${detail}`);
}
