/**
 * What a model does on this machine's GPU, in one process, without a server around it:
 *
 *     deno task bench:gpu [--model DIR] [--tokens 32] [--dispatches N] [--software] [--json FILE]
 *
 * First what the adapter is and how fast it reads its memory; then, after a check of the bundled model's tokens against
 * WASM's: the floor of a token (an empty submission read back), what one more dispatch costs, a picture through SigLIP, a
 * prefill, tokens a second of 1, 4 and 16 answers at once with the share of the memory's bandwidth that their weights
 * take, where such a pass goes (the host's parts, and the GPU's by kernel, as its own timestamps have it), the choice of a
 * token, and every operation of a layer by itself. MODEL in the environment is the default of --model, the bundled model
 * that of both.
 *
 * --dispatches N submits after every N dispatches, instead of as the backend does by itself. What fails is told, and the
 * rest runs. A program that stands in for a GPU is refused without --software. Ctrl-C ends it with what has been measured.
 */

import { resolve } from "@std/path";
import { gpuOf, openGpu } from "../../functions/gpu.ts";
import { directoryFiles, TINY } from "../../functions/model.ts";
import type { WebgpuBackend } from "../../lib/backend/webgpu.ts";
import { createWasmBackend } from "../../lib/mod.ts";
import { createPause } from "../../lib/schedule/line.ts";
import type { Pause } from "../../lib/types.ts";
import { loadVision } from "../../lib/vision/siglip.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { parseFlags, runCommand, UsageError, whole } from "./command_line.ts";
import { check, load, type Loaded, prefillTimes, tokenTimes } from "./decoding.ts";
import { measureBandwidth, wordsOf } from "./gpu_limits.ts";
import { dispatchCost, floorMs, measureOperations, sampleTimes } from "./gpu_operations.ts";
import { partTimes, passParts, type Traced, tracePass, tracePrefill } from "./gpu_trace.ts";
import { numbers } from "./random.ts";
import { median } from "./statistics.ts";

const TOGETHER = [1, 4, 16];
const PICTURES = 9;

const say = (line: string) => Deno.stdout.writeSync(new TextEncoder().encode(`${line}\n`));

/** What has been found, by phase; what went wrong likewise. */
class Findings {
  readonly found: Record<string, unknown> = {};
  readonly failed: Record<string, string> = {};

  constructor(private readonly signal: AbortSignal) {}

  /** One phase, told when it begins and when it is over; undefined where it failed. */
  async phase<T>(name: string, run: () => Promise<T>, tell: (value: T) => string): Promise<T | undefined> {
    if (this.signal.aborted) return undefined;
    say(`${name} …`);
    const since = performance.now();
    try {
      const value = await run();
      this.found[name] = value;
      say(`  ${tell(value)}   (${((performance.now() - since) / 1000).toFixed(1)} s)`);
      return value;
    } catch (error) {
      this.failed[name] = this.signal.aborted ? "interrupted" : `${(error as Error).stack ?? error}`;
      say(`  FAILED: ${this.failed[name]}`);
      return undefined;
    }
  }
}

const fixed = (value: number, digits = 2) => value.toFixed(digits);
const gigabytes = (rate: number) => `${fixed(rate / 1e9, 1)} GB/s`;

/** Milliseconds of pictures through SigLIP and the projector, the first left out. */
async function encodeTimes(backend: WebgpuBackend, { model }: Loaded, directory: string, pause: Pause) {
  const vision = await loadVision(backend, await openWeights(directoryFiles(directory), model));
  const { imageSize } = model.vision;
  const out = backend.tensor(vision.imageTokens, vision.width);
  const times: number[] = [];
  for (let i = 0; i <= PICTURES; i++) {
    const pixels = { size: imageSize, data: numbers(imageSize * imageSize * 3, i + 1) };
    const since = performance.now();
    await vision.encode(out, pixels, pause);
    await backend.read(backend.slice(out, 0, 1, 0, 1));
    times.push(performance.now() - since);
  }
  backend.free(out);
  return times.slice(1);
}

/** Kernels that are told of a trace. */
const MOST_KERNELS = 16;

function byKernel({ gpuMs, kernels }: Traced): string {
  if (gpuMs === undefined || !kernels) return "no timestamps here";
  const lines = kernels.slice(0, MOST_KERNELS).map(({ kernel, count, usEach }) =>
    `${fixed(count * usEach / 1000, 3).padStart(9)} ms  ${`${count} ×`.padStart(6)} ${
      fixed(usEach, 1).padStart(8)
    } µs  ${kernel}`
  );
  return [`GPU ${fixed(gpuMs)} ms`, ...lines].join("\n  ");
}

/** Where a pass goes. */
async function trace(
  backend: WebgpuBackend,
  loaded: Loaded,
  together: number,
  findings: Findings,
  pause: Pause,
) {
  await findings.phase(
    `parts of a pass ${together}`,
    () => passParts(backend, loaded, together, pause),
    (it) =>
      `${fixed(it.ms)} ms: ${fixed(it.issueMs)} to issue, ${
        fixed(it.submitMs)
      } to submit in ${it.submissions}, ` +
      `${fixed(it.waitMs)} until it was read`,
  );
  await findings.phase(
    `dispatches of a submission ${together}`,
    () => partTimes(backend, loaded, together, pause),
    (it) => it.map((one) => `${one.maxDispatches ?? "all"}: ${fixed(one.ms)} ms`).join("; "),
  );
  await findings.phase(`trace ${together}`, () => tracePass(backend, loaded, together, pause), byKernel);
}

async function run(
  directory: string,
  tokens: number,
  software: boolean,
  maxDispatches: number | undefined,
  findings: Findings,
  signal: AbortSignal,
) {
  const gpu = await gpuOf("dawn");
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new UsageError("Cannot measure a GPU: expected an adapter, found none");
  const words = await findings.phase(
    "adapter",
    () => wordsOf(adapter),
    (it) =>
      [it.vendor, it.architecture, it.device, it.description, it.driver ?? ""].filter(Boolean).join(", ") +
      `\n  subgroups of ${it.subgroups}; ${it.features.join(" ")}\n  ${JSON.stringify(it.limits)}`,
  );
  const backend = await openGpu("dawn", { maxDispatches });
  try {
    if (backend.software && !software) {
      throw new UsageError(
        `Cannot measure a GPU: found a program that stands in for one, "${backend.adapter}"; --software measures it`,
      );
    }
    const pause = createPause(signal);
    findings.found.features = backend.features;
    say(
      `  kernels use ${
        Object.entries(backend.features).map(([name, has]) => `${name}: ${has}`).join(", ")
      }; f16: not used`,
    );
    if (!words) return;
    const bandwidth = await findings.phase(
      "bandwidth",
      () => measureBandwidth(adapter),
      (it) => `read ${gigabytes(it.read)}, copy ${gigabytes(it.copy)}, ${fixed(it.bufferBytes / 1e6, 0)} MB`,
    );
    const ms = (it: readonly number[]) =>
      `${fixed(median(it))} ms (${fixed(Math.min(...it))} to ${fixed(Math.max(...it))})`;
    await findings.phase("floor of a token", () => floorMs(backend), ms);
    await findings.phase(
      "dispatch",
      () => dispatchCost(backend),
      (it) => `${fixed(it.usEach)} µs each, of which ${fixed(it.usIssued)} to issue it`,
    );
    await findings.phase("check", async () => {
      const tiny = await load(TINY, backend);
      await check(tiny, await load(TINY, createWasmBackend({ simd, relaxed })));
      return "the bundled model's tokens are WASM's";
    }, (it) => it);
    const before = backend.sizeBytes;
    const loaded = await findings.phase("load", async () => {
      const since = performance.now();
      const loaded = await load(directory, backend);
      await floorMs(backend, 1);
      return { ...loaded, ms: performance.now() - since, bytes: backend.sizeBytes - before };
    }, ({ ms, bytes }) => `decoder in ${fixed(ms / 1000)} s; a token reads ${fixed(bytes / 1e6, 1)} MB`);
    delete findings.found.load;
    if (!loaded) return;
    const { decoder } = loaded.model;
    findings.found.model = { directory, decoder, loadMs: loaded.ms, weightBytes: loaded.bytes };
    for (const together of TOGETHER) {
      await findings.phase(
        `decode ${together}`,
        async () => {
          const times = await tokenTimes(loaded, together, tokens, pause);
          const dispatches = async (count: number) => {
            const before = backend.queue.dispatches;
            await tokenTimes(loaded, together, count, pause);
            return backend.queue.dispatches - before;
          };
          const ms = median(times);
          const rate = loaded.bytes * 1000 / ms;
          return {
            ...{ together, ms, leastMs: Math.min(...times), mostMs: Math.max(...times) },
            tokensPerSecond: together * times.length * 1000 / times.reduce((a, b) => a + b),
            dispatches: await dispatches(2) - await dispatches(1),
            bytesPerSecond: rate,
            shareOfBandwidth: bandwidth && rate / bandwidth.read,
          };
        },
        (it) =>
          `${fixed(it.tokensPerSecond, 1)} tokens/s; a pass ${fixed(it.ms)} ms (${fixed(it.leastMs)} to ${
            fixed(it.mostMs)
          }): ` +
          `${it.dispatches} dispatches, ${gigabytes(it.bytesPerSecond)} of weights` +
          (it.shareOfBandwidth ? `, ${fixed(it.shareOfBandwidth * 100, 1)} % of the memory's bandwidth` : ""),
      );
    }
    for (const together of [1, 16]) await trace(backend, loaded, together, findings, pause);
    await findings.phase(`prefill ${loaded.rows}`, () => prefillTimes(loaded, pause), ms);
    await findings.phase("trace two prefills", () => tracePrefill(backend, loaded, pause), byKernel);
    await findings.phase("picture", () => encodeTimes(backend, loaded, directory, pause), ms);
    await findings.phase(
      "sample",
      () => sampleTimes(backend, decoder.vocab, pause),
      (it) => it.map((way) => `${way.name}, ${way.rows} rows: ${fixed(way.ms)} ms`).join("; "),
    );
    await findings.phase(
      "operations",
      () =>
        measureOperations(backend, loaded, pause, (it) =>
          say(
            `  ${it.name.padEnd(34)} ${fixed(it.us, 1).padStart(9)} µs` +
              (it.bytes ? `  ${gigabytes(it.bytes * 1e6 / it.us)}` : ""),
          )),
      (it) => `${it.length} operations`,
    );
  } finally {
    backend.close();
  }
}

async function main(): Promise<number> {
  const { values: flags } = parseFlags({
    model: { type: "string", default: Deno.env.get("MODEL") || TINY },
    tokens: { type: "string", default: "32" },
    dispatches: { type: "string" },
    software: { type: "boolean", default: false },
    json: { type: "string" },
  });
  const tokens = whole("tokens", flags.tokens, 1);
  const dispatches = flags.dispatches === undefined ? undefined : whole("dispatches", flags.dispatches, 1);
  const stop = new AbortController();
  const interrupted = () => {
    if (stop.signal.aborted) Deno.exit(130);
    say("interrupted; once more ends it at once");
    stop.abort(new Error("interrupted"));
  };
  Deno.addSignalListener("SIGINT", interrupted);
  const findings = new Findings(stop.signal);
  try {
    await run(resolve(flags.model), tokens, flags.software, dispatches, findings, stop.signal);
  } finally {
    Deno.removeSignalListener("SIGINT", interrupted);
    const { found, failed } = findings;
    if (flags.json) {
      await Deno.writeTextFile(flags.json, JSON.stringify({ ...found, failed }, null, 1) + "\n");
    }
  }
  if (stop.signal.aborted) return 130;
  return Object.keys(findings.failed).length ? 1 : 0;
}

if (import.meta.main) await runCommand(import.meta.filename!, main);
