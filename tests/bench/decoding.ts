/** A decoder alone, without what serves it: its tokens held against WASM's, the times of a prefill and of tokens. */

import { directoryFiles } from "../../functions/model.ts";
import type { Backend, Tensor } from "../../lib/backend/backend.ts";
import { Batch } from "../../lib/decode/batch.ts";
import type { DecodeWork } from "../../lib/decode/decode.ts";
import type { Decoder, Prefilled } from "../../lib/decode/decoder.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { argmax, GREEDY } from "../../lib/decode/sampler.ts";
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

/** Tokens of an answer until all that began with it are in its passes. */
const BEGINNING = 4;

/**
 * Milliseconds from token to token of so many answers at once, as they are served: the next passes are issued before a
 * pass is read, where the decoder chooses.
 */
export async function tokenTimes(
  loaded: Loaded,
  together: number,
  tokens: number,
  pause = atOnce,
): Promise<number[]> {
  const { decoder, model, rows } = loaded;
  const prefilled = await restorable(loaded, pause);
  const work: DecodeWork = {
    prefix: { rows, cols: model.decoder.width },
    ids,
    known: { get: () => prefilled, set() {}, kept: false },
    maxTokens: BEGINNING + tokens,
    sampling: GREEDY,
    ignoreEos: true,
    topLogits: 0,
  };
  const batch = new Batch(decoder, model, pause);
  const [times] = await Promise.all(Array.from({ length: together }, async () => {
    const times: number[] = [];
    for await (const _ of batch.decode(work, pause)) times.push(performance.now());
    return times;
  }));
  return times.slice(BEGINNING).map((it, i) => it - times[BEGINNING + i - 1]);
}

async function restorable(loaded: Loaded, pause: Pause): Promise<Prefilled> {
  const { decoder, rows } = loaded;
  const cache = decoder.cache(rows);
  try {
    const logits = await withPrefix(loaded, (prefix) => decoder.prefill(cache, prefix, ids, pause));
    return await decoder.save!(cache, logits);
  } finally {
    cache.free();
  }
}

/**
 * Passes by themselves, each read before the next, that bring each of so many answers a token and choose the next.
 *
 * @param around runs each of those that count, after two that do not.
 */
export async function eachPass(
  loaded: Loaded,
  together: number,
  passes: number,
  pause: Pause,
  around: (pass: () => Promise<void>) => Promise<void>,
): Promise<void> {
  const { decoder, rows } = loaded;
  const prefilled = await restorable(loaded, pause);
  const caches = Array.from({ length: together }, () => decoder.cache(rows + passes + 2));
  try {
    for (const it of caches) decoder.restore!(it, prefilled);
    const choice = { ...GREEDY, random: 0 };
    let begun = false;
    const pass = async () => {
      const turns = caches.map((cache, i) => ({ cache, id: begun ? undefined : 10 + i, choice }));
      begun = true;
      await (await decoder.steps!(turns, pause)).found;
    };
    for (let i = 0; i < passes + 2; i++) await (i < 2 ? pass() : around(pass));
  } finally {
    for (const it of caches) it.free();
  }
}
