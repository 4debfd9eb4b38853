/**
 * The ways a question may go at one edge, as options for its planner; and what the edge remembers of those that went.
 *
 * The model's clock is the wall's, so that what is stored grows old while nobody runs; durations are taken by the clock
 * that only goes forward.
 */

import { RequestError } from "../errors.ts";
import type { Budget, Question, RouteOutcome, RoutePrediction } from "../types.ts";
import { remaining } from "./budget.ts";
import type { CostModel, CostModelJson } from "./cost_model.ts";
import { Journey, predicted } from "./journey.ts";
import type { Candidate, Ledger, Option, Plan, Planner } from "./planner.ts";

/** What an edge has. */
export interface Ways {
  /** Pixels of one picture of the model's square. */
  readonly pixels: number;
  /** Whether answers can be decoded here. */
  readonly decoder: boolean;
  /** Bytes of one picture on its way to the pool, as what it may leave; empty where there is no pool. */
  readonly sent: {
    readonly pixels?: number;
    readonly features?: number;
    /** Where its image tokens are known here. */
    readonly known?: number;
  };
  /** A smaller variant of the model that answers here, where that is allowed. */
  readonly smaller?: {
    /** Pixels of one picture of its square. */
    readonly pixels: number;
    /** By how many positions one picture is shorter. */
    readonly shorter: number;
  };
  /** Routes in the operator's order, for questions that no time is set for. */
  readonly usual: readonly ("local" | "features" | "pixels")[];
}

/** What of a question its time depends on. */
export interface Asked {
  readonly pictures: number;
  /** Pictures whose image tokens are known here. */
  readonly known: number;
  /** Whether all that comes before the answer is. */
  readonly prefilled: boolean;
  /** Positions of the prefix: image tokens and prompt. */
  readonly prefix: number;
  /** Tokens at most. */
  readonly maxTokens: number;
  /** What answers of one length have in common, such as the prompt's first word. */
  readonly kind: string;
}

/** An answer of late, for whoever looks at the planner. */
export interface Told {
  /** When it was decided, milliseconds since 1970. */
  readonly at: number;
  readonly budget?: Budget;
  readonly chosen: RoutePrediction;
  readonly reason: string;
  /** Absent where it failed. */
  readonly actual?: RouteOutcome;
}

/** What routes remember, as it is stored. */
export interface RoutesJson {
  readonly model: CostModelJson;
  readonly lengths: Readonly<Record<string, number>>;
}

/** The live planner, as plain data. */
export interface RoutesView {
  readonly calibration: CostModel["calibration"];
  /** What stages take, of what the calibration says. */
  readonly factors: Readonly<Record<string, number>>;
  readonly pool?: { readonly present: boolean; readonly waitMs: number; readonly distrust: number };
  /** Milliseconds until a question that comes now has its turn here. */
  readonly edgeWaitMs: number;
  /** Tokens of answers, by their kind. */
  readonly lengths: Readonly<Record<string, number>>;
  readonly ledger: Ledger;
  /** The latest first. */
  readonly recent: readonly Told[];
}

/** Names of places, as the calibration has them. */
export const EDGE = "edge";
export const POOL = "pool";
/** The edge with the smaller variant of the model. */
export const SMALLER = "smaller";

/** Answers that are remembered to be looked at. */
const RECENT = 50;
/** Tokens of an answer of which nothing is known; and of kinds of answers that are told apart. */
const USUAL_TOKENS = 16;
const MAX_KINDS = 32;
/** How much of the time that remains a shortened answer is to take. */
const SHORT_SHARE = 0.75;

/** The routes of one edge. */
export class Routes {
  readonly model: CostModel;
  #lengths: Record<string, number> = {};
  readonly #recent: Told[] = [];
  #featuresForbidden = false;

  constructor(readonly planner: Planner, private readonly ways: Ways) {
    this.model = planner.model;
  }

  /**
   * Decides.
   *
   * @param edgeWaitMs until the edge could begin.
   * @throws {RequestError} `budget_hopeless`, with what was predicted, when no way has a chance, or none is allowed;
   * `overloaded` when nobody is there who could decode.
   */
  open(asked: Asked, question: Pick<Question, "budget" | "arrivedAt">, edgeWaitMs: number): Journey {
    const now = Date.now();
    const { budget = {} } = question;
    const left = remaining(question, now);
    const timed = left.firstMs !== undefined || left.totalMs !== undefined;
    const options = this.#options(asked);
    if (budget.quality === "degrade" && timed) {
      const short = options.flatMap((it) => this.#short(it, left.totalMs, edgeWaitMs, now));
      options.push(...short, ...this.#smaller(asked));
    }
    const { maxCost, privacy, quality } = budget;
    const usual = this.ways.usual.flatMap((it) => options.filter(({ name }) => name.split("-")[0] === it))
      .map((it) => it.name);
    const ask = { options, remaining: left, edgeWaitMs, maxCost, privacy, quality, explore: timed, usual };
    const plan = this.planner.plan(ask, now);
    const chosen = plan.chosen ?? anyway(plan, quality);
    if (!chosen && plan.excluded.every((it) => it.why === "absent") && plan.reason === "impossible") {
      throw new RequestError("overloaded", "Cannot answer now: no worker of the pool is there");
    }
    if (!chosen) throw new RequestError("budget_hopeless", refusal(plan));
    return new Journey(this, { plan, chosen, asked, budget: question.budget, at: now });
  }

  /** Tells the length of an answer, and keeps what came of it. */
  close(kind: string, tokens: number | undefined, told: Told): void {
    if (tokens !== undefined && (kind in this.#lengths || Object.keys(this.#lengths).length < MAX_KINDS)) {
      const before = this.#lengths[kind];
      this.#lengths[kind] = before === undefined ? tokens : before + (tokens - before) / 8;
    }
    this.#recent.unshift(told);
    if (this.#recent.length > RECENT) this.#recent.pop();
  }

  /** The pool takes no features from here: they are no way any more. */
  forbidFeatures(): void {
    this.#featuresForbidden = true;
  }

  /** What is known now. */
  view(edgeWaitMs: number): RoutesView {
    const now = Date.now();
    const { model, planner } = this;
    const pool = model.calibration[POOL] && model.pool(POOL);
    return {
      calibration: model.calibration,
      factors: model.factors(now),
      ...pool && {
        pool: { present: pool.present(now), waitMs: pool.waitMs(now), distrust: pool.distrust(now) },
      },
      edgeWaitMs,
      lengths: this.#lengths,
      ledger: planner.ledger,
      recent: this.#recent,
    };
  }

  toJSON(): RoutesJson {
    return { model: this.model.toJSON(), lengths: this.#lengths };
  }

  /** Goes on from what was stored. @throws {RequestError} `record_corrupt` for what no routes wrote. */
  restore(json: unknown): void {
    const { model, lengths } = (json ?? {}) as RoutesJson;
    this.model.restore(model);
    const known = Object.entries(lengths ?? {}).filter(([, it]) => it >= 1 && it < Infinity);
    this.#lengths = Object.fromEntries(known.slice(0, MAX_KINDS));
  }

  #options(asked: Asked): Option[] {
    const { pictures, known, prefilled, prefix } = asked;
    const { pixels, decoder, sent } = this.ways;
    const tokens = this.#tokens(asked);
    const all = known === pictures;
    const own = { pixels: (pictures - known) * pixels, prefix, tokens, ...!all && { vision: EDGE } };
    const suffix = all ? "-known" : "";
    const options: Option[] = [];
    if (decoder) {
      const route = { decode: EDGE, uploadBytes: 0, leaves: "nothing" } as const;
      options.push(
        prefilled
          ? { ...route, name: "local-prefilled", pixels: 0, prefix: 0, tokens }
          : { ...route, ...own, name: `local${suffix}` },
      );
    }
    const bytes = all ? sent.known : sent.features;
    if (bytes !== undefined && !this.#featuresForbidden) {
      const uploadBytes = pictures * bytes;
      options.push({ ...own, name: `features${suffix}`, decode: POOL, uploadBytes, leaves: "features" });
    }
    if (sent.pixels !== undefined) {
      options.push({
        name: "pixels",
        vision: POOL,
        decode: POOL,
        uploadBytes: pictures * sent.pixels,
        leaves: "pixels",
        pixels: pictures * pixels,
        prefix,
        tokens,
      });
    }
    return options;
  }

  /** The same route with as many tokens as there is time for, where those are fewer; the answer then ends early. */
  #short(option: Option, totalMs: number | undefined, edgeWaitMs: number, now: number): Option[] {
    if (totalMs === undefined || option.tokens < 2 || !this.model.possible(option, now)) return [];
    const { firstMeanMs, totalMeanMs } = this.model.estimate(option, {}, edgeWaitMs, now);
    const stepMs = (totalMeanMs - firstMeanMs) / (option.tokens - 1);
    const tokens = 1 + Math.floor((SHORT_SHARE * totalMs - firstMeanMs) / stepMs);
    if (!(tokens >= 1 && tokens < option.tokens)) return [];
    return [{ ...option, name: `${option.name}-short`, tokens, degraded: "shorter" }];
  }

  /** The whole answer by the smaller variant, where there is one. */
  #smaller(asked: Asked): Option[] {
    const { smaller } = this.ways;
    if (!smaller) return [];
    return [{
      name: "local-smaller",
      vision: SMALLER,
      decode: SMALLER,
      uploadBytes: 0,
      leaves: "nothing",
      pixels: asked.pictures * smaller.pixels,
      prefix: asked.prefix - asked.pictures * smaller.shorter,
      tokens: this.#tokens(asked),
      degraded: "smaller",
    }];
  }

  /** How many are expected. */
  #tokens({ kind, maxTokens }: Asked): number {
    return Math.min(maxTokens, Math.max(1, Math.round(this.#lengths[kind] ?? USUAL_TOKENS)));
  }
}

/** Where a worse answer is preferred to a late one, a late one is still preferred to none. */
function anyway({ candidates, reason }: Plan, quality: Budget["quality"]): Candidate | undefined {
  if (reason !== "hopeless" || quality !== "degrade") return undefined;
  return candidates.reduce((a, b) => {
    const by = b.estimate.chance - a.estimate.chance || a.estimate.totalMeanMs - b.estimate.totalMeanMs;
    return by > 0 ? b : a;
  });
}

function refusal({ candidates, excluded, remaining: { firstMs, totalMs } }: Plan): string {
  const wanted = [
    firstMs !== undefined && `a first token within ${Math.round(firstMs)} ms`,
    totalMs !== undefined && `an answer within ${Math.round(totalMs)} ms`,
  ].filter(Boolean).join(" and ");
  const ways = [
    ...candidates.map(predicted).map((it) =>
      `${it.route} takes ${spelled(it.firstP50Ms, it.firstP95Ms)} to the first token, ${
        spelled(it.totalP50Ms, it.totalP95Ms)
      } to the end`
    ),
    ...excluded.map((it) => `${it.route} is excluded by ${it.why}`),
  ];
  const expected = wanted ? `expected ${wanted}` : "expected a way that the budget allows";
  return `Cannot answer within the budget: ${expected}, found ${ways.join("; ") || "none"}`;
}

function spelled(p50: number, p95: number | null): string {
  return `${Math.round(p50)} ms (P95 ${p95 === null ? "unknown" : `${Math.round(p95)} ms`})`;
}
