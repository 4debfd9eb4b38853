/**
 * The same policies in the real system: a server in this process whose stages take five times as long as they do here, a worker
 * as another process, and between them a proxy that delays and slows down what passes, in phases: LAN, mobile, 3G, a pool that
 * is gone, broadband. Questions and budgets are the same for every policy.
 */

import { join } from "@std/path";
import { writePoolKeys } from "../../../functions/pool_keys.ts";
import { directoryFiles, TINY } from "../../../functions/model.ts";
import { createWasmBackend } from "../../../lib/backend/wasm.ts";
import { loadDecoder } from "../../../lib/decode/gemma.ts";
import { createApp } from "../../../lib/http/app.ts";
import { createMetrics } from "../../../lib/metrics.ts";
import { createPipeline } from "../../../lib/pipeline.ts";
import { HttpPool } from "../../../lib/pool/http.ts";
import { createSign } from "../../../lib/pool/signature.ts";
import type { CostModel } from "../../../lib/schedule/cost_model.ts";
import { type Ask, type Candidate, type Plan, Planner } from "../../../lib/schedule/planner.ts";
import type { RouteOutcome } from "../../../lib/types.ts";
import { loadVision } from "../../../lib/vision/siglip.ts";
import { readConfig } from "../../../lib/weights/config.ts";
import { openWeights } from "../../../lib/weights/load.ts";
import { revisionOf } from "../../../lib/weights/revision.ts";
import { relaxed, simd } from "../../../wasm/kernels.js";
import { startWorker } from "../../doors/pool_worker.ts";
import { Chance } from "./chance.ts";

/** A link for a share of the questions; without a rate nothing passes. */
interface Phase {
  readonly name: string;
  readonly rttMs: number;
  /** 10⁶ bits a second upward. */
  readonly mbps?: number;
}

/** What the links are like, in turn. */
export const PHASES: readonly Phase[] = [
  { name: "lan", rttMs: 1, mbps: 1000 },
  { name: "mobile", rttMs: 60, mbps: 6 },
  { name: "3g", rttMs: 200, mbps: 1 },
  { name: "gone", rttMs: 25 },
  { name: "broadband", rttMs: 25, mbps: 20 },
];

/** Whom the planner is compared with: they see its predictions, and choose by a rule of their own. */
const CHOICES: Readonly<
  Record<string, (candidates: readonly Candidate[], ask: Ask) => Candidate | undefined>
> = {
  "always-local": (all) => all.find((it) => it.option.decode === "edge"),
  "always-pool": (all) => smallest(all.filter((it) => it.option.decode === "pool")),
  // To the pool whenever 37 KB take less than so long there.
  "static-threshold": (all, ask) => {
    const remote = smallest(
      all.filter((it) => it.option.decode === "pool" && it.estimate.firstP95Ms < Infinity),
    );
    const near = remote && remote.estimate.firstMeanMs < 300;
    return near ? remote : CHOICES["always-local"](all, ask);
  },
  regression: (all, { remaining }) => {
    const usable = all.filter((it) => it.estimate.firstP95Ms < Infinity);
    const time = ({ estimate }: Candidate) =>
      remaining.totalMs === undefined ? estimate.firstMeanMs : estimate.totalMeanMs;
    return usable.length ? usable.reduce((a, b) => time(b) < time(a) ? b : a) : undefined;
  },
};

export const REAL_POLICIES = [...Object.keys(CHOICES), "planner"];

function smallest(candidates: readonly Candidate[]): Candidate | undefined {
  return candidates.length
    ? candidates.reduce((a, b) => b.option.uploadBytes < a.option.uploadBytes ? b : a)
    : undefined;
}

/** A planner whose choice is another's. */
class Ruled extends Planner {
  constructor(model: CostModel, private readonly choose: (typeof CHOICES)[string]) {
    super(model, () => 1);
  }

  override plan(ask: Ask, now: number): Plan {
    const { hedge: _, ...plan } = super.plan(ask, now);
    const chosen = this.choose(plan.candidates, ask);
    return { ...plan, chosen, reason: chosen ? "likeliest" : plan.reason };
  }
}

/** Closes a connection that its other end may have closed before. */
function closed(connection: Deno.Conn): void {
  try {
    connection.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource)) throw error;
  }
}

/** Passes bytes on as a link of the present phase would. */
export class Link {
  phase: Phase = PHASES[0];
  readonly #listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  readonly #open = new Set<Deno.Conn>();

  /** @param far the port that it leads to. */
  constructor(private readonly far: number) {
    this.#listen();
  }

  get port(): number {
    return (this.#listener.addr as Deno.NetAddr).port;
  }

  /** Takes another link; what passes is cut where nothing does any more. */
  turn(phase: Phase): void {
    this.phase = phase;
    if (phase.mbps === undefined) this.#cut();
  }

  close(): void {
    this.#listener.close();
    this.#cut();
  }

  #cut(): void {
    for (const it of this.#open) closed(it);
    this.#open.clear();
  }

  async #listen(): Promise<void> {
    for await (const near of this.#listener) {
      if (this.phase.mbps === undefined) {
        near.close();
        continue;
      }
      const far = await Deno.connect({ port: this.far, hostname: "127.0.0.1" });
      for (const it of [near, far]) this.#open.add(it);
      Promise.all([this.#pass(near, far, true), this.#pass(far, near, false)]).catch(() => {}).finally(() => {
        for (const it of [near, far]) {
          if (this.#open.delete(it)) closed(it);
        }
      });
    }
  }

  /** Every piece leaves when the one before has, and arrives half a round trip later. */
  async #pass(from: Deno.Conn, to: Deno.Conn, upward: boolean): Promise<void> {
    let free = 0;
    let written = Promise.resolve();
    for await (const piece of from.readable.values({ preventCancel: true })) {
      const { rttMs, mbps = 1 } = this.phase;
      const now = performance.now();
      free = Math.max(free, now) + (upward ? piece.length * 0.008 / mbps : 0);
      const at = free + rttMs / 2;
      written = written.then(async () => {
        await new Promise((wake) => setTimeout(wake, Math.max(0, at - performance.now())));
        for (let done = 0; done < piece.length;) done += await to.write(piece.subarray(done));
      });
      written.catch(() => {});
      // What is not yet on its way is not read.
      if (free - now > 20) await new Promise((wake) => setTimeout(wake, free - now - 20));
    }
    await written;
    await to.closeWrite();
  }
}

/** Budgets, on a machine that takes 50 ms for an answer by itself. */
const LEAST_MS = 60;
const MOST_MS = 280;

/** The server's machine, of this one's time. */
const SLOWER = 5;

/** The same object, whose promises take longer. */
function slower<T extends object>(stage: T): T {
  return new Proxy(stage, {
    get(target, name) {
      const value = Reflect.get(target, name);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => {
        const since = performance.now();
        const made = value.apply(target, args);
        if (!(made instanceof Promise)) return made;
        return made.then(async (it) => {
          const tookMs = performance.now() - since;
          await new Promise((wake) => setTimeout(wake, (SLOWER - 1) * tookMs));
          return it;
        });
      };
    },
  });
}

/** How one policy did. */
export interface RealScores {
  readonly policy: string;
  readonly requests: number;
  readonly met: number;
  /** Of every phase: questions, and budgets met. */
  readonly phases: Readonly<Record<string, readonly [asked: number, met: number]>>;
  readonly routes: Readonly<Record<string, number>>;
  readonly coverage95: number | null;
  readonly hedges: number;
}

/** Asks so many questions under a policy. */
export async function playReal(policy: string, requests: number, seed: number): Promise<RealScores> {
  const keys = await Deno.makeTempDir({ prefix: "keys" });
  await writePoolKeys(keys, true);
  const worker = await startWorker({ POOL_TRUSTED_KEYS: join(keys, "trusted.jwks"), MODEL: TINY });
  const link = new Link(Number(new URL(worker.url).port));
  const sign = await createSign(JSON.parse(await Deno.readTextFile(join(keys, "server.jwk"))));
  const metrics = createMetrics();
  const chance = new Chance(seed, 1);
  const choose = CHOICES[policy];
  const backend = createWasmBackend({ simd, relaxed });
  const files = directoryFiles(TINY);
  const weights = await openWeights(files, await readConfig(files));
  const stages = {
    vision: slower(await loadVision(backend, weights)),
    decoder: slower(await loadDecoder(backend, weights)),
    revision: await revisionOf(files),
  };
  const pipeline = await createPipeline({
    backend,
    files,
    stages,
    name: "tiny",
    metrics,
    pool: (model) => new HttpPool(`http://127.0.0.1:${link.port}`, { model, sign }),
    planner: (model) => choose ? new Ruled(model, choose) : new Planner(model, () => chance.uniform()),
    featureCacheBytes: 0,
    prefixCacheBytes: 0,
  });
  await pipeline.calibrate();
  const server = Deno.serve(
    { port: 0, onListen() {} },
    createApp({ pipeline: () => pipeline, metrics }).fetch,
  );
  const image = (await Deno.readFile(join(TINY, "pictures/five_shapes.png"))).toBase64();
  const phases: Record<string, [number, number]> = {};
  const routes: Record<string, number> = {};
  let met = 0;
  try {
    for (let i = 0; i < requests; i++) {
      const phase = PHASES[Math.floor(i * PHASES.length / requests)];
      if (phase !== link.phase) link.turn(phase);
      const draw = new Chance(seed, 2 + i);
      const totalMs = LEAST_MS + (MOST_MS - LEAST_MS) * draw.uniform();
      const body = { image, prompt: "caption en", maxTokens: 9, ignoreEos: true };
      const response = await fetch(`http://localhost:${server.addr.port}/v1/generate`, {
        method: "POST",
        headers: { "content-type": "application/json", "x-latency-budget-ms": String(Math.round(totalMs)) },
        body: JSON.stringify(body),
      });
      const { route } = await response.json() as { route?: { actual?: RouteOutcome } };
      const { actual } = route ?? {};
      const inTime = actual?.met ?? false;
      (phases[phase.name] ??= [0, 0])[0]++;
      if (inTime) phases[phase.name][1]++;
      if (inTime) met++;
      const name = actual?.route ?? String(response.status);
      routes[name] = (routes[name] ?? 0) + 1;
    }
  } finally {
    await server.shutdown();
    link.close();
    worker.kill("SIGKILL");
    await worker.status;
    await Deno.remove(keys, { recursive: true });
  }
  const { judged, covered, hedges } = pipeline.planner().ledger;
  return { policy, requests, met, phases, routes, coverage95: judged ? covered / judged : null, hedges };
}
