import assert from "node:assert/strict";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { likelihoods, normalised } from "../../lib/decode/classify.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const CHECKPOINTS = new URL("../golden/checkpoints/", import.meta.url).pathname;
const pause = () => Promise.resolve();

for (const family of ["pg1", "pg2"]) {
  Deno.test(`${family}: answers scored together are as likely as each alone, token by token, within 1e-4`, async () => {
    const files = memoryFiles(directoryBytes(`${CHECKPOINTS}${family}`), family);
    const config = parseConfig(JSON.parse(new TextDecoder().decode(await files.read("config.json"))));
    const backend = createReferenceBackend();
    const decoder = await loadDecoder(backend, await openWeights(files, config));
    const ids = [config.bosId, 300, 301, 108];
    const image = Float32Array.from({ length: 4 * config.decoder.width }, (_, i) => Math.sin(i));
    const prefix = () => {
      const tensor = backend.tensor(4 + ids.length, config.decoder.width);
      backend.write(backend.slice(tensor, 0, 4), image);
      return tensor;
    };
    // One begins another, several share a beginning, one is empty, and they come in no order.
    const answers = [[400, 401, 402], [400], [500, 401], [400, 401], [], [400, 403], [600]];
    let prefills = 0, steps = 0, passes = 0, tokens = 0;
    const counted = {
      cache: (capacity: number) => decoder.cache(capacity),
      prefill: (...all: Parameters<typeof decoder.prefill>) => (prefills++, decoder.prefill(...all)),
      step: (...all: Parameters<typeof decoder.step>) => (steps++, decoder.step(...all)),
      extend: (...all: Parameters<typeof decoder.extend>) => decoder.extend(...all),
    };
    const branching = {
      ...counted,
      branch: (...all: Parameters<NonNullable<typeof decoder.branch>>) => {
        passes++;
        tokens += all[1].length;
        return decoder.branch!(...all);
      },
    };
    const held = backend.sizeBytes;
    const together = await likelihoods(branching, config, { prefix: prefix(), ids, answers }, pause);
    assert.deepEqual([prefills, steps, passes, tokens], [1, 0, 3, 7], "a pass a level, no beginning twice");
    const wide = Array.from({ length: 40 }, (_, i) => [400 + i, 500]);
    const many = await likelihoods(branching, config, { prefix: prefix(), ids, answers: wide }, pause);
    const fewer = await likelihoods(
      branching,
      config,
      { prefix: prefix(), ids, answers: wide.slice(30) },
      pause,
    );
    fewer.forEach((it, i) => assert.ok(Math.abs(it - many[30 + i]) < 1e-4));
    assert.ok(backend.sizeBytes <= held + 3 * 4 * 8 * config.decoder.width, "only the prefixes are left");
    prefills = steps = 0;
    const oneByOne = await likelihoods(counted, config, { prefix: prefix(), ids, answers }, pause);
    assert.equal(prefills, 1);
    assert.equal(steps, 7, "400, 401, 402, 403, 500, 401 after 500, 600: no beginning twice");

    for (const [i, answer] of answers.entries()) {
      const cache = decoder.cache(4 + ids.length + answer.length);
      let logits = await decoder.prefill(cache, prefix(), ids, pause);
      let sum = 0;
      for (const id of [...answer, config.eosIds[0]]) {
        const open = [...logits.subarray(0, config.imageTokenId)].map((it, at) =>
          at === config.padId || at === config.bosId ? -Infinity : it
        );
        const most = Math.max(...open);
        sum += open[id] - most - Math.log(open.reduce((all, it) => all + Math.exp(it - most), 0));
        if (id !== config.eosIds[0]) logits = await decoder.step(cache, id, pause);
      }
      cache.free();
      assert.ok(Math.abs(sum - together[i]) < 1e-4, `${answer}: ${sum} ${together[i]}`);
      assert.ok(Math.abs(sum - oneByOne[i]) < 1e-4, `${answer}: ${sum} ${oneByOne[i]}`);
    }
  });
}

Deno.test("a truncated cache goes on as if what was forgotten had never been; the prefix cannot be cut", async () => {
  const files = memoryFiles(directoryBytes(`${CHECKPOINTS}pg1`), "pg1");
  const config = parseConfig(JSON.parse(new TextDecoder().decode(await files.read("config.json"))));
  const backend = createReferenceBackend();
  const decoder = await loadDecoder(backend, await openWeights(files, config));
  const ids = [config.bosId, 300, 108];
  const cache = decoder.cache(6);
  await decoder.prefill(cache, backend.tensor(3, config.decoder.width), ids, pause);
  const first = await decoder.step(cache, 400, pause);
  cache.truncate(3);
  await decoder.step(cache, 555, pause);
  await decoder.step(cache, 556, pause);
  cache.truncate(3);
  assert.deepEqual(await decoder.step(cache, 400, pause), first);
  assert.throws(() => cache.truncate(2), /expected 3 to 4 positions, found 2/);
  assert.throws(() => cache.truncate(5), RangeError);
});

Deno.test("probabilities of any logarithms sum to 1, in their proportions", () => {
  const [a, b] = normalised([-2000, -2000 + Math.log(3)]);
  assert.ok(Math.abs(a - 0.25) < 1e-9 && Math.abs(b - 0.75) < 1e-9);
  assert.deepEqual(normalised([-Infinity, -Infinity]), [0.5, 0.5]);
  assert.deepEqual(normalised([-Infinity, -1]), [0, 1]);
});
