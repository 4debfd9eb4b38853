import assert from "node:assert/strict";
import { collect, createPipeline, createWasmBackend } from "../../lib/mod.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { tensorTable } from "../../lib/weights/table.ts";
import { publishedConfig, SHAPES } from "../../models/published.ts";
import { synth } from "../../models/synth.ts";
import { directoryFiles } from "../../functions/model.ts";
import { relaxed, simd } from "../../wasm/kernels.js";

/** Parameter counts of the published checkpoints: keras-hub's presets (257,152 rows of embedding), 64 rows added. */
const PARAMETERS: Record<string, number> = {
  "paligemma-3b-224": 2_923_335_408 + 64 * 2048,
  "paligemma-3b-448": 2_924_220_144 + 64 * 2048,
  "paligemma-3b-896": 2_927_759_088 + 64 * 2048,
  "paligemma2-3b-224": 3_032_094_960 + 64 * 2304,
  "paligemma2-10b-448": 9_663_294_192 + 64 * 3584,
};

Deno.test("the published shapes have the published number of parameters", () => {
  for (const [shape, wanted] of Object.entries(PARAMETERS)) {
    const { config, preprocessor } = publishedConfig(shape);
    const found = tensorTable(parseConfig(config, preprocessor))
      .reduce((sum, { shape }) => sum + shape.reduce((product, it) => product * it, 1), 0);
    assert.equal(found, wanted, shape);
  }
  assert.equal(SHAPES.length, 9);
  assert.throws(() => publishedConfig("paligemma-7b-224"), /expected paligemma-3b-224/);
});

Deno.test("a random checkpoint of true width answers, with every logit finite", async () => {
  const out = await Deno.makeTempDir();
  try {
    const sizeBytes = await synth("paligemma2-3b-224", out, {
      decoder: "int4",
      layers: { vision: 1, decoder: 1 },
    });
    assert.equal(Deno.statSync(`${out}/model.safetensors`).size, sizeBytes);
    const backend = createWasmBackend({ simd, relaxed });
    const pipeline = await createPipeline({ backend, files: directoryFiles(out), name: "random" });
    const images = [Deno.readFileSync(new URL("../fixtures/scene.png", import.meta.url))];
    const answer = await collect(
      pipeline.answer({ images, prompt: "hi", maxTokens: 2, ignoreEos: true, topLogits: 3 }),
    );
    assert.equal(answer.imageTokens, 256);
    assert.equal(answer.tokenIds.length, 2);
    for (const { logit } of answer.logits!.flat()) {
      assert.ok(Number.isFinite(logit) && Math.abs(logit) < 100, `${logit}`);
    }
  } finally {
    await Deno.remove(out, { recursive: true });
  }
});
