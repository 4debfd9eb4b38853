/**
 * SigLIP-So400m and the projector at 224 px, int8, each layer read from a file while the one before computes:
 * `deno run -A tests/bench/streamed.ts DIRECTORY THREADS RUNS` prints one row of JSON. A process of its own, so that
 * what is counted is what this takes.
 */

import { loadVision } from "../../lib/vision/siglip.ts";
import { readConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { directoryFiles } from "../../functions/model.ts";
import { Accountant } from "./accountant.ts";
import { median } from "./statistics.ts";
import { type Clock, openBackend, timed } from "./work.ts";
import { numbers } from "./random.ts";

/** What the process prints. */
export interface Streamed {
  readonly medianMs: number;
  readonly runs: number;
  readonly peakBytes: number;
  readonly rssBytes: number;
  readonly [more: string]: unknown;
}

/** Runs the process. */
export async function streamed(directory: string, threads: number, runs: number): Promise<Streamed> {
  const { code, stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", "--no-lock", import.meta.filename!, directory, `${threads}`, `${runs}`],
    stderr: "inherit",
  }).output();
  if (code) throw new Error(`Exit status ${code}`);
  return JSON.parse(new TextDecoder().decode(stdout));
}

async function measure(directory: string, threads: number, runs: number): Promise<Streamed> {
  const { backend, close } = await openBackend({ threads });
  const accountant = new Accountant(backend);
  const clock: Clock = new Map();
  const files = accountant.watch(directoryFiles(directory));
  const config = await readConfig(files);
  const vision = await loadVision(timed(backend, clock), await openWeights(files, config), "streamed");
  const out = backend.tensor(vision.imageTokens, config.decoder.width);
  const { imageSize: size } = config.vision;
  const pixels = { size, data: numbers(size * size * 3) };
  const pause = () => Promise.resolve(accountant.sample());
  const times: number[] = [];
  for (let i = 0; i <= runs; i++) {
    if (i === 1) {
      accountant.restart();
      clock.clear();
    }
    const before = performance.now();
    await vision.encode(out, pixels, pause);
    if (i) times.push(performance.now() - before);
  }
  const image = await backend.read(out);
  if (!image.every(Number.isFinite)) throw new RangeError("Broken kernels: image tokens that are no numbers");
  await close();
  const { readMs, readBytes, reads, ...account } = accountant.account;
  const total = times.reduce((a, b) => a + b);
  const computeMs = clock.values().reduce((a, b) => a + b, 0);
  return {
    medianMs: median(times),
    runs,
    ...account,
    computeMs: computeMs / runs,
    readMs: readMs / runs,
    waitMs: (total - computeMs) / runs,
    readBytes: readBytes / runs,
    reads: reads / runs,
  };
}

if (import.meta.main) {
  const [directory, threads, runs] = Deno.args;
  const row = await measure(directory, Number(threads), Number(runs));
  Deno.stdout.writeSync(new TextEncoder().encode(JSON.stringify(row) + "\n"));
}
