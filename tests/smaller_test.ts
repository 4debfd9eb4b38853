/** A smaller variant answers where a budget allows a worse answer: real checkpoints, of fewer pixels and of fewer bits. */

import assert from "node:assert/strict";
import { basename, join } from "@std/path";
import { directoryFiles, loadModel } from "../functions/model.ts";
import { collect, type LocalPipeline } from "../lib/pipeline.ts";
import type { CostModel } from "../lib/schedule/cost_model.ts";
import { Planner } from "../lib/schedule/planner.ts";
import type { Budget, Question } from "../lib/types.ts";
import { convert } from "../models/convert.ts";
import { randomCheckpoint } from "../models/random_checkpoint.ts";
import { startDoor } from "./doors/door.ts";

const CHECKPOINT = new URL("./golden/checkpoints/pg1", import.meta.url).pathname;
const picture = Deno.readFileSync(new URL("./fixtures/scene.png", import.meta.url));
const made = await Deno.makeTempDir();
/** A quarter of the pixels and of the layers. */
const SMALL = join(made, "small-28");
/** The same model in int8 and int4. */
const CONVERTED = join(made, "int4");

await fewerPixels();
await convert(directoryFiles(CHECKPOINT), CONVERTED, { vision: "int8", decoder: "int4" });
addEventListener("unload", () => Deno.removeSync(made, { recursive: true }));

async function fewerPixels(): Promise<void> {
  const from = join(made, "shape");
  await Deno.mkdir(from);
  const config = JSON.parse(await Deno.readTextFile(join(CHECKPOINT, "config.json")));
  Object.assign(config.vision_config, { image_size: 28, num_image_tokens: 4 });
  config.text_config.num_image_tokens = 4;
  await Deno.writeTextFile(join(from, "config.json"), JSON.stringify(config));
  const processor = JSON.parse(await Deno.readTextFile(join(CHECKPOINT, "preprocessor_config.json")));
  Object.assign(processor, { size: { height: 28, width: 28 }, image_seq_length: 4 });
  await Deno.writeTextFile(join(from, "preprocessor_config.json"), JSON.stringify(processor));
  await Deno.copyFile(join(CHECKPOINT, "tokenizer.model"), join(from, "tokenizer.model"));
  await randomCheckpoint(from, SMALL, { wider: 1, layers: 1, seed: 1 });
}

const question = (budget?: Budget): Question => ({
  images: [picture],
  prompt: "caption en",
  maxTokens: 12,
  ignoreEos: true,
  ...budget && { budget, arrivedAt: Date.now() },
});

const ask = (pipeline: LocalPipeline, budget?: Budget) => collect(pipeline.answer(question(budget)));

/** The model is thought to take two seconds to its first token, the variant 20 ms. */
function thought(model: CostModel): Planner {
  const line = (baseMs: number) => ({ baseMs, perUnitMs: 0 });
  model.calibrate("edge", { vision: line(1000), prefill: line(1000), step: line(100) });
  model.calibrate("smaller", { vision: line(10), prefill: line(10), step: line(1) });
  return new Planner(model);
}

for (const [what, smaller] of [["of fewer pixels", SMALL], ["of fewer bits", CONVERTED]] as const) {
  Deno.test(`a variant ${what} answers what the model would answer late, where that is allowed, and says so`, async () => {
    const name = basename(smaller);
    const [expected, own] = [await ask(await loadModel(smaller)), await ask(await loadModel(CHECKPOINT))];
    assert.notDeepEqual(expected.tokenIds, own.tokenIds);
    const open = () => loadModel(CHECKPOINT, { smaller, planner: thought });
    // What it learns makes it quicker than it was thought.
    const degraded = await ask(await open(), { totalMs: 1500, quality: "degrade" });
    const { chosen, variant, actual } = degraded.route!;
    assert.deepEqual([chosen, variant, actual!.route], ["local-smaller", name, "local-smaller"]);
    assert.deepEqual([degraded.model, degraded.tokenIds], [name, expected.tokenIds]);
    assert.equal(degraded.imageTokens, expected.imageTokens);
    // The model itself where it has the time, or where nobody allowed another.
    const budgets: Budget[] = [{ totalMs: 60_000, quality: "degrade" }, { quality: "degrade" }, {}];
    for (const budget of [...budgets, { totalMs: 1500 }, { ttftMs: 3000 }, { totalMs: 60_000 }]) {
      const { route, model, tokenIds } = await ask(await open(), budget);
      assert.deepEqual([model, tokenIds, route!.chosen], [undefined, own.tokenIds, "local"]);
      const offered = route!.candidates.some((it) => it.route === "local-smaller");
      assert.equal(offered, budget.quality === "degrade" && budget.totalMs !== undefined);
    }
  });
}

Deno.test("it is timed at the start as the model is", async () => {
  const pipeline = await loadModel(CHECKPOINT, { smaller: SMALL });
  const guessed = structuredClone(pipeline.planner().calibration);
  await pipeline.calibrate();
  const { edge, smaller } = pipeline.planner().calibration;
  for (const [place, costs] of Object.entries({ edge, smaller })) {
    assert.notDeepEqual(costs.step, guessed[place].step, place);
  }
});

Deno.test("a variant of other words is refused", async () => {
  const pg2 = new URL("./golden/checkpoints/pg2", import.meta.url).pathname;
  await assert.rejects(loadModel(CHECKPOINT, { smaller: pg2 }), {
    code: "model_invalid",
    message:
      /^Cannot answer with pg2 in place of the model: expected the same tokenizer, found the token \d+ to be /,
  });
});

Deno.test("the server has its variant from MODEL_SMALLER; the answer and OpenAI's objects name it", async () => {
  const door = await startDoor({ MODEL: CHECKPOINT, MODEL_SMALLER: SMALL, BACKEND: "reference" });
  try {
    const image = picture.toBase64();
    const post = async (path: string, body: object) => {
      const response = await fetch(door.url + path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      assert.equal(response.status, 200, await response.clone().text());
      return await response.json();
    };
    const asked = { maxTokens: 8, ignoreEos: true };
    const exact = await post("/v1/generate", { image, prompt: "caption en", ...asked });
    assert.deepEqual([exact.model, exact.imageTokens, exact.route.variant], ["pg1", 16, undefined]);
    // A millisecond is too little for both; the variant is the likelier.
    const budget = { ttftMs: 1, quality: "degrade" };
    const [one, two] = ["five_shapes", "hearts"].map((name) =>
      Deno.readFileSync(new URL(`../models/tiny/pictures/${name}.png`, import.meta.url)).toBase64()
    );
    const degraded = await post("/v1/generate", { image: one, prompt: "ocr", ...asked, budget });
    const { chosen, variant } = degraded.route;
    assert.deepEqual([degraded.model, degraded.imageTokens, chosen, variant], [
      "small-28",
      4,
      "local-smaller",
      "small-28",
    ]);
    const content = [
      { type: "image_url", image_url: { url: `data:image/png;base64,${two}` } },
      { type: "text", text: "ocr" },
    ];
    const chat = { model: "pg1", max_tokens: 4, messages: [{ role: "user", content }], budget };
    const completion = await post("/v1/chat/completions", chat);
    assert.deepEqual([completion.model, completion.route.variant], ["small-28", "small-28"]);
  } finally {
    door.kill("SIGTERM");
    await door.status;
  }
});
