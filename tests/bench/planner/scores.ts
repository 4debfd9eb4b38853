/** What the results of a policy come to. */

import { lateness, type Result } from "./engine.ts";
import { HORIZON_MS, type World } from "./world.ts";

/** How a policy did in one class of traces. */
export interface Score {
  readonly policy: string;
  /** The share of all questions whose budget was met. */
  readonly hitRate: number;
  /** What it lost of the oracle's goodput, where an answer that is late by a share of its budget is worth that much less. */
  readonly regret: number;
  /** The share of chosen routes that kept to their P95, after an edge's first hundred questions; of those where anybody knows. */
  readonly coverage95: number | null;
  /** The share of questions for which a second route was begun. */
  readonly hedgeRate: number;
  /** The share of questions missed that another route, as the world stood when it was decided, would have met. */
  readonly misroutes: number;
  /** The share of questions that the pool worked on. */
  readonly poolShare: number;
  /** The share of questions that were refused at once. */
  readonly refused: number;
  /**
   * Where the pool goes away: how many questions of an edge an outage cost that another route would have met; of those
   * outages and edges that lost any, 99 in 100 at most, and all.
   */
  readonly lostToOutage?: { readonly p99: number; readonly max: number };
  /** Hit rates of as many parts of the time, one after another. */
  readonly overTime: readonly number[];
}

/** Questions of an edge until its coverage counts. */
const WARM_UP = 100;
const PARTS = 60;

/** Boils results down. @param oracle results of the oracle in the same world. */
export function score(
  policy: string,
  world: World,
  results: readonly Result[],
  oracle: readonly Result[],
): Score {
  const share = (of: (it: Result) => boolean) =>
    results.reduce((sum, it) => sum + Number(of(it)), 0) / results.length;
  const goodput = (of: readonly Result[]) => of.reduce((sum, it) => sum + 1 - lateness(it.asked, it), 0);
  const asked = new Uint32Array(world.edges.length);
  let [judged, covered] = [0, 0];
  for (const { asked: { edge }, covered: within } of results) {
    if (++asked[edge] <= WARM_UP || within === undefined) continue;
    judged++;
    if (within) covered++;
  }
  const parts = Array.from({ length: PARTS }, () => [0, 0]);
  for (const { asked: { at }, met } of results) {
    const part = parts[Math.floor(at / HORIZON_MS * PARTS)];
    part[0] += Number(met);
    part[1]++;
  }
  return {
    policy,
    hitRate: share((it) => it.met),
    regret: 1 - goodput(results) / goodput(oracle),
    coverage95: judged ? covered / judged : null,
    hedgeRate: share((it) => it.hedged),
    misroutes: share((it) => it.avoidable),
    poolShare: share((it) => it.pooled),
    refused: share((it) => !it.decision.option),
    ...world.outages.length && { lostToOutage: lostToOutage(world, results) },
    overTime: parts.map(([met, all]) => all ? met / all : 1),
  };
}

function lostToOutage({ outages }: World, results: readonly Result[]): { p99: number; max: number } {
  const counts = new Map<string, number>();
  for (const { asked: { edge, at }, lost, avoidable } of results) {
    if (!lost || !avoidable) continue;
    // What an outage broke off had been asked before it.
    const outage = outages.findIndex((it) => at < it.to);
    const key = `${edge} ${outage}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const sorted = [...counts.values()].sort((a, b) => a - b);
  return { p99: sorted[Math.floor(sorted.length * 0.99)] ?? 0, max: sorted.at(-1) ?? 0 };
}
