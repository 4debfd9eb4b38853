/**
 * Where one answer is computed: the ways there are, in the planner's order; what a pool is sent; what came of it.
 */

import type { Engine } from "./engine.ts";
import { RequestError } from "./errors.ts";
import type { Metrics } from "./metrics.ts";
import {
  type Images,
  type Pool,
  PoolError,
  type PoolEvent,
  type Stage,
  type SubmitOptions,
  type Work,
} from "./pool/pool.ts";
import { KeptBlocks, type Place, Relay } from "./pool/relay.ts";
import { rowBytes } from "./pool/rows.ts";
import { trialWork } from "./pool/serving.ts";
import type { ModelShape } from "./pool/work.ts";
import {
  assumed,
  GPU,
  shortest,
  THREAD,
  timed,
  told,
  type Trial,
  UNKNOWN_LINK,
} from "./schedule/calibration.ts";
import { type Calibration, CostModel } from "./schedule/cost_model.ts";
import type { Journey } from "./schedule/journey.ts";
import { createPause, type Line } from "./schedule/line.ts";
import { type Candidate, Planner } from "./schedule/planner.ts";
import { Remembered } from "./schedule/remembered.ts";
import { EDGE, POOL, Routes, type RoutesView, SMALLER } from "./schedule/routes.ts";
import type { Records } from "./store/store.ts";
import type { AnswerEvent, Question, RouteDecision, RouteOutcome } from "./types.ts";

/** Image features or tokens for a pool, and how their numbers are rounded. */
export interface PoolImages {
  readonly stage: "features" | "projected";
  readonly dtype: "f16" | "int8";
}

/** A smaller variant of a model: of fewer pixels or fewer bits, with the same words. */
export interface Variant {
  readonly name: string;
  readonly engine: Engine;
}

/** What answers are sent on their way with. */
export interface DispatchParts {
  /** What may answer here in place of the model where a budget has `quality: "degrade"`; by default nothing does. */
  readonly smaller?: Variant;
  /** Workers elsewhere that have the same model. */
  readonly pool?: (model: ModelShape, engine: Engine) => Pool;
  /**
   * What the pool is sent; pixels, which no rounding changes, or image features as f16 by default, as the planner says.
   * Where it is given, pixels never leave.
   */
  readonly poolImages?: PoolImages;
  /** What a second of the pool's computation costs, in the unit of a budget's `maxCost`; 0 by default. */
  readonly poolPrice?: number;
  /** Who decides; by default the planner of `lib/schedule`. */
  readonly planner?: (model: CostModel) => Planner;
  /** Where what the planner learned is kept between runs; by default nowhere. */
  readonly records?: Records;
  readonly metrics?: Metrics;
  /** Told what does an answer no harm. */
  readonly onError?: (error: unknown) => void;
}

/** What comes: the decision, then tokens, then how it went. */
export type DispatchEvent = PoolEvent | Extract<AnswerEvent, { type: "route" }>;

/** How many workers are asked for one answer, one after another, before another way is tried. */
const POOL_ATTEMPTS = 3;
/** Says nothing of the pool as a whole: it is there, and may take the next question. */
const HEALTHY: readonly PoolError["code"][] = ["busy", "late", "forbidden", "unsupported", "unsigned"];

/** How often an answer that has to be in time is looked after while no token comes. */
const LOOKED_AFTER_MS = 20;

/** Answers that are timed at start; none is begun after so long. */
const MAX_TRIALS = 5;
const TRIALS_MS = 1500;

/** Sends the answers of one engine on their way. */
export class Dispatch {
  readonly #pool: Pool | undefined;
  readonly #sentAs: PoolImages;
  readonly #routes: Routes;
  readonly #remembered: Remembered | undefined;
  #restored = false;
  /** Whether the pool's speed was taken from what its workers say. */
  #heard = false;

  constructor(
    private readonly engine: Engine,
    private readonly line: Line,
    private readonly parts: DispatchParts,
  ) {
    const { config, shape, stages } = engine;
    const { poolImages, poolPrice: pricePerSecond, records, onError, smaller } = parts;
    const pool = this.#pool = parts.pool?.(shape, engine);
    const takes = (it: Stage) => pool?.takes?.includes(it) ?? pool !== undefined;
    const features = shape.featureWidth !== undefined;
    const decoder = stages.decoder !== undefined;
    const usual = decoder && features && takes("features") ? "features" : "projected";
    const { stage, dtype } = this.#sentAs = poolImages ?? { stage: usual, dtype: "f16" };
    if (pool && stage === "features" && !features) {
      throw new RequestError(
        "parameter_invalid",
        "Cannot send features to the pool: expected projected, as encoder and projector of this model are one graph",
      );
    }
    const calibration: Calibration = {
      [EDGE]: assumed(config, THREAD),
      ...smaller && { [SMALLER]: assumed(smaller.engine.config, THREAD) },
      ...pool && { [POOL]: { ...assumed(config, GPU), link: UNKNOWN_LINK, pricePerSecond } },
    };
    const model = new CostModel(calibration, { [POOL]: () => pool?.present?.() });
    const rows = (width: number) => shape.imageTokens * rowBytes(dtype, width);
    const pixels = shape.imageSize ** 2;
    this.#routes = new Routes(parts.planner?.(model) ?? new Planner(model), {
      pixels,
      decoder,
      sent: {
        ...!poolImages && takes("pixels") && { pixels: 3 * pixels },
        ...takes(stage) && { features: rows(stage === "features" ? shape.featureWidth! : shape.width) },
        ...takes("projected") && { known: rows(shape.width) },
      },
      ...smaller && {
        smaller: {
          pixels: smaller.engine.shape.imageSize ** 2,
          shorter: shape.imageTokens - smaller.engine.imageTokens,
        },
      },
      // A pool is there to be used; where pixels may not leave, nothing does as long as it can be decoded here.
      usual: poolImages || !decoder ? ["features", "local", "pixels"] : ["pixels", "local", "features"],
    });
    const name = [engine.revision, smaller?.engine.revision, engine.backendName].filter(Boolean).join("-");
    this.#remembered = records && new Remembered(records, name, onError);
  }

  /** Goes on with what was learned in an earlier run, if anything was. */
  async restore(): Promise<void> {
    this.#restored = await this.#remembered?.restore((it) => this.#routes.restore(it)) ?? false;
  }

  /** What the planner knows. */
  view(): RoutesView {
    return this.#routes.view(this.line.waitMs());
  }

  /**
   * Times a short answer, unless what was learned in an earlier run is known; given up as soon as somebody asks. Without
   * it, what stages cost is guessed from their arithmetic, and corrected by the first answers.
   */
  async calibrate(): Promise<void> {
    if (this.#restored) return;
    const turn = await this.line.spare();
    if (!turn) return;
    try {
      await this.#time(EDGE, this.engine, turn.signal);
      const { smaller } = this.parts;
      if (smaller) await this.#time(SMALLER, smaller.engine, turn.signal);
    } catch (error) {
      if (!turn.signal.aborted) this.parts.onError?.(error);
    } finally {
      turn.release();
    }
  }

  /** Takes what a place costs from answers that are timed. */
  async #time(place: string, engine: Engine, signal: AbortSignal): Promise<void> {
    // The first ones also warm up: of each stage the shortest time counts.
    const since = performance.now();
    const { model } = this.#routes;
    const guessed = model.calibration[place];
    let best: Trial | undefined;
    for (let i = 0; i < MAX_TRIALS && (i === 0 || performance.now() - since < TRIALS_MS); i++) {
      const trial = await trialOf(engine, signal);
      if (!trial) return;
      best = best ? shortest(best, trial) : trial;
      model.calibrate(place, timed(guessed, best));
    }
  }

  /**
   * Computes an answer where the planner says, and elsewhere where that fails; the decision comes before the first token.
   *
   * @param smaller the same work for the smaller variant, where it may do it.
   * @throws {RequestError} `budget_hopeless`, `overloaded` when it cannot be had anywhere now, `cancelled`, and what
   * encoding pictures throws.
   */
  async *run(
    work: Work,
    question: Question,
    signal?: AbortSignal,
    smaller?: Work,
  ): AsyncGenerator<DispatchEvent, void> {
    const { metrics } = this.parts;
    let journey: Journey;
    try {
      journey = await this.#plan(work, question);
    } catch (error) {
      if ((error as RequestError).code === "budget_hopeless") metrics?.budgets.add(1, "refused");
      throw error;
    }
    const { decision: { chosen: name, reason }, plan, order: [chosen] } = journey;
    metrics?.plans.add(1, name, reason);
    using sending = new Sending(this.engine, this.line, work.images, this.#sentAs, signal);
    const variant = chosen.option.degraded === "smaller" ? this.parts.smaller!.name : undefined;
    const place = (it: Candidate) => this.#place(it, journey, sending, smaller);
    const { hedge, remaining: { firstMs, totalMs } } = plan;
    const relay = new Relay(
      journey.order.map(place),
      {
        answered: (name) => metrics?.routes.add(1, placeOf(name)),
        left: (name, { code, predictedMs }, _, forGood) => {
          metrics?.detours.add(1, placeOf(name), code);
          if (code === "forbidden") this.#routes.forbidFeatures();
          if (forGood) journey.left(name, !HEALTHY.includes(code), predictedMs);
        },
        overtaken: (name) => journey.left(name, false),
      },
      hedge && { place: place(hedge), afterMs: hedge.afterMs, take: () => journey.takeHedge() },
      totalMs === undefined ? undefined : {
        everyMs: LOOKED_AFTER_MS,
        next: (name, given) => {
          const next = journey.elsewhere(name, given, this.line.waitMs());
          if (next) metrics?.detours.add(1, placeOf(name), "slow");
          return next && place(next);
        },
      },
    );
    const { degraded, tokens } = chosen.option;
    const asked = degraded === "shorter" ? { ...work, maxTokens: Math.min(work.maxTokens, tokens) } : work;
    const deadlineMs = question.budget?.quality === "degrade" ? undefined : totalMs;
    let told: RouteDecision | undefined;
    try {
      for await (const event of relay.submit(asked, { signal, deadlineMs })) {
        const { handover } = journey;
        if (!told || told.handover !== handover) {
          told = { ...journey.decision, ...variant !== undefined && { variant } };
          yield { type: "route", ...told };
        }
        if (event.type === "usage" && event.route) this.#count(event.route, journey.covered);
        yield event;
      }
    } catch (error) {
      if (!(error instanceof PoolError)) throw error;
      journey.fail();
      if (firstMs !== undefined || totalMs !== undefined) metrics?.budgets.add(1, "missed");
      const code = error.code === "late" ? "budget_hopeless" : "overloaded";
      throw new RequestError(code, error.message, { cause: error });
    }
    await this.#remembered?.keep(this.#routes);
  }

  #count({ met, hedge }: RouteOutcome, covered: boolean | undefined): void {
    const { metrics } = this.parts;
    if (met !== undefined) metrics?.budgets.add(1, met ? "met" : "missed");
    if (covered !== undefined) metrics?.predictions.add(1, covered ? "covered" : "exceeded");
    if (hedge) metrics?.hedges.add(1, hedge);
  }

  async #plan(work: Work, question: Question): Promise<Journey> {
    const { images, ids, maxTokens, forced, ignoreEos } = work;
    const [pictures] = images.shape;
    const prefix = pictures * this.engine.imageTokens + ids.length;
    // Looking pictures up takes longer than planning does: only where something depends on it.
    const { images: known, prefix: prefilled } = this.#pool || question.budget
      ? await this.engine.known(images, ids)
      : { images: 0, prefix: false };
    this.#hear();
    const word = /^\w*/.exec(question.prompt)![0];
    const asked = {
      pictures,
      known,
      prefilled,
      prefix,
      maxTokens: forced.length + maxTokens,
      kind: ignoreEos ? `${word} of ${maxTokens}` : word,
    };
    return this.#routes.open(asked, question, this.line.waitMs());
  }

  /** A way as a place that the relay may ask; what comes from there is told to the journey. */
  #place(candidate: Candidate, journey: Journey, sending: Sending, smaller?: Work): Place {
    const { option: { name, leaves, degraded } } = candidate;
    const edgeMs = journey.edgeMs(candidate);
    const submit = (work: Work, options: SubmitOptions): AsyncIterable<PoolEvent> => {
      if (degraded === "smaller") {
        return this.#here({ ...smaller!, given: work.given }, options, edgeMs, this.parts.smaller!.engine);
      }
      if (leaves === "nothing") return this.#here(work, options, edgeMs, this.engine);
      if (leaves === "pixels") return this.#pool!.submit(work, options);
      sending.prepare(name.includes("-known"), edgeMs);
      return sent(this.#pool!, work, options, sending);
    };
    return {
      name,
      attempts: leaves === "nothing" ? 1 : POOL_ATTEMPTS,
      async *submit(work, options = {}) {
        journey.begin(candidate);
        let tokens = work.given.length;
        for await (const event of submit(work, options)) {
          if (event.type === "token") journey.token(name, ++tokens);
          if (event.type !== "usage" || options.signal?.aborted) yield event;
          else {
            const { timings: { vision, prefill, perToken }, cached } = event;
            const outcome = journey.end(name, {
              tokens,
              resumed: work.given.length > 0,
              ...leaves === "features"
                ? { visionMs: sending.computeMs, edgeWaitMs: sending.waitMs }
                : !cached?.images && { visionMs: vision },
              ...!cached?.prefix && { prefillMs: prefill },
              stepMs: perToken,
            });
            yield { ...event, route: outcome };
          }
        }
      },
    };
  }

  /** Computes on this machine, when it is the work's turn. @param edgeMs how long that will take. */
  async *#here(
    work: Work,
    { signal, deadlineMs = Infinity }: SubmitOptions,
    edgeMs: number,
    engine: Engine,
  ) {
    const since = performance.now();
    const release = await this.line.turn(signal, edgeMs);
    try {
      const late = performance.now() - since - deadlineMs;
      if (late > 0) {
        throw new PoolError("late", `Cannot answer in time: its turn came ${Math.ceil(late)} ms too late`);
      }
      yield* engine.submit(work, { signal });
    } finally {
      release();
    }
  }

  /** Takes the pool's speed from what its workers say, until its answers tell. */
  #hear(): void {
    if (this.#heard || this.#restored || !this.#pool?.present) return;
    const worker = this.#pool.present()?.workers.find((it) => it.firstMs! > 0 && it.tokenMs! > 0);
    if (!worker) return;
    this.#heard = true;
    const { model } = this.#routes;
    const { firstMs = 0, tokenMs = 0 } = worker;
    model.calibrate(POOL, told(model.calibration[POOL], trialSizes(this.engine), { firstMs, tokenMs }));
  }
}

/** Sizes of the work that is timed. */
function trialSizes({ shape }: Engine): Pick<Trial, "pixels" | "prefix"> {
  return { pixels: shape.imageSize ** 2, prefix: shape.imageTokens + trialWork(shape).ids.length };
}

/** Times one answer, or one picture where nothing is decoded; undefined when somebody came. */
async function trialOf(timed: Engine, signal: AbortSignal): Promise<Trial | undefined> {
  const engine = timed.uncached();
  const sizes = trialSizes(engine);
  const work = trialWork(engine.shape);
  if (!engine.stages.decoder) {
    const since = performance.now();
    await engine.embed(work.images, "projected", createPause(signal));
    return { ...sizes, visionMs: performance.now() - since, prefillMs: 0, stepMs: 0 };
  }
  for await (const event of engine.submit(work, { signal })) {
    if (event.type !== "usage" || signal.aborted) continue;
    const { vision, prefill, perToken } = event.timings;
    return { ...sizes, visionMs: vision, prefillMs: prefill, stepMs: perToken };
  }
}

/** `local` or `pool`, for metrics. */
function placeOf(route: string): string {
  return route.startsWith("local") ? "local" : "pool";
}

/** Work whose pictures are sent as they are encoded here. */
async function* sent(pool: Pool, work: Work, options: SubmitOptions, sending: Sending) {
  try {
    yield* pool.submit({ ...work, images: sending.images }, options);
  } catch (error) {
    // What we could not send is our mistake or our caller's; of the pool it only looks like a way that broke.
    throw sending.error instanceof RequestError ? sending.error : error;
  }
}

/** An answer's pictures on their way to a pool: encoded once, when it is their turn, whoever is asked. */
class Sending implements Disposable {
  readonly #over = new AbortController();
  readonly #until: AbortSignal;
  #encoded: (Images & Disposable) | undefined;
  #kept: KeptBlocks | undefined;
  /** How long they waited for their turn, and then took; undefined before they are through. */
  waitMs: number | undefined;
  computeMs: number | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly line: Line,
    private readonly pixels: Images,
    private readonly as: PoolImages,
    signal?: AbortSignal,
  ) {
    this.#until = signal ? AbortSignal.any([signal, this.#over.signal]) : this.#over.signal;
  }

  /** @param known whether they leave as the image tokens that are known here. @param edgeMs how long they will take. */
  prepare(known: boolean, edgeMs: number): void {
    if (this.#kept) return;
    const { stage, dtype } = this.as;
    const until = this.#until;
    const encoded = this.engine.encoded(this.pixels, known ? "projected" : stage, dtype, createPause(until));
    this.#encoded = encoded;
    const since = performance.now();
    this.#kept = new KeptBlocks(() => this.#compute(encoded, since, edgeMs));
  }

  /** @throws {TypeError} before they are prepared. */
  get images(): Images {
    const [encoded, kept] = [this.#encoded, this.#kept];
    if (!encoded || !kept) throw new TypeError("Cannot send pictures: expected them to be prepared");
    return { ...encoded, blocks: () => kept.read() };
  }

  /** Why they could not be encoded. */
  get error(): unknown {
    return this.#kept?.error;
  }

  [Symbol.dispose](): void {
    this.#over.abort();
    this.#encoded?.[Symbol.dispose]();
  }

  async *#compute(encoded: Images, since: number, edgeMs: number): AsyncGenerator<Uint8Array> {
    const release = await this.line.turn(this.#until, edgeMs);
    const turn = performance.now();
    this.waitMs = turn - since;
    try {
      yield* encoded.blocks();
      this.computeMs = performance.now() - turn;
    } finally {
      release();
    }
  }
}
