/** The computing half on its own: an answer that goes on somewhere else is the one that was never interrupted. */

import assert from "node:assert/strict";
import { createReferenceBackend } from "../lib/backend/reference.ts";
import { createWasmBackend } from "../lib/backend/wasm.ts";
import { type Engine, openEngine } from "../lib/engine.ts";
import type { PoolEvent, TokenEvent, Work } from "../lib/pool/pool.ts";
import { prepare } from "../lib/preprocess/preprocess.ts";
import type { WeightFormat } from "../lib/types.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "./memory_files.ts";

const CHECKPOINTS = new URL("./golden/checkpoints/", import.meta.url).pathname;
const PICTURE = Deno.readFileSync(new URL("./fixtures/scene.png", import.meta.url));
const BACKENDS = { reference: createReferenceBackend, wasm: () => createWasmBackend({ simd, relaxed }) };

async function open(
  family: string,
  backend: keyof typeof BACKENDS = "wasm",
  weights: WeightFormat = "as-stored",
): Promise<Engine> {
  const files = memoryFiles(directoryBytes(`${CHECKPOINTS}${family}`), family);
  return await openEngine({ backend: BACKENDS[backend](), files, weights });
}

async function workFor(engine: Engine, more: Partial<Work> = {}): Promise<Work> {
  const size = engine.config.vision.imageSize;
  const { samples } = await prepare(PICTURE, { size, method: "hf-bicubic", maxPixels: 1e7 });
  return {
    revision: engine.revision,
    images: { stage: "pixels", dtype: "u8", shape: [1, size, size, 3], blocks: () => [samples] },
    ids: [2, 50, 60, 108],
    sampling: { temperature: 0, topK: 0, topP: 1, seed: 0 },
    maxTokens: 9,
    ignoreEos: true,
    topLogits: 2,
    forced: [],
    given: [],
    ...more,
  };
}

const run = (engine: Engine, work: Work): Promise<PoolEvent[]> => Array.fromAsync(engine.submit(work));
/** All numbers of a token but its id, and those of its candidates. */
const numbers = (it: TokenEvent) => [
  it.logprob,
  it.nearLogprob,
  ...it.top!.flatMap(({ logit, logprob }) => [logit, logprob]),
];
const isToken = (it: PoolEvent): it is TokenEvent => it.type === "token";

const cases: [string, Partial<Work>][] = [
  ["greedy", {}],
  ["drawn at temperature 2", { sampling: { temperature: 2, topK: 30, topP: 0.9, seed: 7 } }],
  ["that begins with forced tokens", { forced: [300, 301, 302] }],
  ["drawn after forced tokens", { forced: [300], sampling: { temperature: 1, topK: 0, topP: 1, seed: 3 } }],
];
for (const family of ["pg1", "pg2"]) {
  // Tokens that came before go through the model together. Integers add up to the same then, f32 in another order.
  const ways = [["reference", "as-stored", 0], ["wasm", "int8", 0], ["wasm", "as-stored", 1e-4]] as const;
  for (const [backend, weights, tolerance] of ways) {
    const same = tolerance ? `its numbers within ${tolerance}` : "bit for bit";
    Deno.test(`${backend}, ${family}, ${weights}: an answer goes on from any of its tokens, ${same}`, async () => {
      const engine = await open(family, backend, weights);
      for (const [name, more] of cases) {
        const work = await workFor(engine, more);
        const whole = await run(engine, work);
        const tokens = whole.filter(isToken);
        assert.equal(tokens.length, 9 + work.forced.length);
        for (let cut = 0; cut <= tokens.length; cut += 3) {
          const rest = await run(engine, { ...work, given: tokens.slice(0, cut).map((it) => it.id) });
          const [found, wanted] = [rest.filter(isToken), tokens.slice(cut)];
          if (!tolerance) assert.deepEqual(found, wanted, `${name}, from ${cut}`);
          assert.deepEqual(found.map((it) => it.id), wanted.map((it) => it.id), `${name}, from ${cut}`);
          found.forEach((it, i) =>
            numbers(it).forEach((x, j) => assert.ok(Math.abs(x - numbers(wanted[i])[j]) <= tolerance))
          );
          const usage = rest.find((it) => it.type === "usage")!;
          assert.equal(usage.completionTokens, tokens.length);
          assert.deepEqual(rest.at(-1), whole.at(-1));
        }
      }
    });
  }
}

Deno.test("what was given in full is ended, not computed", async () => {
  const engine = await open("pg1");
  const work = await workFor(engine, { maxTokens: 2, given: [300, 301] });
  const [usage, done, ...more] = await run(engine, work);
  assert.deepEqual([usage.type, done], ["usage", { type: "done", finishReason: "length", text: "" }]);
  assert.deepEqual(more, []);
});
