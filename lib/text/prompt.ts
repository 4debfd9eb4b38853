/** The text part of a prefix: BOS, what the caller asked, and the newline that PaliGemma was trained to answer after. */

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
