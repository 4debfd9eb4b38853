/** The text part of a prefix: BOS, what the caller asked, and the newline that PaliGemma was trained to answer after. */

import { checkThat } from "../errors.ts";
import type { Box, Question, Task } from "../types.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** How a prompt is written. */
export interface PromptOptions {
  /** Id that every prefix starts with; it stands in the model's configuration. */
  readonly bosId: number;
  /** Whether `<loc0001>` and `<seg001>` in the prompt are location and mask tokens, or the default, plain text. */
  readonly tokens?: "plain" | "allow";
}

/**
 * Ids of [BOS, prompt, newline], which follow the image tokens. An empty prompt is legal.
 *
 * The newline is encoded by itself, as the training code does; newlines at the prompt's end are dropped first, since
 * Hugging Face's processor, which encodes both together, would make one piece of them. Whether the prefix fits the
 * model's context is for the caller to check.
 */
export function prefixIds(tokenizer: Tokenizer, prompt: string, options: PromptOptions): number[] {
  let end = prompt.length;
  while (end > 0 && prompt[end - 1] === "\n") end--;
  return [
    options.bosId,
    ...tokenizer.encode(prompt.slice(0, end), { tokens: options.tokens }),
    ...tokenizer.encode("\n"),
  ];
}

/**
 * A task as PaliGemma's prefixes have it, to be spread into a {@link Question}. `tokens` is `allow` only where this
 * function itself wrote location tokens: what callers write stays text.
 *
 * @throws {RequestError} `parameter_invalid` for text that would be read as another part of the prefix.
 *
 * @example
 * ```ts
 * import { promptOf } from "./prompt.ts";
 * console.assert(promptOf({ task: "detect", labels: ["cat", "red car"] }).prompt === "detect cat ; red car");
 * ```
 */
export function promptOf(task: Task): Required<Pick<Question, "prompt" | "tokens">> {
  const plain = (prompt: string) => ({ prompt, tokens: "plain" as const });
  switch (task.task) {
    case "cap":
    case "describe":
      return plain(`${task.task} ${language(task)}`);
    case "caption":
      // Training has locations in the place of the language.
      if (task.box) return { prompt: `caption ${locationsOf(task.box)}`, tokens: "allow" };
      return plain(`caption ${language(task)}`);
    case "ocr":
      return plain("ocr");
    case "answer": {
      const { question, choices } = task;
      const ask = `answer ${language(task)} ${part("question", question)}`;
      if (!choices) return plain(ask);
      checkThat(choices.length > 0, "choices", "to be at least one", choices.length);
      return plain(`${ask} choose from: ${choices.map((it) => part("choices", it, /[\t\n]/)).join(" \t ")}`);
    }
    case "question":
      return plain(`question ${language(task)} ${part("answer", task.answer)}`);
    case "detect":
    case "segment":
      checkThat(task.labels.length > 0, "labels", "to be at least one", task.labels.length);
      return plain(`${task.task} ${task.labels.map((it) => part("labels", it, /[;\n]/)).join(" ; ")}`);
    case "text":
      return plain(task.prompt);
  }
}

/** Tokens that the task of a prompt needs at most: a located thing takes 8 to 23 (spec of the suffix grammar). */
export function defaultMaxTokens(prompt: string): number {
  if (/^(detect|segment)\b/.test(prompt)) return 256;
  return /^(answer|question)\b/.test(prompt) ? 64 : 128;
}

function language({ language = "en" }: { readonly language?: string }): string {
  checkThat(/^[a-z]{2,3}$/.test(language), "language", "to be a code of two or three letters", language);
  return language;
}

/** Text that fills one place of a prefix: something, and nothing that ends the place. */
function part(name: string, text: string, ends?: RegExp): string {
  const trimmed = text.trim();
  checkThat(trimmed !== "", name, "to be text", text);
  checkThat(!ends?.test(trimmed), name, `to be text without ${ends?.source}`, text);
  return trimmed;
}

/** Four location pieces in the bins of training, round(v · 1023). */
function locationsOf(box: Box): string {
  return [box.yMin, box.xMin, box.yMax, box.xMax].map((it) => {
    checkThat(it >= 0 && it <= 1, "box", "with sides from 0 to 1", it);
    return `<loc${String(Math.round(it * 1023)).padStart(4, "0")}>`;
  }).join("");
}

/**
 * Which frames of a video to show: every `stride`-th, at most `frames` of them; what a clip is too short for is filled
 * by beginning anew. The published fine-tunes take 16 frames, with a stride of 9 (MSR-VTT) to 70 (ActivityNet QA).
 *
 * @param available frames of the clip, 1 or more.
 */
export function frameIndices(available: number, stride: number, frames = 16): number[] {
  for (const [name, value] of Object.entries({ available, stride, frames })) {
    checkThat(Number.isInteger(value) && value >= 1, name, "to be a whole number, 1 or more", value);
  }
  const whole = Math.ceil(available / stride);
  return Array.from({ length: frames }, (_, i) => (i % whole) * stride);
}
