/** Workers and servers over a real HTTP server. */

import assert from "node:assert/strict";
import { exportJWK, generateKeyPair } from "jose";
import { loadEngine, TINY } from "../../functions/model.ts";
import { createWorkerMetrics } from "../../lib/metrics.ts";
import { HttpPool } from "../../lib/pool/http.ts";
import { takeWork } from "../../lib/pool/http_worker.ts";
import { type Pool, type PoolEvent, type TokenEvent, type Work } from "../../lib/pool/pool.ts";
import { Relay } from "../../lib/pool/relay.ts";
import { encodeRows } from "../../lib/pool/rows.ts";
import { Serving, trialWork } from "../../lib/pool/serving.ts";
import { CostModel } from "../../lib/schedule/cost_model.ts";
import { createSign, createVerify } from "../../lib/pool/signature.ts";
import { encodeWork } from "../../lib/pool/work.ts";
import { until } from "../until.ts";
import { CALIBRATION } from "../schedule/calibration.ts";
import { refused } from "./refused.ts";

const engine = await loadEngine(TINY);

const pair = await generateKeyPair("EdDSA", { extractable: true });
const [secret, known] = await Promise.all(
  [pair.privateKey, pair.publicKey].map(async (it) => ({ ...await exportJWK(it), kid: "server" })),
);
const sign = await createSign(secret);

const isToken = (it: PoolEvent): it is TokenEvent => it.type === "token";
const ids = (events: PoolEvent[]) => events.filter(isToken).map((it) => it.id);
const work = (more: Partial<Work> = {}): Work => ({
  ...trialWork(engine.shape),
  ids: [2, 50, 60, 108],
  maxTokens: 12,
  topLogits: 2,
  ...more,
});

/** A worker on a port of its own. */
async function serve(
  { pool = engine, capacity = { maxActive: 4, maxWaiting: 4 }, features = false }: {
    pool?: Pool;
    capacity?: { maxActive: number; maxWaiting: number };
    features?: boolean;
  } = {},
) {
  const errors: unknown[] = [];
  const serving = new Serving(pool, capacity);
  const metrics = createWorkerMetrics();
  const verify = await createVerify([{ ...known, features }]);
  const parts = { serving, model: engine.shape, verify, metrics, onError: (it: unknown) => errors.push(it) };
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, (it) => takeWork(it, parts));
  const url = `http://127.0.0.1:${server.addr.port}/`;
  return {
    url,
    serving,
    errors,
    pool: new HttpPool(url, { model: engine.shape, sign }),
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

/** Computes as the engine does, and waits before the token of this number until it is let on. */
function slow(at: number): Pool & { let(): void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return {
    let: resolve,
    async *submit(work, options) {
      let count = 0;
      for await (const event of engine.submit(work, options)) {
        if (count++ === at) {
          await Promise.race([
            promise,
            new Promise<void>((wake) => options?.signal?.addEventListener("abort", () => wake())),
          ]);
        }
        yield event;
      }
    },
  };
}

Deno.test("over HTTP an answer is the local one, event by event", async () => {
  await using worker = await serve({ features: true });
  const features = await engine.embed(work().images, "features", () => Promise.resolve());
  const { tokens: P, width } = { tokens: engine.imageTokens, width: engine.config.vision.width };
  const images: Work["images"] = {
    stage: "features",
    dtype: "f16",
    shape: [1, P, width],
    async *blocks() {
      for (let row = 0; row < P; row++) {
        yield await Promise.resolve(
          encodeRows("f16", features.values.slice(row * width, (row + 1) * width), width),
        );
      }
    },
  };
  for (
    const more of [{}, { sampling: { temperature: 1.5, topK: 20, topP: 0.9, seed: 3 } }, {
      given: [300, 301],
    }, {
      images,
    }]
  ) {
    const timeless = (all: PoolEvent[]) =>
      all.map((it) => it.type === "usage" ? { ...it, timings: 0, cached: 0 } : it);
    const local = await Array.fromAsync(engine.submit(work(more)));
    assert.deepEqual(timeless(await Array.fromAsync(worker.pool.submit(work(more)))), timeless(local));
  }
  assert.deepEqual([worker.errors, worker.serving.load().active], [[], 0]);
});

Deno.test("the first block is there while the last is still computed, and refused before it comes", async () => {
  const pool = slow(1);
  await using worker = await serve({ pool, capacity: { maxActive: 1, maxWaiting: 0 } });
  const { promise, resolve } = Promise.withResolvers<void>();
  const grey = new Uint8Array(engine.config.vision.imageSize ** 2 * 3);
  const images = {
    ...work().images,
    async *blocks() {
      yield grey.subarray(0, 1000);
      await promise;
      yield grey.subarray(1000);
    },
  };
  const answer = Array.fromAsync(worker.pool.submit(work({ images })));
  await until(() => worker.serving.load().waiting === 1); // it has its place, though most of it is to come
  const error = await refused(new HttpPool(worker.url, { model: engine.shape, sign }).submit(work()), "busy");
  assert.match(error.message, /1 answers/);
  resolve();
  pool.let();
  assert.equal((await answer).at(-1)!.type, "done");
});

Deno.test("who goes away cancels, and has the tokens that came", async () => {
  await using worker = await serve({ pool: slow(3) });
  const stop = new AbortController();
  const events: PoolEvent[] = [];
  for await (const event of worker.pool.submit(work({ ignoreEos: true }), { signal: stop.signal })) {
    events.push(event);
    if (ids(events).length === 3) stop.abort();
  }
  assert.deepEqual(events.slice(3).map((it) => it.type), ["usage", "done"]);
  assert.equal((events.at(-1) as { finishReason?: string }).finishReason, "cancelled");
  await until(() => worker.serving.load().active + worker.serving.load().waiting === 0);
  for await (const _ of worker.pool.submit(work({ ignoreEos: true }))) break; // as does who stops listening
  await until(() => worker.serving.load().active === 0);
});

Deno.test("refusals have codes and statuses; a full pool is left alone until it said", async () => {
  await using worker = await serve({ capacity: { maxActive: 0, maxWaiting: 0 } });
  const ask = async (body: BodyInit, headers: HeadersInit = {}) => {
    const response = await fetch(`${worker.url}work`, { method: "POST", body, headers });
    const { code, status } = await response.json();
    assert.equal(status, response.status);
    return [status, code, response.headers.get("retry-after")];
  };
  const bytes = await new Blob(await Array.fromAsync(encodeWork(work())) as BlobPart[]).bytes();
  assert.deepEqual(await ask("PGW"), [400, "length", null]);
  assert.deepEqual(await ask(bytes.with(0, 0)), [400, "magic", null]);
  assert.deepEqual(await ask(bytes.with(8, 0)), [404, "revision", null]);
  assert.deepEqual(await ask(bytes), [503, "busy", "1"]);
  await refused(worker.pool.submit(work()), "busy");
  await worker[Symbol.asyncDispose]();
  await refused(worker.pool.submit(work()), "busy"); // without asking: nobody is there any more

  await using other = await serve();
  await Array.fromAsync(other.pool.submit(work()));
  assert.equal((await refused(other.pool.submit(work(), { deadlineMs: 0 }), "late")).predictedMs! > 0, true);
  const unsigned = new HttpPool(other.url, { model: engine.shape, sign: () => Promise.resolve("") });
  await refused(unsigned.submit(work()), "unsigned");
  const rows = encodeRows(
    "f16",
    new Float32Array(engine.imageTokens * engine.config.decoder.width).fill(1),
    1,
  );
  const shape = [1, engine.imageTokens, engine.config.decoder.width];
  const images: Work["images"] = { stage: "projected", dtype: "f16", shape, blocks: () => [rows] };
  await refused(other.pool.submit(work({ images })), "forbidden");
  assert.deepEqual([...worker.errors, ...other.errors], []);
});

Deno.test("an answer that breaks off goes on here, without a token twice or missing", async () => {
  const whole = ids(await Array.fromAsync(engine.submit(work({ ignoreEos: true }))));
  const left: string[] = [];
  const dying = (submit: (pool: Pool) => Pool["submit"]) =>
    async function* (this: void, ...args: Parameters<Pool["submit"]>) {
      yield* submit(engine)(...args);
    };
  // One fails in words, the other's connection is cut.
  const failing = dying(() =>
    async function* (work, options) {
      let count = 0;
      for await (const event of engine.submit(work, options)) {
        if (count++ === 4) throw new Error("out of memory");
        yield event;
      }
    }
  );
  await using worker = await serve({ pool: { submit: failing } });
  using listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  (async () => {
    for await (const connection of listener) {
      const { value } = await connection.readable.getReader().read();
      assert.match(new TextDecoder().decode(value), /^POST \/work /);
      const line = JSON.stringify({
        type: "token",
        id: whole[4],
        text: "",
        logprob: -1,
        nearLogprob: -1,
        top: [],
      });
      const head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
      const chunk = `${head}${(line.length + 1).toString(16)}\r\n${line}\n\r\n`;
      await connection.write(new TextEncoder().encode(chunk));
      connection.close();
    }
  })();
  const cut = new HttpPool(`http://127.0.0.1:${(listener.addr as Deno.NetAddr).port}`, {
    model: engine.shape,
    sign,
  });
  const place = (name: string, pool: Pool) => ({ name, submit: pool.submit.bind(pool) });
  const relay = new Relay([place("one", worker.pool), place("two", cut), place("here", engine)], {
    left: (name, { code }, given) => left.push(`${name} ${code} after ${given}`),
  });
  const events = await Array.fromAsync(relay.submit(work({ ignoreEos: true, topLogits: 0 })));
  assert.deepEqual(ids(events), whole);
  assert.deepEqual(left, ["one failed after 4", "two gone after 5"]);
  assert.equal(worker.errors.length, 1);
});

Deno.test("a worker tells how busy others keep it, with answers and refusals, and the planner reckons with it", async () => {
  const stuck = slow(3);
  await using worker = await serve({ pool: stuck, capacity: { maxActive: 1, maxWaiting: 1 } });
  const other = new HttpPool(worker.url, { model: engine.shape, sign });
  const model = new CostModel({ ...CALIBRATION }, { pool: () => worker.pool.present() });
  const waitMs = () => model.pool("pool").waitMs(0);
  assert.equal(worker.pool.present(), undefined);
  /** Asks, and waits for what the answer's header says. */
  const busy = async (pool: HttpPool) => {
    const answer = Array.fromAsync(pool.submit(work()));
    await until(() => pool.present() !== undefined);
    const [{ slots, running, waiting }] = pool.present()!.workers;
    return { answer, told: [slots, running, waiting] };
  };
  const first = await busy(other);
  assert.deepEqual(first.told, [1, 0, 0]);
  await until(() => worker.serving.load().active === 1);
  const second = await busy(worker.pool);
  assert.deepEqual(second.told, [1, 1, 0]);
  const third = new HttpPool(worker.url, { model: engine.shape, sign });
  await refused(third.submit(work()), "busy");
  stuck.let();
  for (const { answer } of [first, second]) assert.equal((await answer).length, 14);
  // Now it knows how long an answer takes.
  await Promise.all([other, worker.pool].map((it) => Array.fromAsync(it.submit(work()))));
  const [{ serviceMs, running, waiting }] = worker.pool.present()!.workers;
  assert.ok(serviceMs! > 0);
  assert.equal(waitMs(), running || waiting ? (waiting + 1) * serviceMs! : 0);
});

Deno.test("nobody there, nonsense and silence end with a code", async () => {
  const port = (server: Deno.HttpServer<Deno.NetAddr>) => `http://127.0.0.1:${server.addr.port}`;
  const pool = (url: string) => new HttpPool(url, { model: engine.shape, sign });
  await refused(pool("http://127.0.0.1:1").submit(work()), "gone");
  const answers: [Response | (() => Response), string][] = [
    [() => new Response("<html>", { status: 502 }), "failed"],
    [() => new Response("slow down", { status: 429 }), "busy"],
    [() => new Response("<html>\n"), "broken"],
    [() => new Response('{"type":"token","id":-1}\n'), "broken"],
    [() => new Response("\n\n"), "gone"],
  ];
  for (const [answer, code] of answers) {
    const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
      await request.bytes();
      return (answer as () => Response)();
    });
    const asked = pool(port(server));
    await refused(asked.submit(work()), code);
    assert.deepEqual(asked.present(), ["broken", "failed"].includes(code) ? { workers: [] } : undefined);
    if (code === "broken") await refused(asked.submit(work()), "nobody"); // its circuit is open
    await server.shutdown();
  }
});

Deno.test("pool check says how far workers are off, and fails where tokens differ", async () => {
  const check = async (url: string, ...args: string[]) => {
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "-A",
        "--no-check",
        new URL("../../functions/cli.ts", import.meta.url).pathname,
        "pool",
        ...args,
        url,
      ],
      env: { POOL_SIGNING_KEY: JSON.stringify(secret) },
    }).output();
    return { code, out: new TextDecoder().decode(stdout), err: new TextDecoder().decode(stderr) };
  };
  await using worker = await serve({ features: true });
  const good = await check(worker.url, "check", "--json");
  assert.equal(good.code, 0, good.err);
  const { revision, findings } = JSON.parse(good.out);
  assert.equal(revision, engine.revision);
  const forms = findings.slice(-5);
  assert.deepEqual(forms.map((it: { work: string }) => it.work), [
    "pixels",
    "continued",
    "sampled with a seed",
    "image tokens",
    "features",
  ]);
  for (const { work, tokens, alike, deviation } of findings) {
    const count = work === "continued"
      ? 16
      : forms.some((it: { work: string }) => it.work === work)
      ? 32
      : tokens;
    assert.deepEqual([tokens, alike, deviation], [count, count, 0]);
  }
  assert.ok(findings.length > 10, "and questions about pictures");

  // Another picture than was sent, and no features.
  await using other = await serve({
    pool: {
      submit: (work, options) => engine.submit({ ...work, images: trialWork(engine.shape).images }, options),
    },
  });
  const bad = await check(other.url, "check");
  assert.equal(bad.code, 1, bad.err);
  assert.match(bad.out, /^pixels +\d+\/32 /m);
  assert.match(bad.out, /^features +forbidden: /m);
  assert.equal((await check("nats://127.0.0.1", "check")).code, 2);
});
