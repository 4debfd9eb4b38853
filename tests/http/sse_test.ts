import assert from "node:assert/strict";
import type { AnswerEvent } from "../../lib/types.ts";
import { problemOf } from "../../lib/http/problem.ts";
import { encodeEvent, eventStream } from "../../lib/http/sse.ts";
import { ending, parseEvents, token } from "./doubles.ts";

/** The fields of one block as the standard tells a reader to take them apart. */
function readBack(text: string) {
  const fields: Record<string, string[]> = {};
  for (const line of text.split(/\r\n|\r|\n/).filter(Boolean)) {
    const [, name, value] = /^([^:]*)(?:: ?(.*))?$/.exec(line)!;
    (fields[name] ??= []).push(value ?? "");
  }
  return { id: fields.id?.at(-1), event: fields.event?.at(-1), data: fields.data?.join("\n") };
}

Deno.test("an event comes back as it was, with every kind of line end in its data read as LF", () => {
  const datas = [
    "",
    "plain",
    "two\nlines",
    "\n",
    "ends\r\n",
    "mac\rend",
    " leading space",
    ":colon",
    "data: x\n\nid: 9",
  ];
  for (const data of datas) {
    const text = encodeEvent({ id: "3", event: "token", data });
    assert.ok(text.endsWith("\n\n") && text.indexOf("\n\n") === text.length - 2, "one block");
    const expected = data.replace(/\r\n|\r/g, "\n");
    assert.deepEqual(readBack(text), { id: "3", event: "token", data: expected });
  }
});

Deno.test("an id or an event name that would begin another field is refused", () => {
  for (const bad of ["a\nb", "a\rb", "a\0b"]) {
    assert.throws(() => encodeEvent({ id: bad, data: "" }), RangeError);
    assert.throws(() => encodeEvent({ event: bad, data: "" }), RangeError);
  }
});

/** A stream over `events`, and what happened to it. */
async function start(play: () => AsyncGenerator<AnswerEvent>) {
  const seen = { drawn: 0, stops: 0, ends: 0, returned: false };
  async function* counted() {
    try {
      for await (const event of play()) {
        seen.drawn++;
        yield event;
      }
    } finally {
      seen.returned = true;
    }
  }
  const events = counted();
  const stream = eventStream(await events.next(), events, {
    problemOf,
    stop: () => seen.stops++,
    end: () => seen.ends++,
  });
  return { stream, seen };
}

Deno.test("an answer becomes its events, numbered, and ends", async () => {
  const { stream, seen } = await start(async function* () {
    yield token(1, "a\nb");
    yield* ending("a\nb", 1);
  });
  const events = parseEvents(await new Response(stream).text());
  assert.deepEqual(events.map((it) => it.id), ["0", "1", "2"]);
  assert.deepEqual(events.map((it) => it.event), ["token", "usage", "done"]);
  assert.deepEqual(events[0].data, { type: "token", id: 1, text: "a\nb", logprob: -0.25 });
  assert.deepEqual([seen.stops, seen.ends], [0, 1]);
});

Deno.test("an error within an answer is its last event, without internals", async () => {
  const { stream, seen } = await start(async function* () {
    yield token(1, "a");
    throw new TypeError("secret detail");
  });
  const events = parseEvents(await new Response(stream).text());
  assert.deepEqual(events.map((it) => it.event), ["token", "error"]);
  assert.equal((events[1].data as { code: string }).code, "internal");
  assert.doesNotMatch(JSON.stringify(events[1]), /secret/);
  assert.deepEqual([seen.stops, seen.ends], [0, 1]);
});

Deno.test("a reader that does not read holds the answer back, and once it reads loses nothing", async () => {
  const count = 3000;
  const { stream, seen } = await start(async function* () {
    for (let i = 0; i < count; i++) yield token(i, "x".repeat(50));
    yield* ending("", count);
  });
  await new Promise((resolve) => setTimeout(resolve, 50));
  // About 130 bytes an event: 64 KiB hold some 500.
  assert.ok(seen.drawn > 100 && seen.drawn < 1000, `${seen.drawn} events drawn ahead of the reader`);
  const events = parseEvents(await new Response(stream).text());
  assert.deepEqual(events.map((it) => Number(it.id)), Array.from({ length: count + 2 }, (_, i) => i));
});

Deno.test("a reader that goes away stops the answer once and lets its source clean up", async () => {
  const { stream, seen } = await start(async function* () {
    for (let i = 0;; i++) {
      await new Promise((resolve) => setTimeout(resolve));
      yield token(i, "x");
    }
  });
  const reader = stream.getReader();
  await reader.read();
  await reader.cancel();
  const { drawn } = seen;
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(seen.drawn, drawn);
  assert.deepEqual(seen, { drawn, stops: 1, ends: 1, returned: true });
});
