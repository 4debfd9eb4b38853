/** What OpenAI's client cannot show: stop sequences in every cut of the text, and bodies it would not send. */

import assert from "node:assert/strict";
import { problemOf } from "../../lib/http/problem.ts";
import { readChat } from "../../lib/http/openai/chat.ts";
import { untilStop } from "../../lib/http/openai/stop.ts";
import { collect } from "../../lib/pipeline.ts";
import type { AnswerEvent } from "../../lib/types.ts";
import { ending, token } from "./doubles.ts";

/** An answer in these pieces that hears of `enough`, and how far it was drawn. */
function answer(pieces: readonly string[]) {
  const seen = { drawn: 0, enough: false };
  async function* events(): AsyncGenerator<AnswerEvent> {
    for (const piece of pieces) {
      if (seen.enough) break;
      seen.drawn++;
      yield token(seen.drawn, piece);
    }
    yield* ending(pieces.slice(0, seen.drawn).join(""), seen.drawn, seen.enough ? "cancelled" : "stop");
  }
  return { events: events(), seen, enough: () => seen.enough = true };
}

/** All ways to cut a text into `parts` pieces, empty ones among them. */
function cuts(text: string, parts: number): string[][] {
  if (parts === 1) return [[text]];
  return Array.from({ length: text.length + 1 }, (_, i) => i).flatMap((i) =>
    cuts(text.slice(i), parts - 1).map((rest) => [text.slice(0, i), ...rest])
  );
}

Deno.test("an answer ends before the first stop sequence, however its tokens cut it", async () => {
  const cases: [string, string[]][] = [
    ["one two", ["tw"]],
    ["aabaac", ["aac"]],
    ["abcabd", ["abd", "ca"]],
    ["no stop", ["x", "pp"]],
    ["ends a", ["ab"]],
    ["ab", ["ab"]],
  ];
  for (const [text, stops] of cases) {
    const found = stops.map((it) => text.indexOf(it)).filter((it) => it >= 0);
    const expected = found.length ? text.slice(0, Math.min(...found)) : text;
    for (const pieces of cuts(text, 4)) {
      const { events, seen, enough } = answer(pieces);
      const kept: AnswerEvent[] = await Array.fromAsync(untilStop(events, stops, enough));
      const streamed = kept.map((it) => it.type === "token" ? it.text : "").join("");
      const whole = await collect((async function* () {
        yield* kept;
      })());
      assert.deepEqual(
        [streamed, whole.text, whole.finishReason],
        [expected, expected, "stop"],
        pieces.join("|"),
      );
      if (found.length) assert.ok(seen.enough);
    }
  }
});

Deno.test("tokens are held back no longer than they may begin a stop sequence", async () => {
  const { events, enough } = answer(["a", "b", "x", "a", "b", "c"]);
  const order: string[] = [];
  for await (const event of untilStop(events, ["abc"], enough)) {
    if (event.type === "token") order.push(event.text);
  }
  assert.deepEqual(order, ["a", "b", "x"]);
});

Deno.test("bodies that are none are refused with their place", () => {
  const user = (content: unknown) => ({ model: "m", messages: [{ role: "user", content }] });
  const cases: [unknown, RegExp, string | undefined][] = [
    [null, /Cannot read the request: expected .*found null/, undefined],
    [[], /found an array of 0/, undefined],
    [{}, /Cannot read model: expected the name of a model, found nothing/, "model"],
    [{ model: "m", messages: {} }, /messages: expected an array of messages, found an object/, "messages"],
    [{ model: "m", messages: [{ role: "robot", content: "" }] }, /messages\[0\]\.role/, "messages[0].role"],
    [user(5), /messages\[0\]\.content: expected text or an array/, "messages[0].content"],
    [user([{ type: "video" }]), /messages\[0\]\.content.*expected/, "messages[0].content"],
    [user([{ type: "image_url", image_url: "x" }]), /messages\[0\]\.content/, "messages[0].content"],
    [{ ...user("x"), seed: 1.5 }, /seed: expected a whole number, found 1.5/, "seed"],
    [{ ...user("x"), stop: ["a", "b", "c", "d", "e"] }, /stop: expected/, "stop"],
    [{ ...user("x"), tools: [{}] }, /tools: expected no tools/, "tools"],
    [{ ...user("x"), stream_options: {} }, /stream_options: expected stream/, "stream_options"],
  ];
  for (const [body, message, field] of cases) {
    assert.throws(() => readChat(body), (error) => {
      const problem = problemOf(error);
      assert.match(problem.message, message);
      assert.equal(problem.field, field, problem.message);
      return true;
    });
  }
});

Deno.test("null is as good as nothing, and what changes no answer is ignored", () => {
  const nulls = { max_tokens: null, temperature: null, stop: null, stream: null, logprobs: null, seed: null };
  const neutral = { n: 1, presence_penalty: 0, user: "u", store: false, metadata: { a: "b" }, tools: [] };
  const content = [{ type: "text", text: "a" }, { type: "text", text: "b" }];
  const chat = readChat({ model: "m", messages: [{ role: "user", content }], ...nulls, ...neutral });
  assert.deepEqual(chat.question, { prompt: "a b" });
  assert.deepEqual([chat.stream, chat.stop, chat.pictures], [false, [], []]);
  const seeded = readChat({ model: "m", messages: [{ role: "user", content: "x" }], seed: -1 });
  assert.equal(seeded.question.sampling!.seed, 2 ** 32 - 1);
});
