/** What was decided of a question, followed to its end: what came of it is told to the model, and to whoever asked. */

import type { Budget, Handover, RouteDecision, RouteOutcome, RoutePrediction } from "../types.ts";
import { Pace } from "./pace.ts";
import type { Candidate, Plan } from "./planner.ts";
import { type Asked, POOL, type Routes } from "./routes.ts";

/** What was seen of an answer that came, milliseconds; see `Actual` of the cost model. */
export interface Seen {
  readonly visionMs?: number;
  readonly prefillMs?: number;
  readonly stepMs?: number;
  /** Until the edge began. */
  readonly edgeWaitMs?: number;
  /** Whether it was begun elsewhere: its times then teach nothing. */
  readonly resumed?: boolean;
  readonly tokens: number;
}

/** One answer on its way. */
interface Attempt extends Candidate {
  readonly begunAt: number;
  readonly pace: Pace;
  firstMs?: number;
}

/** What was decided of a question, followed to its end. */
export class Journey {
  readonly plan: Plan;
  /** The route that is taken, then those that are left where it fails; none that was excluded. */
  readonly order: readonly Candidate[];
  readonly #begunAt = performance.now();
  readonly #attempts = new Map<string, Attempt>();
  #firstMs: number | undefined;
  #hedge: { readonly route: string; won?: boolean } | undefined;
  #handover: Handover | undefined;
  #outcome: RouteOutcome | undefined;

  constructor(
    private readonly routes: Routes,
    private readonly parts: {
      readonly plan: Plan;
      readonly chosen: Candidate;
      readonly asked: Asked;
      readonly budget?: Budget;
      readonly at: number;
    },
  ) {
    const { plan, chosen } = parts;
    this.plan = plan;
    const others = plan.candidates.filter((it) =>
      it !== chosen && it.option.degraded === chosen.option.degraded
    );
    // Where one place fails, another place comes first; of those in time, the quickest.
    const rank = ({ option, estimate }: Candidate) =>
      (option.decode === chosen.option.decode ? 2 : 0) + (estimate.meets ? 0 : 1);
    others.sort((a, b) => rank(a) - rank(b) || a.estimate.totalMeanMs - b.estimate.totalMeanMs);
    this.order = [chosen, ...others];
  }

  /** Why it goes this way. */
  get decision(): RouteDecision {
    const { candidates, excluded, reason, hedge } = this.plan;
    return {
      candidates: candidates.map(predicted),
      excluded,
      chosen: this.parts.chosen.option.name,
      // What is hopeless is only begun where a late answer may be a worse one.
      reason: reason === "hopeless" || reason === "impossible" ? "likeliest" : reason,
      ...hedge && { hedge: { route: hedge.option.name, afterMs: rounded(hedge.afterMs) } },
      ...this.#handover && { handover: this.#handover },
    };
  }

  /** Where the rest came from elsewhere, to be in time. */
  get handover(): Handover | undefined {
    return this.#handover;
  }

  /** How long a route keeps the edge busy, milliseconds. */
  edgeMs({ option }: Candidate): number {
    return this.routes.model.edgeMs(option, Date.now());
  }

  /** Whether the second route may be begun now. */
  takeHedge(): boolean {
    const taken = this.routes.planner.takeHedge(this.plan);
    if (taken) this.#hedge = { route: this.plan.hedge!.option.name };
    return taken;
  }

  /** A route is asked. Those that are asked again go on. */
  begin(candidate: Candidate): void {
    const { name } = candidate.option;
    if (this.#attempts.has(name)) return;
    this.#attempts.set(name, { ...candidate, begunAt: performance.now(), pace: new Pace() });
  }

  /** It gave the answer's n-th token, counted from 1. */
  token(name: string, n: number): void {
    const now = performance.now();
    const attempt = this.#attempts.get(name)!;
    attempt.pace.token(now);
    if (n > 1) return;
    attempt.firstMs ??= now - attempt.begunAt;
    this.#firstMs ??= now - this.#begunAt;
    if (this.#hedge) this.#hedge.won ??= this.#hedge.route === name;
  }

  /**
   * The route that is to give the rest of an answer under way, once it would be late at the pace that its tokens come at and
   * another will be in time. What its pace was, the model learns at once.
   *
   * @param given tokens so far, 1 or more.
   */
  elsewhere(name: string, given: number, edgeWaitMs: number): Candidate | undefined {
    const { plan, routes: { model, planner } } = this;
    const attempt = this.#attempts.get(name)!;
    const now = performance.now();
    const { option, estimate, pace, begunAt } = attempt;
    const restMs = pace.restMs(Math.max(1, option.tokens - given), now);
    // Another model does not go on with what this one said.
    if (this.#handover || option.degraded === "smaller") return undefined;
    if (plan.remaining.totalMs === undefined || restMs === undefined) return undefined;
    const leftMs = plan.remaining.totalMs - (now - this.#begunAt);
    const underWay = { decode: option.decode, tokens: given, restMs, leftMs };
    const found = planner.elsewhere(plan, underWay, edgeWaitMs, Date.now());
    if (!found) return undefined;
    this.#handover = {
      from: name,
      to: found.option.name,
      afterTokens: given,
      afterMs: rounded(now - this.#begunAt),
      stayingMs: rounded(restMs),
      totalP50Ms: rounded(found.estimate.totalP50Ms),
      totalP95Ms: rounded(found.estimate.totalP95Ms),
    };
    const seen = { firstMs: attempt.firstMs, stepMs: pace.gapMs, totalMs: now - begunAt + restMs };
    model.observe(option, estimate, seen, Date.now());
    return found;
  }

  /** It gave the whole answer. */
  end(name: string, { resumed, tokens, edgeWaitMs = 0, ...seen }: Seen): RouteOutcome {
    const { option, estimate, begunAt, firstMs } = this.#attempts.get(name)!;
    const now = performance.now();
    if (!resumed && firstMs !== undefined) {
      const queueMs = option.decode === POOL
        ? Math.min(this.routes.model.pool(POOL).waitMs(Date.now()), firstMs)
        : 0;
      const { visionMs = 0, prefillMs = 0 } = seen;
      const actual = {
        ...seen,
        ...option.decode === POOL && {
          queueMs,
          transferMs: Math.max(0, firstMs - edgeWaitMs - visionMs - prefillMs - queueMs),
        },
        firstMs,
        totalMs: now - begunAt,
      };
      this.routes.model.observe(option, estimate, actual, Date.now());
    }
    const [first, totalMs] = [this.#firstMs ?? now - this.#begunAt, now - this.#begunAt];
    const { remaining: { firstMs: firstWanted, totalMs: totalWanted } } = this.plan;
    const hedge = this.#hedge && (this.#hedge.won ? "won" : "wasted");
    const wanted = firstWanted !== undefined || totalWanted !== undefined;
    this.#outcome = {
      route: name,
      firstMs: rounded(first),
      totalMs: rounded(totalMs),
      ...wanted && { met: first <= (firstWanted ?? Infinity) && totalMs <= (totalWanted ?? Infinity) },
      ...hedge && { hedge },
    };
    this.routes.planner.close(this.plan, {
      firstMs: first,
      totalMs,
      hedgeWon: this.#hedge?.won,
      handedOver: this.#handover !== undefined,
    });
    this.#tell(tokens);
    return this.#outcome;
  }

  /** It gave nothing, or only a part. @param leastMs what it said that it would take. */
  left(name: string, broken: boolean, leastMs = 0): void {
    const attempt = this.#attempts.get(name);
    if (!attempt || attempt.firstMs !== undefined && !broken) return;
    const { option, estimate, begunAt } = attempt;
    const tookMs = performance.now() - begunAt;
    this.routes.model.gaveUp(option, estimate, Math.max(leastMs, tookMs), broken, Date.now());
  }

  /** No route gave the answer. */
  fail(): void {
    this.routes.planner.close(this.plan, {});
    this.#tell();
  }

  /** Whether the P95 that the decision was made on held; undefined where there was none. */
  get covered(): boolean | undefined {
    const { estimate: { firstP95Ms, totalP95Ms } } = this.parts.chosen;
    if (!this.#outcome || firstP95Ms === Infinity || this.#hedge?.won || this.#handover) return undefined;
    const { firstMs, totalMs } = this.#outcome;
    return this.plan.remaining.firstMs === undefined ? totalMs <= totalP95Ms : firstMs <= firstP95Ms;
  }

  #tell(tokens?: number): void {
    const { asked, at, budget, chosen } = this.parts;
    this.routes.close(asked.kind, tokens, {
      at,
      ...budget && { budget },
      chosen: predicted(chosen),
      reason: this.decision.reason,
      ...this.#outcome && { actual: this.#outcome },
    });
  }
}

/** What was expected, as it is told. */
export function predicted({ option, estimate }: Candidate): RoutePrediction {
  const p95 = (ms: number) => ms === Infinity ? null : rounded(ms);
  return {
    route: option.name,
    firstP50Ms: rounded(estimate.firstP50Ms),
    firstP95Ms: p95(estimate.firstP95Ms),
    totalP50Ms: rounded(estimate.totalP50Ms),
    totalP95Ms: p95(estimate.totalP95Ms),
    chance: Math.round(estimate.chance * 1000) / 1000,
    cost: estimate.cost,
  };
}

/** To a tenth of a millisecond: more is noise. */
function rounded(ms: number): number {
  return Math.round(ms * 10) / 10;
}
