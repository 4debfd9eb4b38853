/** The stages of PaliGemma 3B at full size, on random weights: the encoder, the prefill, and the tokens. */

import type { Cache } from "../../lib/decode/decoder.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { loadVision } from "../../lib/vision/siglip.ts";
import { type ModelConfig, readConfig } from "../../lib/weights/config.ts";
import { openWeights, width } from "../../lib/weights/load.ts";
import { EMBEDDING, tensorTable } from "../../lib/weights/table.ts";
import type { Pause } from "../../lib/types.ts";
import { directoryFiles } from "../../functions/model.ts";
import { synth } from "../../models/synth.ts";
import { kernelOf } from "./kernels.ts";
import { type Clock, openBackend, type Prepared, type Settings, timed, type Work } from "./work.ts";
import { bytesRead, numbers } from "./random.ts";

const TEXT_TOKENS = 8;
const TOKENS = 32;
const IDS = Array.from({ length: TEXT_TOKENS }, (_, i) => 5 + i);

const noPause = () => Promise.resolve();

export const MODELS: readonly Work[] = [
  { name: "siglip-224", weights: "int8", rounds: 9, prepare: (settings) => siglip(224, settings) },
  { name: "siglip-448", weights: "int8", rounds: 2, prepare: (settings) => siglip(448, settings) },
  { name: "prefill-264", weights: "int4", rounds: 2, prepare: (settings) => prefill(settings) },
  { name: "decode-32", weights: "int4", rounds: 5, prepare: (settings) => decode(settings) },
];

/** Writes random weights of a published shape to a temporary directory, cut to what a stage reads, and hands it on. */
export async function withWeights<T>(
  shape: string,
  part: "vision" | "decoder",
  use: (directory: string) => Promise<T>,
): Promise<T> {
  const directory = await Deno.makeTempDir({ prefix: "bench" });
  try {
    await synth(shape, directory, {
      decoder: "int4",
      ...part === "vision"
        ? { layers: { vision: 27, decoder: 1 }, vocabulary: 512 }
        : { layers: { vision: 1, decoder: 18 } },
    });
    return await use(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function siglip(size: 224 | 448, settings: Settings): Promise<Prepared> {
  const { backend, close } = await openBackend(settings);
  const clock: Clock = new Map();
  const { vision, config, loadMs } = await withWeights(
    `paligemma-3b-${size}`,
    "vision",
    async (directory) => {
      const before = performance.now();
      const files = directoryFiles(directory);
      const config = await readConfig(files);
      const vision = await loadVision(timed(backend, clock), await openWeights(files, config));
      return { vision, config, loadMs: performance.now() - before };
    },
  );
  const out = backend.tensor(vision.imageTokens, config.decoder.width);
  const pixels = { size, data: numbers(size * size * 3).map((it) => Math.max(-1, Math.min(1, it / 2))) };
  await vision.encode(out, pixels, noPause);
  finite("image tokens", await backend.read(out));
  const { values, bytes } = matrices(config, "vision");
  let runs = 0;
  clock.clear();
  return {
    run(pause) {
      runs++;
      return vision.encode(out, pixels, pause);
    },
    operations: 2 * vision.imageTokens * values,
    bytes,
    bound: { kernel: kernelOf(backend, "int8-p8-s4", 256) },
    extra: () => ({ loadMs: Math.round(loadMs), operationMs: perRun(clock, runs) }),
    close,
  };
}

/** Gemma at full size with a prefix that fills x [P + T, D] anew, since a prefill uses it up. */
async function openDecoder(settings: Settings) {
  const { backend, close } = await openBackend(settings);
  const clock: Clock = new Map();
  const { decoder, config, loadMs } = await withWeights("paligemma-3b-224", "decoder", async (directory) => {
    const before = performance.now();
    const files = directoryFiles(directory);
    const config = await readConfig(files);
    const decoder = await loadDecoder(timed(backend, clock), await openWeights(files, config));
    return { decoder, config, loadMs: performance.now() - before };
  });
  const rows = imageTokens(config) + IDS.length;
  const x = backend.tensor(rows, config.decoder.width);
  const values = numbers(rows * config.decoder.width);
  const prefill = async (cache: Cache, pause: Pause) => {
    backend.write(x, values);
    const logits = await decoder.prefill(cache, x, IDS, pause);
    finite("logits", logits);
    return logits;
  };
  const extra = (runs: number) => ({
    loadMs: Math.round(loadMs),
    rssBytes: Deno.memoryUsage().rss,
    operationMs: perRun(clock, runs),
  });
  return { backend, close, clock, decoder, config, rows, prefill, extra };
}

async function prefill(settings: Settings): Promise<Prepared> {
  const { backend, close, clock, decoder, config, rows, prefill, extra } = await openDecoder(settings);
  const { values, bytes } = matrices(config, "decoder");
  // Of the last layer, all rows but one come to their keys and values, and no further.
  const { layers, width, kvHeads, headDim } = config.decoder;
  const rest = values / layers - 2 * kvHeads * headDim * width;
  let runs = 0;
  clock.clear();
  return {
    async run(pause) {
      runs++;
      const cache = decoder.cache(rows);
      try {
        await prefill(cache, pause);
      } finally {
        cache.free();
      }
    },
    operations: 2 * (rows * values - (rows - 1) * rest),
    bytes,
    bound: { kernel: kernelOf(backend, "int4-g32-p8", 256) },
    extra: () => extra(runs),
    close,
  };
}

async function decode(settings: Settings): Promise<Prepared> {
  const { close, clock, decoder, config, rows, extra, prefill } = await openDecoder(settings);
  const { values, bytes } = matrices(config, "decoder");
  const head = config.decoder.vocab * config.decoder.width;
  let runs = 0;
  const sequence = decoder.cache(rows + TOKENS);
  let room = await prefill(sequence, noPause);
  clock.clear();
  return {
    parts: TOKENS,
    ready: () => Promise.resolve(sequence.truncate(rows)),
    async run(pause) {
      runs++;
      for (let i = 0; i < TOKENS; i++) {
        const { found } = await decoder.steps!([{ cache: sequence, id: 7 + i, room }], pause);
        room = (await found)[0] as Float32Array;
      }
    },
    operations: 2 * (values + head),
    bytes: bytes + head + 4 * config.decoder.vocab,
    bound: "dramRead",
    extra: () => extra(runs),
    close,
  };
}

function finite(what: string, values: Float32Array): void {
  const wrong = values.find((it) => !Number.isFinite(it));
  if (wrong !== undefined || values.every((it) => it === values[0])) {
    throw new RangeError(`Broken kernels: ${what} of ${wrong ?? `nothing but ${values[0]}`}`);
  }
}

function imageTokens({ vision: { imageSize, patch } }: ModelConfig): number {
  return (imageSize / patch) ** 2;
}

/** Weights in the matrices of a part, and the bytes they take as the kernels read them; without table and head. */
function matrices(config: ModelConfig, part: "vision" | "decoder"): { values: number; bytes: number } {
  let [values, bytes] = [0, 0];
  for (const spec of tensorTable(config)) {
    if (spec.part !== part || spec.name === EMBEDDING || spec.lowest === "f32" && spec.shape.length < 4) {
      continue;
    }
    const [n, k] = [spec.shape[0], width(spec)];
    values += n * k;
    const scheme = spec.lowest === "f32" ? "f32" : part === "vision" ? "int8-p8-s4" : "int4-g32-p8";
    bytes += bytesRead(scheme, n, k) + 4 * n;
  }
  return { values, bytes };
}

/** Milliseconds of a run in each operation. */
function perRun(clock: Clock, runs: number): Record<string, number> {
  const rows = [...clock].map(([name, ms]) => [name, Math.round(ms / runs * 100) / 100] as const);
  return Object.fromEntries(rows.filter(([, ms]) => ms > 0.05));
}
