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

/** A box in whole pixels of the upright picture: its sides' fractions times the picture's, rounded. */
export type BoxPixels = Box;

/** The pixels that belong to a thing, on the whole upright picture, in COCO's compressed run-length form. */
export interface RleMask {
  /** Height and width of the picture. */
  readonly size: readonly [number, number];
  /** Run lengths down the columns, zeros first, as COCO's tools write them. */
  readonly counts: string;
}

/** A mask in one of the forms a question may ask for. */
export type Mask =
  | RleMask
  /** Rings of x, y pairs along pixel borders; outer ones clockwise, holes the other way. */
  | { readonly size: readonly [number, number]; readonly polygons: readonly (readonly number[])[] }
  /** A grey PNG of the picture's size, 255 inside, in base64. */
  | { readonly size: readonly [number, number]; readonly png: string };

/**
 * What is wrong with an item. `cut-off`: the answer ended within it, its label or mask may lack a part. `empty`: its
 * bottom or right is not beyond its top or left. `mask`: it has some of a mask's sixteen tokens, but not sixteen.
 */
export type ItemFlag = "cut-off" | "empty" | "mask";

/** Ids [first, end). */
export type Span = readonly [first: number, end: number];

/** What may come next in an answer; one object follows one answer. */
export interface Constraint {
  /** Ids that may come next, ascending; never none. The ids that end an answer are among them where it may end. */
  allowed(): readonly Span[];
  /**
   * Takes the token that came.
   *
   * @throws {RangeError} when it was not allowed.
   */
  advance(id: number): void;
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

/** What of a request was known from an earlier one. */
export interface Cached {
  /** Pictures whose image tokens were. */
  readonly images: number;
  /** Whether the whole prefix was, pictures and prompt: nothing was prefilled. */
  readonly prefix: boolean;
}

/** What was expected of one route, milliseconds from the decision; P95s are null while its place cannot be relied on. */
export interface RoutePrediction {
  /**
   * `local`: all here. `features`: SigLIP here, the decoder in the pool. `pixels`: all in the pool. With `-known` where the
   * pictures' image tokens were, `-prefilled` where all before the answer was, `-short` for fewer tokens than asked for,
   * `-smaller` for all here by a smaller variant of the model.
   */
  readonly route: string;
  readonly firstP50Ms: number;
  readonly firstP95Ms: number | null;
  readonly totalP50Ms: number;
  readonly totalP95Ms: number | null;
  /** The probability that all that is wanted is in time, 0 to 1. */
  readonly chance: number;
  /** In the unit of a budget's `maxCost`. */
  readonly cost: number;
}

/** Why an answer took the route that it took. */
export interface RouteDecision {
  readonly candidates: readonly RoutePrediction[];
  /** Routes that were not thought of: nobody is there, or the question forbids it. */
  readonly excluded: readonly {
    readonly route: string;
    readonly why: "absent" | "privacy" | "cost" | "quality";
  }[];
  readonly chosen: string;
  /**
   * `usual`: no time was set. `in-time`: the best whose P95s are in time. `likeliest`: none is sure to be. `kept`: another
   * is better, but not clearly. `explored`: another would do as well, and this was not tried for long.
   */
  readonly reason: "usual" | "in-time" | "likeliest" | "kept" | "explored";
  /** Name of the smaller variant of the model, where it was chosen. */
  readonly variant?: string;
  /** What is begun besides when no first token has come after so long. */
  readonly hedge?: { readonly route: string; readonly afterMs: number };
  /** Where the rest of the answer came from elsewhere, to be in time. A stream has the event `route` once more then. */
  readonly handover?: Handover;
}

/** An answer that went on elsewhere because it would have been late, milliseconds. */
export interface Handover {
  readonly from: string;
  readonly to: string;
  readonly afterTokens: number;
  /** From the decision. */
  readonly afterMs: number;
  /** What the rest would have taken at the pace of the tokens that came; and what was expected of it elsewhere. */
  readonly stayingMs: number;
  readonly totalP50Ms: number;
  readonly totalP95Ms: number;
}

/** How an answer came, milliseconds from the decision. */
export interface RouteOutcome {
  /** The route that gave its last token. */
  readonly route: string;
  readonly firstMs: number;
  readonly totalMs: number;
  /** Whether the budget's times were met; absent where none was set. */
  readonly met?: boolean;
  /** What became of a second route, where one was begun. */
  readonly hedge?: "won" | "wasted";
}

/** One candidate of a step. */
export interface Candidate {
  readonly id: number;
  /** The piece as text; half a character is its byte, such as `<0xC3>`. */
  readonly text: string;
  readonly logit: number;
  /** As a token's. */
  readonly logprob: number;
}

/**
 * What an answer is made of, in order: `route`, tokens (with boxes as soon as each is complete), then `usage`, then `done`.
 * SSE, webhooks, the command line and the pool all carry this one stream.
 */
export type AnswerEvent =
  | ({ readonly type: "route" } & RouteDecision)
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
    /** Absent where everything was computed. */
    readonly cached?: Cached;
    /** What came of the decision; absent where the caller went away. */
    readonly route?: RouteOutcome;
  }
  | {
    readonly type: "done";
    readonly finishReason: FinishReason;
    readonly text: string;
    /** The text that belongs to no item, where it is not all of it. */
    readonly plainText?: string;
    /** Items that were dropped because they had not four locations, where there were any. */
    readonly brokenItems?: number;
  };

/** One thing the model located. */
export interface Item {
  readonly box: Box;
  readonly label: string;
  /** In (0, 1]. */
  readonly confidence: number;
  /** Where the question was about one picture. */
  readonly boxPixels?: BoxPixels;
  /** The sixteen codebook indices of a mask, 0 to 127, rows of four from the top. */
  readonly maskCodes?: readonly number[];
  /** Where there are codes, one picture, and the model has a mask decoder. */
  readonly mask?: Mask;
  /** Absent where nothing is wrong. */
  readonly flags?: readonly ItemFlag[];
}

/** A whole answer: what a stream of events comes to. */
export interface Answer {
  /** Name of the smaller variant of the model that gave it; absent where the model itself did. */
  readonly model?: string;
  readonly text: string;
  readonly tokenIds: readonly number[];
  readonly items: readonly Item[];
  readonly finishReason: FinishReason;
  /** The text that belongs to no item, where it is not all of it. */
  readonly plainText?: string;
  /** Items that were dropped because they had not four locations, where there were any. */
  readonly brokenItems?: number;
  readonly promptTokenIds: readonly number[];
  readonly imageTokens: number;
  readonly timings: Timings;
  /** Absent where everything was computed. */
  readonly cached?: Cached;
  /** The best logits of every step, when asked for. */
  readonly logits?: readonly (readonly Candidate[])[];
  /** Which way it took, why, and what came of that; absent where it was computed with an engine alone. */
  readonly route?: RouteDecision & { readonly actual?: RouteOutcome };
}

/**
 * What PaliGemma was trained to be asked. Languages are codes as in COCO-35L (`en`, `de`, `fil` …), `en` by default.
 */
export type Task =
  /** In a sentence; with `box`, only what is in it. */
  | { readonly task: "caption"; readonly language?: string; readonly box?: Box }
  /** In the style of the alternative texts of web pages; pre-trained checkpoints only. */
  | { readonly task: "cap"; readonly language?: string }
  /** In more words. */
  | { readonly task: "describe"; readonly language?: string }
  | { readonly task: "ocr" }
  /** With `choices`, a question that is to be answered with one of them. */
  | {
    readonly task: "answer";
    readonly question: string;
    readonly language?: string;
    readonly choices?: readonly string[];
  }
  /** A question that has this answer, in English. */
  | { readonly task: "question"; readonly answer: string; readonly language?: string }
  /** Boxes, or boxes and masks, of things by name. */
  | { readonly task: "detect" | "segment"; readonly labels: readonly string[] }
  /** Whatever the checkpoint understands. */
  | { readonly task: "text"; readonly prompt: string };

/** Within what an answer is wanted; whatever is left out is not asked for. */
export interface Budget {
  /** Milliseconds to the first token, 1 to a day. */
  readonly ttftMs?: number;
  /** Milliseconds to the end of the answer, 1 to a day, `ttftMs` or more. */
  readonly totalMs?: number;
  /** What computing elsewhere may cost, 0 or more, in the unit of the places' prices. */
  readonly maxCost?: number;
  /** `pixels-stay`: no picture leaves the edge; what SigLIP makes of it may. `any` by default. */
  readonly privacy?: "pixels-stay" | "any";
  /** `degrade`: a worse answer in time is preferred to a late one. `exact` by default. */
  readonly quality?: "exact" | "degrade";
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
  /**
   * Hold the answer to a `detect` or `segment` prompt to its grammar: locations in order, labels that were asked for.
   * Probabilities stay those that the model gave.
   */
  readonly constrained?: boolean;
  /** Text that the answer starts with, whatever the model thinks; its tokens come as the answer's first. */
  readonly answerStart?: string;
  /** What 1 is in location bins: 1024, the default, as the tools around PaliGemma have it, or training's 1023. */
  readonly locScale?: 1023 | 1024;
  /**
   * Of items with one label whose boxes' intersection over union is above this, in (0, 1), only the surest is kept.
   * Items then come at the end. By default all are kept.
   */
  readonly nms?: number;
  /** Form of the masks; run lengths by default. */
  readonly masks?: "rle" | "polygon" | "png";
  /** Within what the answer is wanted. */
  readonly budget?: Budget;
  /** When the question came, milliseconds since 1970: the budget's time runs from then. By default, when it is asked. */
  readonly arrivedAt?: number;
}

/** Which of several labels a picture has, asked by likelihood. */
export interface ClassifyQuestion extends Pick<Question, "images" | "resize" | "alpha" | "tokens"> {
  /** The prefix that the labels answer, such as `answer en what is this?`. */
  readonly prompt: string;
  /** 1 to 1,000 different labels. */
  readonly labels: readonly string[];
}

/** Pictures of which the numbers are wanted that the decoder would see. */
export interface EmbedQuestion extends Pick<Question, "images" | "resize" | "alpha"> {
  /** `projected`, the default: image tokens, in the decoder's width. `features`: what the projector takes. */
  readonly stage?: "projected" | "features";
}

/** What pictures come to before any prompt. */
export interface Embedding {
  /** [N, P, W]: pictures, image tokens of each, width. */
  readonly shape: readonly [number, number, number];
  /** Row-major. Image tokens are as the projector gives them, not divided by anything. */
  readonly values: Float32Array;
}

/** Likelihoods of labels. */
export interface Classification {
  /** Likeliest first, the order asked among equals. */
  readonly labels: readonly {
    readonly label: string;
    /** Among the labels asked; all sum to 1. */
    readonly probability: number;
    /** Natural logarithm of the probability that the model answers with this label and ends, at most 0. */
    readonly logprob: number;
  }[];
  readonly promptTokenIds: readonly number[];
  readonly imageTokens: number;
  readonly timings: Omit<Timings, "perToken"> & { readonly labels: number };
  /** Absent where everything was computed. */
  readonly cached?: Cached;
}

/** What a client may know about the model being served. */
export interface ModelInfo {
  /** Directory name or published id. */
  readonly name: string;
  /** A fingerprint of the weights. */
  readonly revision: string;
  readonly family: "paligemma" | "paligemma2";
  /** Side of the model's square input, pixels. */
  readonly imageSize: number;
  readonly imageTokensPerImage: number;
  /** Positions for image tokens, prefix and suffix together. */
  readonly context: number;
  readonly vocabulary: number;
}

/** Lets other work run and throws when the request was cancelled. Called between pieces of computation. */
export type Pause = () => Promise<void>;

/** Memory that a platform limits, for work that takes much of it. */
export interface Memory {
  /**
   * Sets bytes aside until what is given back is disposed of.
   *
   * @param what the work, for messages: `decode a picture`.
   * @throws {RequestError} `overloaded` while others have them, `memory_exceeded` where there never are so many.
   */
  take(bytes: number, what: string): Disposable;
}

/** Files of one model, wherever they lie. Names are relative, with forward slashes. */
export interface ModelFiles {
  /** Where the files lie, for messages. */
  readonly place: string;
  list(): Promise<readonly string[]>;
  /** Size in bytes, or undefined where there is no such file. */
  size(name: string): Promise<number | undefined>;
  /**
   * Bytes [start, end) of a file; end defaults to its size. A short read is an error. They may be put into `room`,
   * which is large enough when it is given, and whose former contents nobody needs; what is returned counts.
   */
  read(name: string, start?: number, end?: number, room?: Uint8Array): Promise<Uint8Array>;
}
