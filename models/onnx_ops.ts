/**
 * The operations of the model as ONNX nodes, by the names they have in `lib/backend/backend.ts`. Activations are f32
 * [1, rows, columns]; a matrix enters in one of three forms:
 * - `f32`: `MatMul`.
 * - `int8`: `DynamicQuantizeLinear` and `MatMulInteger`, onnxruntime-web's fastest way; activations are u8 over the
 *   whole tensor, weights have one scale per output column and no zero point.
 * - `int4`: `MatMulNBits` (com.microsoft), blocks of 32, zero point 8.
 *
 * Integers and scales are those of this project's own schemes, so both engines multiply by the same weights.
 */

import { GROUP, unpack } from "../lib/backend/layout.ts";
import type { Scheme, StoredMatrix } from "../lib/backend/backend.ts";
import type { Weights } from "../lib/weights/load.ts";
import { DataType, type OnnxWriter } from "./onnx_writer.ts";

/** Format of matrices. */
export type OnnxFormat = "f32" | "int8" | "int4";

/** Rows of a transposed matrix held at a time. */
const ROWS = 64;

const SCHEME: Readonly<Record<OnnxFormat, Scheme>> = { f32: "f32", int8: "int8-p8-s4", int4: "int4-g32-p8" };

/** Writes the weights of one model as they are used. */
export class OnnxOps {
  /** Activations already quantised, by name. */
  readonly #quantised = new Map<string, readonly [string, string, string]>();

  constructor(readonly file: OnnxWriter, readonly weights: Weights) {}

  node: OnnxWriter["node"] = (...parts) => this.file.node(...parts);

  add(a: string, b: string): string {
    return this.node("Add", [a, b]);
  }

  mul(a: string, b: string): string {
    return this.node("Mul", [a, b]);
  }

  /** Reshape; 0 keeps the size at that place, -1 is what remains. */
  reshape(x: string, ...dims: number[]): string {
    return this.node("Reshape", [x, this.file.integers(...dims)]);
  }

  /** [1, T, H·C] as [1, H, T, C]. */
  heads(x: string, count: number, width: number): string {
    return this.node("Transpose", [this.reshape(x, 0, 0, count, width)], { perm: [0, 2, 1, 3] });
  }

  /** [1, H, T, C] as [1, T, H·C]. */
  joined(x: string, columns: number): string {
    return this.reshape(this.node("Transpose", [x], { perm: [0, 2, 1, 3] }), 0, 0, columns);
  }

  async vector(name: string): Promise<string> {
    const values = await this.weights.vector(name);
    return this.file.tensor(name, [values.length], values);
  }

  async layerNorm(x: string, name: string, eps: number): Promise<string> {
    const inputs = [x, await this.vector(`${name}.weight`), await this.vector(`${name}.bias`)];
    return this.node("LayerNormalization", inputs, { axis: -1, epsilon: { float: eps } });
  }

  /** x / √(mean(x²) + eps) · (1 + weight). */
  async rmsNorm(x: string, name: string, eps: number): Promise<string> {
    const values = (await this.weights.vector(name)).map((it) => 1 + it);
    const weight = await this.file.tensor(name, [values.length], values);
    const square = this.node("Pow", [x, this.file.scalar(2)]);
    const mean = this.node("ReduceMean", [square, this.file.integers(-1)], { keepdims: 1 });
    const root = this.node("Sqrt", [this.add(mean, this.file.scalar(eps))]);
    return this.mul(this.node("Div", [x, root]), weight);
  }

  gelu(x: string): string {
    return this.node("Gelu", [x], { approximate: "tanh" });
  }

  /** x [1, T, K] · Wᵀ, with the bias where one is named. */
  async linear(x: string, name: string, format: OnnxFormat, bias?: string): Promise<string> {
    const matrix = await this.weights.matrix(name, SCHEME[format]);
    const out = await this[matrix.scheme](x, name, matrix);
    return bias ? this.add(out, await this.vector(bias)) : out;
  }

  /** Rows of a table [V, D] by ids [1, T], times `scale`. */
  async embed(
    ids: string,
    name: string,
    format: "f32" | "int8",
    scale: number,
    output: string,
  ): Promise<string> {
    const matrix = await this.weights.matrix(name, SCHEME[format]);
    const { n, k } = matrix;
    if (matrix.scheme === "f32") {
      const table = await this.file.tensor(name, [n, k], matrix.data as Float32Array);
      return this.node("Mul", [this.node("Gather", [table, ids]), this.file.scalar(scale)], {}, output);
    }
    const table = await this.file.tensor(name, [n, k], unpack(matrix).values);
    const steps = await this.file.tensor(`${name}.scale`, [n, 1], matrix.scale!.map((it) => it * scale));
    const rows = this.node("Cast", [this.node("Gather", [table, ids])], { to: DataType.f32 });
    return this.node("Mul", [rows, this.node("Gather", [steps, ids])], {}, output);
  }

  async f32(x: string, name: string, { n, k, data }: StoredMatrix): Promise<string> {
    const columns = transposed(data as Float32Array, n, k, (length) => new Float32Array(length));
    return this.node("MatMul", [x, await this.file.stream(name, DataType.f32, [k, n], columns)]);
  }

  async "int8-p8-s4"(x: string, name: string, matrix: StoredMatrix): Promise<string> {
    const { n, k } = matrix;
    const columns = transposed(unpack(matrix).values, n, k, (length) => new Int8Array(length));
    const w = await this.file.stream(`${name}.q`, DataType.i8, [k, n], columns);
    const step = await this.file.tensor(`${name}.scale`, [n], matrix.scale!);
    const [q, scale, zero] = this.#quantise(x);
    const sums = this.node("Cast", [this.node("MatMulInteger", [q, w, zero])], { to: DataType.f32 });
    return this.mul(sums, this.mul(scale, step));
  }

  async "int4-g32-p8"(x: string, name: string, matrix: StoredMatrix): Promise<string> {
    const { n, k, scale } = matrix;
    const { values, groupScales } = unpack(matrix);
    const groups = Math.ceil(k / GROUP);
    const bytes = new Uint8Array(n * groups * GROUP / 2).fill(0x88);
    for (let row = 0; row < n; row++) {
      for (let i = 0; i < k; i++) {
        const at = (row * groups * GROUP + i) >> 1;
        const nibble = values[row * k + i] + 8;
        bytes[at] = i & 1 ? bytes[at] & 15 | nibble << 4 : bytes[at] & 240 | nibble;
      }
    }
    const steps = Float32Array.from(groupScales!, (it, i) => it * scale![Math.floor(i / groups)]);
    const w = await this.file.tensor(`${name}.q`, [n, groups, GROUP / 2], bytes);
    const s = await this.file.tensor(`${name}.scale`, [n * groups], steps);
    const output = this.file.fresh("MatMulNBits");
    this.file.nodes("com.microsoft:MatMulNBits", [x, w, s], { K: k, N: n, bits: 4, block_size: GROUP }, [
      output,
    ]);
    return output;
  }

  /** Activations as u8 with their scale and zero point; once for all matrices they meet. */
  #quantise(x: string): readonly [string, string, string] {
    let found = this.#quantised.get(x);
    if (!found) {
      found = ["quantised", "scale", "zero"].map((it) => `${x}/${it}`) as unknown as [string, string, string];
      this.file.nodes("DynamicQuantizeLinear", [x], {}, found);
      this.#quantised.set(x, found);
    }
    return found;
  }
}

/** [N, K] as [K, N], a few rows at a time. */
function* transposed<T extends Float32Array | Int8Array>(
  data: T,
  n: number,
  k: number,
  create: (length: number) => T,
): Generator<T> {
  for (let first = 0; first < k; first += ROWS) {
    const rows = Math.min(ROWS, k - first);
    const chunk = create(rows * n);
    for (let row = 0; row < n; row++) {
      for (let i = 0; i < rows; i++) chunk[i * n + row] = data[row * k + first + i];
    }
    yield chunk;
  }
}
