/** What a model directory holds, told and checked. */

import { boundedSteps, packedBytes } from "../lib/weights/quantize.ts";
import { GROUP_BYTES, MAX_GROUP_SCALE, PANEL } from "../lib/backend/layout.ts";
import { type ModelFiles, RequestError } from "../lib/mod.ts";
import { loadTokenizer } from "../lib/text/tokenizer.ts";
import { readConfig } from "../lib/weights/config.ts";
import { weightPart, width } from "../lib/weights/load.ts";
import { openTensors } from "../lib/weights/safetensors.ts";
import { type TensorSpec, tensorTable } from "../lib/weights/table.ts";
import { openSafetensors, type RowReader } from "./checkpoint.ts";
import { type Memory, memoryOf, streamedVisionBytes } from "./memory.ts";
import { type DoorFit, doorsFor } from "./manifests.ts";

/** What `info` tells of a directory. */
export interface Description {
  readonly family: "gemma" | "gemma2";
  /** Side of the square input, pixels, and the tokens it becomes. */
  readonly imageSize: number;
  readonly imageTokens: number;
  readonly vision: { readonly width: number; readonly layers: number };
  readonly decoder: { readonly width: number; readonly layers: number; readonly vocabulary: number };
  readonly parameters: number;
  /** How the matrices of each part lie in the file: a scheme, or a plain type of safetensors. */
  readonly schemes: Readonly<Record<string, string>>;
  readonly files: readonly { readonly name: string; readonly sizeBytes: number }[];
  /** WASM memory as stored, plain types held as f32. */
  readonly memory: Memory;
  readonly streamedVisionBytes: number;
  readonly doors: readonly DoorFit[];
}

/**
 * Tells what a directory holds, from its config and the headers of its weights.
 *
 * @throws {RequestError} `model_invalid` where they do not fit together.
 */
export async function describe(files: ModelFiles): Promise<Description> {
  const config = await readConfig(files);
  const { reader } = await openSafetensors(files, config);
  const { tensors } = await openTensors(files);
  const table = tensorTable(config);
  const schemes: Record<string, string> = {};
  for (const spec of table.filter((it) => it.lowest !== "f32")) {
    const { scheme } = reader(spec);
    schemes[weightPart(spec)] ??= scheme;
  }
  const dtypes = new Set(
    [...tensors.values()].map((it) => it.dtype).filter((it) => it !== "I8" && it !== "U8"),
  );
  for (const [part, scheme] of Object.entries(schemes)) {
    if (scheme === "f32") schemes[part] = [...dtypes].join(" and ");
  }
  const schemeOf = (spec: TensorSpec) => reader(spec).scheme;
  const memory = await memoryOf(config, schemeOf);
  const streamed = await streamedVisionBytes(config, schemeOf);
  const sizes = await Promise.all(
    (await files.list()).map(async (name) => ({ name, sizeBytes: await files.size(name) })),
  );
  const { vision, decoder } = config;
  return {
    family: decoder.family,
    imageSize: vision.imageSize,
    imageTokens: (vision.imageSize / vision.patch) ** 2,
    vision: { width: vision.width, layers: vision.layers },
    decoder: { width: decoder.width, layers: decoder.layers, vocabulary: decoder.vocab },
    parameters: table.reduce((sum, it) => sum + it.shape[0] * width(it), 0),
    schemes,
    files: sizes.flatMap(({ name, sizeBytes }) =>
      sizeBytes !== undefined && /\.(json|model|safetensors)$/.test(name) ? [{ name, sizeBytes }] : []
    ),
    memory,
    streamedVisionBytes: streamed,
    doors: doorsFor({ "as stored": memory }, { "as stored": streamed }),
  };
}

/**
 * Checks everything that can be checked without running the model: headers, shapes against the config, sizes to the
 * last byte, the tokenizer, and every number: plain ones finite, int8 within the bound that makes its products exact
 * on every processor, int4 scales within theirs. Returns what was found good, in words.
 *
 * @throws {RequestError} `model_invalid` naming the first thing that is not; `cancelled`.
 */
export async function verify(
  files: ModelFiles,
  { progress, signal }: { progress?: (done: number, total: number) => void; signal?: AbortSignal } = {},
): Promise<string[]> {
  const config = await readConfig(files);
  const { reader } = await openSafetensors(files, config);
  const { tensors } = await openTensors(files);
  const ends = new Map<string, number>();
  for (const { file, end } of tensors.values()) ends.set(file, Math.max(end, ends.get(file) ?? 0));
  let total = 0;
  for (const [file, end] of ends) {
    const size = (await files.size(file))!;
    if (size !== end) invalid(files, `${file}: its tensors end at ${end}, the file at ${size}`);
    total += size;
  }
  await loadTokenizer(files);

  const table = tensorTable(config);
  const share = total / table.reduce((sum, it) => sum + it.shape[0] * width(it), 0);
  let [values, quantised] = [0, 0];
  for (const spec of table) {
    const rows = reader(spec);
    for (let from = 0; from < spec.shape[0]; from += rows.blockRows) {
      if (signal?.aborted) throw new RequestError("cancelled", "Verification stopped");
      const to = Math.min(spec.shape[0], from + rows.blockRows);
      await (rows.scheme === "f32" ? checkPlain : checkPacked)(files, spec, rows, from, to);
      values += (to - from) * width(spec);
      progress?.(values * share, total);
    }
    if (rows.scheme !== "f32") quantised++;
  }
  return [
    `${table.length} tensors of ${
      ends.size === 1 ? "one file" : `${ends.size} files`
    } have the shapes of config.json`,
    `${quantised} quantised matrices are within their bounds, all other numbers are finite`,
    "the tokenizer can be read",
  ];
}

async function checkPlain(
  files: ModelFiles,
  { name }: TensorSpec,
  rows: RowReader,
  from: number,
  to: number,
) {
  const values = await rows.rows(from, to);
  const at = values.findIndex((it) => !Number.isFinite(it));
  if (at >= 0) invalid(files, `tensor "${name}": expected finite numbers, found ${values[at]}`);
}

async function checkPacked(files: ModelFiles, spec: TensorSpec, rows: RowReader, from: number, to: number) {
  const { name } = spec;
  const { scheme } = rows;
  const [n, k] = [to - from, width(spec)];
  const { data, scale } = await rows.packed(from, to);
  const wrong = scale.findIndex((it) => !Number.isFinite(it));
  if (wrong >= 0) invalid(files, `tensor "${name}.scale": expected finite scales, found ${scale[wrong]}`);
  const bytes = packedBytes(scheme, n, k);
  if (data.length !== bytes) {
    invalid(files, `tensor "${name}.q": expected ${bytes} bytes, found ${data.length}`);
  }
  if (scheme === "int8-p8-s4") {
    if (boundedSteps({ scheme, n, k, data, scale }) > 1) return;
    invalid(files, `tensor "${name}.q": rows ${from} to ${to} break the bound of ${scheme}`);
  }
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  for (let group = 0; group < data.length; group += GROUP_BYTES) {
    for (let column = 0; column < PANEL; column++) {
      const found = view.getInt16(group + 2 * column, true);
      if (Math.abs(found) <= MAX_GROUP_SCALE) continue;
      const range = `-${MAX_GROUP_SCALE} to ${MAX_GROUP_SCALE}`;
      invalid(files, `tensor "${name}.q": expected group scales from ${range}, found ${found}`);
    }
  }
}

function invalid(files: ModelFiles, detail: string): never {
  throw new RequestError("model_invalid", `Cannot trust the model in ${files.place}: ${detail}`);
}
