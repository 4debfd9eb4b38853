/** Workers and servers over a real nats-server with the shipped configuration. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { connectBroker } from "../../functions/pool.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { type Engine, openEngine } from "../../lib/engine.ts";
import { createWorkerMetrics } from "../../lib/metrics.ts";
import { Breakers } from "../../lib/pool/breaker.ts";
import { NatsPool } from "../../lib/pool/nats.ts";
import { NatsWorker } from "../../lib/pool/nats_worker.ts";
import { type Pool, PoolError, type PoolEvent, type TokenEvent, type Work } from "../../lib/pool/pool.ts";
import { Relay } from "../../lib/pool/relay.ts";
import { createSign, createVerify } from "../../lib/pool/signature.ts";
import { trialWork } from "../../lib/pool/serving.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "../memory_files.ts";
import { type Broker, haveNats, startBroker } from "./broker.ts";
import { until, within } from "../until.ts";
import { refused } from "./refused.ts";

const CHECKPOINT = new URL("../golden/checkpoints/pg1", import.meta.url).pathname;
const read = (path: string) => JSON.parse(Deno.readTextFileSync(path));

function open(): Promise<Engine> {
  const files = memoryFiles(directoryBytes(CHECKPOINT), "pg1");
  return openEngine({ backend: createWasmBackend({ simd, relaxed }), files });
}

const isToken = (it: PoolEvent): it is TokenEvent => it.type === "token";
const ids = (events: PoolEvent[]) => events.filter(isToken).map((it) => it.id);

/** Everything of one test: a broker, and whatever it connects. */
class Bed {
  readonly errors: unknown[] = [];
  readonly #connections: { close(): Promise<void> }[] = [];

  private constructor(readonly broker: Broker, readonly engine: Engine) {}

  static async open(): Promise<Bed> {
    return new Bed(await within("a broker", startBroker()), await open());
  }

  async worker(engine: Pool = this.engine, capacity = { maxActive: 4, maxWaiting: 4 }, features = false) {
    const connection = await within(
      "a worker's connection",
      connectBroker(this.broker.settings("worker"), "worker"),
    );
    this.#connections.push(connection);
    const { keys } = read(join(this.broker.keys, "trusted.jwks"));
    // deno-lint-ignore no-explicit-any -- keys as JSON has them
    const verify = await createVerify(keys.map((it: any) => ({ ...it, features })));
    const parts = { engine, model: this.engine.shape, capacity, verify, metrics: createWorkerMetrics() };
    const worker = new NatsWorker(connection, { ...parts, onError: (it) => this.errors.push(it) });
    await within("a worker's subscriptions", connection.flush());
    return { worker, connection, metrics: parts.metrics };
  }

  async pool(key = "server.jwk", model = this.engine.shape) {
    const connection = await within(
      "a server's connection",
      connectBroker(this.broker.settings("server"), "server"),
    );
    this.#connections.push(connection);
    const sign = await createSign(read(join(this.broker.keys, key)));
    // Whom it leaves alone, it leaves alone for all of the test.
    const breakers = new Breakers(() => 0);
    return new NatsPool(connection, { model, sign, breakers, onError: (it) => this.errors.push(it) });
  }

  work(more: Partial<Work> = {}): Work {
    return { ...trialWork(this.engine.shape), ids: [2, 50, 60, 108], maxTokens: 12, topLogits: 2, ...more };
  }

  async [Symbol.asyncDispose]() {
    await within("closed connections", Promise.all(this.#connections.map((it) => it.close())));
    await within("the broker's end", this.broker.stop());
  }
}

function test(name: string, run: (bed: Bed) => Promise<void>): void {
  Deno.test({
    name: name + (haveNats ? "" : " (skipped: there is no nats-server)"),
    ignore: !haveNats,
    async fn() {
      await using bed = await Bed.open();
      await within("the test itself", run(bed));
    },
  });
}

test("an answer from a worker is the local one, event by event", async (bed) => {
  const { worker } = await bed.worker();
  const pool = await bed.pool();
  for (
    const more of [{}, { sampling: { temperature: 1.5, topK: 20, topP: 0.9, seed: 3 } }, {
      given: [300, 301],
    }]
  ) {
    const timeless = (all: PoolEvent[]) =>
      all.map((it) => it.type === "usage" ? { ...it, timings: 0, cached: 0 } : it);
    const local = await Array.fromAsync(bed.engine.submit(bed.work(more)));
    const remote = await Array.fromAsync(pool.submit(bed.work(more)));
    assert.deepEqual(timeless(remote), timeless(local));
  }
  await until(() => pool.workers().some((it) => it.worker === worker.worker && it.tokenMs > 0));
  assert.deepEqual(bed.errors, []);
});

test("image tokens in several parts give the tokens of the pixels, where the key may bring them", async (bed) => {
  await bed.worker(bed.engine, undefined, true);
  const pool = await bed.pool();
  const work = bed.work();
  const expected = ids(await Array.fromAsync(bed.engine.submit(work)));
  for (const stage of ["features", "projected"] as const) {
    const images = bed.engine.encoded(work.images, stage, "f16", () => Promise.resolve());
    for (let times = 0; times < 2; times++) {
      assert.deepEqual(ids(await Array.fromAsync(pool.submit({ ...work, images }))), expected, stage);
    }
  }
});

test("features are refused from a key that may only bring pixels", async (bed) => {
  await bed.worker();
  const work = bed.work();
  const images = bed.engine.encoded(work.images, "projected", "int8", () => Promise.resolve());
  await refused((await bed.pool()).submit({ ...work, images }), "forbidden");
});

test("work that nobody trusted signed is refused; so is work for another model", async (bed) => {
  await bed.worker();
  const stranger = await startBroker();
  try {
    Deno.copyFileSync(join(stranger.keys, "server.jwk"), join(bed.broker.keys, "stranger.jwk"));
    await refused((await bed.pool("stranger.jwk")).submit(bed.work()), "unsigned");
  } finally {
    await stranger.stop();
  }
  const other = await bed.pool("server.jwk", { ...bed.engine.shape, revision: "other" });
  await refused(other.submit(bed.work({ revision: "other" })), "nobody");
  await refused((await bed.pool()).submit(bed.work({ revision: "other" })), "revision");
});

test("without a worker there is nobody, at once", async (bed) => {
  const pool = await bed.pool();
  await refused(pool.submit(bed.work()), "nobody");
  const since = performance.now();
  await refused(pool.submit(bed.work()), "nobody");
  assert.ok(performance.now() - since < 1000);
});

test("a caller that goes away ends the computation within a token or two", async (bed) => {
  let computed = 0;
  const slow: Pool = {
    async *submit(work, options) {
      for await (const event of bed.engine.submit(work, options)) {
        computed++;
        yield event;
        await new Promise((wake) => setTimeout(wake, 20));
      }
    },
  };
  const { worker, metrics } = await bed.worker(slow);
  const pool = await bed.pool();
  const stop = new AbortController();
  const events: PoolEvent[] = [];
  for await (const event of pool.submit(bed.work({ maxTokens: 200 }), { signal: stop.signal })) {
    events.push(event);
    if (events.length === 3) stop.abort();
  }
  assert.deepEqual(events.at(-1), { type: "done", finishReason: "cancelled", text: "" });
  await until(() => worker.serving.load().active === 0);
  assert.ok(computed <= 8, `${computed}`);
  assert.equal(metrics.answers.value("cancelled"), 1);
});

test("more than a worker takes is refused as busy, what cannot be in time as late, with the prediction", async (bed) => {
  const { worker } = await bed.worker(bed.engine, { maxActive: 1, maxWaiting: 1 });
  const pool = await bed.pool();
  await Array.fromAsync(pool.submit(bed.work({ maxTokens: 100 })));
  assert.ok(worker.serving.load().tokenMs > 0);
  const late = await refused(pool.submit(bed.work({ maxTokens: 100 }), { deadlineMs: 0.5 }), "late");
  assert.ok(late.predictedMs! > 0.5, `${late.predictedMs}`);
  const many = Array.from({ length: 4 }, () => Array.fromAsync(pool.submit(bed.work({ maxTokens: 100 }))));
  const ends = await Promise.allSettled(many);
  const codes = ends.map((it) => it.status === "fulfilled" ? "answered" : it.reason.code).sort();
  assert.deepEqual(codes, ["answered", "answered", "busy", "busy"]);
});

test("requests that come while others are answered join them", async (bed) => {
  await bed.worker();
  const pool = await bed.pool();
  const order: string[] = [];
  const ask = async (name: string, maxTokens: number, begun = () => {}) => {
    for await (const event of pool.submit(bed.work({ maxTokens }))) {
      if (order.push(`${name} ${event.type}`) === 1) begun();
    }
  };
  let short: Promise<void> | undefined;
  await ask("long", 900, () => short = ask("short", 5));
  await short;
  assert.ok(order.indexOf("short done") < order.indexOf("long done"));
});

/** A worker that does `misdeed` at its third token. */
function wrong(engine: Engine, misdeed: (event: TokenEvent) => Promise<TokenEvent> | TokenEvent): Pool {
  return {
    async *submit(work, options) {
      let count = 0;
      for await (const event of engine.submit(work, options)) {
        yield isToken(event) && ++count === 3 ? await misdeed(event) : event;
      }
    },
  };
}

const lies: [string, (event: TokenEvent) => TokenEvent][] = [
  ["an id that there is not", (it) => ({ ...it, id: 1e9 })],
  ["a probability above one", (it) => ({ ...it, logprob: 0.5 })],
  ["fewer candidates than asked", (it) => ({ ...it, top: [] })],
];
for (const [name, lie] of lies) {
  test(`a worker that answers ${name} is left for the other, and then left alone`, async (bed) => {
    const liar = await bed.worker(wrong(bed.engine, lie));
    const pool = await bed.pool();
    await until(() => pool.workers().length === 1);
    const expected = ids(await Array.fromAsync(bed.engine.submit(bed.work())));
    await refused(pool.submit(bed.work()), "broken");
    await refused(pool.submit(bed.work()), "nobody");
    const honest = await bed.worker();
    await until(() => pool.workers().length === 2);
    for (let i = 0; i < 5; i++) {
      assert.deepEqual(ids(await Array.fromAsync(pool.submit(bed.work()))), expected);
    }
    assert.equal(honest.metrics.answers.value("length"), 5);
    assert.ok(liar.metrics.answers.value("length") <= 1, "asked again");
  });
}

test("a worker that fails half way is gone on from, without a repeated or missing token", async (bed) => {
  await bed.worker(wrong(bed.engine, () => Promise.reject(new Error("out of memory"))));
  const pool = await bed.pool();
  const left: string[] = [];
  const relay = new Relay([
    { name: "pool", attempts: 3, submit: (work, options) => pool.submit(work, options) },
    { name: "local", submit: (work, options) => bed.engine.submit(work, options) },
  ], { left: (place, { code }, given) => left.push(`${place} ${code} ${given}`) });
  const expected = ids(await Array.fromAsync(bed.engine.submit(bed.work())));
  assert.deepEqual(ids(await Array.fromAsync(relay.submit(bed.work()))), expected);
  assert.equal(left[0], "pool failed 2");
  assert.equal((bed.errors[0] as Error).message, "out of memory");
});

test("the connection of a worker that breaks is noticed within a second", async (bed) => {
  const { connection } = await bed.worker(wrong(bed.engine, async (it) => {
    await connection.close();
    return it;
  }));
  const pool = await bed.pool();
  const since = performance.now();
  await refused(pool.submit(bed.work()), "gone");
  assert.ok(performance.now() - since < 1000, `${performance.now() - since}`);
});

test("a broker that restarts: answers under way are cut at once, new ones come within two seconds", async (bed) => {
  await bed.worker(wrong(bed.engine, (it) => new Promise((wake) => setTimeout(() => wake(it), 300))));
  const pool = await bed.pool();
  const cut = refused(pool.submit(bed.work()), "gone");
  await new Promise((wake) => setTimeout(wake, 100));
  await bed.broker.kill();
  await cut;
  await refused(pool.submit(bed.work()), "nobody");
  await bed.broker.restart();
  const since = performance.now();
  while (true) {
    try {
      assert.equal(ids(await Array.fromAsync(pool.submit(bed.work()))).length, 12);
      break;
    } catch (error) {
      if (!(error instanceof PoolError)) throw error;
      await new Promise((wake) => setTimeout(wake, 20));
    }
  }
  assert.ok(performance.now() - since < 2000, `${performance.now() - since}`);
  await until(() => pool.workers().length === 1);
});

test("a worker that leaves takes nothing new and ends what it began", async (bed) => {
  const { worker } = await bed.worker();
  const pool = await bed.pool();
  const running = Array.fromAsync(pool.submit(bed.work({ maxTokens: 200 })));
  await until(() => worker.serving.load().active === 1);
  const left = worker.leave(10_000);
  await refused(pool.submit(bed.work()), "nobody");
  assert.equal(ids(await running).length, 200);
  await left;
});
