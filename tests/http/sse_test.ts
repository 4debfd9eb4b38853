import assert from "node:assert/strict";
import { problemOf } from "../../lib/http/problem.ts";
import { MemoryRecordings, Recording } from "../../lib/http/recording.ts";
import { encodeEvent, eventStream, type ServerEvent, type StreamOptions } from "../../lib/http/sse.ts";
import { parseEvents } from "./doubles.ts";

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

/** A recording of `events`, a stream over it, and what happened to its source. */
function start(play: () => AsyncGenerator<ServerEvent>, options: Partial<StreamOptions> = {}) {
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
  const recording = new Recording(counted(), () => seen.stops++);
  recording.ended.then(() => seen.ends++);
  const read = (more: Partial<StreamOptions> = {}) => {
    const failed = (error: unknown) => ({ event: "error", data: JSON.stringify(problemOf(error)) });
    const reading = recording.join();
    return eventStream(reading, {
      from: 0,
      heartbeatMs: 1000,
      failed,
      leave: reading.leave,
      ...options,
      ...more,
    });
  };
  return { recording, read, seen };
}

const sleep = (ms = 0) => new Promise((resolve) => setTimeout(resolve, ms));
const text = (stream: ReadableStream) => new Response(stream).text();
const numbers = (from: number, end: number) => Array.from({ length: end - from }, (_, i) => String(from + i));

async function* counting(count: number, pauseMs?: number) {
  for (let i = 0; i < count; i++) {
    if (pauseMs !== undefined) await sleep(pauseMs);
    yield { event: "token", data: String(i).padEnd(100) };
  }
}

Deno.test("a recording becomes its events, numbered, after the time a client waits before it comes back", async () => {
  const { read, seen } = start(() => counting(3));
  const sent = await text(read());
  assert.match(sent, /^retry: 1000\n\nid: 0\nevent: token\ndata: 0/);
  assert.deepEqual(parseEvents(sent).map((it) => it.id), ["0", "1", "2"]);
  assert.deepEqual(seen, { drawn: 3, stops: 0, ends: 1, returned: true });
});

Deno.test("an error within an answer is its last event, without internals, and has the next number", async () => {
  const { recording, read, seen } = start(async function* () {
    yield* counting(1);
    throw new TypeError("secret detail");
  });
  const sent = await text(read());
  assert.deepEqual(parseEvents(sent).map((it) => [it.id, it.event]), [["0", "token"], ["1", "error"]]);
  assert.match(sent, /"code":"internal"/);
  assert.doesNotMatch(sent, /secret/);
  assert.equal(recording.state, "broken");
  assert.deepEqual([seen.stops, seen.ends], [0, 1]);
});

Deno.test("a reader that does not read holds the answer back, and once it reads loses nothing", async () => {
  const { read, seen } = start(() => counting(3000));
  const stream = read();
  await sleep(50);
  // About 130 bytes an event: 64 KiB hold some 500.
  assert.ok(seen.drawn > 100 && seen.drawn < 1000, `${seen.drawn} events drawn ahead of the reader`);
  assert.deepEqual(parseEvents(await text(stream)).map((it) => it.id), numbers(0, 3000));
});

Deno.test("a reader that goes away stops the answer once and lets its source clean up", async () => {
  const { recording, read, seen } = start(() => counting(1e6, 0));
  const reader = read().getReader();
  for (let i = 0; i < 2; i++) await reader.read();
  await reader.cancel();
  await sleep(10);
  const { drawn } = seen;
  await sleep(20);
  assert.deepEqual(seen, { drawn, stops: 1, ends: 1, returned: true });
  assert.equal(recording.state, "broken");
});

Deno.test("two readers of one recording draw each event once, and the first to go stops nothing", async () => {
  const { read, seen } = start(() => counting(200, 0));
  const [first, second] = [read().getReader(), text(read({ from: 100 }))];
  for (let i = 0; i < 5; i++) await first.read();
  await first.cancel();
  assert.deepEqual(parseEvents(await second).map((it) => it.id), numbers(100, 200));
  assert.deepEqual(seen, { drawn: 200, stops: 0, ends: 1, returned: true });
});

Deno.test("silence is filled with comments, which are no events", async () => {
  const { read } = start(() => counting(2, 100), { heartbeatMs: 15 });
  const sent = await text(read());
  assert.ok(sent.split(": heartbeat\n\n").length >= 5, sent);
  assert.deepEqual(parseEvents(sent).map((it) => it.id), ["0", "1"]);
});

Deno.test("recordings are kept within their bytes and their age, the oldest forgotten first, broken ones at once", async () => {
  const kept = new MemoryRecordings(5000, 60_000);
  const make = async (key: string, count: number) => {
    const { recording, read } = start(() => counting(count));
    const keeping = kept.keep(key, recording);
    await text(read());
    await keeping;
    return recording;
  };
  const first = await make("a", 15); // about 130 bytes an event
  await make("b", 15);
  assert.ok(await kept.find("a"));
  await make("c", 15);
  const found = await Promise.all(["a", "b", "c"].map((it) => kept.find(it)));
  assert.deepEqual(found.map((it) => it !== undefined), [false, true, true]);
  assert.ok(kept.sizeBytes <= 5000 && kept.sizeBytes > 2000, `${kept.sizeBytes} bytes`);

  const { recording, read } = start(() => counting(1e6, 0));
  kept.keep("d", recording);
  const reader = read().getReader();
  await reader.read();
  const second = await kept.find("d");
  await reader.cancel();
  assert.equal(recording.state, "live", "who finds it reads it");
  second!.leave();
  assert.equal(await kept.find("d"), undefined);

  const brief = new MemoryRecordings(5000, 10);
  await brief.keep("a", first);
  await sleep(15);
  await brief.keep("b", first);
  const left = await Promise.all(["a", "b"].map((it) => brief.find(it)));
  assert.deepEqual(left.map((it) => it !== undefined), [false, true]);
});
