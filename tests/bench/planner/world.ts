/**
 * The world that policies are tried in: edges, their links, the pool they share, and the questions that come; all of it
 * drawn before the first decision, the same for every policy.
 *
 * Measured: how long an edge computes, from the README's tables of PaliGemma 3B at 224 pixels (four machines) and of the
 * bundled model, and that the same work took up to twice as long in other minutes; what is sent, 147 KB of pixels or
 * 295 KB of int8 features. Extrapolated: machines of 8 and 16 threads, by what the second thread of the AMD machine gave,
 * steps no faster than half of two threads'. Assumed: the pool's GPU, as milliseconds of its work at 20 Tflop/s and
 * 300 GB/s; links, by their kinds' usual figures; what people ask for.
 */

import type { Calibration, Linear, Remaining } from "../../../lib/schedule/cost_model.ts";
import type { Option } from "../../../lib/schedule/planner.ts";
import { Chance } from "./chance.ts";

/** Links and machines change this often. */
export const GRID_MS = 5000;
/** How long a world lasts, two of its days. */
export const HORIZON_MS = 6000_000;
const DAY_MS = HORIZON_MS / 2;
/** Mean time from a question of an edge to its next. */
const GAP_MS = 30_000;

/** What a link is like. */
export interface LinkKind {
  readonly weight: number;
  readonly rttMs: number;
  /** 10⁶ bits a second upward. */
  readonly mbps: number;
  /** Of the rate's logarithm, over half a minute. */
  readonly fading: number;
}

const SLOW_3G: LinkKind = { weight: 1, rttMs: 400, mbps: 0.4, fading: 0.4 };
const MOBILE: LinkKind = { weight: 2, rttMs: 60, mbps: 6, fading: 0.8 };
const BROADBAND: LinkKind = { weight: 3, rttMs: 25, mbps: 20, fading: 0.3 };
const LAN: LinkKind = { weight: 2, rttMs: 1, mbps: 1000, fading: 0.05 };
const MIXED = [SLOW_3G, MOBILE, BROADBAND, LAN];

/** How the pool goes away: it refuses at once; it is silent; or it is silent while it announces itself. */
export type OutageKind = "refusing" | "silent" | "wedged";

/** A class of traces. */
export interface WorldClass {
  readonly name: string;
  readonly links: readonly LinkKind[];
  /** The load that all questions would be on the pool, of what it can do, over the whole day. */
  readonly load: number;
  /** Of the day's load: its peak is 1 + swing. */
  readonly swing: number;
  /** Bursts of so many times the usual rate, for about a minute, every ten minutes or so; of all edges together. */
  readonly burst?: number;
  readonly outages?: boolean;
  /** Slots come and go with the load, and take half a minute to come. */
  readonly scaled?: boolean;
  /** Probability that a piece of the pool's work or a transfer has a heavy tail. */
  readonly tails?: number;
  /** Of the logarithm of how far calibrations are off. */
  readonly miscalibration: number;
  /** Share of the time in which an edge's neighbours are loud, and how much slower it then is, at most. */
  readonly loud: number;
  readonly slower: number;
}

const USUAL = { load: 0.9, swing: 0.5, miscalibration: 0.1, loud: 0.2, slower: 2 };

/** All classes of traces. */
export const CLASSES: readonly WorldClass[] = [
  { ...USUAL, name: "slow-3g", links: [SLOW_3G] },
  { ...USUAL, name: "mobile", links: [MOBILE] },
  { ...USUAL, name: "broadband", links: [BROADBAND] },
  { ...USUAL, name: "lan", links: [LAN] },
  { ...USUAL, name: "diurnal", links: MIXED, load: 1, swing: 0.9 },
  { ...USUAL, name: "pool-failure", links: MIXED, load: 0.7, outages: true },
  { ...USUAL, name: "cold-start", links: MIXED, load: 0.7, burst: 3, scaled: true },
  { ...USUAL, name: "heavy-tail", links: MIXED, load: 0.6, tails: 0.04 },
  { ...USUAL, name: "noisy-edge", links: MIXED, miscalibration: 0.5, loud: 0.5, slower: 3 },
];

interface Machine {
  readonly weight: number;
  /** Milliseconds of a picture, of a prefill of 264 positions (70 of the bundled model), and of a token. */
  readonly visionMs: number;
  readonly prefillMs: number;
  readonly stepMs: number;
  readonly bundled?: boolean;
}

const MACHINES: readonly Machine[] = [
  { weight: 2, visionMs: 1880, prefillMs: 11200, stepMs: 124 }, // Intel, one thread
  { weight: 2, visionMs: 1220, prefillMs: 6100, stepMs: 87 }, // two
  { weight: 2, visionMs: 1180, prefillMs: 6700, stepMs: 70 }, // AMD, one thread
  { weight: 3, visionMs: 750, prefillMs: 3500, stepMs: 56 }, // two
  { weight: 3, visionMs: 300, prefillMs: 950, stepMs: 35 }, // eight
  { weight: 2, visionMs: 190, prefillMs: 500, stepMs: 28 }, // sixteen
  { weight: 1, visionMs: 25, prefillMs: 10, stepMs: 1, bundled: true },
];

/** The pool's GPU: a picture of 220 Gflop, a prefill of 1.3 Tflop, a token's 1.6 GB of int4 weights for four answers at once. */
const POOL = { visionMs: 11, prefillMs: 65, stepMs: 15 };
const POOL_PRICE_PER_SECOND = 0.0005;

/** An edge and what happens around it. */
export interface Edge {
  readonly costs: Machine;
  readonly link: LinkKind;
  /** What a benchmark at its start found, not quite the truth. */
  readonly calibration: Calibration;
  /** By {@link GRID_MS}: factors of the machine's durations and of the link's rate. */
  readonly slowness: Float32Array;
  readonly rate: Float32Array;
}

/** A question, and all that chance has to say about it. */
export interface Asked {
  readonly edge: number;
  readonly at: number;
  readonly options: readonly Option[];
  readonly remaining: Remaining;
  readonly privacy: "any" | "pixels-stay";
  /** How many tokens the answer has; the options only tell what its task usually needs. */
  readonly tokens: number;
  /** Factors of durations. */
  readonly edgeNoise: number;
  readonly linkNoise: number;
  readonly poolNoise: number;
  /** A transfer that got stuck, milliseconds. */
  readonly stallMs: number;
}

/** When the pool was away. */
export interface Outage {
  readonly from: number;
  readonly to: number;
  readonly kind: OutageKind;
}

/** A world. */
export interface World {
  readonly kind: WorldClass;
  readonly edges: readonly Edge[];
  readonly asked: readonly Asked[];
  readonly outages: readonly Outage[];
  /** Answers that the pool works on at once; where it is scaled, at most. */
  readonly slots: number;
}

/** What people ask, and how long answers to it are. */
export const TASKS = [
  { weight: 5, tokens: 12, prompt: 4 }, // a caption
  { weight: 3, tokens: 3, prompt: 12 }, // an answer
  { weight: 2, tokens: 24, prompt: 8 }, // boxes
  { weight: 1, tokens: 60, prompt: 6 }, // a description
];

/** Draws a world. */
export function createWorld(kind: WorldClass, edgeCount: number, seed: number): World {
  const index = CLASSES.findIndex((it) => it.name === kind.name) + 1;
  const edges = Array.from({ length: edgeCount }, (_, i) => createEdge(kind, new Chance(seed, index, i + 1)));
  const times = arrivals(kind, edgeCount, new Chance(seed, index, -1));
  const chance = new Chance(seed, index, -2);
  const asked = times.map((at) => ask(kind, edges, at, chance));
  // Mean time in a slot of an answer that the pool gives from pixels.
  const tasks = TASKS.reduce((sum, it) => sum + it.weight * it.tokens, 0) / 11;
  const serviceMs = POOL.visionMs + POOL.prefillMs + tasks * POOL.stepMs;
  const slots = Math.max(1, Math.round(edgeCount / GAP_MS * serviceMs / kind.load));
  return { kind, edges, asked, outages: kind.outages ? outages(new Chance(seed, index, -3)) : [], slots };
}

function createEdge(kind: WorldClass, chance: Chance): Edge {
  const costs = chance.pick(MACHINES);
  const link = chance.pick(kind.links);
  const own = { ...link, mbps: link.mbps * chance.lognormal(0.3), rttMs: link.rttMs * chance.lognormal(0.2) };
  const off = chance.lognormal(kind.miscalibration);
  const by = (ms: number, units: number): Linear => ({
    baseMs: 0,
    perUnitMs: ms * off * chance.lognormal(0.05) / units,
  });
  const positions = costs.bundled ? 70 : 264;
  const calibration: Calibration = {
    edge: {
      vision: by(costs.visionMs, 1),
      prefill: by(costs.prefillMs, positions),
      step: by(costs.stepMs, 1),
    },
    pool: {
      vision: { baseMs: POOL.visionMs, perUnitMs: 0 },
      prefill: { baseMs: 0, perUnitMs: POOL.prefillMs / positions },
      step: { baseMs: POOL.stepMs, perUnitMs: 0 },
      link: { baseMs: own.rttMs, perUnitMs: 0.008 / own.mbps * chance.lognormal(0.2) },
      pricePerSecond: POOL_PRICE_PER_SECOND,
    },
  };
  return {
    costs,
    link: own,
    calibration,
    slowness: slowness(kind, chance),
    rate: fading(own.fading, chance),
  };
}

/** A machine whose neighbours are quiet for ten minutes or so, then loud for some. */
export function slowness({ loud, slower }: WorldClass, chance: Chance): Float32Array {
  const values = new Float32Array(HORIZON_MS / GRID_MS);
  const loudMs = 180_000;
  const quietMs = loudMs * (1 - loud) / loud;
  for (let at = 0, isLoud = chance.uniform() < loud; at < values.length; isLoud = !isLoud) {
    const until = at + Math.ceil(chance.exponential() * (isLoud ? loudMs : quietMs) / GRID_MS);
    values.fill(isLoud ? 1.2 + (slower - 1.2) * chance.uniform() : 1, at, until);
    at = until;
  }
  return values;
}

/** A rate whose logarithm wanders and comes back within half a minute. */
export function fading(sigma: number, chance: Chance): Float32Array {
  const values = new Float32Array(HORIZON_MS / GRID_MS);
  const kept = Math.exp(-GRID_MS / 30_000);
  let x = chance.normal();
  for (let i = 0; i < values.length; i++) {
    values[i] = Math.exp(sigma * x);
    x = kept * x + Math.sqrt(1 - kept * kept) * chance.normal();
  }
  return values;
}

/** Times of questions of all edges together, ascending. */
function arrivals({ swing, burst = 1 }: WorldClass, edges: number, chance: Chance): number[] {
  const most = edges / GAP_MS * (1 + swing) * burst;
  const times: number[] = [];
  let [burstFrom, burstTo] = [0, 0];
  for (let at = 0; (at += chance.exponential() / most) < HORIZON_MS;) {
    if (at > burstTo) {
      burstFrom = at + chance.exponential() * 600_000;
      burstTo = burstFrom + 30_000 + chance.exponential() * 60_000;
    }
    const wave = 1 - swing * Math.cos(2 * Math.PI * at / DAY_MS);
    const rate = wave * (at >= burstFrom ? burst : 1);
    if (chance.uniform() * (1 + swing) * burst < rate) times.push(at);
  }
  return times;
}

function ask(kind: WorldClass, edges: readonly Edge[], at: number, chance: Chance): Asked {
  const edge = Math.floor(chance.uniform() * edges.length);
  const { bundled } = edges[edge].costs;
  const task = chance.pick(TASKS);
  const imageTokens = bundled ? 64 : 256;
  const prefix = imageTokens + task.prompt;
  const known = chance.uniform() < 0.15; // a picture that was seen before
  const sizes = { pixels: 1, prefix, tokens: task.tokens };
  const vision = known ? {} : { vision: "edge" };
  const more = known ? "-known" : "";
  const options: Option[] = [
    { name: `local${more}`, ...vision, decode: "edge", uploadBytes: 0, leaves: "nothing", ...sizes },
    {
      name: `features${more}`,
      ...vision,
      decode: "pool",
      uploadBytes: bundled ? 64 * 256 : 295_000,
      leaves: "features",
      ...sizes,
    },
    {
      name: "pixels",
      vision: "pool",
      decode: "pool",
      uploadBytes: bundled ? 37_632 : 150_528,
      leaves: "pixels",
      ...sizes,
    },
  ];
  // What people wait for: seconds until something happens, and then as fast as they read.
  const firstMs = 5000 * chance.lognormal(0.8);
  const totalMs = firstMs + 1000 + task.tokens * 100;
  const which = chance.uniform();
  const tail = kind.tails ?? 0;
  return {
    edge,
    at,
    options,
    remaining: which < 0.5 ? { firstMs } : which < 0.8 ? { totalMs } : { firstMs, totalMs },
    privacy: chance.uniform() < 0.15 ? "pixels-stay" : "any",
    tokens: Math.max(1, Math.round(task.tokens * chance.lognormal(0.35))),
    edgeNoise: chance.lognormal(0.06),
    linkNoise: chance.lognormal(0.15),
    poolNoise: chance.lognormal(0.1) * (chance.uniform() < tail ? Math.min(3 * chance.pareto(1.2), 60) : 1),
    stallMs: chance.uniform() < tail ? Math.min(1000 * chance.pareto(1), 60_000) : 0,
  };
}

/** Away for a minute and a half or so, every ten minutes, in turns of kinds. */
function outages(chance: Chance): Outage[] {
  const kinds = ["refusing", "silent", "wedged"] as const;
  const found: Outage[] = [];
  for (let at = 0;;) {
    const from = at + 120_000 + chance.exponential() * 480_000;
    const to = from + 30_000 + chance.exponential() * 60_000;
    if (to > HORIZON_MS) return found;
    found.push({ from, to, kind: kinds[found.length % 3] });
    at = to;
  }
}

/** Milliseconds of an edge's stages for a question, begun at a time. */
export function edgeWork({ costs, slowness }: Edge, { edgeNoise }: Asked, at: number) {
  const factor = slowness[Math.min(slowness.length - 1, Math.floor(at / GRID_MS))] * edgeNoise;
  const { visionMs, prefillMs, stepMs } = costs;
  return { visionMs: visionMs * factor, prefillMs: prefillMs * factor, stepMs: stepMs * factor };
}

/** Milliseconds of a transfer of so many bytes, there and back, begun at a time. */
export function transfer({ link, rate }: Edge, { linkNoise, stallMs }: Asked, bytes: number, at: number) {
  const now = rate[Math.min(rate.length - 1, Math.floor(at / GRID_MS))];
  return (link.rttMs + bytes * 0.008 / (link.mbps * now)) * linkNoise + stallMs;
}

/** Milliseconds of the pool's stages for a question. */
export function poolWork({ poolNoise }: Asked) {
  const { visionMs, prefillMs, stepMs } = POOL;
  return { visionMs: visionMs * poolNoise, prefillMs: prefillMs * poolNoise, stepMs: stepMs * poolNoise };
}
