/**
 * A pool behind a broker as one worker behind HTTP, for programs that can keep no connection from one request to the next.
 * They ask as http.ts says, with the model's shape as one more header: a gateway has no model. The way to it is theirs
 * alone, so nothing is signed on it; the gateway signs.
 */

import { type NatsConnection, wsconnect } from "@nats-io/nats-core";
import { createWorkerMetrics } from "../metrics.ts";
import { Breakers } from "./breaker.ts";
import { HttpPool } from "./http.ts";
import { takeWork } from "./http_worker.ts";
import { connectionOptions, NatsPool } from "./nats.ts";
import { type Pool, PoolError, type PoolEvent, type SubmitOptions, type Work } from "./pool.ts";
import type { Seat } from "./serving.ts";
import type { Sign } from "./signature.ts";
import type { ModelShape } from "./work.ts";

const SHAPE = "model-shape";
/** Where there is a broker a connection takes milliseconds; so long is waited for one, and no longer. */
const CONNECT_MS = 3000;
/** What the pictures of all answers under way may take. */
const PICTURES_BYTES = 48e6;
/** The gateway knows the worker, and judges how long a token may take; whoever asks it waits as long as that can be. */
const PATIENCE_MS = 120_000;

/** The pool behind a model's gateway. @param reach asks the gateway. */
export function behindGateway(
  model: ModelShape,
  reach: (url: string, init: RequestInit) => Promise<Response>,
): Pool {
  const shape = JSON.stringify(model);
  return new HttpPool("http://gateway", {
    model,
    sign: () => Promise.resolve(""),
    fetch: (url, init) => reach(url, { ...init, headers: { ...init.headers, [SHAPE]: shape } }),
    // It leaves alone the workers that fail; that one does is no reason to leave all.
    breakers: new Breakers(() => Infinity),
  });
}

/** What a gateway is made of. */
export interface GatewayParts {
  /** Of the broker, `ws:` or `wss:`. */
  readonly url: string;
  /** The seed by which the broker lets it in. */
  readonly nkey?: string;
  readonly sign: Promise<Sign>;
  readonly onError: (error: unknown) => void;
}

/** The gateway to the workers of one model. It connects when it is first asked. */
export class Gateway {
  readonly #metrics = createWorkerMetrics();
  #pool: Promise<NatsPool> | undefined;
  #active = 0;

  constructor(private readonly parts: GatewayParts) {}

  /** Answers `POST /work`. */
  async fetch(request: Request): Promise<Response> {
    const model: ModelShape = JSON.parse(request.headers.get(SHAPE) ?? "null");
    let deadlineMs = Infinity;
    const serving = {
      predictMs: () => PATIENCE_MS,
      enter: (_tokens: number, ms = Infinity) => {
        deadlineMs = ms;
        return this.#enter(model);
      },
      run: (work: Work, { signal }: SubmitOptions = {}) => this.#run(model, work, { signal, deadlineMs }),
    };
    const verify = () => Promise.resolve({ kid: "gateway", features: true });
    const { onError } = this.parts;
    return await takeWork(request, { serving, model, verify, metrics: this.#metrics, onError });
  }

  #enter({ imageTokens, width }: ModelShape): Seat {
    const most = Math.max(1, Math.floor(PICTURES_BYTES / (imageTokens * width * 2)));
    if (this.#active >= most) throw new PoolError("busy", `Cannot take work: ${most} answers are under way`);
    this.#active++;
    let left = false;
    return {
      leave: () => {
        if (!left) this.#active--;
        left = true;
      },
    };
  }

  async *#run(model: ModelShape, work: Work, options: SubmitOptions): AsyncGenerator<PoolEvent, void> {
    this.#pool ??= this.#open(model);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<undefined>((resolve) =>
      timer = setTimeout(() => resolve(undefined), CONNECT_MS)
    );
    const pool = await Promise.race([this.#pool, late]).finally(() => clearTimeout(timer));
    if (!pool) throw new PoolError("nobody", "Cannot reach the pool: there is no connection yet");
    yield* pool.submit(work, options);
  }

  async #open(model: ModelShape): Promise<NatsPool> {
    const { url, nkey, sign, onError } = this.parts;
    try {
      const connection: NatsConnection = await wsconnect(connectionOptions(url, "server", nkey));
      return new NatsPool(connection, { model, sign: await sign, onError });
    } catch (cause) {
      this.#pool = undefined; // the next one tries again
      onError(cause);
      throw new PoolError("nobody", `Cannot reach the pool: ${cause}`, undefined, { cause });
    }
  }
}
