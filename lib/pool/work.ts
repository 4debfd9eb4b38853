/**
 * Work as bytes, for the way to other machines. All numbers are little-endian.
 *
 * ```text
 *  0   4  "PGWK"
 *  4   1  version, 1
 *  5   1  stage: 0 pixels, 1 features, 2 projected
 *  6   1  dtype: 0 u8, 1 f16, 2 int8
 *  7   1  scale: 0, image tokens are as the projector gives them, divided by nothing
 *  8  32  revision, UTF-8, filled up with zeros
 * 40  16  shape, 4 u32; what the stage does not have is 1
 * 56   4  bytes of the question, u32
 * 60   4  zeros
 * 64      the question, see `encodeQuestion`
 *         the pictures, see `rows.ts`
 *         sha256 of all before it, 32 bytes
 * ```
 *
 * Who receives it believes nothing: everything is checked before anything is computed, and each refusal has a code.
 */

import { sha256 } from "../digest.ts";
import { type Dtype, type Images, PoolError, type PoolErrorCode, type Stage, type Work } from "./pool.ts";
import { decodeRows, rowBytes } from "./rows.ts";

/** What work has to fit. */
export interface ModelShape {
  readonly revision: string;
  /** Side of the model's square input, pixels. */
  readonly imageSize: number;
  /** Image tokens of one picture. */
  readonly imageTokens: number;
  /** Width of SigLIP's features; absent where the projector cannot be had alone. */
  readonly featureWidth?: number;
  /** Width of the decoder. */
  readonly width: number;
  /** Positions for image tokens, prefix and answer together. */
  readonly context: number;
  /** Ids from here on are neither asked nor answered. */
  readonly vocabulary: number;
}

const MAGIC = new TextEncoder().encode("PGWK");
const VERSION = 1;
const STAGES: readonly Stage[] = ["pixels", "features", "projected"];
const DTYPES: readonly Dtype[] = ["u8", "f16", "int8"];
const REVISION_BYTES = 32;
const SUM_BYTES = 32;

/** Bytes before the question: enough to know of what size the message is, and whether it may be for us. */
export const HEADER_BYTES = 64;
const QUESTION_BYTES = 60;
/** A question is ids and a prompt; more than this is none. */
const MAX_QUESTION_BYTES = 1 << 20;

/**
 * Root mean square of a row of features or image tokens. Those of trained and of random encoders lie between 0.1 and 50;
 * beyond these bounds they come from no encoder, and would drive a decoder's sums to infinity.
 */
const RMS = { least: 1e-4, most: 1e4 };

function refuse(code: PoolErrorCode, message: string): never {
  throw new PoolError(code, `Cannot take work: ${message}`);
}

/**
 * Writes work, block by block as its pictures are computed; the whole is what the blocks make one after another.
 *
 * @throws {RangeError} when the pictures have more or fewer bytes than their shape says.
 */
export async function* encodeWork(work: Work): AsyncGenerator<Uint8Array> {
  const question = encodeQuestion(work);
  const head = new Uint8Array(HEADER_BYTES + question.length);
  const view = new DataView(head.buffer);
  const { stage, dtype, shape } = work.images;
  const revision = new TextEncoder().encode(work.revision);
  if (revision.length > REVISION_BYTES) {
    throw new RangeError(
      `Cannot write work: expected a revision of ${REVISION_BYTES} bytes, found ${revision.length}`,
    );
  }
  head.set(MAGIC);
  head.set([VERSION, STAGES.indexOf(stage), DTYPES.indexOf(dtype), 0], 4);
  head.set(revision, 8);
  for (let i = 0; i < 4; i++) view.setUint32(40 + 4 * i, shape[i] ?? 1, true);
  view.setUint32(56, question.length, true);
  head.set(question, HEADER_BYTES);
  const sent: Uint8Array[] = [head];
  yield head;
  let left = imageBytes(work.images);
  for await (const block of work.images.blocks()) {
    left -= block.length;
    sent.push(block);
    yield block;
  }
  if (left) {
    throw new RangeError(
      `Cannot write work: pictures of shape ${shape} as ${dtype} have ${-left} bytes too many`,
    );
  }
  yield await sha256(await new Blob(sent as BlobPart[]).arrayBuffer());
}

/**
 * Reads the first bytes of a message, {@link HEADER_BYTES} at least, and gives the number of bytes of the whole.
 *
 * @throws {PoolError} `length`, `magic`, `version`, `malformed`, `revision` or `shape`.
 */
export function messageBytes(bytes: Uint8Array, model: ModelShape): number {
  const { images, questionBytes } = readHeader(bytes, model);
  return HEADER_BYTES + questionBytes + imageBytes(images) + SUM_BYTES;
}

/**
 * Reads a whole message.
 *
 * @throws {PoolError} as {@link messageBytes}, and `sum`, `number` or `norm`.
 */
export async function decodeWork(bytes: Uint8Array, model: ModelShape): Promise<Work> {
  const size = messageBytes(bytes, model);
  if (bytes.length !== size) refuse("length", `expected ${size} bytes, found ${bytes.length}`);
  const end = size - SUM_BYTES;
  const sum = await sha256(bytes.subarray(0, end));
  if (!bytes.subarray(end).every((it, i) => it === sum[i])) refuse("sum", "its sha256 is another");
  const { images, questionBytes } = readHeader(bytes, model);
  const data = bytes.subarray(HEADER_BYTES + questionBytes, end);
  if (images.dtype !== "u8") checkRows(images.dtype, data, images.shape[2]);
  const question = decodeQuestion(bytes.subarray(HEADER_BYTES, HEADER_BYTES + questionBytes));
  checkQuestion(question, images.shape[0] * model.imageTokens, model);
  return { revision: model.revision, images: { ...images, blocks: () => [data] }, ...question };
}

function imageBytes({ dtype, shape }: Pick<Images, "dtype" | "shape">): number {
  if (dtype === "u8") return shape.reduce((a, b) => a * b, 1);
  return shape[0] * shape[1] * rowBytes(dtype, shape[2]);
}

function readHeader(bytes: Uint8Array, model: ModelShape) {
  if (bytes.length < HEADER_BYTES) {
    refuse("length", `expected a header of ${HEADER_BYTES} bytes, found ${bytes.length}`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (!MAGIC.every((it, i) => it === bytes[i])) refuse("magic", "expected a message that begins with PGWK");
  if (bytes[4] !== VERSION) refuse("version", `expected version ${VERSION}, found ${bytes[4]}`);
  const [stage, dtype] = [STAGES[bytes[5]], DTYPES[bytes[6]]];
  const known = stage && dtype && (stage === "pixels") === (dtype === "u8") && !bytes[7];
  if (!known || view.getUint32(60, true)) {
    refuse("malformed", `there is no stage ${bytes[5]} as ${bytes[6]} with scale ${bytes[7]}`);
  }
  const revision = new TextDecoder().decode(bytes.subarray(8, 8 + REVISION_BYTES)).replace(/\0+$/, "");
  if (revision !== model.revision) {
    refuse("revision", `expected ${model.revision}, found ${JSON.stringify(revision)}`);
  }
  const all = [0, 1, 2, 3].map((i) => view.getUint32(40 + 4 * i, true));
  const shape = stage === "pixels" ? all : all.slice(0, 3);
  const [count] = shape;
  const wanted = shapeOf(stage, count, model);
  const most = Math.floor(model.context / model.imageTokens);
  if (!wanted || shape.join() !== wanted.join() || all[3] !== (wanted[3] ?? 1) || count < 1 || count > most) {
    refuse("shape", `expected ${stage} [1 to ${most}, ${wanted?.slice(1) ?? "nothing"}], found [${all}]`);
  }
  const questionBytes = view.getUint32(56, true);
  if (questionBytes < QUESTION_BYTES || questionBytes > MAX_QUESTION_BYTES) {
    refuse("malformed", `expected a question of ${QUESTION_BYTES} bytes or more, found ${questionBytes}`);
  }
  return { images: { stage, dtype, shape }, questionBytes };
}

/** The shape of N pictures at a stage; undefined where the model has no such stage. */
export function shapeOf(stage: Stage, count: number, model: ModelShape): number[] | undefined {
  const { imageSize, imageTokens, featureWidth, width } = model;
  if (stage === "pixels") return [count, imageSize, imageSize, 3];
  if (stage === "projected") return [count, imageTokens, width];
  return featureWidth === undefined ? undefined : [count, imageTokens, featureWidth];
}

function checkRows(dtype: "f16" | "int8", data: Uint8Array, width: number): void {
  const values = decodeRows(dtype, data, width);
  for (let start = 0; start < values.length; start += width) {
    let squares = 0;
    for (let i = start; i < start + width; i++) squares += values[i] * values[i];
    const rms = Math.sqrt(squares / width);
    const row = start / width;
    if (!Number.isFinite(rms)) refuse("number", `row ${row} holds NaN or infinite values`);
    if (rms < RMS.least || rms > RMS.most) {
      refuse(
        "norm",
        `expected rows whose root mean square is ${RMS.least} to ${RMS.most}, found ${rms} in row ${row}`,
      );
    }
  }
}

/** What of work is neither pictures nor model. */
type Asked = Omit<Work, "revision" | "images">;

/**
 * ```text
 *  0  1  flags: 1 ignoreEos, 2 there is a grammar     12  8  temperature, f64    44  4  number of forced ids
 *  1  1  topLogits                                    20  8  topK, f64           48  4  number of given ids
 *  2  2  zeros                                        28  8  topP, f64           52  4  bytes of the grammar's prompt
 *  4  8  maxTokens, f64                               36  4  seed, u32           56  4  zeros
 *                                                     40  4  number of ids       60     ids u32, prompt UTF-8
 * ```
 */
function encodeQuestion(work: Asked): Uint8Array {
  const { ids, forced, given, sampling, maxTokens, ignoreEos, topLogits, grammar } = work;
  const prompt = new TextEncoder().encode(grammar ?? "");
  const all = Uint32Array.of(...ids, ...forced, ...given);
  const bytes = new Uint8Array(QUESTION_BYTES + 4 * all.length + prompt.length);
  const view = new DataView(bytes.buffer);
  bytes[0] = Number(ignoreEos) | (grammar === undefined ? 0 : 2);
  bytes[1] = topLogits;
  view.setFloat64(4, maxTokens, true);
  view.setFloat64(12, sampling.temperature, true);
  view.setFloat64(20, sampling.topK, true);
  view.setFloat64(28, sampling.topP, true);
  view.setUint32(36, sampling.seed, true);
  for (const [i, it] of [ids, forced, given].entries()) view.setUint32(40 + 4 * i, it.length, true);
  view.setUint32(52, prompt.length, true);
  for (const [i, id] of all.entries()) view.setUint32(QUESTION_BYTES + 4 * i, id, true);
  bytes.set(prompt, QUESTION_BYTES + 4 * all.length);
  return bytes;
}

function decodeQuestion(bytes: Uint8Array): Asked {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const counts = [40, 44, 48].map((at) => view.getUint32(at, true));
  const promptBytes = view.getUint32(52, true);
  const size = QUESTION_BYTES + 4 * (counts[0] + counts[1] + counts[2]) + promptBytes;
  if (size !== bytes.length || bytes[0] > 3 || bytes[2] || bytes[3] || view.getUint32(56, true)) {
    refuse("malformed", `expected a question of ${size} bytes, found ${bytes.length}`);
  }
  let at = QUESTION_BYTES;
  const [ids, forced, given] = counts.map((count) =>
    Array.from({ length: count }, () => {
      at += 4;
      return view.getUint32(at - 4, true);
    })
  );
  const prompt = bytes[0] & 2 ? new TextDecoder().decode(bytes.subarray(at)) : undefined;
  return {
    ids,
    forced,
    given,
    maxTokens: view.getFloat64(4, true),
    sampling: {
      temperature: view.getFloat64(12, true),
      topK: view.getFloat64(20, true),
      topP: view.getFloat64(28, true),
      seed: view.getUint32(36, true),
    },
    ignoreEos: (bytes[0] & 1) === 1,
    topLogits: bytes[1],
    ...prompt !== undefined && { grammar: prompt },
  };
}

function checkQuestion(asked: Asked, imageTokens: number, { context, vocabulary }: ModelShape): void {
  const { ids, forced, given, maxTokens, sampling, topLogits } = asked;
  const { temperature, topK, topP } = sampling;
  const whole = (value: number, low: number) => Number.isSafeInteger(value) && value >= low;
  const inRange = whole(maxTokens, 1) && whole(topK, 0) && topLogits <= 100 && temperature >= 0 &&
    temperature <= 2 && topP > 0 && topP <= 1 && given.length <= forced.length + maxTokens;
  if (!inRange) refuse("malformed", "sampling or numbers of tokens are out of their ranges");
  const stranger = [ids, forced, given].flat().find((id) => id >= vocabulary);
  if (stranger !== undefined) refuse("malformed", `expected ids below ${vocabulary}, found ${stranger}`);
  const positions = imageTokens + ids.length + forced.length + maxTokens;
  if (!ids.length || positions > context) {
    refuse(
      "shape",
      `expected a prefix, and ${context} positions at most, found ${ids.length} and ${positions}`,
    );
  }
}
