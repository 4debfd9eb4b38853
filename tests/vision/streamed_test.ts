import assert from "node:assert/strict";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import type { ModelFiles, Pixels } from "../../lib/types.ts";
import { loadVision, type Residence } from "../../lib/vision/siglip.ts";
import { readConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const PG2 = memoryFiles(directoryBytes(new URL("../golden/checkpoints/pg2", import.meta.url).pathname));
const pause = () => Promise.resolve();

async function load(files: ModelFiles, residence: Residence) {
  const config = await readConfig(files);
  const backend = createWasmBackend({ simd, relaxed });
  const vision = await loadVision(backend, await openWeights(files, config, "int8"), residence);
  const { imageSize: size } = config.vision;
  const data = Float32Array.from({ length: size * size * 3 }, (_, i) => Math.sin(i));
  const out = backend.tensor(vision.imageTokens, config.decoder.width);
  const pixels: Pixels = { size, data };
  return { backend, vision, out, pixels, layers: config.vision.layers };
}

Deno.test("streamed layers give the very same image tokens, and hold one layer at a time", async () => {
  const [resident, streamed] = [await load(PG2, "resident"), await load(PG2, "streamed")];
  const before = streamed.backend.sizeBytes;
  assert.ok(before < resident.backend.sizeBytes);
  for (const it of [resident, streamed]) await it.vision.encode(it.out, it.pixels, pause);
  assert.deepEqual(await streamed.backend.read(streamed.out), await resident.backend.read(resident.out));
  assert.equal(streamed.backend.sizeBytes, before);
});

Deno.test("the next layer is being read while one computes, each layer in one read", async () => {
  const reads: number[] = [];
  let computed = 0;
  const single = await singleFile();
  const counting: ModelFiles = {
    ...single,
    read(name, start, end) {
      if (computed) reads.push(computed);
      return single.read(name, start, end);
    },
  };
  const { vision, out, pixels, layers } = await load(counting, "streamed");
  computed = 1;
  await vision.encode(out, pixels, () => {
    computed++;
    return Promise.resolve();
  });
  // pause comes at the start of each layer's computation: by then the read of the following one was issued
  assert.deepEqual(reads, Array.from({ length: layers }, (_, i) => Math.max(1, i)));
});

Deno.test("all layers are read into the same memory, whatever lay there before", async () => {
  const single = await singleFile();
  const rooms = new Set<ArrayBufferLike>();
  const filling: ModelFiles = {
    ...single,
    async read(name, start, end, room) {
      const bytes = await single.read(name, start, end);
      if (!room) return bytes;
      rooms.add(room.buffer);
      room.set(bytes);
      return room.subarray(0, bytes.length);
    },
  };
  const [resident, streamed] = [await load(single, "resident"), await load(filling, "streamed")];
  assert.equal(rooms.size, 0);
  for (const it of [resident, streamed]) await it.vision.encode(it.out, it.pixels, pause);
  assert.deepEqual(await streamed.backend.read(streamed.out), await resident.backend.read(resident.out));
  await streamed.vision.encode(streamed.out, streamed.pixels, pause);
  assert.equal(rooms.size, 1);
  // Pictures encoded side by side do not read into one another's layers.
  const second = streamed.backend.tensor(streamed.out.rows, streamed.out.cols);
  await Promise.all([streamed.out, second].map((it) => streamed.vision.encode(it, streamed.pixels, pause)));
  assert.equal(rooms.size, 2);
  for (const it of [streamed.out, second]) {
    assert.deepEqual(await streamed.backend.read(it), await resident.backend.read(resident.out));
  }
});

Deno.test("when the caller stops half way nothing is left in the backend", async () => {
  const { backend, vision, out, pixels } = await load(PG2, "streamed");
  const before = backend.sizeBytes;
  let count = 0;
  const stop = () => ++count === 2 ? Promise.reject(new Error("enough")) : Promise.resolve();
  await assert.rejects(vision.encode(out, pixels, stop), /enough/);
  assert.equal(backend.sizeBytes, before);
});

/** The checkpoint as the converter writes it: one file, tensors in the order they are used. */
async function singleFile(): Promise<ModelFiles> {
  const { convert } = await import("../../models/convert.ts");
  const out = await Deno.makeTempDir();
  try {
    await convert(PG2, out, { vision: "int8", decoder: "int8" });
    return memoryFiles(directoryBytes(out));
  } finally {
    await Deno.remove(out, { recursive: true });
  }
}
