/**
 * ONNX files, written as they are built: nodes are gathered, large tensors go straight to data files beside the model,
 * so memory stays at one tensor and models beyond protobuf's 2 GB work.
 *
 * Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Data files are called `NAME_data`,
 * `NAME_data_1` … as transformers.js expects them.
 */

import { join } from "@std/path";
import { writing } from "./convert.ts";

/** Element types, numbered as in `TensorProto.DataType`. */
export const DataType = { f32: 1, u8: 2, i8: 3, i32: 6, i64: 7, bool: 9 } as const;

/** Bytes of a tensor that still stand in the model file; shapes and scalars must, graph optimisers read them there. */
const INLINE_BYTES = 1024;
/** Data files start another one beyond this; a 32-bit program maps at most 2 GiB. */
const FILE_BYTES = 2 ** 31 - 2 ** 20;
const ALIGN_BYTES = 64;

type Values = Float32Array | Int8Array | Uint8Array | BigInt64Array;

/** A size, or the name of a size known only at run time. */
export type Dimension = number | string;

/** Whole numbers, texts and lists stand for themselves. */
export type Attribute = number | string | readonly number[] | { readonly float: number };

/** One model being written. Values are known by name; every operation returns the name of its output. */
export class OnnxWriter {
  readonly #graph = new Message();
  readonly #inputs = new Message();
  readonly #outputs = new Message();
  readonly #small = new Map<string, string>();
  #count = 0;
  #data?: Deno.FsFile;
  #dataFiles = 0;
  #dataBytes = 0;

  /**
   * @param name file name, such as `vision_encoder.onnx`; `directory` must exist.
   * @param wrote called with the bytes of every piece that went into a data file; what it throws ends the writing.
   */
  constructor(readonly directory: string, readonly name: string, readonly wrote?: (bytes: number) => void) {}

  /** Leaves a file that did not come to its end. */
  [Symbol.dispose](): void {
    this.#data?.close();
    this.#data = undefined;
  }

  input(name: string, type: number, dims: readonly Dimension[]): string {
    this.#inputs.message(11, valueInfo(name, type, dims));
    return name;
  }

  output(name: string, type: number, dims: readonly Dimension[]): void {
    this.#outputs.message(12, valueInfo(name, type, dims));
  }

  /** Adds a node; its only output is called `name`, or gets a name. `domain` is empty for ONNX's own operations. */
  node(
    op: string,
    inputs: readonly string[],
    attributes: Record<string, Attribute> = {},
    name?: string,
  ): string {
    const output = name ?? `${op}_${this.#count++}`;
    this.nodes(op, inputs, attributes, [output]);
    return output;
  }

  /** The same for operations with several outputs, or with a domain before the name: `com.microsoft:MatMulNBits`. */
  nodes(
    op: string,
    inputs: readonly string[],
    attributes: Record<string, Attribute>,
    outputs: readonly string[],
  ) {
    const [domain, type] = op.includes(":") ? op.split(":") : ["", op];
    const node = new Message();
    for (const it of inputs) node.string(1, it);
    for (const it of outputs) node.string(2, it);
    node.string(3, `${outputs[0]}/node`).string(4, type);
    for (const [name, value] of Object.entries(attributes)) node.message(5, attribute(name, value));
    if (domain) node.string(7, domain);
    this.#graph.message(1, node);
    return outputs;
  }

  /** A fresh name for a value. */
  fresh(stem: string): string {
    return `${stem}_${this.#count++}`;
  }

  /** A small constant of whole numbers: shapes, axes, ids. */
  integers(...values: number[]): string {
    return this.#inline(BigInt64Array.from(values, BigInt), [values.length]);
  }

  /** A scalar. */
  scalar(value: number, type: "f32" | "i64" = "f32"): string {
    return this.#inline(type === "f32" ? Float32Array.of(value) : BigInt64Array.of(BigInt(value)), []);
  }

  #inline(values: Values, dims: number[]): string {
    const key = `${values.constructor.name} ${dims} ${[...values]}`;
    let name = this.#small.get(key);
    if (!name) {
      this.#small.set(key, name = this.fresh("constant"));
      this.#graph.message(5, tensor(name, dataType(values), dims).bytes(9, bytesOf(values)));
    }
    return name;
  }

  /** A tensor; `chunks` are its values in order, in one or several pieces. */
  async tensor(name: string, dims: readonly number[], ...chunks: Values[]): Promise<string> {
    return await this.stream(name, dataType(chunks[0]), dims, chunks);
  }

  /** The same for tensors made piece by piece. */
  async stream(
    name: string,
    type: number,
    dims: readonly number[],
    chunks: Iterable<Values>,
  ): Promise<string> {
    const size = dims.reduce((product, it) => product * it, { 1: 4, 2: 1, 3: 1, 7: 8 }[type]!);
    const proto = tensor(name, type, dims);
    if (size < INLINE_BYTES) {
      for (const it of chunks) proto.bytes(9, bytesOf(it));
    } else {
      await this.#align(size);
      const start = this.#dataBytes;
      for (const it of chunks) await this.#write(bytesOf(it));
      if (this.#dataBytes - start !== size) {
        throw new RangeError(`Tensor ${name}: expected ${size} bytes, found ${this.#dataBytes - start}`);
      }
      const entry = (key: string, value: string | number) =>
        proto.message(13, new Message().string(1, key).string(2, `${value}`));
      entry("location", this.#dataName());
      entry("offset", start);
      entry("length", size);
      proto.varint(14, 1);
    }
    this.#graph.message(5, proto);
    return name;
  }

  /** Writes the model file. Nothing may be added afterwards. */
  async close(metadata: Readonly<Record<string, string>> = {}): Promise<void> {
    this[Symbol.dispose]();
    const graph = this.#graph.string(2, this.name).append(this.#inputs).append(this.#outputs);
    const model = new Message().varint(1, 10).string(2, "paligemma-edge").message(7, graph);
    const opset = (domain: string, version: number) =>
      model.message(8, new Message().string(1, domain).varint(2, version));
    opset("", 21);
    opset("com.microsoft", 1);
    for (const [key, value] of Object.entries(metadata)) {
      model.message(14, new Message().string(1, key).string(2, value));
    }
    await writing(
      this.directory,
      () => Deno.writeFile(join(this.directory, this.name), model.toBytes()),
    );
  }

  #dataName(): string {
    return `${this.name}_data${this.#dataFiles > 1 ? `_${this.#dataFiles - 1}` : ""}`;
  }

  /** Brings the data file to where a tensor of `size` bytes may start. */
  async #align(size: number): Promise<void> {
    if (!this.#data || this.#dataBytes && this.#dataBytes + size > FILE_BYTES) {
      this.#data?.close();
      this.#dataFiles++;
      this.#dataBytes = 0;
      const path = join(this.directory, this.#dataName());
      this.#data = await writing(
        this.directory,
        () => Deno.open(path, { write: true, create: true, truncate: true }),
      );
    }
    await this.#write(new Uint8Array(-this.#dataBytes & (ALIGN_BYTES - 1)));
  }

  async #write(bytes: Uint8Array): Promise<void> {
    await writing(this.directory, async () => {
      for (let at = 0; at < bytes.length;) at += await this.#data!.write(bytes.subarray(at));
    });
    this.#dataBytes += bytes.length;
    this.wrote?.(bytes.length);
  }
}

function valueInfo(name: string, type: number, dims: readonly Dimension[]): Message {
  const shape = new Message();
  for (const dim of dims) {
    shape.message(1, typeof dim === "number" ? new Message().varint(1, dim) : new Message().string(2, dim));
  }
  const inner = new Message().varint(1, type).message(2, shape);
  return new Message().string(1, name).message(2, new Message().message(1, inner));
}

function tensor(name: string, type: number, dims: readonly number[]): Message {
  const proto = new Message();
  for (const dim of dims) proto.varint(1, dim);
  return proto.varint(2, type).string(8, name);
}

function attribute(name: string, value: Attribute): Message {
  const proto = new Message().string(1, name);
  if (typeof value === "number") return proto.varint(3, value).varint(20, 2);
  if (typeof value === "string") return proto.string(4, value).varint(20, 3);
  if ("float" in value) return proto.float(2, value.float).varint(20, 1);
  for (const it of value) proto.varint(8, it);
  return proto.varint(20, 7);
}

function dataType(values: Values): number {
  if (values instanceof Float32Array) return DataType.f32;
  if (values instanceof Int8Array) return DataType.i8;
  return values instanceof Uint8Array ? DataType.u8 : DataType.i64;
}

function bytesOf(values: Values): Uint8Array {
  return new Uint8Array(values.buffer as ArrayBuffer, values.byteOffset, values.byteLength);
}

/** One protobuf message: https://protobuf.dev/programming-guides/encoding/. */
class Message {
  #buffer = new Uint8Array(64);
  #length = 0;

  toBytes(): Uint8Array<ArrayBuffer> {
    return this.#buffer.subarray(0, this.#length);
  }

  /** Fields of another message, as if they had been written here. */
  append(other: Message): this {
    return this.#put(other.toBytes());
  }

  /** int32, int64, bool or an enumeration; negative numbers take their 64-bit form. */
  varint(field: number, value: number): this {
    return this.#tag(field, 0).#varint(value < 0 ? BigInt.asUintN(64, BigInt(value)) : BigInt(value));
  }

  float(field: number, value: number): this {
    return this.#tag(field, 5).#put(new Uint8Array(Float32Array.of(value).buffer));
  }

  bytes(field: number, value: Uint8Array): this {
    return this.#tag(field, 2).#varint(BigInt(value.length)).#put(value);
  }

  string(field: number, value: string): this {
    return this.bytes(field, new TextEncoder().encode(value));
  }

  message(field: number, value: Message): this {
    return this.bytes(field, value.toBytes());
  }

  #tag(field: number, wire: number): this {
    return this.#varint(BigInt(field << 3 | wire));
  }

  #varint(value: bigint): this {
    const bytes: number[] = [];
    for (; value > 127n; value >>= 7n) bytes.push(Number(value & 127n) | 128);
    return this.#put(Uint8Array.of(...bytes, Number(value)));
  }

  #put(bytes: Uint8Array): this {
    if (this.#length + bytes.length > this.#buffer.length) {
      const grown = new Uint8Array(Math.max(2 * this.#buffer.length, this.#length + bytes.length));
      grown.set(this.toBytes());
      this.#buffer = grown;
    }
    this.#buffer.set(bytes, this.#length);
    this.#length += bytes.length;
    return this;
  }
}
