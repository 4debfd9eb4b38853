/** A pipeline whose answers a test writes, for what HTTP makes of them. The doors' tests run the real model. */

import type { LocalPipeline } from "../../lib/pipeline.ts";
import type { AnswerEvent, Question } from "../../lib/types.ts";

/** Answers with what `play` yields. */
export function scripted(
  play: (question: Question, signal: AbortSignal | undefined) => AsyncGenerator<AnswerEvent>,
): LocalPipeline {
  return {
    model: {
      name: "scripted",
      revision: "0123456789abcdef",
      family: "paligemma",
      imageSize: 56,
      imageTokensPerImage: 16,
      context: 1024,
      vocabulary: 2092,
    },
    answer: play,
    embed: () => Promise.reject(new TypeError("Nobody embeds here")),
    classify: () => Promise.reject(new TypeError("Nobody classifies here")),
    calibrate: () => Promise.resolve(),
    planner() {
      throw new TypeError("Nobody plans here");
    },
  };
}

/** A token. */
export function token(id: number, text: string): AnswerEvent {
  return { type: "token", id, text, logprob: -0.25 };
}

/** What ends every answer. */
export function ending(text: string, completionTokens: number, finishReason: "stop" | "cancelled" = "stop") {
  return [
    {
      type: "usage",
      imageTokens: 16,
      promptTokenIds: [2, 10, 11, 108],
      completionTokens,
      timings: { preprocess: 1, vision: 2, prefill: 3, perToken: 4 },
    },
    { type: "done", finishReason, text },
  ] satisfies AnswerEvent[];
}

/** Two tokens, a box between them. */
export function twoTokens(): LocalPipeline {
  return scripted(async function* () {
    yield token(7, "red\n");
    yield {
      type: "box",
      box: { yMin: 0.1, xMin: 0.2, yMax: 0.5, xMax: 0.6 },
      label: "circle",
      confidence: 0.9,
    };
    yield token(9, "é");
    yield* ending("red\né", 2);
  });
}

/** The bytes that stand for a picture where nobody decodes it. */
export const PICTURE = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 255, 0, 1]);

/** Events of an SSE body, in order; `retry` and comments are none. */
export function parseEvents(text: string): { id: string; event: string; data: unknown }[] {
  return text.split("\n\n").filter((block) => /^data:/m.test(block)).map((block) => {
    const field = (name: string) =>
      block.split("\n").filter((line) => line.startsWith(`${name}: `)).map((line) =>
        line.slice(name.length + 2)
      );
    return {
      id: field("id").join(),
      event: field("event").join(),
      data: JSON.parse(field("data").join("\n")),
    };
  });
}
