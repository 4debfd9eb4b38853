/** A worker whose GPU is lost: its answers go on elsewhere, and it comes back. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { connectBroker } from "../../functions/pool.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import type { WebgpuBackend } from "../../lib/backend/webgpu.ts";
import { openEngine } from "../../lib/engine.ts";
import { createWorkerMetrics } from "../../lib/metrics.ts";
import { NatsPool } from "../../lib/pool/nats.ts";
import { NatsWorker } from "../../lib/pool/nats_worker.ts";
import type { PoolEvent } from "../../lib/pool/pool.ts";
import { Relay } from "../../lib/pool/relay.ts";
import { keepStarted } from "../../lib/pool/restart.ts";
import { trialWork } from "../../lib/pool/serving.ts";
import { createSign, createVerify } from "../../lib/pool/signature.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { openSoftware } from "../backend/gpus.ts";
import { until } from "../until.ts";
import { directoryBytes, memoryFiles } from "../memory_files.ts";
import { haveNats, startBroker } from "./broker.ts";

const files = memoryFiles(
  directoryBytes(new URL("../golden/checkpoints/pg1", import.meta.url).pathname),
  "pg1",
);
const read = (path: string) => JSON.parse(Deno.readTextFileSync(path));

Deno.test("starts that fail rest longer and longer and are given up; what fails at first is thrown at once", async () => {
  const failing = () => Promise.reject(new Error("no adapter"));
  const onLost = () => assert.fail("nothing was lost that was never there");
  await assert.rejects(keepStarted(failing, { onLost }), { message: "no adapter" });
  const rests: number[] = [];
  let [starts, left] = [0, 0];
  const ends = keepStarted(
    () => {
      if (++starts === 3) return failing();
      const leave = () => Promise.resolve(void left++);
      return Promise.resolve({ lost: Promise.resolve(`loss ${starts}`), leave });
    },
    { tries: 3, restMs: 2, onLost: (_, ms) => rests.push(ms) },
  );
  await assert.rejects(ends, { message: "loss 4" });
  assert.deepEqual([rests, starts, left], [[2, 4, 8], 4, 3]);
});

Deno.test("an engine that lived long enough was not lost in a row", async () => {
  let starts = 0;
  const rests: number[] = [];
  const ends = keepStarted(
    () => {
      const lost = ++starts < 5
        ? new Promise<string>((wake) => setTimeout(() => wake("late"), 20))
        : Promise.resolve("soon");
      return Promise.resolve({ lost, leave: () => Promise.resolve() });
    },
    { tries: 2, restMs: 1, steadyMs: 10, onLost: (_, ms) => rests.push(ms) },
  );
  await assert.rejects(ends, { message: "soon" });
  assert.deepEqual(rests, [1, 1, 1, 1, 2]);
});

const probe = haveNats ? await openSoftware({ driver: "lavapipe" }) : undefined;
probe?.close();

Deno.test({
  name: "a lost device fails its answers, which go on elsewhere, and the worker announces itself again" +
    (probe ? "" : " (skipped: no driver or no nats-server)"),
  ignore: !probe,
  async fn() {
    const broker = await startBroker();
    const asking = await connectBroker(broker.settings("server"), "server");
    const local = await openEngine({ backend: createWasmBackend({ simd, relaxed }), files });
    const work = { ...trialWork(local.shape), ids: [2, 50, 60, 108], maxTokens: 16 };
    const errors: unknown[] = [], workers: string[] = [];
    const metrics = createWorkerMetrics();
    let device: WebgpuBackend;
    const verify = await createVerify(read(join(broker.keys, "trusted.jwks")).keys);
    let over = false;
    const kept = keepStarted(async () => {
      if (over) throw new Error("the test is over");
      device = (await openSoftware({ driver: "lavapipe" }))!;
      const engine = await openEngine({ backend: device, files });
      const parts = {
        engine,
        model: engine.shape,
        capacity: { maxActive: 2, maxWaiting: 2 },
        verify,
        metrics,
      };
      const connection = await connectBroker(broker.settings("worker"), "worker");
      const worker = new NatsWorker(connection, { ...parts, onError: (it) => errors.push(it) });
      workers.push(worker.worker);
      return { lost: engine.lost, leave: () => worker.leave(1000) };
    }, { restMs: 10, tries: 2, onLost() {} });
    try {
      const sign = await createSign(read(join(broker.keys, "server.jwk")));
      const pool = new NatsPool(asking, { model: local.shape, sign, onError: (it) => errors.push(it) });
      await until(() => pool.workers().length === 1);
      const left: string[] = [];
      const relay = new Relay([
        { name: "pool", submit: (work, options) => pool.submit(work, options) },
        { name: "local", submit: (work, options) => local.submit(work, options) },
      ], { left: (place, { code }) => left.push(`${place} ${code}`) });
      const ids = async (events: AsyncIterable<PoolEvent>, onToken = (_: number) => {}) => {
        const found: number[] = [];
        for await (const it of events) if (it.type === "token") onToken(found.push(it.id));
        return found;
      };
      const expected = await ids(local.submit(work));
      const found = await ids(relay.submit(work), (count) => count === 3 && device.close());
      assert.deepEqual(left, ["pool failed"]);
      assert.deepEqual(found, expected);
      assert.equal(metrics.answers.value("failed"), 1);
      assert.match(`${(errors[0] as Error).message}`, /GPU/);
      await until(() => pool.workers().some((it) => it.worker === workers[1]));
      assert.deepEqual(await ids(pool.submit(work)), expected);
      assert.equal(errors.length, 1);
      device!.close();
      await until(() => pool.workers().length === 0);
    } finally {
      over = true;
      device!.close();
      await kept.catch(() => {});
      await asking.close();
      await broker.stop();
    }
  },
});
