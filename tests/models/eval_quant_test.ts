import assert from "node:assert/strict";
import { createWasmBackend } from "../../lib/mod.ts";
import { preprocess } from "../../lib/preprocess/preprocess.ts";
import { readConfig } from "../../lib/weights/config.ts";
import { directoryFiles, TINY } from "../../functions/model.ts";
import { calibrate, calibrationSet } from "../../models/calibrate.ts";
import { convert, type Format } from "../../models/convert.ts";
import { ErrorSum, evalQuant, quantSchemes, quantTable, trace } from "../../models/eval_quant.ts";
import { randomCheckpoint } from "../../models/random_checkpoint.ts";
import { openStages, readShown } from "../../models/stages.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const PG1 = memoryFiles(directoryBytes(new URL("../golden/checkpoints/pg1", import.meta.url).pathname));
const PICTURES = `${TINY}/pictures`;
const backend = () => createWasmBackend({ simd, relaxed });

Deno.test("divergence, agreement and error of logits, by hand", () => {
  const sum = new ErrorSum();
  // Both softmax to (¼, ¾) and (½, ½): ¼ ln ½ + ¾ ln 3/2 = 0.1308.
  sum.add(Float32Array.of(2, 2), Float32Array.of(0, Math.log(3)));
  sum.add(Float32Array.of(5, 6), Float32Array.of(5, 6));
  const { kl, top1, meanError, maxError } = sum.mean();
  const expected = 0.25 * Math.log(0.5) + 0.75 * Math.log(1.5);
  assert.ok(Math.abs(kl - expected / 2) < 1e-7, `${kl}`);
  assert.equal(top1, 0.5);
  assert.equal(maxError, 2);
  assert.ok(Math.abs(meanError - (2 + 2 - Math.log(3)) / 4) < 1e-7);
  assert.throws(() => sum.add(Float32Array.of(1), Float32Array.of(1, 2)), /expected 2, found 1/);
});

Deno.test("f32 agrees with itself, fewer bits cost more and take less, in every scheme by name", async () => {
  const questions = (await calibrationSet(PICTURES)).slice(0, 2);
  const schemes = quantSchemes();
  const results = await evalQuant(PG1, { backend, questions, maxTokens: 4, schemes });
  const [f32, int8, ...int4] = results;
  assert.deepEqual(results.map((it) => it.scheme), ["f32", ...schemes.map((it) => it.name)]);
  assert.deepEqual(f32.whole, { kl: 0, top1: 1, meanError: 0, maxError: 0 });
  for (const it of int4) {
    assert.ok(int8.whole.kl > 0 && int8.whole.kl < it.whole.kl / 5, JSON.stringify(it));
    assert.ok(f32.sizeBytes > int8.sizeBytes && int8.sizeBytes > it.sizeBytes);
  }
  const lines = quantTable(results).trim().split("\n");
  assert.equal(lines.length, 2 + results.length);
  assert.match(lines[2], /^\| f32 \| 2\.4 \| 0\.00e\+0 \| 0\.00e\+0 \| 100\.00 /);
});

/** Image tokens [P·D] of a picture, weights as stored in a directory or in f32. */
async function imageTokens(directory: string, image: Uint8Array, format: "as-stored" | "f32") {
  const { backend: on, config, vision } = await openStages(backend(), directoryFiles(directory), format);
  const { imageSize: size } = config.vision;
  const pixels = await preprocess(image, {
    size,
    method: "hf-bicubic",
    maxPixels: 1e7,
    mean: config.imageMean,
    std: config.imageStd,
  });
  const out = on.tensor(vision.imageTokens, config.decoder.width);
  await vision.encode(out, pixels, () => Promise.resolve());
  return await on.read(out);
}

Deno.test("rounded by what three pictures show, SigLIP in int4 sees a fourth more nearly as in f32", async () => {
  const [unseen, ...seen] = await calibrationSet(PICTURES);
  const int4 = { vision: "int4", decoder: "int4" } as const;
  const calibration = await calibrate(backend(), directoryFiles(TINY), seen, int4);
  const { vision, decoder } = await readConfig(directoryFiles(TINY));
  // What q, k and v share, out, fc1 and fc2; the projector; what q, k and v share, o, what gate and up share, down.
  assert.equal(calibration.size, 4 * vision.layers + 1 + 4 * decoder.layers);
  const truth = await imageTokens(TINY, unseen.image, "f32");
  const errors: number[] = [];
  for (const options of [{}, { calibration }]) {
    const out = await Deno.makeTempDir();
    try {
      await convert(directoryFiles(TINY), out, { ...int4, ...options });
      const found = await imageTokens(out, unseen.image, "as-stored");
      errors.push(Math.sqrt(found.reduce((sum, it, i) => sum + (it - truth[i]) ** 2, 0)));
    } finally {
      await Deno.remove(out, { recursive: true });
    }
  }
  assert.ok(errors[1] < 0.9 * errors[0], `${errors}`);
});

Deno.test("only inputs of what is to be int4 are looked at", async () => {
  const shown = (await calibrationSet(PICTURES)).slice(0, 1);
  const names = async (
    decoder: Format,
  ) => [...(await calibrate(backend(), PG1, shown, { vision: "int8", decoder })).keys()];
  assert.deepEqual(await names("int8"), []);
  const found = await names("int4");
  assert.ok(found.length && found.every((it) => /^language_model\.model\.layers\./.test(it)), `${found}`);
});

Deno.test("a folder to calibrate on: its data set, or its pictures, or a clear refusal", async () => {
  const directory = await Deno.makeTempDir();
  try {
    await assert.rejects(calibrationSet(directory), {
      code: "parameter_invalid",
      message: /expected PNG, JPEG or WebP pictures, found none/,
    });
    for (const name of ["a.png", "b.png"]) Deno.copyFileSync(`${PICTURES}/park.png`, `${directory}/${name}`);
    assert.deepEqual((await calibrationSet(directory)).map((it) => it.prompt), ["caption en", "describe en"]);
    const rows = [1, 2, 3, 4].map((i) => JSON.stringify({ image: "a.png", prompt: `${i}` }));
    await Deno.writeTextFile(`${directory}/data.jsonl`, rows.join("\n") + "\n");
    assert.deepEqual((await calibrationSet(directory)).map((it) => it.prompt), ["1", "2", "3", "4"]);
    const two = await readShown(`${directory}/data.jsonl`, 2);
    assert.deepEqual(two.map((it) => it.prompt), ["1", "3"]);
    for (
      const [text, found] of [["", /found none/], ["{", /JSON/], [
        '{"image":"c.png"}',
        /No such file/,
      ]] as const
    ) {
      await Deno.writeTextFile(`${directory}/data.jsonl`, text);
      await assert.rejects(calibrationSet(directory), { code: "parameter_invalid", message: found });
    }
    await assert.rejects(readShown(`${directory}/none.jsonl`), { code: "parameter_invalid" });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("random weights: the same for the same seed, as wide as asked, and a model that runs", async () => {
  const out = await Deno.makeTempDir();
  const from = new URL("../golden/checkpoints/pg2", import.meta.url).pathname;
  try {
    const made = async (name: string, seed: number) => {
      await randomCheckpoint(from, `${out}/${name}`, { wider: 2, layers: 1, seed });
      return Deno.readFileSync(`${out}/${name}/model.safetensors`);
    };
    const first = await made("a", 1);
    assert.deepEqual(await made("b", 1), first);
    assert.notDeepEqual(await made("c", 2), first);
    const [narrow, wide] = [
      await readConfig(directoryFiles(from)),
      await readConfig(directoryFiles(`${out}/a`)),
    ];
    assert.deepEqual(
      [wide.decoder.width, wide.decoder.headDim, wide.decoder.heads, wide.decoder.layers, wide.vision.mlp],
      [2 * narrow.decoder.width, narrow.decoder.headDim, 2 * narrow.decoder.heads, 1, 2 * narrow.vision.mlp],
    );
    const [shown] = await calibrationSet(PICTURES);
    const [answer] = await trace(
      { backend: backend(), files: directoryFiles(`${out}/a`), format: "f32" },
      [shown],
      2,
    );
    const logits = answer[0].logits;
    assert.ok(logits.every(Number.isFinite) && new Set(logits).size > 100);
  } finally {
    await Deno.remove(out, { recursive: true });
  }
});
