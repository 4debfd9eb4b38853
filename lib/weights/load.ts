/**
 * The weights of one model as the backend takes them: every tensor of the table found, its shape checked before
 * anything is read, and each matrix brought to the format asked for.
 *
 * A quantised tensor `x` lies in the file as `x.q` (packed bytes) and `x.scale` (F32, one per output column). Which
 * scheme `q` is packed in stands in the file's metadata, one entry for each of `vision`, `embedding`, `decoder`.
 */

import type { Backend, Scheme, StoredMatrix } from "../backend/backend.ts";
import { RequestError } from "../errors.ts";
import type { ModelFiles, WeightFormat } from "../types.ts";
import type { ModelConfig } from "./config.ts";
import { checkScheme, dequantize, packedBytes, quantizeInt4, quantizeInt8 } from "./quantize.ts";
import { openTensors, type Room, type TensorEntry, type TensorFiles } from "./safetensors.ts";
import { canonicalName, EMBEDDING, tensorTable } from "./table.ts";
import type { TensorSpec } from "./table.ts";

/** The part of a model that one metadata entry gives a scheme to. */
export type WeightPart = "vision" | "embedding" | "decoder";

/** Weights by their published name. */
export interface Weights {
  readonly config: ModelConfig;
  /** A norm weight, bias or position table, row-major f32. */
  vector(name: string): Promise<Float32Array>;
  /** A matrix [N, K], trailing axes flattened into K, in the format of the whole or in the scheme asked for. */
  matrix(name: string, scheme?: Scheme): Promise<StoredMatrix>;
  /** Bytes of all matrices and vectors as the backend will hold them. */
  readonly sizeBytes: number;
  /**
   * The same weights, those named read already, in as few reads as their places in the files allow. With a `room` they
   * lie there, and what was gathered into it before is lost.
   */
  gather(names: readonly string[], room?: Room): Promise<Weights>;
}

/** Which part of the model a tensor belongs to, for its scheme. */
export function weightPart(spec: TensorSpec): WeightPart {
  return spec.name === EMBEDDING ? "embedding" : spec.part;
}

/**
 * The scheme of a tensor in a format: what the format asks for, as far as the tensor allows.
 *
 * `int8` makes every matrix int8; `int4` goes down to int4 in the decoder and keeps vision and embedding int8.
 */
export function schemeFor(spec: TensorSpec, format: Exclude<WeightFormat, "as-stored">): Scheme {
  if (format === "f32" || spec.lowest === "f32") return "f32";
  return format === "int4" && spec.lowest === "int4" ? "int4-g32-p8" : "int8-p8-s4";
}

/** Where one tensor of the table lies: its name in the file and, when it is quantised, its scheme. */
interface Located {
  readonly spec: TensorSpec;
  readonly scheme: Scheme;
  /** The plain tensor, or the packed bytes. */
  readonly data: string;
  /** Scales of the packed columns. */
  readonly scale?: string;
}

/**
 * Opens the weights in a model directory.
 *
 * @param format `as-stored` keeps quantised tensors quantised and reads every float type as f32.
 * @throws {RequestError} `model_invalid`, naming the tensor, what was expected and what was found.
 */
export async function openWeights(
  files: ModelFiles,
  config: ModelConfig,
  format: WeightFormat = "as-stored",
): Promise<Weights> {
  const stored = await openTensors(files);
  return new StoredWeights(config, format, stored, locate(stored, config, files.place));
}

/**
 * Refuses weights that a backend has no room for, before any are read.
 *
 * @throws {RequestError} `model_too_large`, with needed and available bytes.
 */
export function checkRoom({ sizeBytes }: Weights, { name, availableBytes }: Backend, place: string): void {
  if (sizeBytes <= availableBytes) return;
  const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(2)} GB`;
  throw new RequestError(
    "model_too_large",
    `Cannot load the model in ${place}: its weights take ${gigabytes(sizeBytes)}, ` +
      `the ${name} backend has ${gigabytes(availableBytes)}; int4 weights would be smaller`,
  );
}

class StoredWeights implements Weights {
  constructor(
    readonly config: ModelConfig,
    private readonly format: WeightFormat,
    private readonly stored: TensorFiles,
    private readonly places: ReadonlyMap<string, Located>,
  ) {}

  get sizeBytes(): number {
    return this.places.values().reduce(
      (sum, it) => sum + packedBytes(this.#scheme(it), it.spec.shape[0], width(it.spec)),
      0,
    );
  }

  #scheme({ spec, scheme }: Located): Scheme {
    return this.format === "as-stored" ? scheme : schemeFor(spec, this.format);
  }

  #place(name: string): Located {
    const place = this.places.get(name);
    if (!place) throw new RangeError(`No tensor "${name}" in the table of this model`);
    return place;
  }

  vector(name: string): Promise<Float32Array> {
    return this.stored.f32(this.#place(name).data);
  }

  async matrix(name: string, wanted?: Scheme): Promise<StoredMatrix> {
    const place = this.#place(name);
    const { spec, scheme: found, data, scale } = place;
    const [n, k] = [spec.shape[0], width(spec)];
    const scheme = wanted ?? this.#scheme(place);
    if (!scale) return pack(scheme, await this.stored.f32(data), n, k);
    const matrix = {
      scheme: found,
      n,
      k,
      data: await this.stored.bytes(data),
      scale: await this.stored.f32(scale),
    };
    return scheme === found ? matrix : pack(scheme, dequantize(matrix), n, k);
  }

  async gather(names: readonly string[], room?: Room): Promise<Weights> {
    const stored = names.map((name) => this.#place(name)).flatMap(({ data, scale }) =>
      scale ? [data, scale] : [data]
    );
    return new StoredWeights(this.config, this.format, await this.stored.gather(stored, room), this.places);
  }
}

/** Finds every tensor of the table, plain or packed, and checks its shape. */
function locate(
  { tensors, metadata }: TensorFiles,
  config: ModelConfig,
  place: string,
): Map<string, Located> {
  const invalid = (detail: string): never => {
    throw new RequestError("model_invalid", `Cannot load the model in ${place}: ${detail}`);
  };
  const names = new Map<string, string>(); // published name -> name in the file
  for (const name of tensors.keys()) names.set(canonicalName(name) ?? name, name);
  const shapeOf = (name: string, expected: readonly number[]): string => {
    const found = tensors.get(names.get(name)!)!.shape;
    const equal = found.length === expected.length && found.every((it, i) => it === expected[i]);
    if (!equal) invalid(`tensor "${name}": expected shape [${expected}], found [${found}]`);
    return names.get(name)!;
  };
  const located = new Map<string, Located>();
  for (const spec of tensorTable(config)) {
    const { name, shape } = spec;
    if (names.has(name)) {
      located.set(name, { spec, scheme: "f32", data: shapeOf(name, shape) });
      continue;
    }
    if (!names.has(`${name}.q`)) invalid(`expected tensor "${name}", found none of that name`);
    const scheme = schemeOf(weightPart(spec), metadata, invalid);
    if (!names.has(`${name}.scale`)) {
      invalid(`expected tensor "${name}.scale" beside "${name}.q", found none`);
    }
    const { start, end } = tensors.get(names.get(`${name}.q`)!)!;
    const [n, k] = [shape[0], width(spec)];
    const bytes = packedBytes(scheme, n, k);
    if (end - start !== bytes) {
      invalid(`tensor "${name}.q": ${scheme} [${n}, ${k}] takes ${bytes} bytes, found ${end - start}`);
    }
    located.set(name, { spec, scheme, data: names.get(`${name}.q`)!, scale: shapeOf(`${name}.scale`, [n]) });
  }
  return located;
}

/** Entries and metadata of a file that holds every tensor of a table, in its order, each in the scheme given. */
export function fileEntries(
  table: readonly TensorSpec[],
  schemeOf: (spec: TensorSpec) => Scheme,
): { entries: TensorEntry[]; metadata: Record<string, string> } {
  const entries: TensorEntry[] = [];
  const metadata: Record<string, string> = { format: "pt" };
  for (const spec of table) {
    const { name, shape } = spec;
    const scheme = schemeOf(spec);
    const sizeBytes = packedBytes(scheme, shape[0], width(spec));
    if (scheme === "f32") {
      entries.push({ name, dtype: "F32", shape, sizeBytes });
      continue;
    }
    metadata[weightPart(spec)] = scheme;
    const dtype = scheme === "int4-g32-p8" ? "U8" : "I8";
    entries.push({ name: `${name}.q`, dtype, shape: [sizeBytes], sizeBytes });
    entries.push({ name: `${name}.scale`, dtype: "F32", shape: [shape[0]], sizeBytes: 4 * shape[0] });
  }
  return { entries, metadata };
}

/** f32 [N, K] in a scheme. */
export function pack(scheme: Scheme, data: Float32Array, n: number, k: number): StoredMatrix {
  switch (scheme) {
    case "f32":
      return { scheme, n, k, data };
    case "int8-p8-s4":
      return quantizeInt8(data, n, k);
    case "int4-g32-p8":
      return quantizeInt4(data, n, k);
  }
}

/** Values per row, trailing axes flattened. */
export function width(spec: TensorSpec): number {
  return spec.shape.slice(1).reduce((product, it) => product * it, 1);
}

function schemeOf(
  part: WeightPart,
  metadata: Readonly<Record<string, string>>,
  invalid: (detail: string) => never,
): Scheme {
  const found = metadata[part];
  if (!found) return invalid(`expected the metadata to name the scheme of the ${part} weights, found none`);
  try {
    return checkScheme(found);
  } catch (cause) {
    return invalid(`${part} weights: ${(cause as Error).message}`);
  }
}
