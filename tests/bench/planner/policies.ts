/** The policies that are compared. All know the same: the calibration, what they saw, and what the pool announces. */

import { type Actual, CostModel } from "../../../lib/schedule/cost_model.ts";
import { type Option, type Plan, Planner } from "../../../lib/schedule/planner.ts";
import { type Present, WORKER_MAX_AGE_MS } from "../../../lib/schedule/pool_view.ts";
import { Chance } from "./chance.ts";
import { allowed, type Attempt, type Decision, lateness, type Policy, type View } from "./engine.ts";
import type { Snapshot } from "./pool.ts";
import type { Edge } from "./world.ts";

/** What a policy of one edge is made with. */
interface PolicyParts {
  readonly edge: Pick<Edge, "calibration">;
  readonly index: number;
  readonly seed: number;
  /** Gets the durations of plans, milliseconds. */
  readonly planMillis: number[];
  /** To the static threshold the pool is near when sending takes less; two seconds by default. */
  readonly nearMs?: number;
}

/** Makers of policies by name. */
export const POLICIES = {
  "always-local": () => ({ choose: ({ asked }) => ({ option: local(allowed(asked)) }) }),
  "always-pool": () => ({ choose: ({ asked }) => ({ option: remote(allowed(asked)) }) }),
  "static-threshold": ({ edge, nearMs }) => new Threshold(edge, nearMs),
  regression: ({ edge }) => new Regression(edge),
  planner: (parts) => new Planning(parts),
  oracle: () => ({ choose: oracle }),
} satisfies Record<string, (parts: PolicyParts) => Policy>;

export type PolicyName = keyof typeof POLICIES;

function local(options: readonly Option[]): Option {
  return options.find((it) => it.decode === "edge")!;
}

/** All of it in the pool, or as much as may be. */
function remote(options: readonly Option[]): Option {
  const elsewhere = options.filter((it) => it.decode === "pool");
  return elsewhere.find((it) => it.leaves === "pixels") ?? elsewhere[0];
}

/** What a sensible client of a pool keeps: the rate of the last transfers, and for how long not to ask a pool that failed. */
class LinkWatch implements Pick<Policy, "answered" | "gaveUp"> {
  #restUntil = 0;
  /** Milliseconds of transfers, of what the calibration says. */
  factor = 1;

  constructor(private readonly edge: PolicyParts["edge"]) {}

  usable({ pool, now }: View): boolean {
    return now >= this.#restUntil && pool !== undefined && now - pool.at <= WORKER_MAX_AGE_MS;
  }

  transferMs(bytes: number): number {
    const { baseMs, perUnitMs } = this.edge.calibration.pool.link!;
    return (baseMs + perUnitMs * bytes) * this.factor;
  }

  answered({ option, actual: { transferMs } }: Attempt): void {
    if (!transferMs) return;
    this.factor *= (transferMs / this.transferMs(option.uploadBytes)) ** 0.3;
  }

  gaveUp(_: Attempt, broken: boolean, now: number): void {
    if (broken) this.#restUntil = now + 10_000;
  }
}

/** To the pool whenever sending takes little. */
class Threshold implements Policy {
  readonly #link: LinkWatch;

  constructor(edge: PolicyParts["edge"], private readonly nearMs = 2000) {
    this.#link = new LinkWatch(edge);
  }

  choose(view: View): Decision {
    const options = allowed(view.asked);
    const away = remote(options);
    const near = this.#link.usable(view) && this.#link.transferMs(away.uploadBytes) < this.nearMs;
    return { option: near ? away : local(options) };
  }

  answered(attempt: Attempt): void {
    this.#link.answered(attempt);
  }

  gaveUp(attempt: Attempt, broken: boolean, now: number): void {
    this.#link.gaveUp(attempt, broken, now);
  }
}

/**
 * As Neurosurgeon (Kang et al., ASPLOS 2017): the stages' regressions, the rate of the link as lately seen and the load of
 * the pool as it tells it give a time for each split; the least is taken.
 */
class Regression implements Policy {
  readonly #link: LinkWatch;

  constructor(private readonly edge: PolicyParts["edge"]) {
    this.#link = new LinkWatch(edge);
  }

  choose(view: View): Decision {
    const { asked, pool } = view;
    const wantsFirst = asked.remaining.firstMs !== undefined;
    const usable = this.#link.usable(view);
    const idle = !pool || pool.running < pool.slots && !pool.waiting;
    const queueMs = idle ? 0 : (pool.waiting + 1) * pool.serviceMs / pool.slots;
    const time = (it: Option) => {
      const { vision, prefill, step } = this.edge.calibration[it.decode];
      let ms = prefill.baseMs + prefill.perUnitMs * it.prefix;
      if (!wantsFirst) ms += (step.baseMs + step.perUnitMs) * (it.tokens - 1);
      if (it.vision === it.decode) ms += vision.baseMs + vision.perUnitMs * it.pixels;
      else if (it.vision) ms += this.edge.calibration.edge.vision.perUnitMs * it.pixels;
      if (it.decode === "edge" || it.vision === "edge") ms += view.edgeWaitMs;
      if (it.decode === "pool") ms += queueMs + this.#link.transferMs(it.uploadBytes);
      return ms;
    };
    const options = allowed(asked).filter((it) => it.decode === "edge" || usable);
    return { option: options.reduce((a, b) => time(b) < time(a) ? b : a) };
  }

  answered(attempt: Attempt): void {
    this.#link.answered(attempt);
  }

  gaveUp(attempt: Attempt, broken: boolean, now: number): void {
    this.#link.gaveUp(attempt, broken, now);
  }
}

/** `lib/schedule`'s planner. */
class Planning implements Policy {
  readonly #planner: Planner;
  /** The last announcement, and since when they come without a gap. */
  #heard: Snapshot | undefined;
  #since = 0;

  constructor(private readonly parts: PolicyParts) {
    const chance = new Chance(parts.seed, parts.index, -1);
    const model = new CostModel(parts.edge.calibration, { pool: (now) => this.#present(now) });
    this.#planner = new Planner(model, () => chance.uniform());
  }

  choose(view: View): Decision {
    const { asked, edgeWaitMs, now } = view;
    this.#hear(view);
    const before = performance.now();
    const { options, remaining, privacy } = asked;
    const plan = this.#planner.plan({ options, remaining, edgeWaitMs, privacy }, now);
    this.parts.planMillis.push(performance.now() - before);
    return { option: plan.chosen?.option, estimate: plan.chosen?.estimate, plan };
  }

  mayHedge(plan: Plan): boolean {
    return this.#planner.takeHedge(plan);
  }

  expect(option: Option, { asked, edgeWaitMs, now }: View) {
    return this.#planner.model.estimate(option, asked.remaining, edgeWaitMs, now);
  }

  answered({ option, estimate, actual }: Attempt, now: number): void {
    if (estimate) this.#planner.model.observe(option, estimate, actual as Actual, now);
  }

  gaveUp({ option, estimate, leastMs }: Attempt, broken: boolean, now: number): void {
    if (estimate) this.#planner.model.gaveUp(option, estimate, leastMs, broken, now);
  }

  #hear({ pool }: View): void {
    if (!pool || pool.at === this.#heard?.at) return;
    if (this.#heard && pool.since - this.#heard.at > WORKER_MAX_AGE_MS) this.#since = pool.since;
    this.#heard = pool;
  }

  #present(now: number): Present | undefined {
    if (!this.#heard) return undefined;
    const { at, slots, running, waiting, serviceMs } = this.#heard;
    if (now - at > WORKER_MAX_AGE_MS) return { workers: [] };
    return { workers: [{ worker: "pool", slots, running, waiting, serviceMs }], since: this.#since };
  }
}

/**
 * Knows how long everything will take, and takes the first route in the planner's own order that is in time; where none
 * is, the one that is least late.
 */
function oracle({ asked, look }: View): Decision {
  let found: Option | undefined;
  let least = 1;
  for (const it of allowed(asked)) {
    const late = lateness(asked, look(it));
    if (late < least) [found, least] = [it, late];
    if (!least) break;
  }
  return { option: found };
}
