/** A gateway between a real nats-server and those who ask it by requests. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { loadEngine, TINY } from "../../functions/model.ts";
import { connectBroker } from "../../functions/pool.ts";
import { createWorkerMetrics } from "../../lib/metrics.ts";
import { behindGateway, Gateway } from "../../lib/pool/gateway.ts";
import { NatsWorker } from "../../lib/pool/nats_worker.ts";
import type { Pool, PoolEvent, Work } from "../../lib/pool/pool.ts";
import { trialWork } from "../../lib/pool/serving.ts";
import { createSign, createVerify } from "../../lib/pool/signature.ts";
import { until } from "../until.ts";
import { haveNats, startBroker } from "./broker.ts";
import { refused } from "./refused.ts";

const idsOf = (events: PoolEvent[]) => events.flatMap((it) => it.type === "token" ? [it.id] : []);

Deno.test({
  name: "a gateway answers requests from the workers of a broker" +
    (haveNats ? "" : " (skipped: there is no nats-server)"),
  ignore: !haveNats,
  // The gateway's connection lives as long as what it is in.
  sanitizeOps: false,
  sanitizeResources: false,
}, async (t) => {
  const engine = await loadEngine(TINY);
  const model = engine.shape;
  const broker = await startBroker(true);
  const read = (name: string) => Deno.readTextFile(join(broker.keys, name));
  const errors: unknown[] = [];
  const onError = (error: unknown) => errors.push(error);
  const parts = {
    nkey: (await read("server.nkey")).trim(),
    sign: createSign(JSON.parse(await read("server.jwk"))),
    onError,
  };
  const asking = (gateway: Gateway) =>
    behindGateway(model, (url, init) => gateway.fetch(new Request(url, init)));
  const pool = asking(new Gateway({ url: broker.webUrl, ...parts }));
  const work = (more: Partial<Work> = {}): Work => ({ ...trialWork(model), ids: [2, 50, 60, 108], ...more });

  await t.step("without workers there is nobody, and that leaves nobody alone", async () => {
    for (let times = 0; times < 2; times++) {
      assert.match((await refused(pool.submit(work()), "nobody")).message, /No worker/);
    }
  });

  let failing = false;
  let computed = 0;
  const flaky: Pool = {
    async *submit(work, options) {
      for await (const event of engine.submit(work, options)) {
        if (failing) throw new Error("out of memory");
        computed++;
        yield event;
        await new Promise((wake) => setTimeout(wake, 1));
      }
    },
  };
  const connection = await connectBroker(broker.settings("worker"), "worker");
  const worker = new NatsWorker(connection, {
    engine: flaky,
    model,
    capacity: { maxActive: 64, maxWaiting: 0 },
    verify: await createVerify(JSON.parse(await read("trusted.jwks")).keys),
    metrics: createWorkerMetrics(),
    onError,
  });
  await connection.flush();

  await t.step("pixels and image tokens give the tokens computed here", async () => {
    using tokens = engine.encoded(work().images, "projected", "f16", () => Promise.resolve());
    for (const images of [work().images, tokens]) {
      const expected = idsOf(await Array.fromAsync(engine.submit(work({ images }))));
      assert.deepEqual(idsOf(await Array.fromAsync(pool.submit(work({ images })))), expected);
    }
    assert.deepEqual(errors, []);
  });

  await t.step("who goes away cancels", async () => {
    const stop = new AbortController();
    computed = 0;
    for await (const _ of pool.submit(work({ maxTokens: 500 }), { signal: stop.signal })) stop.abort();
    await until(() => worker.serving.load().active === 0);
    assert.ok(computed < 100, `${computed} tokens`);
  });

  await t.step("a deadline goes along, as do the worker's refusals", async () => {
    await refused(pool.submit(work(), { deadlineMs: 0 }), "late");
    failing = true;
    await refused(pool.submit(work()), "failed");
    failing = false;
  });

  await t.step("a broker that is not there is nobody, after a while", async () => {
    const lost = asking(new Gateway({ url: "ws://127.0.0.1:1", ...parts }));
    assert.match((await refused(lost.submit(work()), "nobody")).message, /no connection yet/);
  });

  await connection.close();
  await broker.stop();
});
