/** The computing half on its own: an answer that goes on somewhere else is the one that was never interrupted. */

import assert from "node:assert/strict";
import { createReferenceBackend } from "../lib/backend/reference.ts";
import { createWasmBackend } from "../lib/backend/wasm.ts";
import { type Engine, openEngine } from "../lib/engine.ts";
import type { PoolEvent, TokenEvent, Work } from "../lib/pool/pool.ts";
import { prepare } from "../lib/preprocess/preprocess.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "./memory_files.ts";

const CHECKPOINTS = new URL("./golden/checkpoints/", import.meta.url).pathname;
const PICTURE = Deno.readFileSync(new URL("./fixtures/scene.png", import.meta.url));
const BACKENDS = { reference: createReferenceBackend, wasm: () => createWasmBackend({ simd, relaxed }) };

async function open(family: string, backend: keyof typeof BACKENDS = "wasm"): Promise<Engine> {
  const files = memoryFiles(directoryBytes(`${CHECKPOINTS}${family}`), family);
  return await openEngine({ backend: BACKENDS[backend](), files });
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
const isToken = (it: PoolEvent): it is TokenEvent => it.type === "token";

const cases: [string, Partial<Work>][] = [
  ["greedy", {}],
  ["drawn at temperature 2", { sampling: { temperature: 2, topK: 30, topP: 0.9, seed: 7 } }],
  ["that begins with forced tokens", { forced: [300, 301, 302] }],
  ["drawn after forced tokens", { forced: [300], sampling: { temperature: 1, topK: 0, topP: 1, seed: 3 } }],
];
for (const family of ["pg1", "pg2"]) {
  for (const backend of ["reference", "wasm"] as const) {
    Deno.test(`${backend}, ${family}: an answer goes on from any of its tokens, bit for bit`, async () => {
      const engine = await open(family, backend);
      for (const [name, more] of cases) {
        const work = await workFor(engine, more);
        const whole = await run(engine, work);
        const tokens = whole.filter(isToken);
        assert.equal(tokens.length, 9 + work.forced.length);
        for (let cut = 0; cut <= tokens.length; cut += 3) {
          const rest = await run(engine, { ...work, given: tokens.slice(0, cut).map((it) => it.id) });
          assert.deepEqual(rest.filter(isToken), tokens.slice(cut), `${name}, from ${cut}`);
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
