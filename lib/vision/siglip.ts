/**
 * SigLIP and the projector: pixels in, image tokens out.
 *
 * Follows big_vision `models/vit.py` (pre-norm encoder, learned positions, final LayerNorm, no pooling) and the
 * projector `img/head` of `models/proj/paligemma/paligemma.py`. The image tokens leave here unscaled.
 *
 * Shape letters: P image tokens, W SigLIP width, F its MLP width, D decoder width.
 */

import type { Backend, Matrix, Tensor } from "../backend/backend.ts";
import { fitsInt8 } from "../backend/shapes.ts";
import { RequestError } from "../errors.ts";
import type { Embedding, Memory, Pause, Pixels } from "../types.ts";
import type { Weights } from "../weights/load.ts";
import type { Room } from "../weights/safetensors.ts";
import { VISION_LAYER } from "../weights/table.ts";

/** The image encoder of one model. */
export interface Vision {
  /** Image tokens of one picture. */
  readonly imageTokens: number;
  /** D. */
  readonly width: number;
  /** Writes the image tokens of one picture to out [P, D]. */
  encode(out: Tensor, pixels: Pixels, pause: Pause): Promise<void>;
}

/** An encoder that also gives what the projector takes. */
export interface SiglipVision extends Vision {
  /** W. */
  readonly featureWidth: number;
  /** Writes SigLIP's features of one picture, after its last norm and before the projector, to out [P, W]. */
  features(out: Tensor, pixels: Pixels, pause: Pause): Promise<void>;
  /** Writes the image tokens of rows of features x [R, W] to out [R, D]. */
  project(out: Tensor, x: Tensor): void;
}

/**
 * Where the layers are while no picture is encoded. `resident`: in the backend. `streamed`: at their source, and one
 * after another in the backend for every picture, the next being read while one computes.
 */
export type Residence = "resident" | "streamed";

interface Linear {
  readonly weight: Matrix;
  readonly bias: Tensor;
}

interface Norm {
  readonly weight: Tensor;
  readonly bias: Tensor;
}

/** One encoder layer in the backend, by the names in the checkpoint. */
interface Layer {
  readonly layer_norm1: Norm;
  readonly "self_attn.q_proj": Linear;
  readonly "self_attn.k_proj": Linear;
  readonly "self_attn.v_proj": Linear;
  readonly "self_attn.out_proj": Linear;
  readonly layer_norm2: Norm;
  readonly "mlp.fc1": Linear;
  readonly "mlp.fc2": Linear;
}

const NORMS = ["layer_norm1", "layer_norm2"] as const;
const LINEARS = [
  "self_attn.q_proj",
  "self_attn.k_proj",
  "self_attn.v_proj",
  "self_attn.out_proj",
  "mlp.fc1",
  "mlp.fc2",
] as const;

/** Loads the encoder and the projector into the backend, all of it or all but the layers. */
export async function loadVision(
  backend: Backend,
  weights: Weights,
  residence: Residence = "resident",
): Promise<SiglipVision> {
  const { imageSize, patch, width, layers: depth, heads, mlp, eps } = weights.config.vision;
  const imageTokens = (imageSize / patch) ** 2;
  const tower = "vision_tower.vision_model.";

  const vector = async (from: Weights, name: string, rows = 1) => {
    const values = await from.vector(name);
    const tensor = backend.tensor(rows, values.length / rows);
    backend.write(tensor, values);
    return tensor;
  };
  const norm = async (from: Weights, name: string): Promise<Norm> => ({
    weight: await vector(from, `${name}.weight`),
    bias: await vector(from, `${name}.bias`),
  });
  const linear = async (from: Weights, name: string): Promise<Linear> => ({
    weight: backend.matrix(await from.matrix(`${name}.weight`)),
    bias: await vector(from, `${name}.bias`),
  });
  /** All bytes of a layer, read but not yet in the backend. */
  const readLayer = (i: number, room?: Room): Promise<Weights> =>
    weights.gather(
      [...NORMS, ...LINEARS].flatMap((it) =>
        [`weight`, `bias`].map((end) => `${VISION_LAYER}${i}.${it}.${end}`)
      ),
      room,
    );
  const placeLayer = async (from: Weights, i: number): Promise<Layer> => {
    const parts: [string, Norm | Linear][] = [];
    for (const name of NORMS) parts.push([name, await norm(from, `${VISION_LAYER}${i}.${name}`)]);
    for (const name of LINEARS) parts.push([name, await linear(from, `${VISION_LAYER}${i}.${name}`)]);
    return Object.fromEntries(parts) as unknown as Layer;
  };
  const dropLayer = (layer: Layer) =>
    backend.free(...Object.values<Norm | Linear>({ ...layer }).flatMap((it) => [it.weight, it.bias]));

  const embedding = await linear(weights, `${tower}embeddings.patch_embedding`);
  const positions = await vector(weights, `${tower}embeddings.position_embedding.weight`, imageTokens);
  const resident: Layer[] = [];
  for (let i = 0; residence === "resident" && i < depth; i++) {
    resident.push(await placeLayer(await readLayer(i), i));
  }
  const last = await norm(weights, `${tower}post_layernorm`);
  const projector = await linear(weights, "multi_modal_projector.linear");

  /** Kept from picture to picture: what is dropped counts until the engine gives it back. */
  const rooms: Room[] = [];

  async function* layers(): AsyncGenerator<Layer> {
    if (residence === "resident") return yield* resident;
    // One layer computes in the backend while the next one arrives here, always in the same memory.
    const room: Room = rooms.pop() ?? { bytes: new Uint8Array(0) };
    let next = readLayer(0, room);
    try {
      for (let i = 0; i < depth; i++) {
        const layer = await placeLayer(await next, i);
        if (i + 1 < depth) next = readLayer(i + 1, room);
        try {
          yield layer;
        } finally {
          dropLayer(layer);
        }
      }
    } finally {
      await next.catch(() => {}); // nobody is left to hear of a read that failed after the caller stopped
      rooms.push(room);
    }
  }

  const headDim = width / heads;
  const attention = { heads, kvHeads: heads, headDim, scale: headDim ** -0.5, start: 0, prefix: imageTokens };
  const product = (
    out: Tensor,
    x: Tensor,
    { weight, bias }: Linear,
    more = {},
  ): Parameters<Backend["linear"]> => [out, x, weight, { bias, ...more }];
  const apply = (...of: Parameters<typeof product>) => backend.linear(...product(...of));

  /** SigLIP's features [P, W], in working memory. */
  async function features(
    pixels: Pixels,
    work: (rows: number, cols: number) => Tensor,
    pause: Pause,
  ): Promise<Tensor> {
    if (pixels.size !== imageSize) {
      throw new RangeError(
        `Cannot encode pixels: expected ${imageSize} × ${imageSize}, found ${pixels.size}`,
      );
    }
    const picture = work(1, imageSize * imageSize * 3);
    const patches = work(imageTokens, 3 * patch * patch);
    const x = work(imageTokens, width); // [P, W], the residual stream
    const y = work(imageTokens, width); // [P, W]
    const [q, k, v] = [work(imageTokens, width), work(imageTokens, width), work(imageTokens, width)];
    const hidden = work(imageTokens, mlp); // [P, F]

    backend.write(picture, pixels.data);
    backend.patches(patches, picture, imageSize, patch);
    apply(x, patches, embedding, { residual: positions });
    for await (const layer of layers()) {
      await pause();
      backend.layerNorm(y, x, layer.layer_norm1.weight, layer.layer_norm1.bias, eps);
      backend.linearEach([
        product(q, y, layer["self_attn.q_proj"]),
        product(k, y, layer["self_attn.k_proj"]),
        product(v, y, layer["self_attn.v_proj"]),
      ]);
      if (layer["self_attn.q_proj"].weight.scheme !== "f32" && fitsInt8(headDim)) {
        backend.attentionInt8(y, q, k, v, attention);
      } else backend.attention(y, q, k, v, attention);
      apply(x, y, layer["self_attn.out_proj"], { residual: x });
      backend.layerNorm(y, x, layer.layer_norm2.weight, layer.layer_norm2.bias, eps);
      apply(hidden, y, layer["mlp.fc1"], { activation: "gelu" });
      apply(x, hidden, layer["mlp.fc2"], { residual: x });
    }
    backend.layerNorm(x, x, last.weight, last.bias, eps);
    return x;
  }

  /** Hands the features of a picture to `use` and gives the working memory back. */
  async function withFeatures(
    pixels: Pixels,
    pause: Pause,
    use: (features: Tensor) => unknown,
  ): Promise<void> {
    const held: Tensor[] = [];
    const work = (rows: number, cols: number) => {
      const tensor = backend.tensor(rows, cols);
      held.push(tensor);
      return tensor;
    };
    try {
      await use(await features(pixels, work, pause));
    } finally {
      backend.free(...held);
    }
  }

  return {
    imageTokens,
    featureWidth: width,
    width: weights.config.decoder.width,
    encode: (out, pixels, pause) => withFeatures(pixels, pause, (x) => apply(out, x, projector)),
    project: (out, x) => apply(out, x, projector),
    features: (out, pixels, pause) =>
      withFeatures(pixels, pause, async (x) => backend.write(out, await backend.read(x))),
  };
}

/** Copies of a number that is embedded until it is sent: f32, f16, in base64, in JSON, as bytes. */
const BYTES_PER_VALUE = 4 + 2 + 3 * 2.7;

/**
 * Image tokens, or the features before the projector, of several pictures.
 *
 * @throws {RequestError} `parameter_invalid` for features of an encoder that does not give them; what `memory` throws.
 */
export async function embedded(
  vision: Vision | SiglipVision,
  backend: Backend,
  pictures: readonly Pixels[],
  { stage = "projected", memory }: { readonly stage?: "projected" | "features"; readonly memory?: Memory },
  pause: Pause,
): Promise<Embedding> {
  const write = stage === "projected" ? vision.encode : featuresOf(vision);
  const width = stage === "projected" ? vision.width : (vision as SiglipVision).featureWidth;
  const count = pictures.length * vision.imageTokens * width;
  using _ = memory?.take(count * BYTES_PER_VALUE, `embed ${pictures.length} pictures`);
  const values = new Float32Array(count);
  const out = backend.tensor(vision.imageTokens, width);
  try {
    for (const [i, picture] of pictures.entries()) {
      await write(out, picture, pause);
      values.set(await backend.read(out), i * vision.imageTokens * width);
    }
  } finally {
    backend.free(out);
  }
  return { shape: [pictures.length, vision.imageTokens, width], values };
}

/**
 * How an encoder gives its features.
 *
 * @throws {RequestError} `parameter_invalid` for one that does not.
 */
export function featuresOf(vision: Vision | SiglipVision): SiglipVision["features"] {
  if ("features" in vision) return vision.features;
  throw new RequestError(
    "parameter_invalid",
    "Cannot embed: expected stage projected, as encoder and projector of this model are one graph, found features",
  );
}
