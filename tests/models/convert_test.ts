import assert from "node:assert/strict";
import { collect, createPipeline, createWasmBackend, type WeightFormat } from "../../lib/mod.ts";
import { openTensors } from "../../lib/weights/safetensors.ts";
import { convert } from "../../models/convert.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const PG2 = memoryFiles(directoryBytes(new URL("../golden/checkpoints/pg2", import.meta.url).pathname));
const PICTURE = Deno.readFileSync(new URL("../fixtures/scene.png", import.meta.url));

async function logits(files: typeof PG2, weights: WeightFormat) {
  const pipeline = await createPipeline({
    backend: createWasmBackend({ simd, relaxed }),
    files,
    name: "pg2",
    weights,
  });
  const question = { images: [PICTURE], prompt: "caption en", maxTokens: 4, ignoreEos: true, topLogits: 3 };
  return (await collect(pipeline.answer(question))).logits;
}

for (const [decoder, format] of [["int4", "int4"], ["int8", "int8"]] as const) {
  Deno.test(`a checkpoint converted to ${decoder} answers as one quantised while loading, and converts again unchanged`, async () => {
    const out = await Deno.makeTempDir();
    try {
      await convert(PG2, out, { vision: "int8", decoder });
      const converted = memoryFiles(directoryBytes(out));
      assert.deepEqual(await logits(converted, "as-stored"), await logits(PG2, format));
      await convert(converted, `${out}/again`, { vision: "int8", decoder });
      assert.deepEqual(
        Deno.readFileSync(`${out}/again/model.safetensors`),
        Deno.readFileSync(`${out}/model.safetensors`),
      );
      const { tensors, metadata } = await openTensors(converted);
      assert.deepEqual(metadata, {
        format: "pt",
        vision: "int8-p8-s4",
        embedding: "int8-p8-s4",
        decoder: decoder === "int4" ? "int4-g32-p8" : "int8-p8-s4",
      });
      const first = Math.min(...[...tensors.values()].map((it) => it.start));
      assert.equal(first % 64, 0);
    } finally {
      await Deno.remove(out, { recursive: true });
    }
  });
}

Deno.test("f32 to f32 keeps every bit", async () => {
  const out = await Deno.makeTempDir();
  try {
    await convert(PG2, out, { vision: "f32", decoder: "f32" });
    assert.deepEqual(await logits(memoryFiles(directoryBytes(out)), "as-stored"), await logits(PG2, "f32"));
  } finally {
    await Deno.remove(out, { recursive: true });
  }
});

Deno.test("a mask decoder beside a checkpoint goes with it", async () => {
  const out = await Deno.makeTempDir();
  const masks = Deno.readFileSync(new URL("../golden/tiny/vq_random_f16.safetensors", import.meta.url));
  const bytes = directoryBytes(new URL("../golden/checkpoints/pg2", import.meta.url).pathname);
  try {
    await convert(memoryFiles({ ...bytes, "mask_decoder.safetensors": masks }), out, {
      vision: "int8",
      decoder: "int4",
    });
    assert.deepEqual(Deno.readFileSync(`${out}/mask_decoder.safetensors`), masks);
  } finally {
    await Deno.remove(out, { recursive: true });
  }
});

Deno.test("an interrupted conversion leaves nothing that could be taken for a model", async () => {
  const out = await Deno.makeTempDir();
  try {
    const stop = () => {
      throw new Error("stopped half way");
    };
    await assert.rejects(convert(PG2, out, { vision: "int8", decoder: "int4", progress: stop }), /half way/);
    assert.ok(![...Deno.readDirSync(out)].some(({ name }) => name.endsWith(".safetensors")));
  } finally {
    await Deno.remove(out, { recursive: true });
  }
});
