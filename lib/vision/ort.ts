/**
 * SigLIP and the projector through onnxruntime: `vision_encoder*.onnx`, this project's own or one in the layout of
 * transformers.js.
 *
 * Shape letters: P image tokens, D decoder width, R side of the picture.
 */

import type { Backend } from "../backend/backend.ts";
import { RequestError } from "../errors.ts";
import type { ModelConfig } from "../weights/config.ts";
import { featureScale, floats, type OnnxModel, openSession, type Ort } from "../weights/onnx.ts";
import type { Vision } from "./siglip.ts";

const INPUT = "pixel_values";
const OUTPUT = "image_features";

/** Settings beyond the model. */
export interface OrtVisionOptions {
  /** For `InferenceSession.create`: execution providers, threads of onnxruntime-node. */
  readonly session?: Record<string, unknown>;
}

/**
 * Opens an image encoder. `backend` holds the image tokens it writes.
 *
 * @throws {RequestError} `model_invalid` for a graph whose inputs or outputs are not those of an image encoder of this
 * configuration, naming them.
 */
export async function createOrtVision(
  ort: Ort,
  backend: Backend,
  config: ModelConfig,
  model: OnnxModel,
  options: OrtVisionOptions = {},
): Promise<Vision> {
  const { imageSize, patch } = config.vision;
  const { width } = config.decoder;
  const imageTokens = (imageSize / patch) ** 2;
  const { inputs, outputs } = model.graph;
  const refuse = (expected: string, found: string): never => {
    throw new RequestError(
      "model_invalid",
      `Cannot load ${model.name}: expected ${expected}, found ${found}`,
    );
  };
  if (inputs.length !== 1 || inputs[0].name !== INPUT) {
    refuse(`one input ${INPUT}`, inputs.map((it) => it.name).join(", ") || "none");
  }
  if (!outputs.some(({ name }) => name === OUTPUT)) {
    refuse(`an output ${OUTPUT}`, outputs.map((it) => it.name).join(", "));
  }
  const { type, dims } = inputs[0];
  if (type !== "float32" && type !== "float16") refuse(`${INPUT} in float32 or float16`, type);
  const wanted = [1, 3, imageSize, imageSize];
  if (dims.length !== 4 || dims.some((it, i) => typeof it === "number" && it !== wanted[i])) {
    refuse(`${INPUT} [${wanted}]`, `[${dims}]`);
  }
  const scale = featureScale(model.graph, OUTPUT, width);
  const session = await openSession(ort, model, options.session);

  return {
    imageTokens,
    width,
    async encode(out, pixels, pause) {
      if (pixels.size !== imageSize) {
        throw new RangeError(
          `Cannot encode pixels: expected ${imageSize} × ${imageSize}, found ${pixels.size}`,
        );
      }
      await pause();
      const planes = planar(pixels.data, imageSize * imageSize);
      const data = type === "float16" ? Float16Array.from(planes) : planes;
      const { [OUTPUT]: features } = await session.run({ [INPUT]: new ort.Tensor(type, data, wanted) });
      const values = floats(features);
      if (values.length !== imageTokens * width) {
        throw new RangeError(
          `${model.name} gave ${OUTPUT} [${features.dims}]: expected [1, ${imageTokens}, ${width}]`,
        );
      }
      backend.write(out, scale === 1 ? values : values.map((it) => it * scale));
    },
  };
}

/** [R·R, 3] as [3, R·R]. */
function planar(data: Float32Array, area: number): Float32Array {
  const out = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) {
    for (let channel = 0; channel < 3; channel++) out[channel * area + i] = data[3 * i + channel];
  }
  return out;
}
