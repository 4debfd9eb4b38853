/** Models taken to onnxruntime-web by way of ONNX files. */

import { exportPart, type OnnxOptions } from "../../models/export_onnx.ts";
import type { Backend } from "../../lib/backend/backend.ts";
import { createOrtDecoder } from "../../lib/decode/ort.ts";
import type { Decoder } from "../../lib/decode/decoder.ts";
import { createOrtVision } from "../../lib/vision/ort.ts";
import type { Vision } from "../../lib/vision/siglip.ts";
import type { Weights } from "../../lib/weights/load.ts";
import { type OnnxModel, type Ort, readOnnx } from "../../lib/weights/onnx.ts";
import { directoryFiles } from "../../functions/model.ts";

/** Exports one part into a temporary directory and reads it back. */
export async function roundTrip(
  weights: Weights,
  part: Parameters<typeof exportPart>[2],
  options: OnnxOptions,
): Promise<OnnxModel> {
  const directory = await Deno.makeTempDir();
  try {
    return await readOnnx(directoryFiles(directory), await exportPart(weights, directory, part, options));
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** A model's encoder and decoder in onnxruntime, by way of ONNX files. */
export async function ortModel(
  ort: Ort,
  backend: Backend,
  weights: Weights,
  options: OnnxOptions,
): Promise<{ vision: Vision; decoder: Decoder }> {
  return {
    vision: await createOrtVision(
      ort,
      backend,
      weights.config,
      await roundTrip(weights, "vision_encoder", options),
    ),
    decoder: await createOrtDecoder(ort, backend, weights.config, {
      embed: await roundTrip(weights, "embed_tokens", options),
      decoder: await roundTrip(weights, "decoder_model_merged", options),
    }),
  };
}
