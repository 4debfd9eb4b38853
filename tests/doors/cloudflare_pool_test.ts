/** A picture goes in at the Worker, in workerd, and tokens come back from worker processes: over HTTP and over a broker. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { openPool } from "../../functions/cloudflare_pool.ts";
import { directoryFiles, loadModel, TINY } from "../../functions/model.ts";
import type { Pipeline } from "../../lib/mod.ts";
import { encodeHeader, openTensors, type TensorEntry } from "../../lib/weights/safetensors.ts";
import { upload } from "../../models/upload.ts";
import { parseEvents } from "../http/doubles.ts";
import { haveNats, startBroker } from "../pool/broker.ts";
import { startDoor } from "./door.ts";
import { startWorker, type WorkerDoor } from "./pool_worker.ts";
import { type Config, haveWrangler, startWorkers } from "./workerd.ts";

const PICTURE = await Deno.readFile(join(TINY, "pictures/five_shapes.png"));
const UPLOAD_KEY = "lets-models-in";
const EMBEDDING = "language_model.model.embed_tokens.weight";
/** Its embedding alone is more than the Worker holds whole. */
const WORDS = 200_000;
const LONG = { maxTokens: 400, ignoreEos: true, temperature: 1, seed: 9 };

const idsOf = (events: ReturnType<typeof parseEvents>) =>
  events.filter((it) => it.event === "token").map((it) => (it.data as { id: number }).id);

const missing = [...haveNats ? [] : ["nats-server"], ...await haveWrangler() ? [] : ["wrangler"]];

/**
 * Writes the bundled model with so many more words that only its SigLIP has room in an isolate. What they mean is zero, and
 * they are never said.
 */
async function widen(directory: string): Promise<void> {
  for (const name of ["preprocessor_config.json", "tokenizer.model"]) {
    await Deno.copyFile(join(TINY, name), join(directory, name));
  }
  const config = JSON.parse(await Deno.readTextFile(join(TINY, "config.json")));
  const { hidden_size: width } = config.text_config;
  config.text_config.vocab_size = WORDS;
  await Deno.writeTextFile(join(directory, "config.json"), JSON.stringify(config));
  const all = await openTensors(directoryFiles(TINY));
  const wide: Record<string, Pick<TensorEntry, "shape" | "sizeBytes">> = {
    [`${EMBEDDING}.q`]: { shape: [WORDS * width], sizeBytes: WORDS * width },
    [`${EMBEDDING}.scale`]: { shape: [WORDS], sizeBytes: WORDS * 4 },
  };
  const entries: TensorEntry[] = [...all.tensors].map(([name, { dtype, shape, start, end }]) => ({
    ...{ name, dtype, shape, sizeBytes: end - start },
    ...wide[name],
  }));
  const blocks = [encodeHeader(entries, all.metadata)];
  for (const { name, sizeBytes } of entries) {
    const bytes = await all.bytes(name);
    blocks.push(bytes, new Uint8Array(sizeBytes - bytes.length));
  }
  await Deno.writeFile(join(directory, "model.safetensors"), new Blob(blocks as BlobPart[]).stream());
}

Deno.test({
  name: `a pool behind the Worker in workerd${missing.length ? ` (skipped: no ${missing.join(", ")})` : ""}`,
  ignore: missing.length > 0,
}, async (t) => {
  const directory = await Deno.makeTempDir({ prefix: "model" });
  await widen(directory);
  const broker = await startBroker(true);
  const keys = broker.env("worker");
  const [server, first, second, wide] = await Promise.all([
    startDoor({}),
    startWorker(keys),
    startWorker(keys),
    startWorker({ ...keys, MODEL: directory }),
  ]);
  const text = (name: string) => Deno.readTextFileSync(join(broker.keys, name));
  const at = (url: string, more: Record<string, string> = {}) => ({ vars, queues }: Config) => {
    Object.assign(vars, more, { POOL_URL: url, POOL_SIGNING_KEY: text("server.jwk") });
    if (url === broker.webUrl) vars.POOL_NKEY = text("server.nkey");
    delete queues.consumers;
  };
  const streamed = { MODEL: "wide", UPLOAD_KEY };
  const worker = await startWorkers({
    http: at(first.url),
    broker: at(broker.webUrl),
    openai: at(`vllm+${server.url}/v1`),
    wide_http: at(wide.url, streamed),
    wide_broker: at(broker.webUrl, streamed),
  });

  const ask = (name: string, more: object = {}, signal?: AbortSignal) =>
    fetch(`${worker.url}/${name}/v1/generate`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ image: PICTURE.toBase64(), prompt: "caption en", ...more }),
      signal,
    });
  /** The tokens of an answer, or why there is none. */
  const told = async (name: string, more: object = {}) => {
    const response = await ask(name, more);
    if (response.headers.get("content-type")?.startsWith("text/event-stream")) {
      const events = parseEvents(await response.text());
      assert.deepEqual(events.map((it) => it.id), events.map((_, i) => `${i}`));
      assert.equal(events.at(-1)!.event, "done");
      return { ids: idsOf(events) };
    }
    const { tokenIds, code, detail } = await response.json();
    return response.status === 200
      ? { ids: tokenIds as number[] }
      : { status: response.status, code, detail };
  };
  /** A number of `/metrics`, by its name and labels. */
  const count = async (url: string, name: string) => {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    return Number(new RegExp(`^paligemma_${RegExp.escape(name)} (\\S+)$`, "m").exec(metrics)?.[1] ?? 0);
  };
  const answered = (name: string, route: "pool" | "local") =>
    count(`${worker.url}/${name}`, `routes_total{route="${route}"}`);
  /** The tokens of an answer of the pool; where a slow machine makes it look dead, it is asked again. */
  const pooled = async (name: string, more: object = {}) => {
    const before = await answered(name, "pool");
    for (const since = performance.now();;) {
      const answer = await told(name, more);
      if (await answered(name, "pool") > before) return answer.ids;
      assert.ok(performance.now() - since < 60_000, `no answer from the pool: ${JSON.stringify(answer)}`);
    }
  };
  const tiny = [first, second];
  const sum = async (name: string) =>
    (await Promise.all(tiny.map((it) => count(it.url, name)))).reduce((a, b) => a + b);
  const active = async ({ url }: WorkerDoor): Promise<number> =>
    (await (await fetch(`${url}/health`)).json()).active;
  /** Waits until so many answers are computed by the workers, and tells by which. */
  const busy = async (count: number) => {
    for (const since = performance.now();;) {
      const all = await Promise.all(tiny.map(active));
      if (all.reduce((a, b) => a + b) === count) return all;
      assert.ok(performance.now() - since < 5000, `${all} answers`);
    }
  };
  const local = await loadModel(TINY);
  const idsHere = async (pipeline: Pipeline, more: object = {}) => {
    const ids: number[] = [];
    for await (const it of pipeline.answer({ images: [PICTURE], prompt: "caption en", ...more })) {
      if (it.type === "token") ids.push(it.id);
    }
    return ids;
  };
  const sampled = { maxTokens: 400, ignoreEos: true, sampling: { temperature: 1, seed: 9 } };
  const [short, whole] = [await idsHere(local), await idsHere(local, sampled)];

  try {
    for (const name of ["http", "broker"]) {
      await t.step(
        `${name}: the pool's tokens are those computed here, and come as they are made`,
        async () => {
          assert.deepEqual(await pooled(name), short);
          assert.deepEqual(await pooled(name, { ...LONG, stream: true }), whole);
        },
      );

      await t.step(`${name}: several at once, and a client that goes away ends its answer`, async () => {
        const all = await Promise.all(Array.from({ length: 3 }, () => told(name, LONG)));
        assert.deepEqual(all, Array(3).fill({ ids: whole }));
        const cancelled = 'worker_answers_total{result="cancelled"}';
        const counted = async () => [await sum(cancelled), await sum("worker_tokens_total")];
        // A slow machine may make the pool look dead, or tell most of the answer before it sees the client go: once more.
        for (let [since, ended, tokens] = [performance.now(), 0, 0]; ended !== 1 || tokens >= 450;) {
          assert.ok(performance.now() - since < 60_000, "no answer ends because its client went away");
          const before = await counted();
          const client = new AbortController();
          const { body } = await ask(name, { ...LONG, maxTokens: 900, stream: true }, client.signal);
          const reader = body!.pipeThrough(new TextDecoderStream()).getReader();
          while (!(await reader.read()).value?.includes("event: token"));
          client.abort();
          await busy(0);
          [ended, tokens] = (await counted()).map((it, i) => it - before[i]);
        }
      });
    }

    await t.step("what has no room here leaves as image tokens, and answers come back", async () => {
      const to = { url: `${worker.url}/wide_http`, key: UPLOAD_KEY, name: streamed.MODEL };
      await upload(directoryFiles(directory), directory, to);
      assert.deepEqual(await pooled("wide_http"), short);
      assert.deepEqual(await pooled("wide_broker", { stream: true }), short);
    });

    await t.step("a worker that is killed: its answer goes on with another, every token once", async () => {
      const stream = pooled("broker", { ...LONG, stream: true });
      const [one] = await busy(1);
      (one ? first : second).kill("SIGKILL");
      assert.deepEqual(await stream, whole);
      assert.ok(await count(`${worker.url}/broker`, 'detours_total{route="pool",reason="gone"}') > 0);
    });

    await t.step(
      "a broker that is gone and comes back: answered here meanwhile, then by the pool again",
      async () => {
        const before = await answered("broker", "local");
        await broker.kill();
        assert.deepEqual(await told("broker"), { ids: short });
        assert.equal(await answered("broker", "local"), before + 1);
        await broker.restart();
        assert.deepEqual(await pooled("broker"), short);
      },
    );

    await t.step("a server with OpenAI's API is one, too", async () => {
      assert.deepEqual(await pooled("openai"), short);
      assert.deepEqual(await pooled("openai", { ...LONG, stream: true }), whole);
    });

    await t.step(
      "without workers the bundled model answers here, the other is refused in words",
      async () => {
        for (const it of [...tiny, wide]) it.kill("SIGKILL");
        await Promise.all([...tiny, wide].map((it) => it.status));
        for (const name of ["http", "broker"]) {
          const before = await answered(name, "local");
          assert.deepEqual(await told(name), { ids: short });
          assert.equal(await answered(name, "local"), before + 1);
        }
        for (const name of ["wide_http", "wide_broker"]) {
          const { status, code, detail } = await told(name);
          assert.deepEqual([status, code], [503, "overloaded"], detail);
          assert.match(detail, /No worker is there|the way to the pool broke/i);
        }
      },
    );
  } finally {
    for (const it of [...tiny, wide, server]) it.kill("SIGKILL");
    await Promise.all([...tiny, wide, server].map((it) => it.status));
    await worker.stop();
    await broker.stop();
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("a Worker refuses a way to the pool that it cannot go, or that lies open", () => {
  const key = JSON.stringify({ kty: "OKP", crv: "Ed25519", x: "", d: "", kid: "k" });
  const objects = { idFromName() {}, get: assert.fail };
  const opened = (url: string, more: object = {}, allowPrivateUrls = false) =>
    openPool({ pool: { url, signingKey: key, ...more }, allowPrivateUrls }, objects);
  for (
    const url of ["https://pool.example", "wss://pool.example", "http://127.0.0.1:1", "ws://localhost:1"]
  ) {
    assert.equal(typeof opened(url), "function");
  }
  for (const url of ["openai+https://pool.example/v1", "vllm+http://localhost:1/v1"]) {
    assert.equal(typeof opened(url, { signingKey: undefined }), "function");
  }
  assert.throws(() => opened("vllm+http://10.0.0.1/v1"), /expected POOL_URL of a Worker/);
  for (
    const url of ["nats://pool.example:4222", "tls://pool.example", "http://10.0.0.1", "ws://127.example.com"]
  ) {
    assert.throws(() => opened(url), /expected POOL_URL of a Worker to begin with https: .* or wss: /);
  }
  assert.equal(typeof opened("http://10.0.0.1", {}, true), "function");
  assert.throws(() => opened("https://pool.example", { signingKey: undefined }), /POOL_SIGNING_KEY/);
  assert.throws(() => opened("https://pool.example", { signingKey: "server.jwk" }), /POOL_SIGNING_KEY/);
  assert.throws(() => opened("https://pool.example", { ca: "ca.pem" }), /POOL_CA/);
  assert.equal(openPool({ allowPrivateUrls: false }, objects), undefined);
});
