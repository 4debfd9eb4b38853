/** Streams that broke and go on: over a real model and real connections. */

import assert from "node:assert/strict";
import { loadModel } from "../../functions/model.ts";
import { createApp } from "../../lib/http/app.ts";
import { ending, parseEvents, PICTURE as BYTES, scripted, token } from "./doubles.ts";

const TESTS = new URL("..", import.meta.url).pathname;
const PICTURE = (await Deno.readFile(`${TESTS}fixtures/pictures/rgb.jpg`)).toBase64();
const model = await loadModel(`${TESTS}golden/checkpoints/pg1`);

/** A server that counts the tokens it computes. */
function serve() {
  const seen = { tokens: 0 };
  const pipeline = {
    ...scripted(async function* (question, signal) {
      for await (const event of model.answer(question, signal)) {
        if (event.type === "token") seen.tokens++;
        yield event;
      }
    }),
    model: model.model,
  };
  const server = Deno.serve({ port: 0, onListen() {} }, createApp({ pipeline: () => pipeline }).fetch);
  const ask = (body: Record<string, unknown>, last?: string, path = "/v1/generate", signal?: AbortSignal) =>
    fetch(`http://localhost:${server.addr.port}${path}`, {
      method: "POST",
      headers: { "content-type": "application/json", ...last !== undefined && { "last-event-id": last } },
      body: JSON.stringify({ stream: true, ...body }),
      signal,
    });
  return { server, seen, ask };
}

const NATIVE = { image: PICTURE, prompt: "", maxTokens: 300, ignoreEos: true, temperature: 1, seed: 5 };
const content = [{ type: "text", text: "caption en" }, {
  type: "image_url",
  image_url: { url: `data:image/jpeg;base64,${PICTURE}` },
}];
const CHAT = {
  model: "pg1",
  messages: [{ role: "user", content }],
  max_tokens: 100,
  temperature: 1,
  seed: 5,
};

/** Whole events of a response, read until there are `count` of them; then the connection is cut. */
async function firstEvents(response: Response, count: number, cut: AbortController): Promise<string> {
  let text = "";
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  while (text.split("\n\n").length < count + 2) text += (await reader.read()).value!;
  cut.abort();
  await reader.cancel().catch(() => {});
  return text.slice(0, text.lastIndexOf("\n\n") + 2);
}

/** Events without what differs from one computation to the next. */
function lasting(text: string) {
  return text.split("\n\n").filter((it) => /^id:/m.test(it)).map((it) =>
    it.replace(/"timings":\{[^}]*\}|,"cached":\{[^}]*\}|,"route":\{[^}]*\}|"candidates":\[.*?\],/g, "")
      .replace(
        /"id":"chatcmpl-\w+"|"created":\d+/g,
        "",
      )
  );
}

Deno.test("a stream that was cut goes on after its last event, without one lost or repeated", async () => {
  const { server, ask } = serve();
  let broken = 0;
  for (const [path, body] of [["/v1/generate", NATIVE], ["/v1/chat/completions", CHAT]] as const) {
    const undisturbed = lasting(await (await ask(body, undefined, path)).text());
    assert.ok(undisturbed.length > 20, `${undisturbed.length} events`);
    for (const count of [1, 7, undisturbed.length - 2]) {
      const cut = new AbortController();
      const before = await firstEvents(await ask(body, undefined, path, cut.signal), count, cut);
      const last = /.*^id: (\d+)$/ms.exec(before)![1];
      const resumed = await ask(body, last, path);
      // The last pieces may have come in one: then there is nothing more.
      assert.equal(resumed.status, Number(last) < undisturbed.length - 1 ? 200 : 204);
      if (resumed.status === 200) broken++;
      assert.deepEqual(
        [...lasting(before), ...lasting(await resumed.text())],
        undisturbed,
        `${path} after ${last}`,
      );
    }
  }
  assert.ok(broken >= 3, `${broken} streams were cut before their end`);
  await server.shutdown();
});

Deno.test("what is recorded is not computed again; after the end there is nothing, and says so", async () => {
  const { server, seen, ask } = serve();
  const events = parseEvents(await (await ask(NATIVE)).text());
  const computed = seen.tokens;
  const again = parseEvents(await (await ask(NATIVE, "9")).text());
  assert.deepEqual(again, events.slice(10));
  assert.equal(seen.tokens, computed);
  assert.equal((await ask(NATIVE, events.at(-1)!.id)).status, 204);
  // Another seed is another answer, of which nothing is recorded.
  await (await ask({ ...NATIVE, seed: 6 }, "9")).text();
  assert.ok(seen.tokens > computed);
  for (const bad of ["x", "-1", "1e3", "99999999999"]) {
    assert.equal((await ask(NATIVE, bad)).status, 400, bad);
  }
  await server.shutdown();
});

Deno.test("an answer that takes long to begin has a stream before, and its refusal is an event", async () => {
  const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
  let fails = false;
  const pipeline = scripted(async function* () {
    await wait(80);
    if (fails) throw new TypeError("secret");
    yield token(1, "a");
    yield* ending("a", 1);
  });
  const app = createApp({ pipeline: () => pipeline, heartbeatMs: 20 });
  const ask = (path = "/v1/generate") =>
    app.request(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(
        path === "/v1/generate"
          ? { image: BYTES.toBase64(), prompt: "", stream: true }
          : { ...CHAT, model: "scripted", stream: true },
      ),
    });
  const text = await (await ask()).text();
  assert.match(text, /^retry: 1000\n\n(: heartbeat\n\n)+id: 0\nevent: token/);
  fails = true;
  const failed = parseEvents(await (await ask()).text());
  assert.deepEqual(failed.map((it) => [it.id, it.event]), [["0", "error"]]);
  assert.equal((failed[0].data as { code: string }).code, "internal");
  const theirs = parseEvents(await (await ask("/v1/chat/completions")).text());
  assert.equal((theirs[0].data as { error: { type: string } }).error.type, "server_error");
});
