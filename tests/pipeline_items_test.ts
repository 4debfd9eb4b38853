/** What questions come to beyond text: grammars, forced starts, pixels, masks, likelihoods, pictures asked about twice. */

import assert from "node:assert/strict";
import { createReferenceBackend } from "../lib/backend/reference.ts";
import { createWasmBackend } from "../lib/backend/wasm.ts";
import { pixelsOf } from "../lib/mod.ts";
import { collect, createPipeline } from "../lib/pipeline.ts";
import { createMemoryStore } from "../lib/store/memory.ts";
import type { Question } from "../lib/types.ts";
import { encodePng } from "../lib/vision/mask_forms.ts";
import { MASK_DECODER } from "../lib/vision/mask_decoder.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "./memory_files.ts";
import { until } from "./until.ts";

const ROOT = new URL("./", import.meta.url).pathname;
const PICTURE = Deno.readFileSync(`${ROOT}fixtures/scene.png`);
const MASKS = { [MASK_DECODER]: Deno.readFileSync(`${ROOT}golden/tiny/vq_random_f16.safetensors`) };
const BOX = "<loc0256><loc0000><loc0768><loc1023>";
const CODES = Array.from({ length: 16 }, (_, i) => `<seg${String(i * 8).padStart(3, "0")}>`).join("");

/** A picture of one colour, 400 wide and 200 high. */
const wide = await encodePng(new Uint8Array(400 * 200 * 3).fill(90), 400, 200);

function load(family: string, more: Record<string, Uint8Array> = {}, parts = {}) {
  return createPipeline({
    backend: createWasmBackend({ simd, relaxed }),
    files: memoryFiles({ ...directoryBytes(`${ROOT}golden/checkpoints/${family}`), ...more }, family),
    name: family,
    ...parts,
  });
}

Deno.test("constrained answers of a random model parse, greedy and sampled; free ones are no boxes", async () => {
  for (const family of ["pg1", "pg2"]) {
    const pipeline = await load(family);
    for (const seed of [0, 1, 2, 3, 4]) {
      const question: Question = {
        images: [PICTURE],
        prompt: seed % 2 ? "detect cat ; dog" : "segment cat",
        constrained: true,
        maxTokens: 90,
        sampling: { temperature: seed ? 1.5 : 0, seed },
      };
      const { items, plainText = "", brokenItems = 0, finishReason, tokenIds } = await collect(
        pipeline.answer(question),
      );
      const whole = items.filter((it) => !it.flags?.includes("cut-off"));
      assert.ok(whole.length > 0 || tokenIds.length === 0, `seed ${seed}`);
      for (const { label, flags, box, boxPixels } of whole) {
        assert.equal(flags, undefined);
        assert.ok(["cat", "dog", ""].includes(label));
        assert.ok(box.yMax > box.yMin && box.xMax > box.xMin && boxPixels);
      }
      assert.equal(plainText, "");
      assert.ok(brokenItems === 0 || finishReason === "length");
    }
    const free = await collect(pipeline.answer({ images: [PICTURE], prompt: "detect cat", maxTokens: 40 }));
    assert.equal(free.items.length, 0);
  }
});

Deno.test("an answer starts as it was told to, and goes on as if the model had said so", async () => {
  const pipeline = await load("pg1");
  const told = await collect(
    pipeline.answer({
      images: [PICTURE],
      prompt: "caption en",
      ignoreEos: true,
      maxTokens: 3,
      answerStart: "red",
    }),
  );
  assert.ok(told.text.startsWith("red"), told.text);
  // What the model says itself, forced, changes nothing.
  const ask = (more: Partial<Question>) =>
    collect(pipeline.answer({
      images: [PICTURE],
      prompt: "detect cat",
      tokens: "allow",
      constrained: true,
      topLogits: 2,
      ...more,
    }));
  const free = await ask({ maxTokens: 12 });
  const start = /^(<loc\d{4}>){3}/.exec(free.text)![0];
  const forced = await ask({ maxTokens: 9, answerStart: start });
  assert.deepEqual([forced.tokenIds, forced.logits], [free.tokenIds, free.logits]);
});

Deno.test("boxes come in pixels of the picture as it was, masks on it, in the form asked for", async () => {
  const pipeline = await load("pg1", MASKS);
  const ask = (more: Partial<Question>) =>
    collect(pipeline.answer({
      images: [wide],
      prompt: "segment cat",
      answerStart: `${BOX}${CODES} cat ; `,
      tokens: "allow",
      maxTokens: 1,
      ignoreEos: true,
      ...more,
    }));
  const { items: [item] } = await ask({});
  assert.deepEqual(item.boxPixels, { yMin: 50, xMin: 0, yMax: 150, xMax: 400 });
  assert.equal(item.label, "cat");
  assert.equal(item.maskCodes?.length, 16);
  assert.ok(item.mask && "counts" in item.mask);
  const pixels = pixelsOf(item.mask);
  assert.deepEqual(item.mask.size, [200, 400]);
  const inside = pixels.reduce((a, b) => a + b, 0);
  assert.ok(inside > 0, "the random decoder draws something");
  pixels.forEach((it, at) => assert.ok(!it || at >= 50 * 400 && at < 150 * 400, "outside the box"));

  const polygon = (await ask({ masks: "polygon" })).items[0].mask!;
  assert.ok("polygons" in polygon);
  const area =
    polygon.polygons.flatMap((ring) =>
      ring.map((it, i) =>
        i % 2 ? 0 : it * ring[(i + 3) % ring.length] - ring[(i + 2) % ring.length] * ring[i + 1]
      )
    ).reduce((a, b) => a + b, 0) / 2;
  assert.equal(area, inside);
  assert.ok("png" in (await ask({ masks: "png" })).items[0].mask!);

  const training = (await ask({ locScale: 1023 })).items[0];
  assert.equal(training.box.xMax, 1);
  const two = (await ask({ images: [wide, wide] })).items[0];
  assert.deepEqual([two.boxPixels, two.mask], [undefined, undefined], "which picture, nobody knows");
  const { items: [bare] } = await collect((await load("pg1")).answer({
    images: [wide],
    prompt: "segment cat",
    answerStart: `${BOX}${CODES} cat ; `,
    tokens: "allow",
    maxTokens: 1,
    ignoreEos: true,
  }));
  assert.deepEqual([bare.mask, bare.maskCodes], [undefined, item.maskCodes], "no decoder: the codes stay");
});

Deno.test("of duplicates the surest is kept where that is asked for, and then at the end", async () => {
  const pipeline = await load("pg1");
  const ask = (nms?: number) =>
    collect(pipeline.answer({
      images: [wide],
      prompt: "detect cat",
      answerStart: `${BOX} cat ; ${BOX} cat ; ${BOX} dog ; `,
      tokens: "allow",
      maxTokens: 1,
      ignoreEos: true,
      nms,
    }));
  assert.deepEqual((await ask()).items.map((it) => it.label), ["cat", "cat", "dog"]);
  const { items } = await ask(0.5);
  assert.deepEqual(items.map((it) => it.label), ["cat", "dog"]);
});

Deno.test("what was computed of a question before is not computed again, and the answers are those without a cache", async () => {
  for (const family of ["pg1", "pg2"]) {
    const pipeline = await load(family);
    const without = await load(family, {}, { featureCacheBytes: 0, prefixCacheBytes: 0 });
    const ask = async (
      of: typeof pipeline,
      prompt: string,
      image: Uint8Array,
      more: Partial<Question> = {},
    ) => {
      const question = { images: [image], prompt, maxTokens: 5, ignoreEos: true, topLogits: 3, ...more };
      const { tokenIds, logits, cached, timings } = await collect(of.answer(question));
      return { answer: { tokenIds, logits }, cached, timings };
    };
    const same = async (prompt: string, image: Uint8Array, more?: Partial<Question>) => {
      const found = await ask(pipeline, prompt, image, more);
      const never = await ask(without, prompt, image, more);
      assert.deepEqual(found.answer, never.answer, `${family} ${prompt}`);
      assert.equal(never.cached, undefined);
      return found;
    };
    assert.equal((await same("ocr", PICTURE)).cached, undefined);
    // Another question: the picture is known, the prefix is not.
    assert.deepEqual((await same("caption en", PICTURE)).cached, { images: 1, prefix: false });
    assert.deepEqual((await same("ocr ", PICTURE)).cached, { images: 1, prefix: false });
    assert.equal((await same("ocr", wide)).cached, undefined);
    // The same one, and the same with another way to choose or to end.
    const sampling = { temperature: 1, seed: 3 };
    for (const more of [{}, { maxTokens: 9 }, { sampling }, { answerStart: "a" }]) {
      const again = await same("ocr", PICTURE, more);
      assert.deepEqual(again.cached, { images: 1, prefix: true });
    }
    const both = { images: [PICTURE, wide] };
    assert.deepEqual((await same("ocr", PICTURE, both)).cached, { images: 2, prefix: false });
    assert.deepEqual((await same("ocr", PICTURE, { images: [wide, PICTURE] })).cached, {
      images: 2,
      prefix: false,
    });
    const labels = ["cat", "dog"];
    const classify = (of: typeof pipeline) => of.classify({ images: [PICTURE], prompt: "ocr", labels });
    const scored = await classify(pipeline);
    assert.deepEqual(scored.cached, { images: 1, prefix: true });
    assert.deepEqual(scored.labels, (await classify(without)).labels);
  }
});

Deno.test("another process with the same weights finds the image tokens where the first one left them", async () => {
  const { blobs } = createMemoryStore();
  const ask = async () => {
    const pipeline = await load("pg1", {}, { blobs });
    return await collect(
      pipeline.answer({ images: [PICTURE], prompt: "ocr", maxTokens: 3, ignoreEos: true }),
    );
  };
  const first = await ask();
  await until(async () => (await Array.fromAsync(blobs.list("features/"))).length > 0);
  const second = await ask();
  assert.deepEqual([first.cached, second.cached], [undefined, { images: 1, prefix: false }]);
  assert.deepEqual(second.tokenIds, first.tokenIds);
});

Deno.test("labels by likelihood: probabilities sum to 1, the order is theirs, the wasm backend agrees", async () => {
  const question = {
    images: [PICTURE],
    prompt: "answer en what is this?",
    labels: ["cat", "catfish", "red car", "a", "猫"],
  };
  const pipeline = await load("pg2");
  const reference = await load("pg2", {}, { backend: createReferenceBackend() });
  const [found, exact] = [await pipeline.classify(question), await reference.classify(question)];
  assert.ok(Math.abs(found.labels.reduce((sum, it) => sum + it.probability, 0) - 1) < 1e-9);
  found.labels.forEach((it, i) => assert.ok(i === 0 || it.logprob <= found.labels[i - 1].logprob));
  for (const { label, logprob } of exact.labels) {
    const alone = (await pipeline.classify({ ...question, labels: [label] })).labels[0];
    const together = found.labels.find((it) => it.label === label)!;
    assert.equal(alone.probability, 1);
    assert.ok(
      Math.abs(alone.logprob - together.logprob) < 1e-4,
      `${label}: ${alone.logprob} ${together.logprob}`,
    );
    assert.ok(Math.abs(logprob - together.logprob) < 1e-3, `${label}: ${logprob} ${together.logprob}`);
  }
  // A label cannot be likelier than what it begins with.
  const logprobOf = (label: string) => found.labels.find((it) => it.label === label)!.logprob;
  const begun: number[] = [];
  for await (const event of pipeline.answer({ ...question, answerStart: "red car", maxTokens: 1 })) {
    if (event.type === "token") begun.push(event.logprob);
  }
  assert.ok(begun.length > 1 && logprobOf("red car") < begun.slice(0, -1).reduce((a, b) => a + b, 0));
  await assert.rejects(pipeline.classify(question, AbortSignal.abort()), { code: "cancelled" });
});

const wrong: [string, Partial<Question>, RegExp][] = [
  ["a constraint without a grammar", { constrained: true }, /prompt of detect or segment, found "ocr"/],
  [
    "a start outside the grammar",
    { prompt: "detect cat", constrained: true, answerStart: "cat" },
    /answerStart to follow the grammar/,
  ],
  ["a constraint that may not end", { prompt: "detect a", constrained: true, ignoreEos: true }, /ignoreEos/],
  ["an overlap of 1", { nms: 1 }, /nms between 0 and 1, found 1/],
  ["a scale of 1000", { locScale: 1000 as 1024 }, /locScale 1023 or 1024, found 1000/],
];
for (const [name, question, message] of wrong) {
  Deno.test(`refused: ${name}`, async () => {
    const pipeline = await load("pg1");
    const ask = collect(pipeline.answer({ images: [PICTURE], prompt: "ocr", ...question }));
    await assert.rejects(ask, { code: "parameter_invalid", message });
  });
}

Deno.test("labels: none, too many, or the same twice are refused", async () => {
  const pipeline = await load("pg1");
  for (const labels of [[], Array.from({ length: 1001 }, (_, i) => `${i}`), ["a", "b", "a"]]) {
    const ask = pipeline.classify({ images: [PICTURE], prompt: "answer en what?", labels });
    await assert.rejects(ask, { code: "parameter_invalid" });
  }
});
