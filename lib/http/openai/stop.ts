/** Stop sequences: an answer that ends before the first of several texts. */

import type { AnswerEvent } from "../../types.ts";

type Token = Extract<AnswerEvent, { type: "token" }>;

/**
 * The events of an answer up to the first of `stops` in its text, which is left out together with the tokens that spell
 * it. Tokens are held back while they may be a beginning of one.
 *
 * @param enough asks the answer to end; its last events are still drawn, and it counts as one that stopped by itself.
 */
export async function* untilStop(
  events: AsyncIterable<AnswerEvent>,
  stops: readonly string[],
  enough: () => void,
): AsyncGenerator<AnswerEvent, void> {
  const held: Token[] = [];
  let [text, sent] = ["", 0];
  let end: number | undefined; // where the answer ends, once that is known

  /** Held tokens whose text ends by `limit`. */
  function* release(limit: number): Generator<Token> {
    while (held.length && sent + held[0].text.length <= limit) {
      sent += held[0].text.length;
      yield held.shift()!;
    }
  }

  for await (const event of events) {
    if (event.type === "token") {
      if (end !== undefined) continue;
      held.push(event);
      text += event.text;
      end = firstOf(stops, text);
      if (end === undefined) {
        yield* release(text.length - longestBeginning(stops, text));
        continue;
      }
      yield* release(end);
      if (sent < end) yield { ...held[0], text: text.slice(sent, end) };
      enough();
    } else if (event.type === "box") {
      if (end === undefined) yield event;
    } else {
      if (end === undefined) yield* release(text.length);
      const stopped = end !== undefined && event.type === "done";
      yield stopped ? { ...event, finishReason: "stop", text: text.slice(0, end) } : event;
    }
  }
}

/** Where the first of `stops` begins in `text`. */
function firstOf(stops: readonly string[], text: string): number | undefined {
  const found = stops.map((it) => text.indexOf(it)).filter((at) => at >= 0);
  return found.length ? Math.min(...found) : undefined;
}

/** Length of the longest end of `text` that one of `stops` begins with. */
function longestBeginning(stops: readonly string[], text: string): number {
  const lengths = stops.map((stop) => {
    for (let length = Math.min(stop.length - 1, text.length); length > 0; length--) {
      if (text.endsWith(stop.slice(0, length))) return length;
    }
    return 0;
  });
  return Math.max(0, ...lengths);
}
