/**
 * The benchmark: the kernels at the model's true shapes and the stages of PaliGemma 3B at full size, on this project's
 * engine and on onnxruntime, compiled to WebAssembly and to this machine, in one run.
 *
 *     deno task bench [--only WORK,…] [--threads N] [--json FILE] [--peers false] [--multiplier dot|words]
 *                     [--twins true|false] [--build simd|relaxed] [--least MS]
 *
 * Every work is first found right, then timed, in turns with what bounds it on this machine and with its peers; figures are
 * medians. A peer that fails is absent and the reason is told; a work of ours
 * that fails makes the benchmark fail. What quantised weights cost in accuracy stands beside it, under `quality`.
 */

import { dirname } from "@std/path";
import type { Multiplier } from "../../lib/backend/wasm_kernels.ts";
import type { Pause } from "../../lib/types.ts";
import { oneOf, parseFlags, runCommand, threadsIn, UsageError, whole } from "./command_line.ts";
import { KERNELS } from "./kernels.ts";
import { openYardstick, type Yardstick } from "./limits.ts";
import { describeMachine, machineLines } from "./machine.ts";
import { MODELS, withWeights } from "./models.ts";
import { openPeer, type Peer, PEER_ENGINES, PEER_WORKS, type PeerEngine } from "./peers.ts";
import { type Quality, quality, qualityLine } from "./quality.ts";
import { type Contestant, median, type Patience, race } from "./statistics.ts";
import { streamed } from "./streamed.ts";
import { limitOf, type Prepared, type Settings, type Weights, type Work } from "./work.ts";

/** One measured figure. */
export interface Result {
  readonly work: string;
  readonly engine: "wasm" | PeerEngine;
  readonly weights: Weights;
  readonly threads: number;
  /** Of one run; of `decode-32`, of one token. */
  readonly medianMs: number;
  readonly runs: number;
  /** Of what bounds it on this machine: `limit` names it, `limitRate` is what was measured in the same run, 10⁹ a second. */
  readonly shareOfLimit?: number;
  readonly limit?: string;
  readonly limitRate?: number;
  /** 10⁹ operations of matrices a second. */
  readonly gops?: number;
  /** 10⁹ bytes of weights read a second. */
  readonly gigabytes?: number;
  /** On several threads: how many times as fast as on one. */
  readonly timesOneThread?: number;
  readonly peakBytes?: number;
  readonly rssBytes?: number;
  readonly [more: string]: unknown;
}

/** What a work is measured with. */
export interface Means {
  readonly settings: Settings;
  readonly yardstick: Yardstick;
  readonly patience: Patience;
}

/**
 * Measures one work of ours in turns with what bounds it and with its peers: a machine that others use too changes from
 * second to second. So the limit is measured between the layers of a long run as well, off its clock; the share is the
 * median of those of the runs. On several threads the same work on one takes its turns too. Peers that fail are left out.
 */
export async function measure(work: Work, means: Means, peers: readonly Peer[] = []): Promise<Result[]> {
  const { settings, yardstick, patience } = means;
  const { threads } = settings;
  const prepared = await work.prepare(settings);
  const alone = threads > 1 ? await work.prepare({ ...settings, threads: 1 }) : undefined;
  try {
    const limit = limitOf(prepared);
    const ours = limit ? besideLimit(prepared, () => yardstick.measure(limit.name, 0), patience) : undefined;
    const own = ours ? [ours.work, ours.reading] : [clocked(prepared)];
    if (alone) own.push(clocked(alone));
    const found = await race([...own, ...peers], patience);
    const [times, theirs] = [found[0], found.slice(own.length)];
    const { name, weights } = work;
    const rows = peers.map(({ engine, weights, rssBytes, layersMeasured, failed }, i): Result | undefined =>
      failed === undefined
        ? {
          ...{ work: name, engine, weights, threads, medianMs: median(theirs[i]) },
          ...{ runs: theirs[i].length, rssBytes, ...layersMeasured && { layersMeasured } },
        }
        : undefined
    );
    const parts = prepared.parts ?? 1;
    const medianMs = median(times) / parts;
    const done = limit?.name === "dramRead" ? prepared.bytes : prepared.operations;
    const { rssBytes, ...extra } = prepared.extra?.() ?? {};
    return [{
      ...{ work: name, engine: "wasm", weights, threads, medianMs, runs: times.length },
      ...ours && limit && {
        shareOfLimit: median(times.map((ms, i) => done * parts / ms / 1e6 / ours.rates[i])),
        limit: limit.title,
        limitRate: median(ours.rates),
      },
      ...{ gops: prepared.operations / medianMs / 1e6, gigabytes: prepared.bytes / medianMs / 1e6 },
      ...extra,
      // Beside the same work on one thread, nobody can tell whose memory it is.
      ...alone
        ? { timesOneThread: median(found[own.length - 1].map((ms, i) => ms / times[i])) }
        : rssBytes !== undefined && { rssBytes },
    }, ...rows.filter((it) => it !== undefined)];
  } finally {
    await prepared.close();
    await alone?.close();
  }
}

/** A turn is at least so long, of several runs where it must be: what others leave in the caches is not part of the work. */
const BURST_MS = 50;

/** A work by its own clock, which stands while it pauses. */
function clocked(work: Prepared, pause?: Pause): Contestant {
  return {
    ready: () => work.ready?.() ?? Promise.resolve(),
    async run() {
      let [paused, runs, ms] = [0, 0, 0];
      const since = performance.now();
      do {
        await work.run(async () => {
          if (!pause) return;
          const before = performance.now();
          await pause();
          paused += performance.now() - before;
        });
        ms = performance.now() - since - paused;
        runs++;
      } while (ms < BURST_MS && !work.ready);
      return ms / runs;
    },
  };
}

/**
 * A work and the reading of its limit, taken in turns, and the rate of each round: what was done by all readings in all the
 * time they took. (The mean of their rates would not see what others take from a few of them, while the work sees all of
 * it.) Within a run readings take a tenth of the time; after it as long as a turn, so that both meet the same disturbance.
 */
function besideLimit(work: Prepared, read: () => Promise<number>, { leastMs, minRounds }: Patience) {
  const rates: number[] = [];
  const [counts, slowness]: [number[], number[]] = [[], []];
  let [round, since, tookMs] = [0, 0, 0];
  const add = async (round: number) => {
    const before = performance.now();
    const rate = await read();
    since = performance.now();
    tookMs = since - before;
    counts[round] = (counts[round] ?? 0) + 1;
    slowness[round] = (slowness[round] ?? 0) + 1 / rate;
    rates[round] = counts[round] / slowness[round];
  };
  const pause = async () => {
    if (performance.now() - since > 9 * tookMs) await add(round);
  };
  const inTurns = clocked(work, pause);
  const readMs = Math.min(BURST_MS, leastMs / minRounds);
  let readings = 0;
  return {
    rates,
    work: {
      ...inTurns,
      run: async () => {
        const ms = await inTurns.run();
        round++;
        return ms;
      },
    },
    reading: {
      async run() {
        const begun = performance.now();
        do await add(readings); while (performance.now() - begun < readMs);
        readings++;
      },
    },
  };
}

/** Everything that can be asked for, in the order in which it is measured. */
export const WORKS: readonly string[] = [
  ...KERNELS.map((it) => it.name),
  "siglip-224-streamed",
  ...MODELS.map((it) => it.name),
  "quality",
];

if (import.meta.main) await runCommand(import.meta.filename!, main, `\n\nWorks: ${WORKS.join(", ")}`);

async function main(): Promise<number> {
  const { values: flags } = parseFlags({
    only: { type: "string" },
    threads: { type: "string", default: "1" },
    json: { type: "string" },
    peers: { type: "string", default: "true" },
    multiplier: { type: "string" },
    twins: { type: "string" },
    build: { type: "string" },
    least: { type: "string", default: "5000" },
  });
  const only = flags.only?.split(",").map((it) => oneOf("only", it, WORKS));
  const settings: Settings = {
    threads: threadsIn(flags.threads),
    multiplier: flags.multiplier === undefined
      ? undefined
      : oneOf<Multiplier>("multiplier", flags.multiplier, ["dot", "words"]),
    twins: flags.twins === undefined ? undefined : yes("twins", flags.twins),
    build: flags.build === undefined ? undefined : oneOf("build", flags.build, ["simd", "relaxed"] as const),
  };
  const wanted = (name: string) => only?.includes(name) ?? true;
  const peers = yes("peers", flags.peers);
  const leastMs = whole("least", flags.least, 1);
  if (flags.json !== undefined) await checkPlace(flags.json);

  const yardstick = await openYardstick(settings.threads);
  const machine = await describeMachine(settings, yardstick, Math.min(200, leastMs / 5));
  machineLines(machine).forEach(print);
  const results: Result[] = [];
  const add = (result: Result) => {
    results.push(result);
    print(line(result));
  };
  for (const work of [...KERNELS, ...MODELS]) {
    if (!wanted(work.name)) continue;
    progress(`${work.name} …`);
    const patience = { leastMs, minRounds: work.rounds ?? 10 };
    const opened = peers ? await openPeers(work.name, settings.threads) : [];
    try {
      const [ours, ...theirs] = await measure(work, { settings, yardstick, patience }, opened);
      add(ours);
      for (const it of theirs) {
        add(it);
        print(`  ${it.engine} ${it.weights} takes ${(it.medianMs / ours.medianMs).toFixed(2)} times as long`);
      }
    } finally {
      await Promise.all(opened.map((it) => it.close()));
    }
  }
  if (wanted("siglip-224-streamed")) {
    progress("siglip-224-streamed …");
    add(await streamedResult(settings.threads));
  }
  yardstick.close();
  const rows: Quality[] = [];
  if (wanted("quality")) {
    progress("quality …");
    for await (const it of quality()) {
      rows.push(it);
      print(qualityLine(it));
    }
  }
  const found = { machine, results, ...rows.length && { quality: rows } };
  if (flags.json !== undefined) await Deno.writeTextFile(flags.json, JSON.stringify(found) + "\n");
  return 0;
}

function yes(flag: string, value: string): boolean {
  return oneOf(flag, value, ["true", "false"]) === "true";
}

/** Refuses a file that cannot be written, before minutes are spent on what is to be in it. */
async function checkPlace(file: string): Promise<void> {
  const kind = (path: string) =>
    Deno.stat(path).then((it) => it.isDirectory ? "directory" : "file", () => "");
  if (await kind(file) !== "directory" && await kind(dirname(file)) === "directory") return;
  throw new UsageError(`--json: expected a file in a directory that is there, found "${file}"`);
}

async function streamedResult(threads: number): Promise<Result> {
  return await withWeights("paligemma-3b-224", "vision", async (directory) => ({
    ...{ work: "siglip-224-streamed", engine: "wasm", weights: "int8", threads },
    ...await streamed(directory, threads, 5),
  }));
}

/** The peers of a work, in each format it is worth comparing with. */
async function openPeers(work: string, threads: number): Promise<Peer[]> {
  const peers: Peer[] = [];
  for (const it of PEER_WORKS.filter((it) => it.work === work)) {
    for (const engine of PEER_ENGINES) {
      progress(`${work}, ${engine} ${it.weights} …`);
      try {
        peers.push(await openPeer(it, engine, threads));
      } catch (error) {
        progress(`${work}: ${engine} ${it.weights} is absent: ${(error as Error).message}`);
      }
    }
  }
  return peers;
}

function line(it: Result): string {
  const parts = [
    `${it.work.padEnd(19)} ${it.engine.padEnd(15)} ${it.weights}`,
    `${it.medianMs.toFixed(3)} ms${it.work.startsWith("decode") ? " a token" : ""}`,
  ];
  if (it.shareOfLimit !== undefined) parts.push(`${(it.shareOfLimit * 100).toFixed(1)} % of ${it.limit}`);
  if (it.timesOneThread !== undefined) parts.push(`${it.timesOneThread.toFixed(2)} × one thread`);
  if (it.gops !== undefined) parts.push(`${it.gops.toFixed(1)} GOP/s`);
  if (it.gigabytes !== undefined && it.limit === "DRAM read") parts.push(`${it.gigabytes.toFixed(1)} GB/s`);
  if (it.peakBytes !== undefined) parts.push(`${(it.peakBytes / 1e6).toFixed(1)} MB counted`);
  if (it.rssBytes !== undefined) parts.push(`${(it.rssBytes / 1e6).toFixed(0)} MB resident`);
  if (it.waitMs !== undefined) {
    const [compute, read, wait] = [it.computeMs, it.readMs, it.waitMs].map((ms) => (ms as number).toFixed(0));
    parts.push(`${compute} ms computing, ${read} ms reading meanwhile, ${wait} ms waiting`);
  }
  const { operationMs } = it as { operationMs?: Record<string, number> };
  if (operationMs) {
    const total = Object.values(operationMs).reduce((a, b) => a + b);
    const share = Object.entries(operationMs).filter(([, ms]) => ms > total / 200).map(([name, ms]) =>
      `${name} ${(ms / total * 100).toFixed(1)} %`
    );
    parts.push(share.join(", "));
  }
  return `${parts.join("  ")}  (${it.runs} runs)`;
}

function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(line + "\n"));
}

function progress(line: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(line + "\n"));
}
