/**
 * A checkpoint becomes a directory of quantised, streamable weights. Rows are read, converted and written a block at
 * a time, in the order in which the source holds them, so that memory stays bounded whatever the checkpoint's size.
 */

import { join } from "@std/path";
import type { Scheme } from "../lib/backend/backend.ts";
import { type ModelFiles, RequestError } from "../lib/mod.ts";
import { readConfig } from "../lib/weights/config.ts";
import { pack, schemeFor, weightPart, width } from "../lib/weights/load.ts";
import {
  checkScheme,
  type Feedback,
  feedbackFrom,
  type InputMoments,
  packedBytes,
  quantizeInt4,
} from "../lib/weights/quantize.ts";
import { encodeHeader, type TensorEntry } from "../lib/weights/safetensors.ts";
import { EMBEDDING, type TensorSpec, tensorTable } from "../lib/weights/table.ts";
import { type Checkpoint, openSafetensors, type RowReader, rowsIn } from "./checkpoint.ts";
import { withAdapter } from "./lora.ts";
import { npzConfig, openNpz } from "./npz.ts";

/** Files that are copied as they are, where they exist. */
const COPIED = [
  "config.json",
  "preprocessor_config.json",
  "generation_config.json",
  "tokenizer.model",
  "tokenizer.json",
  "mask_decoder.safetensors",
];

/** Bytes of f32 rows converted between two looks at the signal. */
const STEP_BYTES = 8 * 2 ** 20;

/** A format for one half of the model. `f16` is a plain tensor, which any backend takes. */
export type Format = "f32" | "f16" | "int8" | "int4";

/** What to convert to; vision and decoder are chosen apart. */
export interface ConvertOptions {
  readonly vision: Format;
  readonly decoder: Format;
  /** The token table, which is the output head too; by default as the decoder, but int8 where that is int4. */
  readonly embedding?: Format;
  /** Values that share an int4 scale; 32 by default. */
  readonly group?: number;
  /** A big_vision checkpoint among the files, read instead of safetensors. */
  readonly npz?: string;
  /**
   * What the matrices' inputs look like, so that int4 is rounded with feedback; see `calibrate`. What the source holds
   * in int4 already is copied as it is.
   */
  readonly calibration?: Calibration;
  /** A PEFT LoRA adapter to merge. */
  readonly adapter?: ModelFiles;
  readonly signal?: AbortSignal;
  /** Called with bytes written and bytes in all. */
  readonly progress?: (done: number, total: number) => void;
}

/** Moments of the inputs of matrices, by the name that `momentsOf` gives. */
export type Calibration = ReadonlyMap<string, InputMoments>;

/** The matrix under whose name the moments of a matrix's input stand: several share one input. */
export function momentsOf(name: string): string {
  return name.replace(/\.[kv]_proj\.weight$/, ".q_proj.weight")
    .replace(/\.up_proj\.weight$/, ".gate_proj.weight");
}

/** How one tensor is written. */
export type Target = Scheme | "f16";

/**
 * Writes `config.json`, the tokenizer and `model.safetensors` to the directory `out`, all under other names until all
 * are whole; after a failure nothing of it is left.
 *
 * @throws {RequestError} `model_invalid` for a checkpoint or adapter that does not fit; `storage_failed` where the disk is
 * full; `parameter_invalid` for a format that has no kernels; `cancelled` when the signal fires.
 */
export async function convert(files: ModelFiles, out: string, options: ConvertOptions): Promise<void> {
  const small = new Map<string, Uint8Array>();
  for (const name of COPIED) {
    if (await files.size(name) !== undefined) small.set(name, await files.read(name));
  }
  const checkpoint = await open(files, small, options);
  const table = tensorTable(checkpoint.config);
  const target = targets(options);
  const { entries, metadata } = layout(table, target);
  const header = encodeHeader(entries, metadata);
  const offsets = new Map<string, number>();
  let total = header.length;
  for (const { name, sizeBytes } of entries) {
    offsets.set(name, total);
    total += sizeBytes;
  }

  const made = await Deno.mkdir(out).then(() => true, () => false);
  if (!made) await writing(out, () => Deno.mkdir(out, { recursive: true }));
  if (sameDirectory(files.place, out)) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot convert ${files.place} into itself: choose another --out`,
    );
  }
  const part = (name: string) => join(out, `${name}.part`);
  const names = [...small.keys(), "model.safetensors"];
  try {
    for (const [name, bytes] of small) await writing(out, () => Deno.writeFile(part(name), bytes));
    {
      using file = await writing(
        out,
        () => Deno.open(part("model.safetensors"), { write: true, create: true, truncate: true }),
      );
      let done = 0;
      const write = async (at: number, values: ArrayBufferView) => {
        const bytes = new Uint8Array(values.buffer as ArrayBuffer, values.byteOffset, values.byteLength);
        await writing(out, async () => {
          await file.seek(at, Deno.SeekMode.Start);
          for (let from = 0; from < bytes.length;) from += await file.write(bytes.subarray(from));
        });
        options.progress?.(done += bytes.length, total);
      };
      await write(0, header);
      const jobs = table.map((spec) => ({ spec, reader: checkpoint.reader(spec) }));
      jobs.sort(({ reader: { position: [a, i] } }, { reader: { position: [b, j] } }) =>
        a < b ? -1 : a > b ? 1 : i - j
      );
      for (const { spec, reader } of jobs) {
        const to = target(spec);
        const moments = to === "int4-g32-p8" ? options.calibration?.get(momentsOf(spec.name)) : undefined;
        const feedback = moments && feedbackFrom(moments);
        await writeTensor(spec, reader, { to, feedback }, offsets, write, options.signal);
      }
      await writing(out, () => file.sync());
    }
    for (const name of names) await writing(out, () => Deno.rename(part(name), join(out, name)));
  } catch (error) {
    for (const name of names) await Deno.remove(part(name)).catch(() => {});
    if (made) await Deno.remove(out).catch(() => {}); // only where nothing else is in it
    throw error;
  }
}

async function open(
  files: ModelFiles,
  small: Map<string, Uint8Array>,
  { npz, adapter }: ConvertOptions,
): Promise<Checkpoint> {
  if (npz && !small.has("config.json")) {
    for (const [name, json] of Object.entries(await npzConfig(files, npz))) {
      if (!small.has(name)) small.set(name, new TextEncoder().encode(JSON.stringify(json, undefined, 1)));
    }
  }
  const config = await readConfig({
    ...files,
    size: (name) => small.has(name) ? Promise.resolve(small.get(name)!.length) : files.size(name),
    read: (name, start, end) =>
      small.has(name) ? Promise.resolve(small.get(name)!.slice(start, end)) : files.read(name, start, end),
  });
  const base = npz ? await openNpz(files, npz, config) : await openSafetensors(files, config);
  return adapter ? await withAdapter(base, adapter) : base;
}

/** The target of each tensor; what is kept in f32 for the answer's sake stays so. */
export function targets(
  { vision, decoder, embedding, group = 32 }: ConvertOptions,
): (spec: TensorSpec) => Target {
  let int4: Scheme;
  try {
    int4 = checkScheme(`int4-g${group}-p8`);
  } catch (cause) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot convert with groups of ${group}: ${(cause as Error).message}`,
    );
  }
  return (spec) => {
    if (spec.lowest === "f32") return "f32";
    const format = { vision, decoder, embedding: embedding ?? decoder }[weightPart(spec)];
    if (format === "f16") return "f16";
    if (spec.name === EMBEDDING && embedding === "int4") return int4;
    if (format === "int4" && (spec.part === "vision" || spec.lowest === "int4")) return int4;
    return schemeFor(spec, format);
  };
}

function layout(table: readonly TensorSpec[], target: (spec: TensorSpec) => Target) {
  const entries: TensorEntry[] = [];
  const metadata: Record<string, string> = { format: "pt" };
  for (const spec of table) {
    const { name, shape } = spec;
    const to = target(spec);
    if (to === "f32" || to === "f16") {
      const sizeBytes = shape[0] * width(spec) * (to === "f32" ? 4 : 2);
      entries.push({ name, dtype: to === "f32" ? "F32" : "F16", shape, sizeBytes });
      continue;
    }
    metadata[weightPart(spec)] = to;
    const sizeBytes = packedBytes(to, shape[0], width(spec));
    entries.push({
      name: `${name}.q`,
      dtype: to.startsWith("int4") ? "U8" : "I8",
      shape: [sizeBytes],
      sizeBytes,
    });
    entries.push({ name: `${name}.scale`, dtype: "F32", shape: [shape[0]], sizeBytes: 4 * shape[0] });
  }
  return { entries, metadata };
}

async function writeTensor(
  spec: TensorSpec,
  reader: RowReader,
  { to, feedback }: { readonly to: Target; readonly feedback?: Feedback },
  offsets: ReadonlyMap<string, number>,
  write: (at: number, values: ArrayBufferView) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const [n, k] = [spec.shape[0], width(spec)];
  const step = rowsIn(STEP_BYTES, k);
  const stop = () => {
    if (signal?.aborted) throw new RequestError("cancelled", "Conversion cancelled: nothing is left of it");
  };
  for (let from = 0; from < n; from += reader.blockRows) {
    stop();
    const end = Math.min(n, from + reader.blockRows);
    if (reader.scheme !== "f32" && reader.scheme === to) {
      const { data, scale } = await reader.packed(from, end);
      await write(offsets.get(`${spec.name}.q`)! + packedBytes(to, from, k), data);
      await write(offsets.get(`${spec.name}.scale`)! + 4 * from, scale);
      continue;
    }
    const block = await reader.rows(from, end);
    for (let row = from; row < end; row += step) {
      stop();
      const last = Math.min(end, row + step);
      const values = block.subarray((row - from) * k, (last - from) * k);
      checkFinite(spec.name, values, row * k, to === "f16" ? 65519 : Infinity);
      if (to === "f32") await write(offsets.get(spec.name)! + row * k * 4, values);
      else if (to === "f16") await write(offsets.get(spec.name)! + row * k * 2, new Float16Array(values));
      else {
        const { data, scale } = feedback
          ? quantizeInt4(values, last - row, k, feedback)
          : pack(to, values, last - row, k);
        await write(offsets.get(`${spec.name}.q`)! + packedBytes(to, row, k), data);
        await write(offsets.get(`${spec.name}.scale`)! + 4 * row, scale!);
      }
    }
  }
}

function checkFinite(name: string, values: Float32Array, first: number, most: number): void {
  for (let i = 0; i < values.length; i++) {
    if (Math.abs(values[i]) <= most && Number.isFinite(values[i])) continue;
    const limit = most === Infinity ? "a finite number" : "a number that f16 holds";
    const detail = `expected ${limit} at ${first + i}, found ${values[i]}`;
    throw new RequestError("model_invalid", `Cannot convert tensor "${name}": ${detail}`);
  }
}

/** Failures of the file system, a full disk first of all, as a sentence. */
export async function writing<T>(out: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (cause) {
    const detail = (cause as Error).message;
    throw new RequestError(
      "storage_failed",
      `Cannot write to ${out}: ${detail}; nothing half-written is kept`,
      {
        cause,
      },
    );
  }
}

function sameDirectory(a: string, b: string): boolean {
  try {
    return Deno.realPathSync(a) === Deno.realPathSync(b);
  } catch {
    return false; // files that are not in a directory
  }
}
