/**
 * ONNX files as far as they must be understood to run them: inputs and outputs, which data files belong to them, and
 * in which scale their embeddings are. And onnxruntime as far as it is used, so that the caller may pass in
 * onnxruntime-web or onnxruntime-node.
 *
 * Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
 */

import { RequestError } from "../errors.ts";
import type { ModelFiles, WeightFormat } from "../types.ts";

/** A tensor of onnxruntime. */
export interface OrtTensor {
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: unknown;
  dispose?(): void;
}

/** A model in onnxruntime's hands. */
export interface OrtSession {
  run(feeds: Record<string, OrtTensor>): Promise<Record<string, OrtTensor>>;
  release(): Promise<void>;
}

/** The module `onnxruntime-web` or `onnxruntime-node`; threads and the like are set by whoever imports it. */
export interface Ort {
  readonly Tensor: new (type: string, data: unknown, dims: readonly number[]) => OrtTensor;
  readonly InferenceSession: {
    create(model: Uint8Array, options?: Record<string, unknown>): Promise<OrtSession>;
  };
}

/** Element types that occur, numbered as in `TensorProto.DataType`. */
const TYPES: Readonly<Record<number, string>> = {
  1: "float32",
  6: "int32",
  7: "int64",
  9: "bool",
  10: "float16",
};

/** An input or output of a graph. */
export interface OnnxValue {
  readonly name: string;
  /** As onnxruntime calls it: `float32`, `int64` …; a number for types not used here. */
  readonly type: string;
  /** Sizes, or the names of sizes known only at run time. */
  readonly dims: readonly (number | string)[];
}

interface Node {
  readonly op: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
}

/** What a graph says about itself. */
export interface OnnxGraph {
  readonly inputs: readonly OnnxValue[];
  readonly outputs: readonly OnnxValue[];
  readonly nodes: readonly Node[];
  /** f32 constants of one element, by name. */
  readonly scalars: ReadonlyMap<string, number>;
  readonly metadata: ReadonlyMap<string, string>;
  /** Names of the data files, relative to the model's. */
  readonly dataFiles: ReadonlySet<string>;
}

/** An ONNX file with everything that belongs to it. */
export interface OnnxModel {
  /** File name, for messages. */
  readonly name: string;
  /** The file and its data files, relative to the model directory. */
  readonly files: readonly string[];
  readonly bytes: Uint8Array;
  readonly graph: OnnxGraph;
  readonly externalData: readonly { readonly path: string; readonly data: Uint8Array }[];
}

/** The graphs of one model. */
export type OnnxPart = "vision_encoder" | "embed_tokens" | "decoder_model_merged";

/** What stands before `.onnx` in the layout of transformers.js, by format, smallest first. */
const SUFFIXES: Readonly<Record<WeightFormat, readonly string[]>> = {
  "int4": ["_q4", "_q4f16"],
  "int8": ["_int8", "_quantized"],
  "f32": [""],
  "as-stored": ["_q4", "_q4f16", "_int8", "_quantized", "_fp16", ""],
};

/**
 * Reads the graph of one part of a model in a format, by default the smallest that is there. As everywhere, an encoder
 * beside an int4 decoder may be int8.
 *
 * @throws {RequestError} `model_invalid` when there is none, or as {@link readOnnx}.
 */
export async function findOnnx(
  files: ModelFiles,
  part: OnnxPart,
  format: WeightFormat = "as-stored",
): Promise<OnnxModel> {
  const vision = format === "int4" && part === "vision_encoder";
  const names = [...SUFFIXES[format], ...vision ? SUFFIXES.int8 : []].map((it) => `${part}${it}.onnx`);
  for (const name of names) {
    if (await directoryOf(files, name) !== undefined) return await readOnnx(files, name);
  }
  throw new RequestError(
    "model_invalid",
    `Cannot load the model in ${files.place}: expected ${
      names.map((it) => `onnx/${it}`).join(" or ")
    }, found no such file; models export-onnx writes it`,
  );
}

/** Where a file lies, `onnx/` or the directory itself; undefined where it does not. */
async function directoryOf(files: ModelFiles, name: string): Promise<string | undefined> {
  for (const directory of ["onnx/", ""]) {
    if (await files.size(directory + name) !== undefined) return directory;
  }
}

/**
 * Reads `onnx/NAME`, or `NAME` where there is no such directory, and its data files.
 *
 * @throws {RequestError} `model_invalid`, naming the file that is missing or cannot be read.
 */
export async function readOnnx(files: ModelFiles, name: string): Promise<OnnxModel> {
  const invalid = (detail: string): never => {
    throw new RequestError("model_invalid", `Cannot load the model in ${files.place}: ${detail}`);
  };
  const directory = await directoryOf(files, name);
  if (directory === undefined) return invalid(`expected onnx/${name}, found no such file`);
  const bytes = await files.read(directory + name);
  const graph = readGraph(bytes, name);
  const externalData = [];
  for (const path of graph.dataFiles) {
    if (path.includes("..") || path.startsWith("/")) {
      invalid(`${name} keeps weights in ${path}, expected a file beside it`);
    }
    if (await files.size(directory + path) === undefined) {
      invalid(`${name} keeps weights in ${path}, found no such file`);
    }
    externalData.push({ path, data: await files.read(directory + path) });
  }
  const all = [name, ...graph.dataFiles].map((it) => directory + it);
  return { name, files: all, bytes, graph, externalData };
}

/** Hands a model to onnxruntime. `options` go to `InferenceSession.create`. */
export async function openSession(
  ort: Ort,
  model: OnnxModel,
  options: Record<string, unknown> = {},
): Promise<OrtSession> {
  try {
    return await ort.InferenceSession.create(model.bytes, {
      logSeverityLevel: 3,
      ...model.externalData.length && { externalData: model.externalData },
      ...options,
    });
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new RequestError("model_invalid", `Cannot load ${model.name}: onnxruntime says ${message}`, {
      cause,
    });
  }
}

/** Values of a float32 or float16 tensor. */
export function floats({ type, data }: OrtTensor): Float32Array {
  if (type === "float32") return data as Float32Array;
  if (data instanceof Float16Array) return Float32Array.from(data);
  const { buffer, byteOffset, length } = data as Uint16Array;
  return Float32Array.from(new Float16Array(buffer as ArrayBuffer, byteOffset, length));
}

/**
 * Whether the decoder of this graph multiplies its `inputs_embeds` by √D itself (`inside`), or takes them already
 * multiplied (`applied`). A graph of the first kind does nothing else with them.
 */
export function embeddingScale({ metadata, nodes }: OnnxGraph): "inside" | "applied" {
  if (metadata.get("paligemma.embeddings") === "scaled") return "applied";
  const usesOf = (name: string) => nodes.filter(({ op, inputs }) => op !== "Shape" && inputs.includes(name));
  let uses = usesOf("inputs_embeds");
  if (uses.length === 1 && uses[0].op === "Cast") uses = usesOf(uses[0].outputs[0]);
  return uses.length === 1 && uses[0].op === "Mul" ? "inside" : "applied";
}

/**
 * What the image features of this graph must be multiplied by to be unscaled: √D where the graph divides them by it
 * at its end, else 1.
 */
export function featureScale({ metadata, nodes, scalars }: OnnxGraph, output: string, width: number): number {
  if (metadata.get("paligemma.embeddings") === "scaled") return 1;
  const makerOf = (name: string) => nodes.find(({ outputs }) => outputs.includes(name));
  let last = makerOf(output);
  if (last?.op === "Cast") last = makerOf(last.inputs[0]);
  const constant = last?.inputs.map((it) => scalars.get(it)).find((it) => it !== undefined);
  if (constant === undefined) return 1;
  const factor = last!.op === "Div" ? constant : last!.op === "Mul" ? 1 / constant : 1;
  return Math.abs(factor / Math.sqrt(width) - 1) < 1e-3 ? Math.sqrt(width) : 1;
}

/**
 * Reads what an ONNX file says about itself, passing over its weights.
 *
 * @throws {RequestError} `model_invalid` for bytes that are no ONNX file.
 */
export function readGraph(bytes: Uint8Array, name: string): OnnxGraph {
  try {
    return parseModel(bytes);
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new RequestError("model_invalid", `Cannot read ${name}: ${cause.message}`, { cause });
  }
}

function parseModel(bytes: Uint8Array): OnnxGraph {
  const graph = {
    inputs: [] as OnnxValue[],
    outputs: [] as OnnxValue[],
    nodes: [] as Node[],
    scalars: new Map<string, number>(),
    metadata: new Map<string, string>(),
    dataFiles: new Set<string>(),
  };
  const initialised = new Set<string>();
  let found = false;
  for (const [field, value] of fields(bytes)) {
    if (field === 14) {
      const { key, text } = pair(value);
      graph.metadata.set(key, text);
    }
    if (field !== 7) continue;
    found = true;
    for (const [part, it] of fields(bytesIn(value))) {
      if (part === 1) addNode(graph, bytesIn(it));
      if (part === 5) {
        const tensor = parseTensor(bytesIn(it));
        initialised.add(tensor.name);
        if (tensor.scalar !== undefined) graph.scalars.set(tensor.name, tensor.scalar);
        if (tensor.location) graph.dataFiles.add(tensor.location);
      }
      if (part === 11) graph.inputs.push(parseValue(bytesIn(it)));
      if (part === 12) graph.outputs.push(parseValue(bytesIn(it)));
    }
  }
  if (!found || !graph.outputs.length) throw new RangeError("expected an ONNX model, found no graph in it");
  // Before IR version 4 weights stood among the inputs too.
  return { ...graph, inputs: graph.inputs.filter((it) => !initialised.has(it.name)) };
}

function addNode(
  graph: { nodes: Node[]; scalars: Map<string, number>; dataFiles: Set<string> },
  bytes: Uint8Array,
) {
  const [inputs, outputs]: string[][] = [[], []];
  let op = "";
  const tensors: ReturnType<typeof parseTensor>[] = [];
  for (const [field, value] of fields(bytes)) {
    if (field === 1) inputs.push(text(value));
    if (field === 2) outputs.push(text(value));
    if (field === 4) op = text(value);
    if (field !== 5) continue;
    for (const [part, it] of fields(bytesIn(value))) {
      if (part === 5) tensors.push(parseTensor(bytesIn(it)));
      if (part === 6) { // the branches of an If
        for (const [inner, that] of fields(bytesIn(it))) {
          if (inner !== 5) continue;
          const { location } = parseTensor(bytesIn(that));
          if (location) graph.dataFiles.add(location);
        }
      }
    }
  }
  for (const { scalar, location } of tensors) {
    if (op === "Constant" && scalar !== undefined) graph.scalars.set(outputs[0], scalar);
    if (location) graph.dataFiles.add(location);
  }
  graph.nodes.push({ op, inputs, outputs });
}

function parseTensor(bytes: Uint8Array) {
  let [name, type, elements] = ["", 0, 1];
  let scalar: number | undefined;
  let location: string | undefined;
  for (const [field, value] of fields(bytes)) {
    if (field === 1) { for (const dim of integers(value)) elements *= dim; }
    if (field === 2) type = Number(value);
    if (field === 8) name = text(value);
    if ((field === 4 || field === 9) && typeof value !== "number" && value.length === 4) {
      scalar = new DataView(value.buffer, value.byteOffset).getFloat32(0, true);
    }
    if (field === 13) {
      const entry = pair(value);
      if (entry.key === "location") location = entry.text;
    }
  }
  return { name, scalar: type === 1 && elements === 1 ? scalar : undefined, location };
}

function parseValue(bytes: Uint8Array): OnnxValue {
  let name = "";
  let type = 0;
  const dims: (number | string)[] = [];
  for (const [field, value] of fields(bytes)) {
    if (field === 1) name = text(value);
    if (field !== 2) continue;
    for (const [kind, tensor] of fields(bytesIn(value))) {
      if (kind !== 1) continue;
      for (const [part, it] of fields(bytesIn(tensor))) {
        if (part === 1) type = Number(it);
        if (part === 2) {
          for (const [, dim] of fields(bytesIn(it))) dims.push(parseDimension(bytesIn(dim)));
        }
      }
    }
  }
  return { name, type: TYPES[type] ?? `${type}`, dims };
}

function parseDimension(bytes: Uint8Array): number | string {
  for (const [field, value] of fields(bytes)) {
    if (field === 1) return Number(value);
    if (field === 2) return text(value);
  }
  return "?";
}

function pair(value: number | Uint8Array): { key: string; text: string } {
  const out = { key: "", text: "" };
  for (const [field, it] of fields(bytesIn(value))) {
    if (field === 1) out.key = text(it);
    if (field === 2) out.text = text(it);
  }
  return out;
}

/** A repeated integer field: one value, or many in one piece. */
function integers(value: number | Uint8Array): number[] {
  if (typeof value === "number") return [value];
  const out: number[] = [];
  for (let at = 0; at < value.length;) {
    const [it, next] = varint(value, at);
    out.push(it);
    at = next;
  }
  return out;
}

function bytesIn(value: number | Uint8Array): Uint8Array {
  if (typeof value === "number") throw new RangeError("expected a message, found a number");
  return value;
}

function text(value: number | Uint8Array): string {
  return new TextDecoder().decode(bytesIn(value));
}

/** Fields of a protobuf message; numbers beyond 2⁵³ are not exact. */
function* fields(bytes: Uint8Array): Generator<[number, number | Uint8Array]> {
  for (let at = 0; at < bytes.length;) {
    const [tag, start] = varint(bytes, at);
    const field = Math.floor(tag / 8);
    const wire = tag & 7;
    if (wire === 0) {
      const [value, next] = varint(bytes, start);
      at = next;
      yield [field, value];
      continue;
    }
    const [size, from] = wire === 2 ? varint(bytes, start) : [wire === 1 ? 8 : 4, start];
    if (wire !== 1 && wire !== 2 && wire !== 5 || !field || from + size > bytes.length) {
      throw new RangeError(`expected an ONNX model, found bytes that are none at ${at}`);
    }
    at = from + size;
    yield [field, bytes.subarray(from, at)];
  }
}

function varint(bytes: Uint8Array, at: number): [number, number] {
  let value = 0;
  for (let shift = 1; at < bytes.length && shift < 2 ** 70; shift *= 128) {
    const byte = bytes[at++];
    value += (byte & 127) * shift;
    if (byte < 128) return [value, at];
  }
  throw new RangeError(`expected an ONNX model, found a number that does not end at ${at}`);
}
