import assert from "node:assert/strict";
import { join } from "@std/path";
import { loadModel } from "../../functions/model.ts";
import { createApp } from "../../lib/http/app.ts";
import { until } from "../until.ts";
import { scripted } from "./doubles.ts";

const PICTURE = await Deno.readFile(new URL("../fixtures/pictures/rgb.jpg", import.meta.url));
const CHECKPOINT = join(import.meta.dirname!, "../golden/checkpoints/pg1");

/** A real model behind a real server; `seen` counts what each answer computed and how it ended. */
async function serve() {
  const model = await loadModel(CHECKPOINT);
  const seen: { tokens: number; ended: boolean }[] = [];
  const pipeline = {
    ...scripted(async function* (question, signal) {
      const mine = { tokens: 0, ended: false };
      seen.push(mine);
      try {
        for await (const event of model.answer(question, signal)) {
          if (event.type === "token") mine.tokens++;
          yield event;
        }
      } finally {
        mine.ended = true;
      }
    }),
    model: model.model,
  };
  const server = Deno.serve({ port: 0, onListen() {} }, createApp({ pipeline: () => pipeline }).fetch);
  return { seen, server, url: `http://localhost:${server.addr.port}/v1/generate` };
}

function question(stream: boolean, maxTokens: number, signal?: AbortSignal): RequestInit {
  return {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ image: PICTURE.toBase64(), prompt: "", maxTokens, ignoreEos: true, stream }),
    signal,
  };
}

Deno.test("a client that goes away ends its answer within 100 ms, streamed or not, and the next one is served", async () => {
  const { seen, server, url } = await serve();
  const full = await (await fetch(url, question(false, 100_000))).json();
  const all = full.tokenIds.length;
  const image_url = { url: `data:image/jpeg;base64,${PICTURE.toBase64()}` };
  const messages = [{ role: "user", content: [{ type: "image_url", image_url }] }];
  const chat = (signal: AbortSignal): [string, RequestInit] => [
    url.replace("generate", "chat/completions"),
    {
      ...question(true, 1),
      signal,
      body: JSON.stringify({ model: "pg1", messages, max_tokens: 100_000, stream: true }),
    },
  ];
  for (const kind of ["streamed", "whole", "chat"]) {
    const client = new AbortController();
    const asked = kind === "chat"
      ? fetch(...chat(client.signal))
      : fetch(url, question(kind === "streamed", 100_000, client.signal));
    asked.catch(() => {});
    await until(() => (seen.at(-1)?.tokens ?? 0) > 0 && !seen.at(-1)!.ended);
    client.abort();
    const since = performance.now();
    await until(() => seen.at(-1)!.ended);
    const tookMs = performance.now() - since;
    assert.ok(seen.at(-1)!.tokens < all, `${seen.at(-1)!.tokens} of ${all} tokens`);
    assert.ok(tookMs < 100, `${tookMs} ms until the answer ended`);
    const next = await (await fetch(url, question(false, 3))).json();
    assert.equal(next.tokenIds.length, 3);
  }
  await server.shutdown();
});
