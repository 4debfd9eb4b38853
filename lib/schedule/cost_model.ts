/**
 * How long a question takes on each route, and how sure that is.
 *
 * A route is a chain of stages: wait at the edge, vision, transfer, wait in the pool, prefill, then a step for every
 * further token. Each stage is linear in its size (pixels, bytes, positions, tokens), calibrated once: by a few timed
 * runs at start, or by a file where clocks stand still during computation. What is seen later corrects it: every stage by
 * the drift of actual / calibrated, every route and size by the spread of actual / predicted.
 *
 * Pure: times are handed in, in milliseconds of any one clock, and a model is JSON out, JSON in (`lib/store` keeps it).
 */

import { RequestError } from "../errors.ts";
import { Drift, type DriftJson } from "./drift.ts";
import { PoolView, type Present } from "./pool_view.ts";
import { type Shape, Spread, type SpreadJson, Tracker } from "./spread.ts";

/** A duration that is linear in a size. */
export interface Linear {
  readonly baseMs: number;
  readonly perUnitMs: number;
}

/** What computing costs somewhere. */
export interface PlaceCosts {
  /** By pixels of all pictures. */
  readonly vision: Linear;
  /** By positions of the prefix. */
  readonly prefill: Linear;
  /** By tokens after the first. */
  readonly step: Linear;
  /** The way there and back, by bytes sent: its base is a round trip. None leads to the edge itself. */
  readonly link?: Linear;
  /** Price of a second of computation, in the unit of a budget's `maxCost`; 0 by default. */
  readonly pricePerSecond?: number;
}

/** Costs by the names of places, such as `edge`, `smaller`, `pool`. */
export type Calibration = Readonly<Record<string, PlaceCosts>>;

/** One way to answer a question. */
export interface Route {
  /** Tells this way from others, whatever the question: `local`, `features`, `pixels` … */
  readonly name: string;
  /** Where vision runs; nowhere when the image tokens are known. */
  readonly vision?: string;
  readonly decode: string;
  /** What is sent to the place of decoding; 0 at the edge. */
  readonly uploadBytes: number;
  /** Of all pictures together. */
  readonly pixels: number;
  /** Positions of the prefix: image tokens and prompt. */
  readonly prefix: number;
  /** Tokens expected, 1 or more. */
  readonly tokens: number;
}

/** Until when the first token and the whole answer are wanted, milliseconds from now; none: whenever. */
export interface Remaining {
  readonly firstMs?: number;
  readonly totalMs?: number;
}

/**
 * What is expected of a route, milliseconds. Means are those of the stages, before their spread; P95s are infinite (in
 * JSON null) while the place of decoding failed lately: it may not answer at all.
 */
export interface Estimate {
  readonly firstMeanMs: number;
  readonly firstP50Ms: number;
  readonly firstP95Ms: number;
  readonly totalMeanMs: number;
  readonly totalP50Ms: number;
  readonly totalP95Ms: number;
  /** The probability that all that is wanted is in time, 0 to 1. */
  readonly chance: number;
  /** How many answers of this route and size it is made of, those of long ago for less. */
  readonly seen: number;
  /** Whether the P95s are within what remains, of a place that can be relied on. */
  readonly meets: boolean;
  readonly cost: number;
}

/** What was seen of a route, milliseconds; what is missing, or took no time on a clock that stands, teaches nothing. */
export interface Actual {
  readonly visionMs?: number;
  readonly transferMs?: number;
  /** In the pool's queue. */
  readonly queueMs?: number;
  readonly prefillMs?: number;
  /** Mean over the tokens after the first. */
  readonly stepMs?: number;
  readonly firstMs?: number;
  readonly totalMs?: number;
}

/** A model as it is stored. */
export interface CostModelJson {
  readonly version: 1;
  readonly calibration: Calibration;
  readonly stages: Readonly<Record<string, DriftJson>>;
  readonly spreads: Readonly<Record<string, SpreadJson>>;
  readonly raises: Readonly<Record<string, number>>;
}

const STAGES = ["vision", "prefill", "step", "link"] as const;
type StageName = typeof STAGES[number];

/** Mean absolute deviation of a stage's logarithm, and how soon it may be another: neighbours on a machine, fading links. */
const STAGE_DEVIATION = 0.2;
const STAGE_HALF_LIFE_MS = 60_000;
/** A place that fails more often than this is not relied on, whatever its P95. */
const MAX_DISTRUST = 0.05;

/** What one edge knows of its routes. */
export class CostModel {
  readonly #stages = new Map<string, Drift>();
  readonly #spreads = new Map<string, Spread>();
  readonly #trackers = new Map<string, Tracker>();
  readonly #pools = new Map<string, PoolView>();

  readonly #calibration: Record<string, PlaceCosts> = {};

  /**
   * @param present tells who is at the places that links lead to; where nobody does, somebody is assumed.
   * @throws {RangeError} for costs that are not 0 or more.
   */
  constructor(
    calibration: Calibration,
    private readonly present: Readonly<Record<string, (now: number) => Present | undefined>> = {},
  ) {
    for (const [name, costs] of Object.entries(calibration)) this.calibrate(name, costs);
  }

  /** What it was told; what was seen since then corrects it. */
  get calibration(): Calibration {
    return this.#calibration;
  }

  /**
   * Takes the costs of a place, and forgets what was seen of its stages before.
   *
   * @throws {RangeError} for costs that are not 0 or more.
   */
  calibrate(place: string, costs: PlaceCosts): void {
    for (const stage of STAGES) {
      const { baseMs, perUnitMs } = costs[stage] ?? { baseMs: 0, perUnitMs: 0 };
      if (!(baseMs >= 0 && baseMs < Infinity && perUnitMs >= 0 && perUnitMs < Infinity)) {
        throw new RangeError(
          `Calibration: expected milliseconds of ${place} ${stage}, found ${baseMs} and ${perUnitMs}`,
        );
      }
    }
    for (const stage of STAGES) {
      if (costs[stage]) {
        this.#stages.set(`${place}/${stage}`, new Drift(STAGE_DEVIATION, STAGE_HALF_LIFE_MS));
      }
    }
    this.#calibration[place] = costs;
    if (costs.link && !this.#pools.has(place)) this.#pools.set(place, new PoolView(this.present[place]));
  }

  /** What is known of the workers at a place that a link leads to. */
  pool(place: string): PoolView {
    const pool = this.#pools.get(place);
    if (!pool) throw new RangeError(`Cost model: expected a place with a link, found ${place}`);
    return pool;
  }

  /** Whether a route can be asked at all: its places are known, and somebody is there. */
  possible({ vision, decode }: Route, now: number): boolean {
    return [vision, decode].every((it) =>
      it === undefined || this.calibration[it] && (this.#pools.get(it)?.present(now) ?? true)
    );
  }

  /** @param edgeWaitMs until the edge could begin to compute. */
  estimate(route: Route, remaining: Remaining, edgeWaitMs: number, now: number): Estimate {
    const { vision, decode, tokens } = route;
    const { pricePerSecond = 0 } = this.calibration[decode];
    const visionMs = vision === undefined ? 0 : this.#stage(vision, "vision", route.pixels, now);
    const prefillMs = this.#stage(decode, "prefill", route.prefix, now);
    const stepsMs = (tokens - 1) * this.#stage(decode, "step", 1, now);
    const pool = this.#pools.get(decode);
    const edge = !pool || vision !== undefined && !this.#pools.has(vision);
    let firstMeanMs = (edge ? edgeWaitMs : 0) + visionMs + prefillMs;
    if (pool) firstMeanMs += this.#stage(decode, "link", route.uploadBytes, now) + pool.waitMs(now);
    firstMeanMs = Math.max(firstMeanMs, 0.01);
    const totalMeanMs = firstMeanMs + stepsMs;
    const first = this.#shape(route, "first", now);
    const total = this.#shape(route, "total", now);
    const distrust = pool?.distrust(now) ?? 0;
    const relied = distrust <= MAX_DISTRUST;
    const firstP95Ms = relied ? firstMeanMs * Math.exp(first.p95) : Infinity;
    const totalP95Ms = relied ? totalMeanMs * Math.exp(total.p95) : Infinity;
    const { firstMs = Infinity, totalMs = Infinity } = remaining;
    const within = Math.min(
      chance(first, firstMs, firstMeanMs),
      chance(total, totalMs, totalMeanMs),
    );
    const busyMs = prefillMs + stepsMs + (vision === decode ? visionMs : 0);
    return {
      firstMeanMs,
      firstP50Ms: firstMeanMs * Math.exp(first.median),
      firstP95Ms,
      totalMeanMs,
      totalP50Ms: totalMeanMs * Math.exp(total.median),
      totalP95Ms,
      chance: within * (1 - distrust),
      seen: first.seen,
      meets: relied && firstP95Ms <= firstMs && totalP95Ms <= totalMs,
      cost: busyMs / 1000 * pricePerSecond,
    };
  }

  /** How long a route keeps the edge busy, milliseconds: what is computed where no link leads to. */
  edgeMs({ vision, decode, pixels, prefix, tokens }: Route, now: number): number {
    const here = (place: string | undefined) => place !== undefined && !this.#pools.has(place);
    const visionMs = here(vision) ? this.#stage(vision!, "vision", pixels, now) : 0;
    if (!here(decode)) return visionMs;
    return visionMs + this.#stage(decode, "prefill", prefix, now) +
      (tokens - 1) * this.#stage(decode, "step", 1, now);
  }

  /** By how much every stage is off its calibration, as a factor, by `place/stage`. */
  factors(now: number): Record<string, number> {
    return Object.fromEntries([...this.#stages].map(([name, it]) => [name, Math.exp(it.at(now).mean)]));
  }

  /** Learns from an answer that came on a route of which `estimate` was told. */
  observe(route: Route, estimate: Estimate, actual: Actual, now: number): void {
    const { vision, decode } = route;
    if (vision !== undefined) this.#moved(vision, "vision", route.pixels, actual.visionMs, now);
    this.#moved(decode, "prefill", route.prefix, actual.prefillMs, now);
    this.#moved(decode, "step", 1, actual.stepMs, now);
    const pool = this.#pools.get(decode);
    if (pool) {
      this.#moved(decode, "link", route.uploadBytes, actual.transferMs, now);
      const { prefillMs = 0, stepMs = 0, visionMs = 0 } = actual;
      const serviceMs = prefillMs + stepMs * (route.tokens - 1) + (vision === decode ? visionMs : 0);
      pool.answered(actual.queueMs ?? 0, serviceMs, now);
    }
    const { firstMs, totalMs } = actual;
    if (firstMs! > 0) this.#spread(route, "first").add(firstMs! / estimate.firstMeanMs, now);
    if (totalMs! > 0) this.#spread(route, "total").add(totalMs! / estimate.totalMeanMs, now);
    if (estimate.firstP95Ms === Infinity) return; // nothing was promised
    if (firstMs! > 0) this.#tracker(route, "first").update(firstMs! <= estimate.firstP95Ms);
    if (totalMs! > 0) this.#tracker(route, "total").update(totalMs! <= estimate.totalP95Ms);
  }

  /**
   * Learns that a route was given up before its first token.
   *
   * @param leastMs what it would have taken at least: until it was given up, or longer where a queue told so.
   * @param broken whether its place failed; otherwise it was only too slow for the question.
   */
  gaveUp(route: Route, estimate: Estimate, leastMs: number, broken: boolean, now: number): void {
    if (broken) this.#pools.get(route.decode)?.failed(now);
    else if (leastMs > estimate.firstP50Ms) {
      this.#spread(route, "first").add(leastMs / estimate.firstMeanMs, now);
    }
    if (estimate.firstP95Ms === Infinity) return;
    // Whether what was given up earlier would have been in time, nobody knows.
    if (broken || leastMs > estimate.firstP95Ms) this.#tracker(route, "first").update(false);
    if (broken || leastMs > estimate.totalP95Ms) this.#tracker(route, "total").update(false);
  }

  /** Takes in what another model of the same calibration saw. */
  merge(other: CostModel): void {
    for (const [name, drift] of other.#stages) this.#stages.get(name)?.merge(drift);
    for (const [name, spread] of other.#spreads) entry(this.#spreads, name, () => new Spread()).merge(spread);
    for (const [name, { raise }] of other.#trackers) {
      const mine = entry(this.#trackers, name, () => new Tracker());
      mine.raise = (mine.raise + raise) / 2;
    }
  }

  /** As it is stored; what is known of workers is too short-lived for that. */
  toJSON(): CostModelJson {
    const json = <T, J>(map: ReadonlyMap<string, T>, of: (it: T) => J) =>
      Object.fromEntries([...map].map(([name, it]) => [name, of(it)]));
    return {
      version: 1,
      calibration: this.calibration,
      stages: json(this.#stages, (it) => it.toJSON()),
      spreads: json(this.#spreads, (it) => it.toJSON()),
      raises: json(this.#trackers, (it) => it.raise),
    };
  }

  /**
   * Goes on from what was stored, its calibration included, as far as there still are its places.
   *
   * @throws {RequestError} `record_corrupt` for what no model wrote; nothing of it is then taken.
   */
  restore(json: unknown): void {
    try {
      const { version, calibration, stages, spreads, raises } = json as CostModelJson;
      if (version !== 1) throw new RangeError(`expected version 1, found ${version}`);
      const trial = new CostModel(this.calibration);
      for (const [name, costs] of Object.entries(calibration)) {
        const ours = this.calibration[name];
        if (ours && !ours.link === !costs.link) trial.calibrate(name, costs);
      }
      for (const [name, it] of Object.entries(stages)) trial.#stages.get(name)?.restore(it);
      for (const [name, it] of Object.entries(spreads)) trial.#spreads.set(name, Spread.from(it));
      for (const [name, it] of Object.entries(raises)) {
        if (!Number.isFinite(it)) throw new RangeError(`expected a number of ${name}, found ${it}`);
        entry(trial.#trackers, name, () => new Tracker()).raise = it;
      }
      Object.assign(this.#calibration, trial.#calibration);
      for (const [name, it] of trial.#stages) this.#stages.set(name, it);
      for (const [name, it] of trial.#spreads) this.#spreads.set(name, it);
      for (const [name, it] of trial.#trackers) this.#trackers.set(name, it);
    } catch (cause) {
      throw new RequestError("record_corrupt", `Cannot read the cost model: ${(cause as Error).message}`, {
        cause,
      });
    }
  }

  #stage(place: string, stage: StageName, size: number, now: number): number {
    const { mean } = this.#stages.get(`${place}/${stage}`)!.at(now);
    return linear(this.calibration[place][stage]!, size) * Math.exp(mean);
  }

  #moved(place: string, stage: StageName, size: number, actualMs: number | undefined, now: number): void {
    const expected = linear(this.calibration[place][stage]!, size);
    if (!(actualMs! > 0 && expected > 0)) return;
    this.#stages.get(`${place}/${stage}`)!.add(Math.log(actualMs! / expected), now);
  }

  #shape(route: Route, what: "first" | "total", now: number): Shape {
    return this.#spread(route, what).at(now, this.#tracker(route, what));
  }

  #spread({ name, prefix, tokens }: Route, what: "first" | "total"): Spread {
    const size = Math.round(Math.log2(prefix + tokens));
    return entry(this.#spreads, `${name}/${size}/${what}`, () => new Spread());
  }

  /** One for all routes that end at a place: what is seldom taken would never find its raise. */
  #tracker({ decode }: Route, what: "first" | "total"): Tracker {
    return entry(this.#trackers, `${decode}/${what}`, () => new Tracker());
  }
}

/**
 * The line through timed runs, by least squares of relative errors, neither part below 0; undefined where no time passed
 * in any of them: the clock stands still while it computes, and a file has to tell.
 */
export function calibrated(
  runs: readonly { readonly size: number; readonly ms: number }[],
): Linear | undefined {
  const timed = runs.filter(({ size, ms }) => size > 0 && ms > 0);
  if (!timed.length) return undefined;
  // Weights of 1 / ms² make the errors relative.
  let [w, x, y, xx, xy] = [0, 0, 0, 0, 0];
  for (const { size, ms } of timed) {
    const weight = 1 / ms ** 2;
    w += weight;
    x += weight * size;
    y += weight * ms;
    xx += weight * size * size;
    xy += weight * size * ms;
  }
  const spread = w * xx - x * x;
  const slope = spread > 1e-9 * w * xx ? (w * xy - x * y) / spread : xy / xx;
  const base = (y - slope * x) / w;
  if (slope < 0) return { baseMs: y / w, perUnitMs: 0 };
  return base < 0 ? { baseMs: 0, perUnitMs: xy / xx } : { baseMs: base, perUnitMs: slope };
}

function linear({ baseMs, perUnitMs }: Linear, size: number): number {
  return baseMs + perUnitMs * size;
}

function chance(shape: Shape, wantedMs: number, meanMs: number): number {
  if (wantedMs === Infinity) return 1;
  return wantedMs > 0 ? shape.chance(Math.log(wantedMs / meanMs)) : 0;
}

function entry<T>(map: Map<string, T>, name: string, make: () => T): T {
  let found = map.get(name);
  if (!found) map.set(name, found = make());
  return found;
}
