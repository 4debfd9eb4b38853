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
import type { ModelFiles } from "../lib/mod.ts";
import { readConfig } from "../lib/weights/config.ts";
import { openWeights, type Weights } from "../lib/weights/load.ts";
import type { OnnxPart } from "../lib/weights/onnx.ts";
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

/** Writes the three ONNX files under `out`/onnx, and config and tokenizer to the directory `out`. */
export async function exportOnnx(files: ModelFiles, out: string, options: OnnxOptions): Promise<void> {
  const weights = await openWeights(files, await readConfig(files));
  await Deno.mkdir(join(out, "onnx"), { recursive: true });
  for (const name of COPIED) {
    if (await files.size(name) !== undefined) await Deno.writeFile(join(out, name), await files.read(name));
  }
  for (const part of ["vision_encoder", "embed_tokens", "decoder_model_merged"] as const) {
    await exportPart(weights, join(out, "onnx"), part, options);
  }
}

/** Writes one ONNX file into an existing directory and tells its name. */
export async function exportPart(
  weights: Weights,
  directory: string,
  part: OnnxPart,
  { vision, decoder, slidingWindow = "off" }: OnnxOptions,
): Promise<string> {
  const table = decoder === "f32" ? "f32" : "int8";
  const name = `${part}${SUFFIX[part === "vision_encoder" ? vision : decoder]}.onnx`;
  const file = new OnnxWriter(directory, name);
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
