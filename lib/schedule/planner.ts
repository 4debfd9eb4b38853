/**
 * Which route a question takes, so that its answer is in time, and why.
 *
 * Of the routes whose P95s are within what remains: the one that leaves least of the picture elsewhere, then the
 * cheapest, then the quickest on average. Where there is none: the one most likely to be in time. A degraded answer is
 * thought of only when no exact one meets the budget. One question in seventy takes another route that would do as well,
 * so that what is known of it does not grow old. A second route is begun only before the first token, when the P95 of
 * the first has passed, for one question in twenty at most (Dean and Barroso, The Tail at Scale, 2013). After it, the rest
 * of an answer goes elsewhere, once, when it would be late at its pace and would be in time there.
 */

import type { CostModel, Estimate, Remaining, Route } from "./cost_model.ts";

/** What of a picture leaves the edge. */
export type Leaving = "nothing" | "features" | "pixels";

/** A route that a question may take. */
export interface Option extends Route {
  readonly leaves: Leaving;
  /** Why its answer may be worse than that of the others: fewer tokens, or a smaller variant of the model. */
  readonly degraded?: "shorter" | "smaller";
}

/** What a decision is made on. */
export interface Ask {
  readonly options: readonly Option[];
  readonly remaining: Remaining;
  /** Until the edge could begin to compute, milliseconds. */
  readonly edgeWaitMs?: number;
  readonly maxCost?: number;
  /** `pixels-stay` forbids routes that pixels leave on. */
  readonly privacy?: "pixels-stay" | "any";
  /** `degrade` allows degraded routes. */
  readonly quality?: "exact" | "degrade";
  /** Whether another route than the best may be tried; true by default. */
  readonly explore?: boolean;
  /** Names of routes in the operator's order, for a question that no time is set for; where there are none, the best. */
  readonly usual?: readonly string[];
}

/** A route and what is expected of it. */
export interface Candidate {
  readonly option: Option;
  readonly estimate: Estimate;
}

/** Why a route is chosen, or none is. */
export type Reason =
  | "usual" // no time is set: the first of the operator's order that can be relied on
  | "in-time" // the best of those whose P95s are in time
  | "likeliest" // none is sure to be; this one is the likeliest
  | "kept" // another is better, but not clearly: the route of the last question like this
  | "explored" // another is better; this one had not been tried for long
  | "hopeless" // no route has a chance worth the work
  | "impossible"; // there is none: absent, forbidden, or too dear

/** A decision and its reasons, as plain data. */
export interface Plan {
  readonly candidates: readonly Candidate[];
  /** Routes that were not thought of. */
  readonly excluded: readonly {
    readonly route: string;
    readonly why: "absent" | "privacy" | "cost" | "quality";
  }[];
  readonly chosen?: Candidate;
  readonly reason: Reason;
  /** What to begin besides, when no first token has come after so long. Its estimate counts from then. */
  readonly hedge?: Candidate & { readonly afterMs: number };
  readonly remaining: Remaining;
}

/** How the answer of a plan came. */
export interface Outcome {
  /** From the decision to the first token and to the end; none where none came. */
  readonly firstMs?: number;
  readonly totalMs?: number;
  /** Whether the second route gave the answer. */
  readonly hedgeWon?: boolean;
  /** Whether another gave the rest of it. */
  readonly handedOver?: boolean;
}

/** An answer under way. */
export interface UnderWay {
  readonly decode: string;
  readonly tokens: number;
  /** What the rest takes where it is, and what remains for it, milliseconds. */
  readonly restMs: number;
  readonly leftMs: number;
}

/** What became of plans, for metrics: plain counts. */
export interface Ledger {
  plans: number;
  /** Plans with a budget, and how many of those were met. */
  budgets: number;
  met: number;
  /** P95s that were put to the test, and those that held. */
  judged: number;
  covered: number;
  hedges: number;
  hedgesWon: number;
  /** Answers whose rest came from another route, to be in time. */
  handovers: number;
  /** Plans without a route. */
  refused: number;
}

const EXPLORED = 0.015;
/** Nothing is tried that is less likely to be in time. */
const EXPLORABLE = 0.9;
/** Of all questions; and how many of these may come at once. */
const HEDGED = 0.05;
const MAX_HEDGES_SAVED = 3;
/** A second route is worth beginning when it saves the answer at least this often. */
const HEDGE_WORTH = 0.06;
/** Of what the rest of an answer would take where it is, another route's P95 is at most so much. */
const HANDED_OVER = 0.75;
/** Below this chance the work is not worth beginning. */
const HOPELESS = 0.02;
/** Of a route that was seen fewer times, the calibration alone speaks: the work is begun unless that is so many times off. */
const SEEN = 3;
const FAR_OFF = 4;
/** By how much of the time that remains, and of the chance, another route must be better than the last one. */
const KEPT_MARGIN = 0.1;
const KEPT_CHANCE = 0.03;

const LEAVES: { readonly [leaving in Leaving]: number } = { nothing: 0, features: 1, pixels: 2 };

/** Decides for one edge. */
export class Planner {
  readonly ledger: Ledger = {
    plans: 0,
    budgets: 0,
    met: 0,
    judged: 0,
    covered: 0,
    hedges: 0,
    hedgesWon: 0,
    handovers: 0,
    refused: 0,
  };
  #hedges = 1;
  readonly #last = new Map<number, string>();
  readonly #tried = new Map<string, number>();

  /** @param random gives numbers in [0, 1), for exploration. */
  constructor(readonly model: CostModel, private readonly random: () => number = Math.random) {}

  /** @param now milliseconds, on the clock of the model. */
  plan(ask: Ask, now: number): Plan {
    const { options, remaining, edgeWaitMs = 0, maxCost = Infinity } = ask;
    const candidates: Candidate[] = [];
    const excluded: { route: string; why: "absent" | "privacy" | "cost" | "quality" }[] = [];
    for (const option of options) {
      const why = this.#excluded(option, ask, now);
      const estimate = why ? undefined : this.model.estimate(option, remaining, edgeWaitMs, now);
      if (!estimate) excluded.push({ route: option.name, why: why! });
      else if (estimate.cost > maxCost) excluded.push({ route: option.name, why: "cost" });
      else candidates.push({ option, estimate });
    }
    this.ledger.plans++;
    this.#hedges = Math.min(this.#hedges + HEDGED, MAX_HEDGES_SAVED);
    const common = { candidates, excluded, remaining };
    const size = options.length ? Math.round(Math.log2(options[0].prefix + options[0].tokens)) : 0;
    const usual = usually(candidates, ask);
    if (usual) return { ...common, chosen: usual, reason: "usual" };
    let { chosen, reason } = best(candidates, remaining, this.#last.get(size));
    if (chosen) this.#last.set(size, chosen.option.name);
    if (ask.explore !== false && this.random() < EXPLORED) {
      const other = this.#leastTried(candidates, chosen);
      if (other) [chosen, reason] = [other, "explored"];
    }
    if (!chosen || reason === "hopeless") {
      this.ledger.refused++;
      return { ...common, reason };
    }
    this.#tried.set(chosen.option.name, now);
    const hedge = this.#hedge(chosen, candidates, remaining, edgeWaitMs, now);
    return { ...common, chosen, reason, ...hedge && { hedge } };
  }

  /** Whether the second route of a plan may be begun now: true at most for one plan in twenty. */
  takeHedge(plan: Plan): boolean {
    if (!plan.hedge || this.#hedges < 1) return false;
    this.#hedges--;
    this.ledger.hedges++;
    return true;
  }

  /**
   * Where the rest of an answer is to come from that would be late where it is: the quickest of those whose P95 is in time
   * for it, and clearly less than what it would take; undefined where there is none. What it costs to prefill anew, tokens
   * included, is in that.
   */
  elsewhere(
    { candidates }: Plan,
    { decode, tokens, restMs, leftMs }: UnderWay,
    edgeWaitMs: number,
    now: number,
  ): Candidate | undefined {
    if (restMs <= leftMs) return undefined;
    let found: Candidate | undefined;
    for (const { option: whole } of candidates) {
      if (whole.decode === decode || whole.degraded || !this.model.possible(whole, now)) continue;
      const option = { ...whole, prefix: whole.prefix + tokens, tokens: Math.max(1, whole.tokens - tokens) };
      const estimate = this.model.estimate(option, { totalMs: leftMs }, edgeWaitMs, now);
      if (!estimate.meets || estimate.totalP95Ms > HANDED_OVER * restMs) continue;
      if (!found || estimate.totalMeanMs < found.estimate.totalMeanMs) found = { option, estimate };
    }
    return found;
  }

  /** Counts what became of a plan. */
  close(
    { chosen, remaining }: Plan,
    { firstMs = Infinity, totalMs = Infinity, hedgeWon, handedOver }: Outcome,
  ): void {
    const { ledger } = this;
    if (remaining.firstMs !== undefined || remaining.totalMs !== undefined) {
      ledger.budgets++;
      const met = firstMs <= (remaining.firstMs ?? Infinity) && totalMs <= (remaining.totalMs ?? Infinity);
      if (met) ledger.met++;
    }
    if (hedgeWon) ledger.hedgesWon++;
    if (handedOver) ledger.handovers++;
    if (!chosen || chosen.estimate.firstP95Ms === Infinity) return;
    ledger.judged++;
    const { firstP95Ms, totalP95Ms } = chosen.estimate;
    const within = remaining.firstMs === undefined
      ? totalMs <= totalP95Ms && !handedOver
      : firstMs <= firstP95Ms;
    if (within && !hedgeWon) ledger.covered++;
  }

  #excluded(option: Option, { privacy, quality }: Ask, now: number) {
    if (option.leaves === "pixels" && privacy === "pixels-stay") return "privacy";
    if (option.degraded && quality !== "degrade") return "quality";
    return this.model.possible(option, now) ? undefined : "absent";
  }

  #leastTried(candidates: readonly Candidate[], chosen: Candidate | undefined): Candidate | undefined {
    const since = ({ option }: Candidate) => this.#tried.get(option.name) ?? -Infinity;
    let found: Candidate | undefined;
    for (const it of candidates) {
      if (it === chosen || it.option.degraded || it.estimate.chance < EXPLORABLE) continue;
      if (!found || since(it) < since(found)) found = it;
    }
    return found;
  }

  #hedge(
    chosen: Candidate,
    candidates: readonly Candidate[],
    { firstMs = Infinity, totalMs = Infinity }: Remaining,
    edgeWaitMs: number,
    now: number,
  ): Plan["hedge"] {
    // A variant's answer is told as such from its beginning.
    if (Math.min(firstMs, totalMs) === Infinity || chosen.option.degraded === "smaller") return undefined;
    let found: Plan["hedge"];
    let most = HEDGE_WORTH;
    for (const { option, estimate: now0 } of candidates) {
      if (option.decode === chosen.option.decode || option.degraded && !chosen.option.degraded) continue;
      // As late as its P95 allows.
      const afterMs = Math.max(0, Math.min(firstMs - now0.firstP95Ms, totalMs - now0.totalP95Ms));
      const left = { firstMs: firstMs - afterMs, totalMs: totalMs - afterMs };
      const estimate = this.model.estimate(option, left, Math.max(0, edgeWaitMs - afterMs), now);
      const begun = this.model.estimate(chosen.option, { firstMs: afterMs }, edgeWaitMs, now).chance;
      // Of the times that the second is begun, how often it saves the answer.
      const worth = (1 - chosen.estimate.chance) / Math.max(1 - begun, 1e-6) * estimate.chance;
      if (worth > most) [found, most] = [{ option, estimate, afterMs }, worth];
    }
    return found;
  }
}

/** The candidate of a question without times, where the operator has an order. */
function usually(candidates: readonly Candidate[], { usual, remaining }: Ask): Candidate | undefined {
  if (!usual || remaining.firstMs !== undefined || remaining.totalMs !== undefined) return undefined;
  const rank = ({ option, estimate }: Candidate) =>
    usual.indexOf(option.name) + (estimate.meets ? 0 : usual.length);
  return candidates.filter((it) => usual.includes(it.option.name)).sort((a, b) => rank(a) - rank(b))[0];
}

/** The best candidate, before anything is tried for its own sake. @param last route of the last question like this. */
function best(
  candidates: readonly Candidate[],
  remaining: Remaining,
  last: string | undefined,
): { chosen?: Candidate; reason: Reason } {
  if (!candidates.length) return { reason: "impossible" };
  const surest = (some: readonly Candidate[]) => some.reduce((a, b) => before(b, a) ? b : a);
  const meeting = candidates.filter((it) => it.estimate.meets);
  if (meeting.length) {
    const first = surest(meeting);
    // Another route than the last has to be clearly in time.
    const clear = meeting.filter((it) => it.option.name === last || clearlyMeets(it.estimate, remaining));
    const chosen = clear.length ? surest(clear) : first;
    return { chosen, reason: chosen === first ? "in-time" : "kept" };
  }
  const open = candidates.filter((it) => !isHopeless(it.estimate, remaining));
  const likeliest = (open.length ? open : candidates).reduce((a, b) => likelier(b, a) ? b : a);
  if (!open.length) return { chosen: likeliest, reason: "hopeless" };
  const kept = open.find((it) => it.option.name === last);
  if (kept && kept !== likeliest && kept.estimate.chance >= likeliest.estimate.chance - KEPT_CHANCE) {
    return { chosen: kept, reason: "kept" };
  }
  return { chosen: likeliest, reason: "likeliest" };
}

function isHopeless(
  { chance, seen, firstP50Ms, totalP50Ms }: Estimate,
  { firstMs = Infinity, totalMs = Infinity }: Remaining,
): boolean {
  if (chance >= HOPELESS) return false;
  return seen >= SEEN || firstP50Ms > FAR_OFF * firstMs || totalP50Ms > FAR_OFF * totalMs;
}

function clearlyMeets({ firstP95Ms, totalP95Ms }: Estimate, remaining: Remaining): boolean {
  const { firstMs = Infinity, totalMs = Infinity } = remaining;
  return firstP95Ms <= firstMs * (1 - KEPT_MARGIN) && totalP95Ms <= totalMs * (1 - KEPT_MARGIN);
}

/** Quality, privacy, cost, mean. */
function before(a: Candidate, b: Candidate): boolean {
  const by = Number(a.option.degraded !== undefined) - Number(b.option.degraded !== undefined) ||
    LEAVES[a.option.leaves] - LEAVES[b.option.leaves] ||
    a.estimate.cost - b.estimate.cost ||
    a.estimate.totalMeanMs - b.estimate.totalMeanMs;
  return by < 0;
}

/** Among equals the quicker one: without a budget all are. */
function likelier(a: Candidate, b: Candidate): boolean {
  const by = b.estimate.chance - a.estimate.chance || a.estimate.totalMeanMs - b.estimate.totalMeanMs;
  return by < 0;
}
