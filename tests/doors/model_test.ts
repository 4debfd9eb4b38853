import assert from "node:assert/strict";
import { directoryFiles, TINY, usualThreads } from "../../functions/model.ts";
import type { ModelFiles } from "../../lib/mod.ts";

/** Files of these sizes, which nobody reads. */
function sized(sizes: Record<string, number>): ModelFiles {
  return {
    place: "",
    list: () => Promise.resolve(Object.keys(sizes)),
    size: (name) => Promise.resolve(sizes[name]),
    read: () => Promise.reject(new Error("not to be read")),
  };
}

Deno.test("a large model is shared out among the machine's cores, a small one is not", async () => {
  const shards = { "model-00001-of-00002.safetensors": 100e6, "model-00002-of-00002.safetensors": 100e6 };
  assert.equal(await usualThreads(sized(shards), 4), 4);
  assert.equal(await usualThreads(sized(shards), 1), 1);
  assert.equal(await usualThreads(sized(shards), 64), 8);
  assert.equal(await usualThreads(sized({ "model.safetensors": 100e6, "pictures.zip": 1e9 }), 4), 1);
  assert.equal(await usualThreads(directoryFiles(TINY), 4), 1);
});
