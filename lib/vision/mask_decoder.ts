/**
 * Sixteen mask tokens to a mask of 64 × 64: the decoder half of the VQ-VAE that PaliGemma's `<seg>` tokens come from.
 *
 * Architecture of arXiv 2301.02229, tensors by the names and in the layouts (PyTorch's) of big_vision's `vae-oid.npz`:
 * codebook rows as a 4 × 4 picture, 1×1 convolution, two residual blocks, four transposed convolutions that double the
 * side, 1×1 convolution.
 *
 * Shape letters: I and O input and output channels, S side. Pictures are [S·S, channels] f32, so that every
 * convolution is one matrix product over rows of gathered neighbours.
 */

import type { Backend, Matrix, Tensor } from "../backend/backend.ts";
import { RequestError } from "../errors.ts";
import type { ModelFiles } from "../types.ts";
import { openTensors, type TensorFiles } from "../weights/safetensors.ts";

/** File of a model directory. */
export const MASK_DECODER = "mask_decoder.safetensors";

/** Side of what {@link MaskDecoder} gives. */
export const MASK_SIDE = 64;

const CODEBOOK = 128;
const CODES = 16;

/** Decodes masks. */
export interface MaskDecoder {
  /** Logits [64 · 64] f32 row-major, above 0 inside the thing, from 16 codebook indices, rows of four. */
  decode(codes: readonly number[]): Promise<Float32Array>;
}

/** A convolution as products: weight [O, taps · I], the taps of one output pixel in the order of its gathered rows. */
interface Convolution {
  readonly weight: Matrix;
  readonly bias: Tensor;
}

/** A transposed convolution as one product for each parity (row, column) of the output pixel. */
interface Transposed {
  readonly parts: readonly Convolution[];
}

/**
 * Loads the mask decoder of a model directory into the backend; undefined where the directory has none.
 *
 * @throws {RequestError} `model_invalid` for a tensor that is missing or of another shape.
 */
export async function loadMaskDecoder(backend: Backend, files: ModelFiles): Promise<MaskDecoder | undefined> {
  if (await files.size(MASK_DECODER) === undefined) return undefined;
  const tensors = await openTensors(soleFile(files));
  const place = (values: Float32Array, rows: number) => {
    const tensor = backend.tensor(rows, values.length / rows);
    backend.write(tensor, values);
    return tensor;
  };
  const matrix = (data: Float32Array, n: number) =>
    backend.matrix({ scheme: "f32", n, k: data.length / n, data });

  async function convolution(name: string, [o, i, side]: [number, number, number]): Promise<Convolution> {
    const weight = await read(files, tensors, `${name}.weight`, [o, i, side, side]);
    const bias = place(await read(files, tensors, `${name}.bias`, [o]), 1);
    return { weight: matrix(reorder(weight, i, side * side), o), bias };
  }

  async function transposed(name: string, i: number, o: number): Promise<Transposed> {
    const weight = await read(files, tensors, `${name}.weight`, [i, o, 4, 4]);
    const bias = place(await read(files, tensors, `${name}.bias`, [o]), 1);
    return { parts: PARITIES.map(([py, px]) => ({ weight: matrix(parity(weight, i, o, py, px), o), bias })) };
  }

  const residual = async (name: string) => ({
    first: await convolution(`${name}.net.0`, [128, 128, 3]),
    second: await convolution(`${name}.net.2`, [128, 128, 3]),
    last: await convolution(`${name}.net.4`, [128, 128, 1]),
  });
  const codebook = await read(files, tensors, "_vq_vae._embedding", [CODEBOOK, 512]);
  const enter = await convolution("decoder.0", [128, 512, 1]);
  const blocks = [await residual("decoder.2"), await residual("decoder.3")];
  const up = [
    await transposed("decoder.4", 128, 128),
    await transposed("decoder.6", 128, 64),
    await transposed("decoder.8", 64, 32),
    await transposed("decoder.10", 32, 16),
  ];
  const leave = await convolution("decoder.12", [1, 16, 1]);

  /** Product of gathered rows. */
  async function apply(rows: Float32Array, { weight, bias }: Convolution): Promise<Float32Array> {
    const x = place(rows, rows.length / weight.k);
    const out = backend.tensor(x.rows, weight.n);
    try {
      backend.linear(out, x, weight, { bias });
      return await backend.read(out);
    } finally {
      backend.free(x, out);
    }
  }

  return {
    async decode(codes) {
      if (codes.length !== CODES || codes.some((it) => !(it >= 0 && it < CODEBOOK))) {
        throw new RangeError(
          `Cannot decode a mask: expected ${CODES} codes below ${CODEBOOK}, found ${codes}`,
        );
      }
      let side = 4;
      const rows = new Float32Array(CODES * 512);
      codes.forEach((code, at) => rows.set(codebook.subarray(512 * code, 512 * (code + 1)), 512 * at));
      let x = relu(await apply(rows, enter));
      for (const { first, second, last } of blocks) {
        const y = relu(await apply(neighbours(x, side, 128, AROUND), first));
        const z = await apply(relu(await apply(neighbours(y, side, 128, AROUND), second)), last);
        x = x.map((it, i) => it + z[i]);
      }
      for (const { parts } of up) {
        const channels = parts[0].weight.k / 4, width = parts[0].weight.n;
        const wide = new Float32Array(4 * side * side * width);
        for (const [index, [py, px]] of PARITIES.entries()) {
          const taps = TAPS[py].flatMap(({ shift: dy }) =>
            TAPS[px].map(({ shift: dx }) => [dy, dx] as const)
          );
          scatter(wide, await apply(neighbours(x, side, channels, taps), parts[index]), side, width, py, px);
        }
        x = relu(wide);
        side *= 2;
      }
      return await apply(x, leave);
    },
  };
}

/** (row, column) offsets of a 3×3 convolution with a border of zeros. */
const AROUND = [-1, 0, 1].flatMap((dy) => [-1, 0, 1].map((dx) => [dy, dx] as const));

/**
 * Transposed convolution 4×4, stride 2, padding 1: out[2y − 1 + k] += in[y] · w[k]. An output row of parity p gets two
 * input rows, `shift` from its own half: even rows 2y by w[1] of y and w[3] of y − 1, odd rows 2y + 1 by w[2] of y and
 * w[0] of y + 1.
 */
const TAPS = [
  [{ shift: 0, tap: 1 }, { shift: -1, tap: 3 }],
  [{ shift: 0, tap: 2 }, { shift: 1, tap: 0 }],
] as const;

const PARITIES = [[0, 0], [0, 1], [1, 0], [1, 1]] as const;

/** [O, I, taps] to [O, taps · I]. */
function reorder(weight: Float32Array, i: number, taps: number): Float32Array {
  return weight.map((_, at) => {
    const [out, tap, channel] = [Math.floor(at / (taps * i)), Math.floor(at / i) % taps, at % i];
    return weight[(out * i + channel) * taps + tap];
  });
}

/** The four taps of [I, O, 4, 4] that an output pixel of this parity gets, as [O, 4 · I]. */
function parity(weight: Float32Array, i: number, o: number, py: number, px: number): Float32Array {
  const out = new Float32Array(o * 4 * i);
  let at = 0;
  for (let n = 0; n < o; n++) {
    for (const { tap: ky } of TAPS[py]) {
      for (const { tap: kx } of TAPS[px]) {
        for (let c = 0; c < i; c++) out[at++] = weight[((c * o + n) * 4 + ky) * 4 + kx];
      }
    }
  }
  return out;
}

/** For every pixel of [S·S, C] its neighbours at the offsets, end to end; zeros beyond the border. */
function neighbours(
  x: Float32Array,
  side: number,
  channels: number,
  offsets: readonly (readonly [number, number])[],
): Float32Array {
  const out = new Float32Array(side * side * offsets.length * channels);
  let at = 0;
  for (let y = 0; y < side; y++) {
    for (let column = 0; column < side; column++) {
      for (const [dy, dx] of offsets) {
        const [row, col] = [y + dy, column + dx];
        if (row >= 0 && row < side && col >= 0 && col < side) {
          const from = (row * side + col) * channels;
          out.set(x.subarray(from, from + channels), at);
        }
        at += channels;
      }
    }
  }
  return out;
}

/** Writes [S·S, C] to the pixels of one parity of [2S · 2S, C]. */
function scatter(
  to: Float32Array,
  from: Float32Array,
  side: number,
  channels: number,
  py: number,
  px: number,
): void {
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const at = (y * side + x) * channels;
      to.set(from.subarray(at, at + channels), ((2 * y + py) * 2 * side + 2 * x + px) * channels);
    }
  }
}

function relu(x: Float32Array): Float32Array {
  for (let i = 0; i < x.length; i++) if (x[i] < 0) x[i] = 0;
  return x;
}

async function read(files: ModelFiles, tensors: TensorFiles, name: string, shape: readonly number[]) {
  const found = tensors.tensors.get(name)?.shape;
  if (found?.join() !== shape.join()) {
    throw new RequestError(
      "model_invalid",
      `Cannot load ${MASK_DECODER} of ${files.place}: expected tensor "${name}" [${shape}], found ${
        found ? `[${found}]` : "none"
      }`,
    );
  }
  return await tensors.f32(name);
}

/** The mask decoder's file as a directory of one. */
function soleFile(files: ModelFiles): ModelFiles {
  const name = "model.safetensors";
  return {
    place: `${files.place} (${MASK_DECODER})`,
    list: () => Promise.resolve([name]),
    size: (it) => it === name ? files.size(MASK_DECODER) : Promise.resolve(undefined),
    read: (_, start, end) => files.read(MASK_DECODER, start, end),
  };
}
