import assert from "node:assert/strict";
import { directoryFiles } from "../../functions/model.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { readConfig } from "../../lib/weights/config.ts";
import { openWeights, schemeFor } from "../../lib/weights/load.ts";
import { IDS, manifestOf } from "../../models/manifests.ts";
import { memoryOf, rehearse } from "../../models/memory.ts";
import { synth } from "../../models/synth.ts";
import { relaxed, simd } from "../../wasm/kernels.js";

const ROOT = new URL("../../", import.meta.url).pathname;

Deno.test("eighteen manifests, each with a source, a licence, memory and doors; plain data", async () => {
  assert.equal(IDS.length, 18);
  for (const id of IDS) {
    const manifest = await manifestOf(id);
    assert.deepEqual(JSON.parse(JSON.stringify(manifest)), manifest);
    assert.equal(manifest.source.repo, `google/${id}`);
    assert.match(manifest.licence.gate, /HF_TOKEN/);
    const { f32, int8, int4 } = manifest.memory;
    assert.ok(int4.peakBytes < int8.peakBytes && int8.peakBytes < f32.peakBytes, id);
    const size = Number(id.split("-").at(-1));
    assert.equal((manifest.config.vision_config as { image_size: number }).image_size, size);
    assert.equal("note" in manifest.source, id.endsWith("mix-896"));
    const [process, isolate] = manifest.doors;
    assert.deepEqual(isolate.formats, size === 896 ? [] : ["int8"], id);
    if (id.startsWith("paligemma2-10b")) assert.deepEqual(process.formats, [], id);
    else assert.ok(process.formats.includes("int4") && !process.formats.includes("f32"), id);
  }
  await assert.rejects(manifestOf("paligemma-7b-pt-224"), RangeError);
});

Deno.test("the download of PaliGemma 3B is the 11.7 GB that the hub has", async () => {
  const { source } = await manifestOf("paligemma-3b-pt-224");
  assert.equal(source.weightsBytes, 4 * (2_923_335_408 + 64 * 2048));
});

Deno.test("counted memory is what the WASM backend comes to hold", async () => {
  const out = await Deno.makeTempDir();
  try {
    const options = { decoder: "int4", layers: { vision: 1, decoder: 1 }, vocabulary: 4096 } as const;
    await synth("paligemma-3b-224", out, options);
    const files = directoryFiles(out);
    const config = await readConfig(files);
    const backend = createWasmBackend({ simd, relaxed }, { multiplier: "dot", twins: false });
    await rehearse(backend, await openWeights(files, config));
    const counted = await memoryOf(config, (it) => schemeFor(it, it.part === "vision" ? "int8" : "int4"));
    assert.equal(counted.weightsBytes, backend.sizeBytes);
    // What is held has gaps between the pieces, and grows in steps of a MiB.
    const ratio = backend.memoryBytes / counted.peakBytes;
    assert.ok(ratio > 0.99 && ratio < 1.05, `${backend.memoryBytes} held, ${counted.peakBytes} counted`);
    const copied = backend.copiesBytes / counted.copiesBytes;
    // Where one instruction multiplies and adds, tiles are fewer, and their rows are there once.
    assert.ok(copied > 0.5 && copied < 1.1, `${backend.copiesBytes} copied, ${counted.copiesBytes} counted`);
  } finally {
    await Deno.remove(out, { recursive: true });
  }
});

for (const name of ["models/tiny", "tests/golden/checkpoints/pg2"]) {
  for (const format of ["f32", "int8", "int4"] as const) {
    Deno.test(`${name}, ${format}: the weights counted are those held`, async () => {
      const files = directoryFiles(ROOT + name);
      const config = await readConfig(files);
      const backend = createWasmBackend({ simd, relaxed });
      await rehearse(backend, await openWeights(files, config, format));
      const counted = await memoryOf(config, (it) => schemeFor(it, format));
      assert.equal(counted.weightsBytes, backend.sizeBytes);
      assert.ok(Math.abs(backend.memoryBytes - counted.peakBytes) < 2 ** 21);
    });
  }
}
