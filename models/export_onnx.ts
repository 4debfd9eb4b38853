/**
 * A checkpoint becomes ONNX files in the layout of transformers.js: `onnx/vision_encoder.onnx`,
 * `onnx/embed_tokens.onnx`, `onnx/decoder_model_merged.onnx`, with `_quantized` for int8 and `_q4` for int4 before the
 * extension. onnxruntime (web or native) runs them; `lib/vision/ort.ts` and `lib/decode/ort.ts` bring them into the
 * pipeline.
 *
 * Scale of the embeddings: `inputs_embeds` leaves `embed_tokens` times √D and enters the decoder as it is, and
 * `image_features` are unscaled, as in transformers since 5.4. Older exports (transformers.js' PaliGemma 2) leave the
 * embeddings raw, divide the image features by √D and multiply both inside the decoder. The metadata entry
 * `paligemma.embeddings` = `scaled` says which; where it is missing `lib/weights/onnx.ts` reads it off the graph.
 */

import { join } from "@std/path";
import { GROUP } from "../lib/backend/layout.ts";
import { type ModelFiles, RequestError } from "../lib/mod.ts";
import { type ModelConfig, readConfig } from "../lib/weights/config.ts";
import { openWeights, type Weights, width } from "../lib/weights/load.ts";
import type { OnnxPart } from "../lib/weights/onnx.ts";
import { EMBEDDING, tensorTable } from "../lib/weights/table.ts";
import { writing } from "./convert.ts";
import { writeDecoder, writeEmbedding } from "./onnx_decoder.ts";
import { type OnnxFormat, OnnxOps } from "./onnx_ops.ts";
import { writeVision } from "./onnx_vision.ts";
import { OnnxWriter } from "./onnx_writer.ts";

/** Small files that an ONNX directory needs too. */
const COPIED = [
  "config.json",
  "preprocessor_config.json",
  "generation_config.json",
  "tokenizer.model",
  "tokenizer.json",
  "mask_decoder.safetensors",
];

/** What to export to. */
export interface OnnxOptions {
  readonly vision: "f32" | "int8";
  /** Of the layers. Embedding and head are int8 unless this is f32, as in this project's own int4 files. */
  readonly decoder: OnnxFormat;
  /** Gemma 2: windows of the even layers, `off` by default as it was trained; `hf` is what transformers does. */
  readonly slidingWindow?: "off" | "hf";
}

/** What stands before `.onnx` for each format. */
export const SUFFIX: Readonly<Record<OnnxFormat, string>> = { f32: "", int8: "_quantized", int4: "_q4" };

/** How to export. */
export interface ExportOptions extends OnnxOptions {
  readonly signal?: AbortSignal;
  /** Called with bytes written and bytes in all. */
  readonly progress?: (done: number, total: number) => void;
}

/**
 * Writes the three ONNX files under `out`/onnx, and config and tokenizer to the directory `out`: first into a directory
 * of another name, until all are whole; after a failure nothing of it is left. Gives the bytes of data written.
 *
 * @throws {RequestError} `model_invalid` for a checkpoint that does not fit; `storage_failed` where the disk is full;
 * `cancelled` when the signal fires.
 */
export async function exportOnnx(
  files: ModelFiles,
  out: string,
  { signal, progress, ...options }: ExportOptions,
): Promise<number> {
  const config = await readConfig(files);
  const weights = await openWeights(files, config);
  const total = dataBytes(config, options);
  let done = 0;
  const wrote = (bytes: number) => {
    if (signal?.aborted) throw new RequestError("cancelled", "Export cancelled: nothing is left of it");
    done += bytes;
    progress?.(Math.min(done, total), total);
  };
  const made = await Deno.mkdir(out).then(() => true, () => false);
  const part = join(out, "onnx.part");
  try {
    await Deno.remove(part, { recursive: true }).catch(() => {}); // of a run that was killed
    await writing(out, () => Deno.mkdir(join(part, "onnx"), { recursive: true }));
    const small: string[] = [];
    for (const name of COPIED) {
      if (await files.size(name) === undefined) continue;
      const bytes = await files.read(name);
      await writing(out, () => Deno.writeFile(join(part, name), bytes));
      small.push(name);
    }
    for (const it of ["vision_encoder", "embed_tokens", "decoder_model_merged"] as const) {
      await exportPart(weights, join(part, "onnx"), it, options, wrote);
    }
    await writing(out, () => moveAll(part, out, small));
    progress?.(total, total);
    return done;
  } catch (error) {
    await Deno.remove(part, { recursive: true }).catch(() => {});
    if (made) await Deno.remove(out).catch(() => {}); // only where nothing else is in it
    throw error;
  }
}

/** Moves what is whole to its place. A graph goes before its data is replaced, and comes after it. */
async function moveAll(part: string, out: string, small: readonly string[]): Promise<void> {
  const names = Array.from(Deno.readDirSync(join(part, "onnx")), (it) => join("onnx", it.name));
  const graphs = names.filter((it) => it.endsWith(".onnx"));
  await Deno.mkdir(join(out, "onnx"), { recursive: true });
  for (const it of graphs) await Deno.remove(join(out, it)).catch(() => {});
  const data = names.filter((it) => !graphs.includes(it));
  for (const it of [...small, ...data, ...graphs]) await Deno.rename(join(part, it), join(out, it));
  await Deno.remove(part, { recursive: true });
}

/** Bytes of all tensors in a format, but for what aligns them. */
function dataBytes(config: ModelConfig, { vision, decoder }: OnnxOptions): number {
  const matrix = (format: OnnxFormat, n: number, k: number) =>
    ({ f32: 4 * n * k, int8: n * k + 4 * n, int4: n * Math.ceil(k / GROUP) * (GROUP / 2 + 4) })[format];
  let bytes = 4 * config.decoder.context * config.decoder.headDim; // cosines and sines of RoPE
  for (const spec of tensorTable(config)) {
    const [n, k] = [spec.shape[0], width(spec)];
    if (spec.name === EMBEDDING) bytes += 2 * matrix(tableFormat(decoder), n, k); // as table and as head
    else if (spec.lowest === "f32") bytes += 4 * n * k;
    else bytes += matrix(spec.part === "vision" ? vision : decoder, n, k);
  }
  return bytes;
}

function tableFormat(decoder: OnnxFormat): "f32" | "int8" {
  return decoder === "f32" ? "f32" : "int8";
}

/** Writes one ONNX file into an existing directory and tells its name; `wrote` as {@link OnnxWriter} has it. */
export async function exportPart(
  weights: Weights,
  directory: string,
  part: OnnxPart,
  { vision, decoder, slidingWindow = "off" }: OnnxOptions,
  wrote?: (bytes: number) => void,
): Promise<string> {
  const table = tableFormat(decoder);
  const name = `${part}${SUFFIX[part === "vision_encoder" ? vision : decoder]}.onnx`;
  using file = new OnnxWriter(directory, name, wrote);
  const ops = new OnnxOps(file, weights);
  switch (part) {
    case "vision_encoder":
      await writeVision(ops, vision);
      break;
    case "embed_tokens":
      await writeEmbedding(ops, table);
      break;
    case "decoder_model_merged":
      await writeDecoder(ops, decoder, table, slidingWindow);
      break;
  }
  await file.close({ "paligemma.embeddings": "scaled", "paligemma.prefix": "full" });
  return name;
}
