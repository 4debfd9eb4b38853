/**
 * One request from image bytes to answer events. The only file that knows the order of the stages.
 */

import type { Answer, AnswerEvent, Question } from "./types.ts";

/** What a client may know about the model being served. */
export interface ModelInfo {
  /** Directory name or published id. */
  readonly name: string;
  readonly family: "paligemma" | "paligemma2";
  /** Side of the model's square input, pixels. */
  readonly imageSize: number;
  readonly imageTokensPerImage: number;
  /** Positions for image tokens, prefix and suffix together. */
  readonly context: number;
  readonly vocabulary: number;
}

/** A loaded model that answers questions, one at a time, in the order they came. */
export interface Pipeline {
  readonly model: ModelInfo;
  /**
   * Answers a question. Everything is checked before the first event. When `signal` aborts, the stream ends with
   * `done` and `finishReason: "cancelled"` after at most one more token.
   *
   * @throws {RequestError} for what is wrong with the question, or `overloaded` when too many wait already.
   */
  answer(question: Question, signal?: AbortSignal): AsyncIterable<AnswerEvent>;
}

/** Gathers a stream of events into one answer. */
export async function collect(events: AsyncIterable<AnswerEvent>): Promise<Answer> {
  const tokens: Extract<AnswerEvent, { type: "token" }>[] = [];
  const items: Answer["items"][number][] = [];
  let usage: Extract<AnswerEvent, { type: "usage" }> | undefined;
  let done: Extract<AnswerEvent, { type: "done" }> | undefined;
  for await (const event of events) {
    if (event.type === "token") tokens.push(event);
    else if (event.type === "box") {
      items.push({ box: event.box, label: event.label, confidence: event.confidence });
    } else if (event.type === "usage") usage = event;
    else done = event;
  }
  if (!usage || !done) throw new TypeError("Broken stream: expected usage and done events at its end");
  return {
    text: done.text,
    tokenIds: tokens.map((it) => it.id),
    items,
    finishReason: done.finishReason,
    promptTokenIds: usage.promptTokenIds,
    imageTokens: usage.imageTokens,
    timings: usage.timings,
    ...tokens[0]?.top && { logits: tokens.map((it) => it.top!) },
  };
}
