/** Native bodies -> questions: one schema a task, the options that all tasks share, and what becomes of them. */

import * as z from "zod/mini";
import { RequestError } from "../errors.ts";
import { promptOf } from "../text/prompt.ts";
import type { ClassifyQuestion, Question, Sampling, Task } from "../types.ts";
import { describe, type Fields } from "./body.ts";
import { BUDGET } from "./budget.ts";
import { type PictureSource, pictureSource } from "./pictures.ts";
import { between, flag, oneOf, optional, read, share, text, valuesOf, whole } from "./schema.ts";

/** The fields that pictures come in. */
export const PICTURES = {
  image: optional(pictureSource, "The picture; several file parts of a form are several pictures."),
  images: optional(
    z.array(pictureSource, { error: "an array of base64 strings or URLs" }),
    "Several pictures, in the order the model sees them; instead of image.",
  ),
};

const READING = {
  resize: optional(
    oneOf("hf-bicubic", "bv-bilinear-aa"),
    "As Hugging Face's processor does it, or big_vision.",
  ),
  alpha: optional(oneOf("drop", "white"), "Transparency is dropped, as in the reference, or put on white."),
  tokens: optional(
    oneOf("plain", "allow"),
    "Whether <loc0001> and <seg001> in text are tokens; plain by default.",
  ),
};

const ANSWERING = {
  ...READING,
  maxTokens: optional(whole(1), "Tokens at most; by default what the task needs."),
  temperature: optional(between(0, 2), "0, the default, is greedy."),
  topK: optional(whole(0), "Sample among so many; 0 means all."),
  topP: optional(share(), "Sample among the likeliest of this mass."),
  seed: optional(whole(0, 2 ** 32 - 1), "The same seed gives the same answer."),
  stream: optional(flag(), "Server-sent events instead of one object."),
  ignoreEos: optional(flag(), "Go on after the end of the answer, until maxTokens."),
  constrained: optional(flag(), "Hold an answer to detect or segment to its grammar."),
  answerStart: optional(text(), "Text the answer starts with."),
  locScale: optional(z.literal([1023, 1024], { error: "1023 or 1024" }), "What 1 is in location bins."),
  nms: optional(share(), "Of boxes of one label that overlap more than this, only the surest."),
  masks: optional(oneOf("rle", "polygon", "png"), "Form of masks; COCO run lengths by default."),
  budget: optional(BUDGET, "Within what the answer is wanted; also as headers, such as x-latency-budget-ms."),
};

const LABELS = z.union(
  [
    z.array(text("a label")).check(z.minLength(1, "at least one label"), z.maxLength(1000, "at most 1000")),
    text(),
  ],
  { error: "an array of strings, or one string with semicolons between" },
).check(z.describe("Names, or one string with semicolons between them."));

const SIDE = between(0, 1);

/** The bodies of the native routes, `POST /v1/{name}`. */
export const BODIES = {
  generate: z.strictObject({
    ...PICTURES,
    prompt: text().check(z.describe("PaliGemma's prefix, such as caption en; may be empty.")),
    ...ANSWERING,
  }),
  caption: z.strictObject({
    ...PICTURES,
    language: optional(text("a language"), "Code of the answer's language; en by default."),
    style: optional(
      oneOf("caption", "cap", "describe"),
      "In a sentence, as an alternative text, in more words.",
    ),
    box: optional(
      z.strictObject({ yMin: SIDE, xMin: SIDE, yMax: SIDE, xMax: SIDE }, { error: "yMin, xMin, yMax, xMax" }),
      "Only what is in it, in fractions of the picture.",
    ),
    ...ANSWERING,
  }),
  answer: z.strictObject({
    ...PICTURES,
    question: text("a question"),
    language: optional(text("a language"), "Code of the answer's language; en by default."),
    choices: optional(
      z.array(text("an answer"), { error: "an array of strings" }),
      "Answers to choose from.",
    ),
    ...ANSWERING,
  }),
  detect: z.strictObject({ ...PICTURES, labels: LABELS, ...ANSWERING }),
  segment: z.strictObject({ ...PICTURES, labels: LABELS, ...ANSWERING }),
  ocr: z.strictObject({ ...PICTURES, ...ANSWERING }),
  classify: z.strictObject({
    ...PICTURES,
    labels: LABELS,
    prompt: optional(text(), "What the labels answer; answer en what is this? by default."),
    ...READING,
  }),
};

/** Names of the routes that answer with an {@link Answer}. */
export type AnswerRoute = Exclude<keyof typeof BODIES, "classify">;

/** A body that was read: the question without its pictures, and where those are. */
export interface Asked<Q> {
  readonly question: Omit<Q, "images">;
  readonly pictures: readonly PictureSource[];
  /** Whether the body asks for events; undefined where it does not say. */
  readonly stream?: boolean;
}

/**
 * Reads the body of a native route.
 *
 * @throws {RequestError} naming the field, with what was expected and found.
 */
export function readQuestion(fields: Fields, route: AnswerRoute = "generate"): Asked<Question> {
  const body = bodyOf(fields, route);
  const { stream, temperature, topK, topP, seed, image: _, images: __, ...rest } = body;
  const {
    resize,
    alpha,
    tokens,
    maxTokens,
    ignoreEos,
    constrained,
    answerStart,
    locScale,
    nms,
    masks,
    budget,
  } = rest;
  const sampling = defined<Sampling>({ temperature, topK, topP, seed });
  return {
    question: {
      ...defined({
        resize,
        alpha,
        maxTokens,
        ignoreEos,
        constrained,
        answerStart,
        locScale,
        nms,
        masks,
        budget,
      }),
      ...Object.keys(sampling).length && { sampling },
      ...withPolicy(promptOf(taskOf(route, rest)), tokens),
    },
    pictures: picturesOf(fields, body),
    ...stream !== undefined && { stream },
  };
}

/**
 * Reads the body of `/v1/classify`.
 *
 * @throws {RequestError} as {@link readQuestion}.
 */
export function readClassifyQuestion(fields: Fields): Asked<ClassifyQuestion> {
  const body = bodyOf(fields, "classify");
  const { labels, prompt = "answer en what is this?", resize, alpha, tokens } = body;
  return {
    question: { labels: labelsOf(labels), prompt, ...defined({ resize, alpha, tokens }) },
    pictures: picturesOf(fields, body),
  };
}

function bodyOf<R extends keyof typeof BODIES>(fields: Fields, route: R): z.infer<(typeof BODIES)[R]> {
  const schema: z.ZodMiniObject = BODIES[route];
  return read(schema, valuesOf(fields, schema)) as z.infer<(typeof BODIES)[R]>;
}

// deno-lint-ignore no-explicit-any -- each branch knows which schema has been passed
function taskOf(route: AnswerRoute, body: any): Task {
  switch (route) {
    case "generate":
      return { task: "text", prompt: body.prompt };
    case "caption":
      if (body.style && body.style !== "caption") return { task: body.style, language: body.language };
      return { task: "caption", language: body.language, box: body.box };
    case "answer":
      return { task: "answer", question: body.question, language: body.language, choices: body.choices };
    case "ocr":
      return { task: "ocr" };
    default:
      return { task: route, labels: labelsOf(body.labels) };
  }
}

/** Tokens that our own prompts hold are tokens; those in the caller's text are as the caller says. */
function withPolicy(
  made: ReturnType<typeof promptOf>,
  tokens: Question["tokens"],
): Pick<Question, "prompt" | "tokens"> {
  return made.tokens === "allow" ? made : { prompt: made.prompt, ...tokens && { tokens } };
}

function labelsOf(labels: string | readonly string[]): string[] {
  return typeof labels === "string" ? labels.split(";").map((it) => it.trim()) : [...labels];
}

/** Without the properties that are undefined. */
function defined<T>(all: { [name in keyof T]?: T[name] | undefined }): Partial<T> {
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined)) as Partial<T>;
}

/** The pictures of a body that has {@link PICTURES}. */
export function picturesOf(
  { kind }: Fields,
  { image, images }: { readonly image?: PictureSource; readonly images?: readonly PictureSource[] },
): readonly PictureSource[] {
  const missing = (what: string) => new RequestError("image_missing", `Cannot read ${what}`);
  if (image !== undefined && images !== undefined) {
    throw new RequestError(
      "parameter_invalid",
      "Cannot read the request: expected image or images, found both",
    );
  }
  const list = images ?? (image === undefined ? undefined : [image]);
  if (!list) throw missing("the request: expected image or images, found neither");
  if (!list.length) throw missing("images: expected at least one picture, found none");
  if (kind === "form" && list.some((it) => typeof it === "string" && !/^https?:/i.test(it))) {
    throw new RequestError(
      "body_invalid",
      `Cannot read the request: expected a file part (curl -F image=@picture.jpg) or a URL, found ${
        describe(list.find((it) => typeof it === "string"))
      }`,
    );
  }
  return list;
}
