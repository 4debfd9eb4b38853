/** Named fields -> a question. Kinds and names are checked here; what a number may be, the pipeline knows. */

import { RequestError } from "../errors.ts";
import type { Question, Sampling } from "../types.ts";
import { describe, type Fields } from "./body.ts";

/** A question, and whether its answer is to be streamed, where the body says so. */
export interface GenerateRequest {
  readonly question: Question;
  readonly stream?: boolean;
}

const NAMES = [
  "image",
  "images",
  "prompt",
  "maxTokens",
  "temperature",
  "topK",
  "topP",
  "seed",
  "stream",
  "ignoreEos",
  "resize",
  "alpha",
  "tokens",
  "constrained",
  "answerStart",
  "locScale",
  "nms",
  "masks",
];

/**
 * Reads the native body: `image` or `images`, `prompt`, and what else a {@link Question} may say.
 *
 * @throws {RequestError} naming the field, with what was expected and found.
 */
export function readQuestion(fields: Fields): GenerateRequest {
  for (const name of fields.values.keys()) {
    if (!NAMES.includes(name)) {
      throw new RequestError(
        "parameter_invalid",
        `Cannot read the request: expected the fields ${NAMES.join(", ")}, found ${describe(name)}`,
      );
    }
  }
  const sampling = defined<Sampling>({
    temperature: number(fields, "temperature"),
    topK: number(fields, "topK"),
    topP: number(fields, "topP"),
    seed: number(fields, "seed"),
  });
  return {
    question: {
      images: pictures(fields),
      prompt: prompt(fields),
      ...defined<Question>({
        maxTokens: number(fields, "maxTokens"),
        ignoreEos: flag(fields, "ignoreEos"),
        resize: oneOf(fields, "resize", ["hf-bicubic", "bv-bilinear-aa"]),
        alpha: oneOf(fields, "alpha", ["drop", "white"]),
        tokens: oneOf(fields, "tokens", ["plain", "allow"]),
        constrained: flag(fields, "constrained"),
        answerStart: text(fields, "answerStart"),
        locScale: number(fields, "locScale") as Question["locScale"], // the pipeline tells which there are
        nms: number(fields, "nms"),
        masks: oneOf(fields, "masks", ["rle", "polygon", "png"]),
      }),
      ...Object.keys(sampling).length && { sampling },
    },
    ...defined<GenerateRequest>({ stream: flag(fields, "stream") }),
  };
}

/** Without the properties that are undefined. */
function defined<T>(all: { [name in keyof T]?: T[name] | undefined }): Partial<T> {
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined)) as Partial<T>;
}

function prompt(fields: Fields): string {
  const value = text(fields, "prompt");
  if (value === undefined) throw wrong("prompt", "a string, which may be empty", describe(value));
  return value;
}

function text(fields: Fields, name: string): string | undefined {
  const value = fields.values.get(name);
  if (value === undefined) return undefined;
  if (typeof value !== "string") throw wrong(name, "a string, which may be empty", describe(value));
  if (!value.isWellFormed()) throw wrong(name, "Unicode text", "half a surrogate pair");
  return value;
}

function number(fields: Fields, name: keyof Sampling | "maxTokens" | "locScale" | "nms"): number | undefined {
  let value = fields.values.get(name);
  if (value === undefined) return undefined;
  if (fields.kind === "form" && typeof value === "string" && /^-?\d+(\.\d+)?([eE][-+]?\d+)?$/.test(value)) {
    value = Number(value);
  }
  if (typeof value !== "number") throw wrong(name, "a number", describe(value));
  if (!["temperature", "topP", "nms"].includes(name) && !Number.isSafeInteger(value)) {
    throw wrong(name, "a whole number", describe(value));
  }
  return value;
}

function flag(fields: Fields, name: "stream" | "ignoreEos" | "constrained"): boolean | undefined {
  const value = fields.values.get(name);
  if (value === undefined || typeof value === "boolean") return value;
  if (fields.kind === "form" && (value === "true" || value === "false")) return value === "true";
  throw wrong(name, "true or false", describe(value));
}

function oneOf<const T extends string>(fields: Fields, name: string, choices: readonly T[]): T | undefined {
  const value = fields.values.get(name);
  if (value === undefined) return undefined;
  const choice = choices.find((it) => it === value);
  if (choice === undefined) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot read ${name}: expected ${choices.join(" or ")}, found ${describe(value)}`,
    );
  }
  return choice;
}

function pictures(fields: Fields): Uint8Array[] {
  const image = fields.values.get("image");
  const images = fields.values.get("images");
  if (image !== undefined && images !== undefined) {
    throw new RequestError(
      "parameter_invalid",
      "Cannot read the request: expected image or images, found both",
    );
  }
  const name = image !== undefined ? "image" : "images";
  const value = image ?? images;
  if (value === undefined) {
    throw new RequestError(
      "image_missing",
      "Cannot read the request: expected image or images, found neither",
    );
  }
  if (fields.kind === "form" && !Array.isArray(value)) {
    throw wrong(name, `a file part (curl -F ${name}=@picture.jpg)`, describe(value));
  }
  if (fields.kind === "json" && name === "images" && !Array.isArray(value)) {
    throw wrong(name, "an array of base64 strings or data: URLs", describe(value));
  }
  const list: unknown[] = fields.kind === "json" && name === "image" ? [value] : value as unknown[];
  if (!list.length) {
    throw new RequestError("image_missing", `Cannot read ${name}: expected at least one picture, found none`);
  }
  return list.map((it, i) => picture(it, list.length > 1 ? `${name}[${i}]` : name));
}

function picture(value: unknown, name: string): Uint8Array {
  if (value instanceof Uint8Array) {
    if (!value.length) throw new RequestError("image_missing", `Cannot read ${name}: found an empty file`);
    return value;
  }
  if (typeof value !== "string") throw wrong(name, "a base64 string or a data: URL", describe(value));
  if (!value) throw new RequestError("image_missing", `Cannot read ${name}: found an empty string`);
  if (/^https?:/i.test(value)) {
    throw wrong(name, "base64 or a data: URL (this server fetches no pictures)", describe(value));
  }
  if (!/^data:/i.test(value)) return base64(value, 0, name);
  const comma = value.indexOf(",");
  // The media type before it is not asked: the bytes tell better.
  if (comma < 0 || !/;\s*base64$/i.test(value.slice(0, comma))) {
    throw wrong(name, "data:<media type>;base64,<data>", describe(value));
  }
  if (comma === value.length - 1) {
    throw new RequestError("image_missing", `Cannot read ${name}: found an empty picture`);
  }
  return base64(value, comma + 1, name);
}

/** Base64 from character `start` on: the standard alphabet, padded, nothing between. */
function base64(text: string, start: number, name: string): Uint8Array {
  const data = start ? text.slice(start) : text;
  const stranger = /[^A-Za-z0-9+/=]/u.exec(data);
  if (stranger) {
    throw wrong(name, "base64", `${describe(stranger[0])} at character ${start + stranger.index}`);
  }
  try {
    return Uint8Array.fromBase64(data, { lastChunkHandling: "strict" });
  } catch {
    const found = `${data.length} characters ending in ${describe(data.slice(-4))}`;
    throw wrong(name, "whole base64, padded with =", found);
  }
}

function wrong(name: string, expected: string, found: string): RequestError {
  return new RequestError("body_invalid", `Cannot read ${name}: expected ${expected}, found ${found}`);
}
