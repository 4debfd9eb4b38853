/** The bundled model, exported from its quantised weights: onnxruntime-web answers the bundled questions. */

import assert from "node:assert/strict";
import { directoryFiles, TINY } from "../../functions/model.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { preprocess } from "../../lib/preprocess/preprocess.ts";
import { prefixIds } from "../../lib/text/prompt.ts";
import { loadTokenizer } from "../../lib/text/tokenizer.ts";
import { readConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { examples } from "../../models/demo.ts";
import type { OnnxOptions } from "../../models/export_onnx.ts";
import { loadOrt } from "../../functions/ort.ts";
import { ortModel } from "./engine.ts";

const ENOUGH = 64;

/** Our own answers are those of the list; near ties fall the other way under other rounding of activations. */
const formats: [OnnxOptions, number][] = [
  [{ vision: "f32", decoder: "f32" }, 0.6],
  [{ vision: "int8", decoder: "int4" }, 0.6],
  [{ vision: "int8", decoder: "int8" }, 0.6],
];
for (const [options, least] of formats) {
  const { vision, decoder } = options;
  Deno.test(`onnxruntime-web, ${vision} vision and ${decoder} decoder: at least ${least} of the bundled answers`, async () => {
    const { directory, list } = await examples();
    const found = await answers(options, directory, list);
    const same = list.filter((it, i) => found[i] === it.answer).length;
    assert.ok(same >= least * list.length, JSON.stringify(found));
  });
}

async function answers(
  options: OnnxOptions,
  directory: string,
  list: readonly { readonly image: string; readonly prompt: string }[],
): Promise<string[]> {
  const files = directoryFiles(TINY);
  const config = await readConfig(files);
  const tokenizer = await loadTokenizer(files);
  const backend = createReferenceBackend();
  const model = await ortModel(await loadOrt(), backend, await openWeights(files, config), options);
  const pause = () => Promise.resolve();
  const found: string[] = [];
  for (const { image, prompt } of list) {
    const pixels = await preprocess(await Deno.readFile(`${directory}/${image}`), {
      size: config.vision.imageSize,
      method: "hf-bicubic",
      maxPixels: 1e7,
      mean: config.imageMean,
      std: config.imageStd,
    });
    const ids = prefixIds(tokenizer, prompt, config);
    const { imageTokens } = model.vision;
    const prefix = backend.tensor(imageTokens + ids.length, config.decoder.width);
    await model.vision.encode(backend.slice(prefix, 0, imageTokens), pixels, pause);
    const cache = model.decoder.cache(prefix.rows + ENOUGH);
    const text = tokenizer.stream();
    let answer = "";
    let logits = await model.decoder.prefill(cache, prefix, ids, pause);
    for (let count = 0; count < ENOUGH; count++) {
      const best = logits.subarray(0, config.imageTokenId);
      const id = best.indexOf(best.reduce((max, it) => Math.max(max, it)));
      if (config.eosIds.includes(id)) break;
      answer += text.push(id);
      logits = await model.decoder.step(cache, id, pause);
    }
    cache.free();
    found.push(answer + text.end());
  }
  return found;
}
