/** Streams that broke in one isolate and go on in another, which has only the journal of the answer in common with it. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { parseEvents } from "../http/doubles.ts";
import { type Config, haveWrangler, startWorkers } from "./workerd.ts";

const ROOT = join(import.meta.dirname!, "../..");
const PICTURE = await Deno.readFile(join(ROOT, "models/tiny/pictures/five_shapes.png"));

/** The second's journals are the first's. */
const CHANGES = {
  one: () => {},
  two: ({ durable_objects, queues }: Config) => {
    for (const it of durable_objects.bindings) if (it.name === "JOURNALS") it.script_name = "one";
    delete queues.consumers;
  },
};

const sampled = { prompt: "caption en", temperature: "1", seed: "7", ignoreEos: "true", stream: "true" };

function form(fields: Record<string, string>): RequestInit {
  const body = new FormData();
  body.append("image", new Blob([PICTURE]), "five_shapes.png");
  for (const [name, value] of Object.entries({ ...sampled, ...fields })) body.append(name, value);
  return { method: "POST", body };
}

const wrangler = await haveWrangler();
Deno.test({
  name: "a stream that broke in one isolate goes on in another" +
    (wrangler ? "" : " (wrangler is not there and cannot be downloaded)"),
  ignore: !wrangler,
}, async (t) => {
  const worker = await startWorkers(CHANGES);
  const ask = (isolate: string, fields: Record<string, string>, last?: string, signal?: AbortSignal) =>
    fetch(`${worker.url}/${isolate}/v1/generate`, {
      ...form(fields),
      headers: last === undefined ? {} : { "last-event-id": last },
      signal,
    });
  const numberOf = async (isolate: string, name: string) => {
    const text = await (await fetch(`${worker.url}/${isolate}/metrics`)).text();
    const line = text.split("\n").find((it) => it.startsWith(`${name} `));
    return Number(line?.split(" ").at(-1) ?? 0);
  };
  const computed = (isolate: string) => numberOf(isolate, 'paligemma_tokens_total{kind="completion"}');
  try {
    await t.step("what was computed whole is not computed again", async () => {
      const events = parseEvents(await (await ask("one", { maxTokens: "60" })).text());
      assert.ok(events.length > 60);
      assert.ok(await computed("one") > 0);
      const rest = parseEvents(await (await ask("two", { maxTokens: "60" }, "19")).text());
      // Timings too are those of the first.
      assert.deepEqual(rest, events.slice(20));
      assert.equal((await ask("two", { maxTokens: "60" }, events.at(-1)!.id)).status, 204);
      assert.equal(await computed("two"), 0);
    });

    await t.step("what is under way is read as it comes, though its first client goes", async () => {
      const cut = new AbortController();
      const reader = (await ask("one", { maxTokens: "900" }, undefined, cut.signal)).body!.getReader();
      await reader.read();
      await new Promise((resolve) => setTimeout(resolve, 700));
      const rest = await ask("two", { maxTokens: "900" }, "2");
      cut.abort();
      await reader.cancel().catch(() => {});
      const events = parseEvents(await rest.text());
      assert.deepEqual(events.map((it) => it.id), events.map((_, i) => String(i + 3)));
      assert.equal(events.at(-1)!.event, "done");
      assert.equal(await computed("two"), 0);
      assert.equal(await numberOf("one", "paligemma_queue_depth"), 0);
    });
  } finally {
    await worker.stop();
  }
});
