/**
 * The simulation's policies in the real system: a server for each in this process, whose stages take several times as long
 * as they do here, one worker as another process, and before it a link for each policy. Every question is asked under all
 * policies, one after another, before the next is, so that the machine's loud minutes hit all alike. What is asked stands
 * in trace.ts. Answers are timed by whoever asks, from the request to the events of its stream.
 *
 * All policies start a class with the same calibration: stages and transfers as a few answers of the class's edge took on
 * its link before.
 */

import { join } from "@std/path";
import { directoryFiles, TINY } from "../../../functions/model.ts";
import { writePoolKeys } from "../../../functions/pool_keys.ts";
import { createWasmBackend } from "../../../lib/backend/wasm.ts";
import { loadDecoder } from "../../../lib/decode/gemma.ts";
import { createApp } from "../../../lib/http/app.ts";
import {
  createPipeline,
  type LocalPipeline,
  type PipelineParts,
  type Stages,
} from "../../../lib/pipeline.ts";
import { HttpPool } from "../../../lib/pool/http.ts";
import { createSign, type Sign } from "../../../lib/pool/signature.ts";
import { CostModel } from "../../../lib/schedule/cost_model.ts";
import { type Ask, type Option, type Plan, Planner } from "../../../lib/schedule/planner.ts";
import type { Answer, Budget } from "../../../lib/types.ts";
import { loadVision } from "../../../lib/vision/siglip.ts";
import { readConfig } from "../../../lib/weights/config.ts";
import { openWeights } from "../../../lib/weights/load.ts";
import { revisionOf } from "../../../lib/weights/revision.ts";
import { relaxed, simd } from "../../../wasm/kernels.js";
import { startWorker, type WorkerDoor } from "../../doors/pool_worker.ts";
import { median } from "../statistics.ts";
import { Chance } from "./chance.ts";
import type { Attempt, Policy } from "./engine.ts";
import { Link } from "./link.ts";
import { POLICIES, type PolicyName } from "./policies.ts";
import { slower } from "./slower.ts";
import { budgetOf, drawTrace, type RealAsked, type RealClass, SLOWER } from "./trace.ts";
import type { Asked } from "./world.ts";

/** The simulation's policies but the oracle, who would have to know what comes. */
export const REAL_POLICIES = (Object.keys(POLICIES) as PolicyName[]).filter((it) => it !== "oracle");

/** To the static threshold, of the median budget about the share that two seconds are in the simulation. */
const NEAR_MS = 150;
/** Answers on each way that a class is calibrated by, after as many that warm up. */
const TRIALS = 6;
const POOL_PRICE = 0.0005;

/** How one question went under one policy. */
export interface RealAnswer {
  readonly met: boolean;
  /** The route that gave the last token, or the status of a refusal. */
  readonly route: string;
  readonly firstMs?: number;
  readonly totalMs?: number;
}

/** One question of the trace under every policy. */
export interface RealRow {
  readonly class: string;
  readonly tokens: number;
  readonly budget: Budget;
  readonly answers: Readonly<Record<string, RealAnswer>>;
}

/** What came of the planner's own promises: counts. */
export interface RealLedger {
  judged: number;
  covered: number;
  hedges: number;
}

/** A planner that decides as a policy of the simulation does. */
class Ruled extends Planner {
  constructor(model: CostModel, private readonly policy: Policy) {
    super(model, () => 1);
    const [observe, gaveUp] = [model.observe.bind(model), model.gaveUp.bind(model)];
    model.observe = (route, estimate, actual, now) => {
      observe(route, estimate, actual, now);
      policy.answered?.({ option: route as Option, actual } as Attempt, now);
    };
    model.gaveUp = (route, estimate, leastMs, broken, now) => {
      gaveUp(route, estimate, leastMs, broken, now);
      policy.gaveUp?.({ option: route as Option } as Attempt, broken, now);
    };
  }

  override plan(ask: Ask, now: number): Plan {
    const { hedge: _, ...plan } = super.plan({ ...ask, explore: false }, now);
    const { options, privacy = "any", remaining, edgeWaitMs = 0 } = ask;
    const there = options.some((it) => it.decode === "pool" && this.model.possible(it, now));
    const { option } = this.policy.choose({
      asked: { options, privacy, remaining } as Asked,
      edgeWaitMs,
      now,
      pool: there ? { at: now, since: 0, slots: 1, running: 0, waiting: 0, serviceMs: 0 } : undefined,
      look: () => {
        throw new TypeError("Nobody knows what comes");
      },
    });
    const of = (which: (it: Option) => boolean) => plan.candidates.find((it) => which(it.option));
    const chosen = of((it) => it.name === option?.name) ?? of((it) => it.decode === "edge");
    return { ...plan, chosen, reason: "likeliest" };
  }
}

/** Everything but the policies. */
interface Scene {
  readonly parts: Pick<PipelineParts, "backend" | "files" | "stages">;
  readonly sign: Sign;
  readonly image: string;
  slower: number;
}

async function openScene(keys: string): Promise<Scene> {
  const backend = createWasmBackend({ simd, relaxed });
  const files = directoryFiles(TINY);
  const weights = await openWeights(files, await readConfig(files));
  const moreMs = (_: string | symbol, tookMs: number) => (scene.slower - 1) * tookMs;
  const stages: Stages = {
    vision: slower(await loadVision(backend, weights), moreMs),
    decoder: slower(await loadDecoder(backend, weights), moreMs),
    revision: await revisionOf(files),
  };
  const scene: Scene = {
    parts: { backend, files, stages },
    sign: await createSign(JSON.parse(await Deno.readTextFile(join(keys, "server.jwk")))),
    image: (await Deno.readFile(join(TINY, "pictures/five_shapes.png"))).toBase64(),
    slower: SLOWER,
  };
  return scene;
}

/** A server that decides in one way, at the near end of a link. */
class Player implements AsyncDisposable {
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  private constructor(
    readonly pipeline: LocalPipeline,
    private readonly scene: Scene,
    private readonly link: Link,
  ) {
    this.#server = Deno.serve({ port: 0, onListen() {} }, createApp({ pipeline: () => pipeline }).fetch);
  }

  static async open(scene: Scene, link: Link, planner: (model: CostModel) => Planner): Promise<Player> {
    const pipeline = await createPipeline({
      ...scene.parts,
      name: "tiny",
      pool: (model) => new HttpPool(link.url, { model, sign: scene.sign }),
      poolPrice: POOL_PRICE,
      planner,
      featureCacheBytes: 0,
      prefixCacheBytes: 0,
    });
    return new Player(pipeline, scene, link);
  }

  /** Asks, and follows the stream. */
  async ask(asked: RealAsked, budget: Budget): Promise<RealAnswer & { readonly answer?: Partial<Answer> }> {
    Object.assign(this.link, { shape: asked.link, stallMs: asked.stallMs });
    this.scene.slower = SLOWER * asked.slowness;
    const body = JSON.stringify({
      image: this.scene.image,
      prompt: "caption en",
      maxTokens: asked.tokens,
      ignoreEos: true,
      stream: true,
      budget: { ...budget, privacy: asked.privacy },
    });
    const since = performance.now();
    const response = await fetch(`http://localhost:${this.#server.addr.port}/v1/generate`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body,
    });
    let [text, firstMs] = ["", undefined as number | undefined];
    for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
      text += piece;
      if (text.includes("event: token")) firstMs ??= performance.now() - since;
    }
    const totalMs = performance.now() - since;
    const usage = /event: usage\ndata: (.*)/.exec(text)?.[1];
    if (usage === undefined || !text.includes("event: done")) {
      return { met: false, route: /event: error/.test(text) ? "error" : `${response.status}` };
    }
    const answer = JSON.parse(usage);
    const { ttftMs = Infinity, totalMs: wanted = Infinity } = budget;
    return {
      met: firstMs! <= ttftMs && totalMs <= wanted,
      route: answer.route.route,
      firstMs,
      totalMs,
      answer,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }
}

/** What answers on a quiet edge and its usual link take, before a class begins. */
async function calibrate(scene: Scene, { link: { rttMs, mbps }, miscalibrated }: RealClass, link: Link) {
  const quiet: RealAsked = {
    tokens: 12,
    privacy: "any",
    slowness: 1,
    link: { rttMs, mbps },
    stallMs: 0,
    worker: "well",
    wants: "first",
    of: "local",
    at: 0,
  };
  let options: readonly Option[] = [];
  const trial = async (policy: Policy) => {
    await using player = await Player.open(scene, link, (model) => {
      const ruled = new Ruled(model, policy);
      const plan = ruled.plan.bind(ruled);
      ruled.plan = (ask, now) => {
        options = ask.options;
        return plan(ask, now);
      };
      return ruled;
    });
    for (let i = 0; i < TRIALS; i++) await player.ask(quiet, {}); // warms up
    const times = {
      vision: [] as number[],
      prefill: [] as number[],
      step: [] as number[],
      link: [] as number[],
    };
    for (let i = 0; i < TRIALS; i++) {
      const { answer, firstMs } = await player.ask(quiet, {});
      const { vision, prefill, perToken } = answer!.timings!;
      times.vision.push(vision);
      times.prefill.push(prefill);
      times.step.push(perToken);
      times.link.push(firstMs! - vision - prefill);
    }
    return times;
  };
  const [here, there] = [await trial(POLICIES["always-local"]()), await trial(POLICIES["always-pool"]())];
  const [{ pixels, prefix }, { uploadBytes }] = ["local", "pixels"].map((name) =>
    options.find((it) => it.name === name)!
  );
  const of = ({ vision, prefill, step }: typeof here, by = 1) => ({
    vision: { baseMs: 0, perUnitMs: by * median(vision) / pixels },
    prefill: { baseMs: 0, perUnitMs: by * median(prefill) / prefix },
    step: { baseMs: by * median(step), perUnitMs: 0 },
  });
  const transferMs = median(there.link);
  const away = { baseMs: rttMs, perUnitMs: Math.max(0, transferMs - rttMs) / uploadBytes };
  const pool = { ...of(there), link: away, pricePerSecond: POOL_PRICE };
  // Budgets are made of what is true, plans of what an edge believes.
  const quantiles = new CostModel({ edge: of(here), pool });
  return { calibration: { edge: of(here, miscalibrated), pool }, quantiles, options };
}

/** A budget out of what the calibrated model says of a way. */
function budgetIn(asked: RealAsked, options: readonly Option[], quantiles: CostModel): Budget {
  const away = asked.privacy === "any" ? "pixels" : "features";
  const name = asked.of === "local" ? "local" : away;
  const option = { ...options.find((it) => it.name === name)!, tokens: asked.tokens };
  return budgetOf(asked, quantiles.estimate(option, {}, 0, 0));
}

/** Brings the worker into the state that a question is to find it in. */
class Worker {
  #door: WorkerDoor | undefined;
  #is: RealAsked["worker"] = "killed";

  constructor(private readonly keys: string, private readonly links: readonly Link[]) {}

  async become(state: RealAsked["worker"]): Promise<void> {
    if (state === this.#is) return;
    if (this.#is === "stopped") this.#door!.kill("SIGCONT");
    if (state === "killed") {
      this.#door!.kill("SIGKILL");
      await this.#door!.status;
    } else if (this.#is === "killed") {
      this.#door = await startWorker({ POOL_TRUSTED_KEYS: join(this.keys, "trusted.jwks"), MODEL: TINY });
      for (const it of this.links) it.far = Number(new URL(this.#door.url).port);
    }
    if (state === "stopped") this.#door!.kill("SIGSTOP");
    this.#is = state;
  }
}

/** Asks so many questions of every class under every policy. @param told hears of each question. */
export async function playReal(
  questions: number,
  seed: number,
  told: (row: RealRow, done: number, all: number) => void,
): Promise<{ rows: RealRow[]; ledger: RealLedger }> {
  const keys = await Deno.makeTempDir({ prefix: "keys" });
  await writePoolKeys(keys, true);
  const scene = await openScene(keys);
  const links = REAL_POLICIES.map(() => new Link(1));
  const worker = new Worker(keys, links);
  const trace = drawTrace(questions, seed);
  const rows: RealRow[] = [];
  const ledger: RealLedger = { judged: 0, covered: 0, hedges: 0 };
  try {
    for (const kind of trace) {
      await worker.become("well");
      const { calibration, quantiles, options } = await calibrate(scene, kind, links[0]);
      await using stack = new AsyncDisposableStack();
      const players: Player[] = [];
      for (const [i, name] of REAL_POLICIES.entries()) {
        const player = await Player.open(scene, links[i], (model) => {
          for (const [place, costs] of Object.entries(calibration)) model.calibrate(place, costs);
          const chance = new Chance(seed, i);
          if (name === "planner") return new Planner(model, () => chance.uniform());
          const parts = { edge: { calibration }, index: i, seed, planMillis: [], nearMs: NEAR_MS };
          return new Ruled(model, POLICIES[name](parts));
        });
        players.push(stack.use(player));
      }
      for (const asked of kind.asked) {
        await worker.become(asked.worker);
        const budget = budgetIn(asked, options, quantiles);
        const answers: Record<string, RealAnswer> = {};
        for (const j of REAL_POLICIES.keys()) {
          const i = (j + rows.length) % REAL_POLICIES.length;
          const { answer: _, ...answer } = await players[i].ask(asked, budget);
          answers[REAL_POLICIES[i]] = answer;
        }
        rows.push({ class: kind.name, tokens: asked.tokens, budget, answers });
        told(rows.at(-1)!, rows.length, trace.length * questions);
      }
      const { judged, covered, hedges } = players[REAL_POLICIES.indexOf("planner")].pipeline.planner().ledger;
      ledger.judged += judged;
      ledger.covered += covered;
      ledger.hedges += hedges;
    }
  } finally {
    await worker.become("killed");
    for (const it of links) it.close();
    await Deno.remove(keys, { recursive: true });
  }
  return { rows, ledger };
}
