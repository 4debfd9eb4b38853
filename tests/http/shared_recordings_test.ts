/** Servers that share nothing but the journals of their answers, which lie in real Durable Objects. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { createApp } from "../../lib/http/app.ts";
import { SharedRecordings } from "../../lib/http/shared_recordings.ts";
import { createObjectJournals, type Journals } from "../../lib/store/journals.ts";
import type { AnswerEvent } from "../../lib/types.ts";
import { haveWrangler, startWorkerd, type Workerd } from "../doors/workerd.ts";
import { ending, parseEvents, PICTURE, scripted, token } from "./doubles.ts";
import { until } from "../until.ts";

const CONFIG = {
  name: "journals",
  main: join(import.meta.dirname!, "../store/cloudflare_worker.ts"),
  compatibility_date: "2026-10-01",
  durable_objects: { bindings: [{ name: "JOURNALS", class_name: "JournalObject" }] },
  migrations: [{ tag: "v1", new_sqlite_classes: ["JournalObject"] }],
};

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** A server of its own: what it computed, how often it asked the journals, and whether it still lives. */
function server(worker: Workerd, play: (signal: AbortSignal | undefined) => AsyncGenerator<AnswerEvent>) {
  const seen = { tokens: 0, appends: 0, stoppedAt: 0, alive: true, hung: false, errors: [] as unknown[] };
  const pipeline = scripted(async function* (_, signal) {
    signal?.addEventListener("abort", () => seen.stoppedAt = performance.now());
    for await (const event of play(signal)) {
      if (!seen.alive) await new Promise(() => {});
      if (event.type === "token") seen.tokens++;
      yield event;
    }
  });
  const objects = createObjectJournals({
    idFromName: (name) => name,
    get: (name) => ({ fetch: (_, init) => fetch(`${worker.url}/journal/${name}`, init) }),
  });
  const journals: Journals = {
    ...objects,
    append(key, addition) {
      seen.appends++;
      return seen.alive && !seen.hung ? objects.append(key, addition) : new Promise(() => {});
    },
    read: (key, wish) => seen.hung ? new Promise(() => {}) : objects.read(key, wish),
  };
  const recordings = new SharedRecordings(journals, (error) => seen.errors.push(error), 1500);
  const app = createApp({ pipeline: () => pipeline, recordings });
  const ask = async (prompt: string, last?: string, signal?: AbortSignal) =>
    await app.request("/v1/generate", {
      method: "POST",
      headers: { "content-type": "application/json", ...last !== undefined && { "last-event-id": last } },
      body: JSON.stringify({ image: PICTURE.toBase64(), prompt, stream: true }),
      signal,
    });
  return { seen, ask };
}

const tokens = (count: number, everyMs: number) =>
  async function* (signal: AbortSignal | undefined): AsyncGenerator<AnswerEvent> {
    for (let i = 0; i < count; i++) {
      if (signal?.aborted) return;
      await wait(everyMs);
      yield token(i, `t${i}`);
    }
    yield* ending("all", count);
  };

const ids = (text: string) => parseEvents(text).map((it) => it.id);
const numbers = (from: number, end: number) => Array.from({ length: end - from }, (_, i) => String(from + i));

const wrangler = await haveWrangler();
Deno.test({
  name: `answers that other servers compute${
    wrangler ? "" : " (wrangler is not there and cannot be downloaded)"
  }`,
  ignore: !wrangler,
}, async (t) => {
  const config = await Deno.makeTempFile({ suffix: ".json", dir: import.meta.dirname });
  await Deno.writeTextFile(config, JSON.stringify(CONFIG));
  const worker = await startWorkerd(config).finally(() => Deno.remove(config));
  try {
    await t.step(
      "one that is whole is read there, word for word, not computed; it was copied in few pieces",
      async () => {
        const [one, two] = [server(worker, tokens(300, 0)), server(worker, tokens(300, 0))];
        const first = await (await one.ask("whole")).text();
        await wait(100);
        const resumed = await (await two.ask("whole", "99")).text();
        assert.deepEqual(parseEvents(resumed), parseEvents(first).slice(100));
        assert.deepEqual([one.seen.tokens, two.seen.tokens], [300, 0]);
        assert.ok(one.seen.appends <= 8, `${one.seen.appends} additions for 300 tokens`);
        assert.equal((await two.ask("whole", "301")).status, 204);
        // Another question is another answer.
        await (await two.ask("another", "99")).text();
        assert.equal(two.seen.tokens, 300);
        assert.deepEqual([...one.seen.errors, ...two.seen.errors], []);
      },
    );

    await t.step(
      "one under way goes on for whoever reads it elsewhere, and ends when that one goes too",
      async () => {
        const [one, two] = [server(worker, tokens(2000, 5)), server(worker, tokens(2000, 5))];
        const [here, there] = [new AbortController(), new AbortController()];
        const reader = (await one.ask("live", undefined, here.signal)).body!.getReader();
        await reader.read();
        await wait(700); // so long until it is copied
        const following = (await two.ask("live", "3", there.signal)).body!.pipeThrough(
          new TextDecoderStream(),
        )
          .getReader();
        let text = (await following.read()).value!;
        // The first client goes in the same moment: the answer is not stopped under the second.
        here.abort();
        await reader.cancel().catch(() => {});
        const since = performance.now();
        while (performance.now() - since < 1500) text += (await following.read()).value!;
        const got = ids(text.slice(0, text.lastIndexOf("\n\n") + 2));
        assert.deepEqual(got, numbers(4, 4 + got.length));
        assert.ok(got.length > 150, `${got.length} events`);
        assert.deepEqual([two.seen.tokens, one.seen.stoppedAt], [0, 0]);
        there.abort();
        await following.cancel().catch(() => {});
        await until(() => one.seen.stoppedAt > 0);
        assert.deepEqual([...one.seen.errors, ...two.seen.errors], []);
      },
    );

    await t.step(
      "of one whose server died the stream ends with an event, and asked again it is computed",
      async () => {
        const [one, two] = [server(worker, tokens(400, 5)), server(worker, tokens(400, 0))];
        const reader = (await one.ask("dies")).body!.getReader();
        await reader.read();
        await wait(800);
        one.seen.alive = false;
        const since = performance.now();
        const events = parseEvents(await (await two.ask("dies", "0")).text());
        assert.ok(performance.now() - since < 4000, "not hanging");
        const { event, data, id } = events.at(-1)!;
        assert.deepEqual([event, (data as { code: string }).code], ["error", "unavailable"]);
        assert.ok(events.length > 20 && two.seen.tokens === 0);
        const rest = parseEvents(await (await two.ask("dies", String(+id - 1))).text());
        assert.deepEqual(rest.map((it) => it.id), numbers(+id, 402));
        assert.equal(two.seen.tokens, 400);
      },
    );

    await t.step(
      "where the journals cannot be reached, everything is answered, and computed again",
      async () => {
        const lost = server({ ...worker, url: "http://127.0.0.1:1" }, tokens(50, 0));
        const first = await (await lost.ask("lost")).text();
        assert.deepEqual(ids(first), numbers(0, 52));
        assert.deepEqual(ids(await (await lost.ask("lost", "9")).text()), numbers(10, 52));
        await wait(100);
        assert.ok(lost.seen.errors.length > 0);
      },
    );

    await t.step("journals that do not answer hold back neither an answer nor its end", async () => {
      const hung = server(worker, tokens(150, 5));
      hung.seen.hung = true;
      assert.deepEqual(ids(await (await hung.ask("hung")).text()), numbers(0, 152));
      assert.equal(hung.seen.appends, 1);
      assert.deepEqual(ids(await (await hung.ask("hung", "99")).text()), numbers(100, 152));
      const leaving = new AbortController();
      const reader = (await hung.ask("leaving", undefined, leaving.signal)).body!.getReader();
      await wait(600);
      assert.equal(hung.seen.appends, 3);
      const since = performance.now();
      leaving.abort();
      await reader.cancel().catch(() => {});
      await until(() => hung.seen.stoppedAt > 0);
      const tookMs = hung.seen.stoppedAt - since;
      assert.ok(tookMs < 100, `${tookMs} ms until the answer ended`);
    });
  } finally {
    await worker.stop();
  }
});
