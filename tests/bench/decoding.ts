/** A decoder alone, without what serves it: its tokens held against WASM's, the times of a prefill and of passes. */

import { directoryFiles } from "../../functions/model.ts";
import type { Backend, Tensor } from "../../lib/backend/backend.ts";
import type { Decoder } from "../../lib/decode/decoder.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { argmax, choose, GREEDY, neverSampled } from "../../lib/decode/sampler.ts";
import type { Pause } from "../../lib/types.ts";
import { type ModelConfig, readConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { numbers } from "./random.ts";

const TEXT_TOKENS = 8;
/** Prefills that are timed; no further one begins after so long. */
const [ROUNDS, PATIENCE_MS] = [11, 5000];
/** A token that differs where the likeliest leads by less was rounded the other way. */
const NEAR_TIE = 0.5;

const atOnce: Pause = () => Promise.resolve();

/** What computes in this process. */
export interface Loaded {
  readonly backend: Backend;
  readonly decoder: Decoder;
  /** Image tokens and text. */
  readonly rows: number;
  readonly model: ModelConfig;
}

/** Loads the decoder of a model in a directory. */
export async function load(directory: string, backend: Backend): Promise<Loaded> {
  const files = directoryFiles(directory);
  const config = await readConfig(files);
  const decoder = await loadDecoder(backend, await openWeights(files, config));
  const rows = (config.vision.imageSize / config.vision.patch) ** 2 + TEXT_TOKENS;
  return { backend, decoder, rows, model: config };
}

const ids = Array.from({ length: TEXT_TOKENS }, (_, i) => 10 + i * 7);

/** Does something with a prefix of random image tokens. */
async function withPrefix<T>({ backend, rows, model }: Loaded, use: (x: Tensor) => Promise<T>): Promise<T> {
  const prefix = backend.tensor(rows, model.decoder.width);
  try {
    backend.write(prefix, numbers(rows * model.decoder.width));
    return await use(prefix);
  } finally {
    backend.free(prefix);
  }
}

/** Logits of one sequence after its prefix and along ids that are given, or its own likeliest. */
async function walk(loaded: Loaded, tokens: number, given?: readonly number[]): Promise<Float32Array[]> {
  const { decoder, rows } = loaded;
  return await withPrefix(loaded, async (prefix) => {
    const cache = decoder.cache(rows + tokens);
    const found = [await decoder.prefill(cache, prefix, ids, atOnce)];
    for (let i = 0; i < tokens; i++) {
      found.push(await decoder.step(cache, given?.[i] ?? argmax(found[i]), atOnce));
    }
    cache.free();
    return found;
  });
}

/** @throws {Error} where a token differs from WASM's that was not a near tie. */
export async function check(loaded: Loaded, wasm: Loaded): Promise<void> {
  const expected = await walk(wasm, 16);
  const found = await walk(loaded, 16, expected.map(argmax));
  for (const [token, logits] of expected.entries()) {
    const [right, id] = [argmax(logits), argmax(found[token])];
    if (logits[right] - logits[id] < NEAR_TIE) continue;
    throw new Error(`Token ${token}: found ${id}, on WASM ${right} by ${logits[right] - logits[id]}`);
  }
}

/** Milliseconds of prefills, the first left out. */
export async function prefillTimes(loaded: Loaded, pause = atOnce, rounds = ROUNDS): Promise<number[]> {
  const times: number[] = [];
  for (const begun = performance.now(); times.length <= rounds;) {
    if (times.length > 1 && performance.now() - begun > PATIENCE_MS) break;
    await withPrefix(loaded, async (prefix) => {
      const cache = loaded.decoder.cache(loaded.rows);
      await loaded.backend.read(loaded.backend.slice(prefix, 0, 1, 0, 1)); // what brought it there is over
      const since = performance.now();
      await loaded.decoder.prefill(cache, prefix, ids, pause);
      times.push(performance.now() - since);
      cache.free();
    });
  }
  return times.slice(1);
}

/**
 * Milliseconds of passes, the first two left out, that bring each of so many answers a token and choose the next.
 *
 * @param around runs each of those that count.
 */
export async function passTimes(
  loaded: Loaded,
  together: number,
  tokens: number,
  pause = atOnce,
  around = (pass: () => Promise<void>) => pass(),
): Promise<number[]> {
  const { decoder, model } = loaded;
  const room = () => decoder.cache(loaded.rows + tokens + 2);
  const caches = [room()];
  const times: number[] = [];
  try {
    const logits = await withPrefix(loaded, (prefix) => decoder.prefill(caches[0], prefix, ids, pause));
    const prefilled = await decoder.save!(caches[0], logits);
    while (caches.length < together) decoder.restore!(caches[caches.push(room()) - 1], prefilled);
    const choice = { ...GREEDY, random: 0 };
    const limit = Math.min(model.imageTokenId, model.decoder.vocab);
    let last = caches.map((_, i) => 10 + i);
    const pass = async () => {
      const found = await decoder.steps!(caches.map((cache, i) => ({ cache, id: last[i], choice })), pause);
      last = found.map((it) =>
        it instanceof Float32Array ? choose(it, limit, neverSampled(model), GREEDY, Math.random).id : it.id
      );
    };
    for (let token = 0; token < tokens + 2; token++) {
      const since = performance.now();
      await (token < 2 ? pass() : around(pass));
      times.push(performance.now() - since);
    }
  } finally {
    for (const it of caches) it.free();
  }
  return times.slice(2);
}
