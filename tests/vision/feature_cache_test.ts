import assert from "node:assert/strict";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import type { Pixels } from "../../lib/types.ts";
import { FeatureCache, remembering } from "../../lib/vision/feature_cache.ts";
import type { Vision } from "../../lib/vision/siglip.ts";

const rows = (n: number) => Float32Array.of(n, n, n, n);

Deno.test("rows stay until others need their room, the least recently used goes first", () => {
  const cache = new FeatureCache(3 * 16);
  for (const n of [1, 2, 3]) cache.set(`${n}`, rows(n));
  assert.deepEqual(cache.get("1"), rows(1));
  cache.set("4", rows(4));
  assert.deepEqual(["1", "2", "3", "4"].map((it) => cache.get(it)?.[0]), [1, undefined, 3, 4]);
  cache.set("3", rows(9));
  assert.equal(cache.get("3")?.[0], 9);
  assert.equal(cache.sizeBytes, 48);
  cache.set("large", new Float32Array(100));
  assert.equal(cache.get("large"), undefined);
  assert.equal(cache.sizeBytes, 48);
});

Deno.test("the same pixels are encoded once; other pixels, sizes and revisions are not taken for them", async () => {
  const backend = createReferenceBackend();
  let encoded = 0;
  const vision: Vision = {
    imageTokens: 1,
    encode(out, pixels) {
      encoded++;
      backend.write(out, Float32Array.of(pixels.data[0], encoded));
      return Promise.resolve();
    },
  };
  const cache = new FeatureCache(1000);
  const pause = () => Promise.resolve();
  const see = async (pixels: Pixels, revision: string) => {
    const out = backend.tensor(1, 2);
    await remembering(vision, backend, cache, revision).encode(out, pixels, pause);
    return [...await backend.read(out)];
  };
  const picture = (value: number, size = 2) => ({ size, data: new Float32Array(12).fill(value) });
  assert.deepEqual(await see(picture(1), "a"), [1, 1]);
  assert.deepEqual(await see(picture(1), "a"), [1, 1]);
  assert.deepEqual(await see(picture(2), "a"), [2, 2]);
  assert.deepEqual(await see(picture(1), "b"), [1, 3]);
  assert.deepEqual(await see(picture(1, 3), "a"), [1, 4]);
  assert.equal(encoded, 4);
});
