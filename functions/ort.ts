/** onnxruntime-web as the second engine: the ONNX files of a model directory become the stages of a pipeline. */

import { type Backend, type ModelFiles, RequestError, type Stages, type WeightFormat } from "../lib/mod.ts";
import { createOrtDecoder } from "../lib/decode/ort.ts";
import { createOrtVision } from "../lib/vision/ort.ts";
import { readConfig } from "../lib/weights/config.ts";
import { findOnnx, type Ort } from "../lib/weights/onnx.ts";
import { revisionOf } from "../lib/weights/revision.ts";

/** 33 MB, 150 unpacked: a name that is not written where it is imported is fetched only when that line runs. */
const ORT_WEB = "npm:onnxruntime-web@1.30.0";

/**
 * onnxruntime-web with so many threads. The first call decides: its WASM starts once.
 *
 * @throws {RequestError} `download_failed` where it is neither here nor to be had.
 */
export async function loadOrt(threads = 1): Promise<Ort> {
  const { default: ort } = await import(ORT_WEB).catch((cause) => {
    throw new RequestError("download_failed", `Cannot get ${ORT_WEB}: ${cause.message.split("\n")[0]}`, {
      cause,
    });
  });
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  return ort;
}

/** How to open ONNX files. */
export interface OnnxFiles {
  /** Which of several formats to take; the smallest by default. */
  readonly weights?: WeightFormat;
  readonly threads?: number;
}

/**
 * Opens the encoder and the decoder among the files; `backend` holds what goes from one to the other. Every file is
 * found and read before the engine is fetched.
 *
 * @throws {RequestError} `model_invalid` where a file is missing or is not what it should be, naming it; as {@link loadOrt}.
 */
export async function openOnnx(
  files: ModelFiles,
  backend: Backend,
  { weights, threads }: OnnxFiles,
): Promise<Stages> {
  const config = await readConfig(files);
  const encoder = await findOnnx(files, "vision_encoder", weights);
  const embed = await findOnnx(files, "embed_tokens", weights);
  const decoder = await findOnnx(files, "decoder_model_merged", weights);
  const ort = await loadOrt(threads);
  return {
    vision: await createOrtVision(ort, backend, config, encoder),
    decoder: await createOrtDecoder(ort, backend, config, { embed, decoder }),
    revision: await revisionOf(files, [encoder, embed, decoder].flatMap((it) => it.files)),
  };
}
