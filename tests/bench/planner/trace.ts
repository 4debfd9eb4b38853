/**
 * What is asked of the real system, for every policy the same: classes of the simulation's (world.ts), one edge each, with
 * the simulation's links, fading, loud neighbours, tasks and wishes. All of it is drawn before the first question.
 *
 * - Links: slow 3G (400 ms, 0.4 Mbit/s), mobile (60 ms, 6 Mbit/s), broadband (25 ms, 20 Mbit/s) and LAN (1 ms, 1 Gbit/s);
 *   the classes whose edges have links of any kind have broadband, the commonest. Rates fade by the simulation's process,
 *   each transfer has its noise. Questions are taken to be 2.5 s apart.
 * - The edge's machine is five times as slow as the worker's: its stages take so many times what they take here; in loud
 *   minutes up to 2 or, in noisy-edge, 3 times that. Calibrations are off as they are in the simulation.
 * - Failures: of the questions of pool-failure the third sixth finds the worker killed (SIGKILL; it is then started again),
 *   the fifth sixth finds it stopped (SIGSTOP: it accepts connections and says nothing). In heavy-tail, 4 in 100 transfers
 *   get stuck for a second or more, 4 s at most.
 * - Budgets are made of what the calibrated cost model says of the class's edge and link before the first question, in equal
 *   parts of the way here and the way to the pool (of pixels; where these have to stay, of features): between the P50 of
 *   that way and twice its P95, evenly by its logarithm. So some can be met only here, some only by the pool, some by
 *   either. Half of them are for the first token, three in ten for the whole answer, two in ten for both.
 *
 * Not played are the classes in which other edges load the pool (diurnal, cold-start): there is one edge.
 */

import { Chance } from "./chance.ts";
import type { Shape } from "./link.ts";
import { CLASSES, fading, GRID_MS, type LinkKind, slowness, TASKS, type WorldClass } from "./world.ts";

/** How many times slower the edge is than the worker. */
export const SLOWER = 5;
/** From one question to the next, as far as links and neighbours know. */
const GAP_MS = 2500;
const MAX_STALL_MS = 4000;
const NOT_PLAYED = ["diurnal", "cold-start"];
/** Twice its P95 is the most that is asked of a way. */
const MOST_OF_P95 = 2;

/** One class of questions. */
export interface RealClass {
  readonly name: string;
  readonly link: LinkKind;
  /** By how much its edge's calibration is off. */
  readonly miscalibrated: number;
  readonly asked: readonly RealAsked[];
}

/** A question, and all that happens to it. */
export interface RealAsked {
  readonly tokens: number;
  readonly privacy: "any" | "pixels-stay";
  /** Of the edge's stages, of what they take on a quiet machine. */
  readonly slowness: number;
  readonly link: Shape;
  readonly stallMs: number;
  readonly worker: "well" | "killed" | "stopped";
  readonly wants: "first" | "total" | "both";
  /** Whose time the budget is made of, and where between its P50 and twice its P95, 0 to 1. */
  readonly of: "local" | "pool";
  readonly at: number;
}

/** Draws so many questions of each class. */
export function drawTrace(questions: number, seed: number): RealClass[] {
  const played = CLASSES.filter((it) => !NOT_PLAYED.includes(it.name));
  return played.map((kind, i) => drawClass(kind, questions, new Chance(seed, 1000 + i)));
}

function drawClass(kind: WorldClass, questions: number, chance: Chance): RealClass {
  const link = kind.links.reduce((a, b) => b.weight > a.weight ? b : a);
  const miscalibrated = chance.lognormal(kind.miscalibration);
  const slow = slowness(kind, chance);
  const rate = fading(link.fading, chance);
  const asked = Array.from({ length: questions }, (_, i): RealAsked => {
    const now = Math.floor(i * GAP_MS / GRID_MS);
    const noise = chance.lognormal(0.15);
    const which = chance.uniform();
    const stuck = chance.uniform() < (kind.tails ?? 0);
    const sixth = Math.floor(6 * i / questions);
    return {
      tokens: chance.pick(TASKS).tokens,
      privacy: chance.uniform() < 0.15 ? "pixels-stay" : "any",
      slowness: slow[now],
      link: { rttMs: link.rttMs * noise, mbps: link.mbps * rate[now] / noise },
      stallMs: stuck ? Math.min(1000 * chance.pareto(1), MAX_STALL_MS) : 0,
      worker: !kind.outages ? "well" : sixth === 2 ? "killed" : sixth === 4 ? "stopped" : "well",
      wants: which < 0.5 ? "first" : which < 0.8 ? "total" : "both",
      of: chance.uniform() < 0.5 ? "local" : "pool",
      at: chance.uniform(),
    };
  });
  return { name: kind.name, link, miscalibrated, asked };
}

/** What is wanted of a way of which these quantiles are told, milliseconds. */
export function budgetOf(
  { wants, at }: Pick<RealAsked, "wants" | "at">,
  quantiles: Readonly<Record<"firstP50Ms" | "firstP95Ms" | "totalP50Ms" | "totalP95Ms", number>>,
): { ttftMs?: number; totalMs?: number } {
  const between = (p50: number, p95: number) => Math.round(p50 * (MOST_OF_P95 * p95 / p50) ** at);
  const { firstP50Ms, firstP95Ms, totalP50Ms, totalP95Ms } = quantiles;
  return {
    ...wants !== "total" && { ttftMs: between(firstP50Ms, firstP95Ms) },
    ...wants !== "first" && { totalMs: between(totalP50Ms, totalP95Ms) },
  };
}
