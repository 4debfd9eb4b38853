/**
 * The contract between who understands questions and who computes answers, here or on another machine: prepared pictures
 * and a prefix go in, tokens come out. Text, boxes and masks are made of the tokens where the question was asked.
 */

import type { AnswerEvent, Sampling } from "../types.ts";

/** How far pictures are computed already: not at all, up to the projector (SigLIP's features), or through it. */
export type Stage = "pixels" | "features" | "projected";

/** How their numbers are written: bytes for pixels; half floats, or bytes with a scale for each row, for the others. */
export type Dtype = "u8" | "f16" | "int8";

/** Prepared pictures. */
export interface Images {
  readonly stage: Stage;
  readonly dtype: Dtype;
  /**
   * Pixels: [N, S, S, 3], pictures of the model's square, RGB. Otherwise [N, P, W]: pictures, image tokens of each, width.
   */
  readonly shape: readonly number[];
  /**
   * The numbers, row-major, as `lib/pool/rows.ts` writes them; rows are whole. They may still be computed while the first
   * are on their way. Asked for again when the work goes on elsewhere.
   */
  blocks(): AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
}

/** What to compute and until when. */
export interface Work {
  /** Whose weights, as {@link Pool} calls them; others refuse it. */
  readonly revision: string;
  readonly images: Images;
  /** BOS, prompt, newline. */
  readonly ids: readonly number[];
  readonly sampling: Sampling;
  /** Tokens at most after `forced`. */
  readonly maxTokens: number;
  readonly ignoreEos: boolean;
  /** Candidates to report with every token, 0 to 100. */
  readonly topLogits: number;
  /** Tokens that the answer starts with, whatever the model thinks. */
  readonly forced: readonly number[];
  /** The prompt whose grammar the answer is held to. */
  readonly grammar?: string;
  /** Tokens of this answer that were given before, perhaps by somebody else: they are continued and not given again. */
  readonly given: readonly number[];
}

/** A token as who computes gives it: `text` is empty, as is that of its candidates. */
export type TokenEvent = Extract<AnswerEvent, { type: "token" }> & {
  /** As `logprob`, of all tokens together that mean what this one means, such as neighbouring locations. */
  readonly nearLogprob: number;
};

/** What comes back: tokens, then `usage` and `done`, whose text is empty. */
export type PoolEvent = TokenEvent | Extract<AnswerEvent, { type: "usage" | "done" }>;

/** How work is asked for. */
export interface SubmitOptions {
  /** The answer then ends with `cancelled` after at most one more token. */
  readonly signal?: AbortSignal;
  /** In how many milliseconds from now the last token is worth having; work that takes longer is refused at once. */
  readonly deadlineMs?: number;
}

/** Computes answers. Local and remote look the same. */
export interface Pool {
  /**
   * Computes an answer.
   *
   * @throws {PoolError} when the answer is not to be had here, or not to its end; whoever asked may go on elsewhere with
   * the tokens that came.
   */
  submit(work: Work, options?: SubmitOptions): AsyncIterable<PoolEvent>;
  /** Stages at which it takes pictures; all of them by default. */
  readonly takes?: readonly Stage[];
  /** Who is there to do it; undefined, or no such function, where nobody knows. */
  present?(): Present | undefined;
}

/** The workers of a pool. */
export interface Present {
  readonly workers: readonly WorkerLoad[];
  /** Since when there has been somebody, milliseconds since 1970; undefined while there is nobody. */
  readonly since?: number;
}

/** How busy a worker is, and how fast. */
export interface WorkerLoad {
  readonly worker: string;
  /** Answers that it works on at once. */
  readonly slots: number;
  readonly running: number;
  readonly waiting: number;
  /** Milliseconds an answer holds a slot, until its first token, and from one token to the next: means, where it tells. */
  readonly serviceMs?: number;
  readonly firstMs?: number;
  readonly tokenMs?: number;
}

/** Why work is not done. The first group is what a worker says of work, the second what happens to it on the way. */
export type PoolErrorCode =
  | "magic" // not a message of ours
  | "version" // a message of another version
  | "malformed" // fields that do not follow the format, or are out of their range
  | "shape" // pictures or prefix of another shape than the model's
  | "length" // fewer or more bytes than the shape says
  | "revision" // for another model
  | "sum" // damaged: another sha256
  | "number" // NaN or infinite values
  | "norm" // rows so large or small that no encoder made them
  | "unsigned" // no signature, or not for this work, this model or this time
  | "forbidden" // features, where only pixels are taken
  | "unsupported" // what servers of this kind do not do
  | "busy" // as much waits already as may
  | "late" // cannot be done by its deadline
  | "failed" // the worker's own fault
  //
  | "nobody" // no worker
  | "gone" // its worker died, or the way to it broke
  | "silent" // its worker says nothing for too long
  | "broken"; // its worker answers what cannot be

/** Work that was not done, or not to its end. */
export class PoolError extends Error {
  override readonly name = "PoolError";

  /** @param predictedMs of `busy` and `late`: how long the work would have taken. */
  constructor(
    readonly code: PoolErrorCode,
    message: string,
    readonly predictedMs?: number,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** Why work was not done, as a pool says it: what is no error of a pool is a way to it that broke. */
export function poolError(cause: unknown): PoolError {
  if (cause instanceof PoolError) return cause;
  return new PoolError("gone", `The way to the pool broke: ${cause}`, undefined, { cause });
}
