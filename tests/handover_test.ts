/** The rest of an answer goes elsewhere when it would be late where it is: with a worker that is a process of its own. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { directoryFiles, TINY } from "../functions/model.ts";
import { writePoolKeys } from "../functions/pool_keys.ts";
import { createWasmBackend } from "../lib/backend/wasm.ts";
import { loadDecoder } from "../lib/decode/gemma.ts";
import { createMetrics } from "../lib/metrics.ts";
import { collect, createPipeline, type LocalPipeline, type Pipeline } from "../lib/pipeline.ts";
import { HttpPool } from "../lib/pool/http.ts";
import { createSign } from "../lib/pool/signature.ts";
import type { CostModel } from "../lib/schedule/cost_model.ts";
import { type Ask, type Plan, Planner } from "../lib/schedule/planner.ts";
import type { Budget, RouteDecision } from "../lib/types.ts";
import { loadVision } from "../lib/vision/siglip.ts";
import { readConfig } from "../lib/weights/config.ts";
import { openWeights } from "../lib/weights/load.ts";
import { revisionOf } from "../lib/weights/revision.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { Link } from "./bench/planner/link.ts";
import { slower } from "./bench/planner/slower.ts";
import { startWorker } from "./doors/pool_worker.ts";

const TOKENS = 60;
/** A token where answers are slow; and what an answer may take: half of what it would there, many times what it takes elsewhere. */
const [SLOW_MS, BUDGET_MS] = [500, 15_000];

/** Begins with the route that a test wants. */
class Begun extends Planner {
  constructor(model: CostModel, private readonly route: string) {
    const line = (baseMs: number) => ({ baseMs, perUnitMs: 0 });
    model.calibrate("edge", { vision: line(20), prefill: line(15), step: line(1) });
    model.calibrate("pool", { vision: line(20), prefill: line(15), step: line(1), link: line(10) });
    super(model);
  }

  override plan(ask: Ask, now: number): Plan {
    const { hedge: _, ...plan } = super.plan(ask, now);
    const chosen = plan.candidates.find(({ option }) => option.name === this.route);
    return { ...plan, chosen, reason: "likeliest" };
  }
}

const picture = await Deno.readFile(join(TINY, "pictures/five_shapes.png"));

Deno.test("an answer changes its place for speed, both ways, once, and has the tokens of one that did not", async (t) => {
  const keys = await Deno.makeTempDir();
  await writePoolKeys(keys, true);
  const worker = await startWorker({ POOL_TRUSTED_KEYS: join(keys, "trusted.jwks"), MODEL: TINY });
  const link = new Link(Number(new URL(worker.url).port));
  const sign = await createSign(JSON.parse(await Deno.readTextFile(join(keys, "server.jwk"))));
  const backend = createWasmBackend({ simd, relaxed });
  const files = directoryFiles(TINY);
  const weights = await openWeights(files, await readConfig(files));
  /** How much longer a token takes here. */
  let waitMs = 0;
  const decoder = slower(await loadDecoder(backend, weights), (name) => name === "steps" ? waitMs : 0);
  const stages = { vision: await loadVision(backend, weights), decoder, revision: await revisionOf(files) };
  const metrics = createMetrics();
  const open = (route: string) =>
    createPipeline({
      backend,
      files,
      stages,
      name: "tiny",
      metrics,
      pool: (model) => new HttpPool(link.url, { model, sign }),
      planner: (model) => new Begun(model, route),
      featureCacheBytes: 0,
      prefixCacheBytes: 0,
    });
  /** An answer, its decisions, and how many events stood before each. */
  const ask = async (pipeline: Pipeline, budget?: Budget) => {
    const decisions: (RouteDecision & { at: number })[] = [];
    let at = 0;
    const answer = await collect((async function* () {
      const asked = { images: [picture], prompt: "caption en", maxTokens: TOKENS, ignoreEos: true };
      for await (const event of pipeline.answer({ ...asked, budget, arrivedAt: Date.now() })) {
        if (event.type === "route") decisions.push({ ...event, at });
        at++;
        yield event;
      }
    })());
    return { answer, decisions };
  };
  try {
    const [here, there] = [await open("local"), await open("pixels")];
    const [{ tokenIds }, also] = [(await ask(here)).answer, (await ask(there)).answer];
    assert.deepEqual([tokenIds.length, also.tokenIds], [TOKENS, tokenIds]);

    /** Holds an answer to being handed over. */
    const handedOver = async (pipeline: LocalPipeline, from: string, to: string) => {
      const { answer, decisions: [first, second, ...more] } = await ask(pipeline, { totalMs: BUDGET_MS });
      assert.deepEqual(answer.tokenIds, tokenIds);
      assert.deepEqual([first.chosen, first.at, first.handover, more.length], [from, 0, undefined, 0]);
      const { handover } = second;
      const { afterTokens, afterMs, stayingMs, totalP95Ms } = handover!;
      assert.deepEqual([handover!.from, handover!.to, second.at], [from, to, afterTokens + 1]);
      assert.ok(afterMs + stayingMs > BUDGET_MS && afterMs + totalP95Ms <= BUDGET_MS, JSON.stringify(second));
      const { actual, handover: told } = answer.route!;
      assert.deepEqual([actual!.route, actual!.met, told], [to, true, handover]);
      assert.equal(metrics.detours.value(from === "local" ? "local" : "pool", "slow"), 1);
      assert.equal(pipeline.planner().ledger.handovers, 1);
    };

    await t.step("from here to the pool", async () => {
      waitMs = SLOW_MS;
      await handedOver(here, "local", "pixels");
      assert.ok(here.planner().factors["edge/step"] > 5, "and the next question knows");
      waitMs = 0;
    });

    await t.step("from the pool to here", async () => {
      link.shape = { rttMs: 2, mbps: 1000, downMbps: 0.5 / SLOW_MS }; // some 60 bytes a token
      await handedOver(there, "pixels", "local");
      link.shape = { rttMs: 2, mbps: 1000 };
    });

    await t.step("not where it is in time, and not where there is no time", async () => {
      for (const budget of [{ totalMs: 60_000 }, { ttftMs: 5000 }, undefined]) {
        const { answer, decisions } = await ask(here, budget);
        assert.deepEqual([answer.tokenIds, decisions.length], [tokenIds, 1]);
      }
    });
  } finally {
    link.close();
    worker.kill("SIGKILL");
    await worker.status;
    await Deno.remove(keys, { recursive: true });
  }
});
