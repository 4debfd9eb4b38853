/** A picture goes in at the server, tokens come back from a worker process, and when it is killed, too. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { haveNats, startBroker } from "../pool/broker.ts";
import { writePoolKeys } from "../../functions/pool_keys.ts";
import { startDoor } from "./door.ts";
import { startWorker } from "./pool_worker.ts";
import { until } from "../until.ts";

const PICTURE = await Deno.readFile(join(import.meta.dirname!, "../../models/tiny/pictures/five_shapes.png"));

async function ask(url: string, more: object = {}) {
  const body = JSON.stringify({ image: PICTURE.toBase64(), prompt: "caption en", ...more });
  const answer = await fetch(`${url}/v1/generate`, {
    method: "POST",
    body,
    headers: { "content-type": "application/json" },
  });
  assert.equal(answer.status, 200, await answer.clone().text());
  const { timings: _, cached: __, route: ___, ...rest } = await answer.json();
  return rest;
}

async function metric(url: string, name: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(new RegExp(`^${RegExp.escape(name)} (\\S+)$`, "m").exec(text)?.[1] ?? 0);
}

Deno.test({
  name:
    "server, broker and worker as processes: the same answer, from the pool; without the worker from here" +
    (haveNats ? "" : " (skipped: there is no nats-server)"),
  ignore: !haveNats,
  async fn() {
    const broker = await startBroker();
    const [alone, door, worker] = await Promise.all([
      startDoor({}),
      startDoor(broker.env("server")),
      startWorker(broker.env("worker")),
    ]);
    try {
      const fromPool = () => metric(door.url, 'paligemma_routes_total{route="pool"}');
      while (await fromPool() === 0) await ask(door.url); // the server may answer before it has reached the broker
      const [before, local] = [
        await fromPool(),
        await metric(door.url, 'paligemma_routes_total{route="local"}'),
      ];
      for (
        const more of [{}, { prompt: "detect star ; heart" }, { temperature: 1, seed: 4 }, {
          prompt: "detect star",
          constrained: true,
          nms: 0.5,
        }]
      ) {
        assert.deepEqual(await ask(door.url, more), await ask(alone.url, more));
      }
      assert.equal(await fromPool() - before, 4);
      assert.equal(await metric(worker.url, 'paligemma_worker_answers_total{result="stop"}'), 4 + before);
      const { status, active, maxActive, tokenMs } = await (await fetch(`${worker.url}/health`)).json();
      assert.deepEqual([status, active, maxActive], ["ok", 0, 8]);
      assert.ok(tokenMs > 0);

      // A worker that stands still: the stream goes on from here, with every token once.
      const asked = { maxTokens: 800, ignoreEos: true, temperature: 1, seed: 9 };
      const expected = await ask(alone.url, asked);
      let over = false;
      const answer = ask(door.url, asked).finally(() => over = true);
      await until(async () => over || (await (await fetch(`${worker.url}/health`)).json()).active > 0);
      worker.kill("SIGSTOP");
      assert.deepEqual(await answer, expected);
      worker.kill("SIGCONT");
      assert.equal(await metric(door.url, 'paligemma_detours_total{route="pool",reason="silent"}'), 1);

      worker.kill("SIGTERM");
      assert.equal((await worker.status).code, 0);
      assert.deepEqual(await ask(door.url), await ask(alone.url));
      assert.equal(await metric(door.url, 'paligemma_routes_total{route="local"}'), local + 2);
      assert.ok(await metric(door.url, 'paligemma_detours_total{route="pool",reason="nobody"}') >= 1);
    } finally {
      for (const it of [alone, door, worker]) it.kill("SIGKILL");
      await Promise.all([alone.status, door.status, worker.status]);
      await broker.stop();
    }
  },
});

Deno.test("a pool of one worker over HTTP, without a broker: the same answer; without the worker from here", async () => {
  const keys = join(await Deno.makeTempDir(), "keys");
  await writePoolKeys(keys);
  const worker = await startWorker({ POOL_TRUSTED_KEYS: join(keys, "trusted.jwks") });
  const [alone, door] = await Promise.all([
    startDoor({}),
    startDoor({ POOL_URL: worker.url, POOL_SIGNING_KEY: join(keys, "server.jwk") }),
  ]);
  try {
    const expected = await ask(alone.url);
    assert.deepEqual(await ask(door.url), expected);
    assert.equal(await metric(door.url, 'paligemma_routes_total{route="pool"}'), 1);
    assert.equal(await metric(worker.url, 'paligemma_worker_answers_total{result="stop"}'), 1);
    assert.equal((await fetch(`${worker.url}/work`, { method: "POST", body: "nothing" })).status, 400);

    // What was begun is ended, though no more is taken.
    const long = { maxTokens: 800, ignoreEos: true, temperature: 1, seed: 9 };
    const answer = ask(door.url, long);
    while ((await (await fetch(`${worker.url}/health`)).json()).active === 0);
    worker.kill("SIGTERM");
    assert.deepEqual(await answer, await ask(alone.url, long));
    assert.equal((await worker.status).code, 0);
    assert.equal(await metric(door.url, 'paligemma_routes_total{route="pool"}'), 2);

    assert.deepEqual(await ask(door.url), expected);
    assert.equal(await metric(door.url, 'paligemma_routes_total{route="local"}'), 1);
  } finally {
    for (const it of [alone, door, worker]) it.kill("SIGKILL");
    await Promise.all([alone.status, door.status, worker.status]);
  }
});
