import assert from "node:assert/strict";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createMemoryStore } from "../../lib/store/memory.ts";
import type { Blobs } from "../../lib/store/store.ts";
import type { Pixels } from "../../lib/types.ts";
import { type FeatureCacheOptions, remembering, visionRevision } from "../../lib/vision/feature_cache.ts";
import type { Vision } from "../../lib/vision/siglip.ts";
import { readConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { until } from "../until.ts";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const picture = (value: number, size = 2): Pixels => ({ size, data: new Float32Array(12).fill(value) });

/** An encoder that counts how often it computed; its rows are the picture's value and that count. */
function counting() {
  const backend = createReferenceBackend();
  const vision: Vision & { computed: number } = {
    computed: 0,
    imageTokens: 1,
    width: 2,
    encode(out, pixels) {
      backend.write(out, Float32Array.of(pixels.data[0], ++vision.computed));
      return Promise.resolve();
    },
  };
  const open = (options: FeatureCacheOptions = {}, revision = "a") => {
    const remembered = remembering(vision, backend, options, revision);
    return async (pixels: Pixels) => {
      const out = backend.tensor(1, 2);
      const known = await remembered.encode(
        out,
        pixels,
        await remembered.key(pixels),
        () => Promise.resolve(),
      );
      return [...await backend.read(out), known];
    };
  };
  return { vision, open };
}

const keysOf = async (blobs: Blobs) => (await Array.fromAsync(blobs.list("features/"))).map((it) => it.key);

Deno.test("the same pixels are computed once; others, and other sizes, are not taken for them", async () => {
  const see = counting().open();
  assert.deepEqual(await see(picture(1)), [1, 1, false]);
  assert.deepEqual(await see(picture(1)), [1, 1, true]);
  assert.deepEqual(await see(picture(2)), [2, 2, false]);
  assert.deepEqual(await see(picture(1, 3)), [1, 3, false]);
  const never = counting().open({ featureCacheBytes: 0 });
  await never(picture(1));
  assert.deepEqual(await never(picture(1)), [1, 2, false]);
});

Deno.test("image tokens outlive the process in blobs, apart for every revision, the oldest go when there is no room", async () => {
  let now = 0;
  const { blobs } = createMemoryStore({ now: () => ++now });
  const { open } = counting();
  assert.deepEqual(await open({ blobs })(picture(1)), [1, 1, false]);
  await until(async () => (await keysOf(blobs)).length === 1);
  assert.deepEqual(await open({ blobs })(picture(1)), [1, 1, true]);
  assert.deepEqual(await open({ blobs }, "b")(picture(1)), [1, 2, false]);
  await until(async () => (await keysOf(blobs)).length === 2);
  const [oldest] = (await keysOf(blobs)).filter((it) => it.startsWith("features/a/"));
  // 40 bytes each: 32 of a checksum, 8 of rows.
  assert.deepEqual(await open({ blobs, featureBlobBytes: 90 })(picture(2)), [2, 3, false]);
  await until(async () => {
    const keys = await keysOf(blobs);
    return keys.length === 2 && !keys.includes(oldest);
  });
  assert.deepEqual(await open({ blobs })(picture(2)), [2, 3, true]);
  assert.deepEqual(await open({ blobs })(picture(1)), [1, 4, false]);
});

Deno.test("a damaged blob, a full disk and a disk that is gone are no harm: the picture is computed, the error told", async () => {
  const { blobs } = createMemoryStore();
  const { open } = counting();
  await open({ blobs })(picture(1));
  await until(async () => (await keysOf(blobs)).length === 1);
  const [key] = await keysOf(blobs);
  const whole = (await blobs.get(key))!;
  for (const broken of [whole.with(39, 7), whole.slice(0, 36), new Uint8Array(0)]) {
    await blobs.put(key, broken);
    assert.equal((await open({ blobs })(picture(1)))[2], false);
    // It is written anew.
    await until(async () => (await blobs.get(key))!.toHex() !== broken.toHex());
  }
  const told: unknown[] = [];
  const gone: Blobs = { ...blobs, get: () => Promise.reject("gone"), put: () => Promise.reject("full") };
  const see = open({ blobs: gone, onError: (it) => told.push(it) });
  assert.equal((await see(picture(9)))[2], false);
  assert.equal((await see(picture(9)))[2], true);
  await until(() => told.length === 2);
  assert.deepEqual(told, ["gone", "full"]);
});

Deno.test("the revision is that of the vision weights, their format and the backend, and of nothing else", async () => {
  const bytes = directoryBytes(new URL("../golden/checkpoints/pg1/", import.meta.url).pathname);
  const backend = createReferenceBackend();
  const revision = async (change: (files: Record<string, Uint8Array>) => void, format?: "int8") => {
    const files = Object.fromEntries(Object.entries(bytes).map(([name, it]) => [name, it.slice()]));
    change(files);
    const opened = memoryFiles(files, "pg1");
    return await visionRevision(await openWeights(opened, await readConfig(opened), format), backend);
  };
  /** Changes one number of a tensor. */
  const touch = (name: string) => (files: Record<string, Uint8Array>) => {
    for (const [file, data] of Object.entries(files)) {
      if (!file.endsWith(".safetensors")) continue;
      const length = Number(new DataView(data.buffer, data.byteOffset).getBigUint64(0, true));
      const header = JSON.parse(new TextDecoder().decode(data.subarray(8, 8 + length)));
      const found = Object.keys(header).find((it) => it.endsWith(name));
      if (found) data[8 + length + header[found].data_offsets[1] - 3] ^= 1;
    }
  };
  const plain = await revision(() => {});
  assert.match(plain, /^[0-9a-f]{32}$/);
  assert.equal(await revision(() => {}), plain);
  assert.equal(await revision(touch("language_model.model.norm.weight")), plain);
  const others = [
    await revision(touch("encoder.layers.0.mlp.fc1.weight")),
    await revision(touch("encoder.layers.0.mlp.fc1.bias")),
    await revision(touch("multi_modal_projector.linear.weight")),
    await revision(() => {}, "int8"),
  ];
  assert.equal(new Set([plain, ...others]).size, 5);
});
