/** Hearing an answer to its end. */

import type { Choice } from "../../lib/decode/sampler.ts";

/** Puts each token of an answer to `choices`, tells how many there are, and gives why it ended. */
export async function listen(
  tokens: AsyncGenerator<Choice, string>,
  choices: Choice[],
  onToken?: (count: number) => unknown,
): Promise<string> {
  while (true) {
    const next = await tokens.next();
    if (next.done) return next.value;
    choices.push(next.value);
    await onToken?.(choices.length);
  }
}
