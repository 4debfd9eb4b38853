/** The nouns that the rooms hand to one another. */

/** A decoded picture: `data` is [H, W, 3] u8, row-major, RGB, already turned upright. */
export interface Picture {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

/** Model input: `data` is [size, size, 3] f32 in [-1, 1], row-major, RGB. */
export interface Pixels {
  readonly size: number;
  readonly data: Float32Array;
}

/** How a picture is brought to the model's square: as Hugging Face's processor does, or as big_vision does. */
export type ResizeMethod = "hf-bicubic" | "bv-bilinear-aa";

/** What happens to transparency: `drop` is the reference's way, `white` composites on white. */
export type AlphaPolicy = "drop" | "white";

/** Weight formats a user may ask for; `as-stored` takes what the file holds. `int4` means int4 decoder, int8 vision. */
export type WeightFormat = "f32" | "int8" | "int4" | "as-stored";

/** How the next token is chosen. Temperature 0 is greedy; ids from the image token upward are never sampled. */
export interface Sampling {
  /** 0 (greedy) to 2. */
  readonly temperature: number;
  /** Keep the K likeliest tokens; 0 keeps all. */
  readonly topK: number;
  /** Keep the smallest set whose probabilities sum to at least topP, in (0, 1]. */
  readonly topP: number;
  /** The same seed gives the same answer on one backend. */
  readonly seed: number;
}

/** A box in fractions of the upright picture, 0 to 1. */
export interface Box {
  readonly yMin: number;
  readonly xMin: number;
  readonly yMax: number;
  readonly xMax: number;
}

/** Why the answer ended: the model said so, the token limit, or the caller went away. */
export type FinishReason = "stop" | "length" | "cancelled";

/** Where the time of one request went, milliseconds. */
export interface Timings {
  readonly preprocess: number;
  readonly vision: number;
  readonly prefill: number;
  /** Mean over the generated tokens after the first; 0 when there was only one. */
  readonly perToken: number;
}

/** One candidate of a step. */
export interface Candidate {
  readonly id: number;
  readonly logit: number;
}

/**
 * What an answer is made of, in order: tokens (with boxes as soon as each is complete), then `usage`, then `done`.
 * SSE, webhooks, the command line and the pool all carry this one stream.
 */
export type AnswerEvent =
  | {
    readonly type: "token";
    readonly id: number;
    /** The text this token completes; empty while a UTF-8 character is still open. */
    readonly text: string;
    /** Natural logarithm of the token's probability before temperature, at most 0. */
    readonly logprob: number;
    /** The best logits of this step, when asked for. */
    readonly top?: readonly Candidate[];
  }
  | ({ readonly type: "box" } & Item)
  | {
    readonly type: "usage";
    readonly imageTokens: number;
    /** Ids of the text part of the prefix: BOS, prompt, newline. */
    readonly promptTokenIds: readonly number[];
    readonly completionTokens: number;
    readonly timings: Timings;
  }
  | { readonly type: "done"; readonly finishReason: FinishReason; readonly text: string };

/** One thing the model located. */
export interface Item {
  readonly box: Box;
  readonly label: string;
  /** In (0, 1]. */
  readonly confidence: number;
}

/** A whole answer: what a stream of events comes to. */
export interface Answer {
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly items: readonly Item[];
  readonly finishReason: FinishReason;
  readonly promptTokenIds: readonly number[];
  readonly imageTokens: number;
  readonly timings: Timings;
  /** The best logits of every step, when asked for. */
  readonly logits?: readonly (readonly Candidate[])[];
}

/** What a caller wants to know about one or more pictures. */
export interface Question {
  /** Encoded pictures (JPEG, PNG, WebP), in the order the model sees them; at least one. */
  readonly images: readonly Uint8Array[];
  /** The prefix, such as `caption en`; may be empty. */
  readonly prompt: string;
  /** Tokens at most, 1 or more; by default what the prompt's task needs. */
  readonly maxTokens?: number;
  /** Defaults to greedy. */
  readonly sampling?: Partial<Sampling>;
  /** Go on after the end of the answer, until `maxTokens`. */
  readonly ignoreEos?: boolean;
  /** Candidates to report with every token, 0 to 100. */
  readonly topLogits?: number;
  readonly resize?: ResizeMethod;
  readonly alpha?: AlphaPolicy;
  /** Whether `<loc0001>` and `<seg001>` in the prompt are location and mask tokens (`allow`) or plain text. */
  readonly tokens?: "plain" | "allow";
}

/** Lets other work run and throws when the request was cancelled. Called between pieces of computation. */
export type Pause = () => Promise<void>;

/** Files of one model, wherever they lie. Names are relative, with forward slashes. */
export interface ModelFiles {
  /** Where the files lie, for messages. */
  readonly place: string;
  list(): Promise<readonly string[]>;
  /** Size in bytes, or undefined where there is no such file. */
  size(name: string): Promise<number | undefined>;
  /** Bytes [start, end) of a file; end defaults to its size. A short read is an error. */
  read(name: string, start?: number, end?: number): Promise<Uint8Array>;
}
