/** Whole requests on a GPU, the picture encoded there too: the same greedy tokens as WASM's, logits within a tolerance. */

import assert from "node:assert/strict";
import { directoryFiles, loadModel, TINY } from "../functions/model.ts";
import { collect, createPipeline, type ModelFiles, type Question, type WeightFormat } from "../lib/mod.ts";
import { createWasmBackend } from "../lib/backend/wasm.ts";
import { examples } from "../models/demo.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { greedy } from "./backend/browser_page.ts";
import { hardware, nameOf, openSoftware } from "./backend/gpus.ts";
import { directoryBytes } from "./memory_files.ts";

const CHECKPOINTS = new URL("./golden/checkpoints/", import.meta.url).pathname;
const SCENE = Deno.readFileSync(new URL("./fixtures/scene.png", import.meta.url));

const machines = (["lavapipe", "swiftshader"] as const).filter((it) => it === "lavapipe" || !hardware);
for (const driver of machines) {
  const [name, backend] = [nameOf(driver), await openSoftware({ driver })];
  const test = (what: string, fn: (gpu: NonNullable<typeof backend>) => Promise<void>) =>
    Deno.test({
      name: `webgpu on ${name}: ${what}` + (backend ? "" : " (skipped: no such driver)"),
      ignore: !backend,
      fn: () => fn(backend!),
    });

  for (const family of ["pg1", "pg2"]) {
    for (const weights of ["f32", "int8", "int4"] as const) {
      test(`the tokens of ${family} in ${weights} are WASM's`, async (gpu) => {
        const files = directoryFiles(CHECKPOINTS + family);
        const question = { images: [SCENE], prompt: "detect a ; b", maxTokens: 12, ignoreEos: true };
        await same(gpu, files, { ...question, topLogits: 20 }, weights);
      });
    }
  }

  test("the bundled model answers as on WASM", async (gpu) => {
    const { directory, list } = await examples();
    const reference = await loadModel(TINY);
    const pipeline = await createPipeline({ backend: gpu, files: directoryFiles(TINY), name: "tiny" });
    for (const { image, prompt } of driver === "lavapipe" ? list : list.filter((it) => it.prompt === "ocr")) {
      const images = [Deno.readFileSync(`${directory}/${image}`)];
      const [expected, found] = [
        await collect(reference.answer({ images, prompt })),
        await collect(pipeline.answer({ images, prompt })),
      ];
      assert.deepEqual(found.tokenIds, expected.tokenIds, prompt);
      assert.equal(found.text, expected.text);
    }
  });
}

const lavapipe = await openSoftware({ driver: "lavapipe" });
lavapipe?.close();
for (const family of ["pg1", "pg2"]) {
  Deno.test({
    name: `webgpu on ${nameOf("lavapipe")} by Deno's own WebGPU: the tokens of ${family} are WASM's` +
      (lavapipe ? "" : " (skipped: no such driver)"),
    ignore: !lavapipe,
    async fn() {
      const formats = ["f32"] as const;
      const script = new URL("./backend/deno_gpu.ts", import.meta.url).pathname;
      const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--quiet", "--no-lock", script, CHECKPOINTS + family, ...formats],
      }).output();
      const printed = new TextDecoder().decode(stdout);
      assert.ok(printed, new TextDecoder().decode(stderr));
      const wasm = createWasmBackend({ simd, relaxed });
      const expected = [];
      for (const it of formats) expected.push(await greedy(wasm, directoryBytes(CHECKPOINTS + family), it));
      assert.deepEqual(JSON.parse(printed), { software: !hardware, found: expected });
    },
  });
}

/**
 * The same on both backends: greedy tokens, and the best logits within 1e-4 in f32. Where activations are rounded, one
 * that lies between two integers may go either way, which comes to 0.07 in these; it does between WASM and plain loops.
 */
async function same(
  gpu: Parameters<typeof createPipeline>[0]["backend"],
  files: ModelFiles,
  question: Question,
  weights: WeightFormat,
): Promise<void> {
  const answers = [];
  for (const backend of [createWasmBackend({ simd, relaxed }), gpu]) {
    const pipeline = await createPipeline({
      backend,
      files,
      name: "checkpoint",
      weights,
      slidingWindow: "hf",
    });
    answers.push(await collect(pipeline.answer(question)));
  }
  const [expected, found] = answers;
  const limit = weights === "f32" ? 1e-4 : 0.1;
  // Where the likeliest two are as near, either may win, and what follows is another answer.
  const ties = expected.logits!.map(([first, second]) =>
    weights !== "f32" && first.logit - second.logit < limit
  );
  const apart = found.tokenIds.findIndex((it, i) => it !== expected.tokenIds[i]);
  assert.ok(apart < 0 || ties[apart], `token ${apart}: ${found.tokenIds} for ${expected.tokenIds}`);
  found.logits!.slice(0, apart < 0 ? undefined : apart).forEach((step, i) => {
    const wanted = new Map(expected.logits![i].map((it) => [it.id, it.logit]));
    for (const { id, logit } of step.slice(0, 5)) {
      const difference = Math.abs(logit - wanted.get(id)!);
      assert.ok(difference <= limit, `step ${i}, id ${id}: ${logit} for ${wanted.get(id)}`);
    }
  });
}
