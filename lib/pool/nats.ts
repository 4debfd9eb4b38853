/**
 * A pool of workers behind NATS, seen from the server that asks: which worker, and which not for a while. Workers connect
 * outwards only, so they may stand behind NAT. They announce themselves in a key-value bucket whose values live for
 * seconds. What is said of one answer stands in exchange.ts.
 */

import { StorageType } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { type ConnectionOptions, type NatsConnection, nkeyAuthenticator } from "@nats-io/nats-core";
import { Breakers } from "./breaker.ts";
import { Exchange, INBOX, subjects } from "./exchange.ts";
import { type Pool, PoolError, type PoolEvent, type Present, type SubmitOptions, type Work } from "./pool.ts";
import { ending } from "./relay.ts";
import type { Load } from "./serving.ts";
import type { Sign } from "./signature.ts";
import type { ModelShape } from "./work.ts";

/** The key-value bucket, and how long an announcement lives without being repeated. */
export const BUCKET = "pool_workers";
export const ANNOUNCEMENT_MS = 5000;

/** A broker that restarts is found again this soon. */
const RECONNECT_MS = 200;

/**
 * How to connect as this role: again whenever the connection breaks, and for the first time as soon as a broker is there.
 *
 * @param seed what the broker knows this process by.
 */
export function connectionOptions(url: string, role: keyof typeof INBOX, seed?: string): ConnectionOptions {
  return {
    servers: url,
    name: `paligemma-edge ${role}`,
    inboxPrefix: INBOX[role],
    authenticator: seed === undefined ? undefined : nkeyAuthenticator(new TextEncoder().encode(seed)),
    waitOnFirstConnect: true,
    maxReconnectAttempts: -1,
    reconnectTimeWait: RECONNECT_MS,
    reconnectJitter: RECONNECT_MS,
    ignoreAuthErrorAbort: true,
  };
}

/** What a worker says of itself. */
export interface Announcement extends Load {
  readonly worker: string;
}

/** Opens the bucket of announcements, which any of those that use it may make. */
export function openBucket(connection: NatsConnection) {
  return new Kvm(connection).create(BUCKET, {
    ttl: ANNOUNCEMENT_MS,
    history: 1,
    storage: StorageType.Memory,
  });
}

/** What a pool is asked with. */
export interface NatsPoolParts {
  readonly model: ModelShape;
  readonly sign: Sign;
  /** Whom to leave alone; of this pool alone by default. */
  readonly breakers?: Breakers;
  /** Told what does an answer no harm: announcements that cannot be read. */
  readonly onError?: (error: unknown) => void;
}

/** The workers of one model. */
export class NatsPool implements Pool {
  readonly #breakers: Breakers;
  readonly #workers = new Map<string, { readonly load: Announcement; readonly at: number }>();
  /** Fail the answers under way. */
  readonly #cut = new Set<(error: PoolError) => void>();
  /** Since when there has been a worker; undefined while there is none. */
  #since: number | undefined;
  /** Whether any worker ever announced itself: before that nobody knows. */
  #heard = false;
  #connected = true;
  #watched: { stop(): void } | undefined;

  constructor(private readonly connection: NatsConnection, private readonly parts: NatsPoolParts) {
    this.#breakers = parts.breakers ?? new Breakers();
    this.#watchConnection();
    this.#watchWorkers();
  }

  /** The workers that announced themselves within the last seconds. */
  workers(): Announcement[] {
    const now = performance.now();
    for (const [worker, { at }] of this.#workers) {
      if (now - at > ANNOUNCEMENT_MS) this.#workers.delete(worker);
    }
    if (!this.#workers.size) this.#since = undefined;
    return [...this.#workers.values()].map((it) => it.load);
  }

  present(): Present | undefined {
    if (!this.#heard) return undefined;
    if (!this.#connected) return { workers: [] };
    const well = this.workers().filter((it) => !this.#breakers.open(it.worker));
    const workers = well.map((it) => ({
      worker: it.worker,
      slots: it.maxActive,
      running: it.active,
      waiting: it.waiting,
      serviceMs: it.firstMs + it.tokens * it.tokenMs,
      firstMs: it.firstMs,
      tokenMs: it.tokenMs,
    }));
    return { workers, since: this.#since };
  }

  /** One try at one worker. */
  async *submit(work: Work, { signal, deadlineMs }: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    if (!this.#connected || this.connection.isClosed()) {
      throw new PoolError("nobody", "Cannot reach the pool: there is no connection");
    }
    const subject = this.#choose();
    const imageTokens = work.images.shape[0] * this.parts.model.imageTokens;
    const exchange = new Exchange(this.connection, work, this.parts);
    const cut = (error: PoolError) => exchange.fail(error);
    const abort = () => exchange.cancel();
    this.#cut.add(cut);
    signal?.addEventListener("abort", abort, { once: true });
    try {
      if (signal?.aborted) return yield* ending(work, work.given.length, "cancelled", imageTokens);
      let count = work.given.length;
      for await (const event of exchange.run(subject, deadlineMs)) {
        if (event.type === "token") count++;
        yield event;
      }
      if (exchange.cancelled) return yield* ending(work, count, "cancelled", imageTokens);
      if (exchange.worker) this.#breakers.succeeded(exchange.worker);
    } catch (error) {
      if (error instanceof PoolError && exchange.worker) {
        this.#breakers.lost(exchange.worker, error);
        if (error.code === "gone") this.#workers.delete(exchange.worker);
      }
      throw error;
    } finally {
      this.#cut.delete(cut);
      signal?.removeEventListener("abort", abort);
      exchange.close();
    }
  }

  /** Any worker, unless there is one to leave alone: then the one with the most room among the others. */
  #choose(): string {
    const { work, at } = subjects(this.parts.model.revision);
    const workers = this.workers();
    if (!this.#breakers.some) return work;
    const [best] = workers.filter((it) => !this.#breakers.open(it.worker)).sort((a, b) =>
      crowd(a) - crowd(b)
    );
    if (!best) throw new PoolError("nobody", "Cannot reach the pool: its workers failed a moment ago");
    return at(best.worker, "work");
  }

  async #watchConnection(): Promise<void> {
    for await (const { type } of this.connection.status()) {
      if (type === "disconnect" || type === "staleConnection") {
        this.#connected = false;
        for (const cut of this.#cut) cut(new PoolError("gone", "The connection to the pool broke"));
      } else if (type === "reconnect") {
        this.#connected = true;
        this.#watched?.stop(); // what it watched may have gone with the broker
      }
    }
    this.#connected = false;
  }

  /** Follows the announcements; where that breaks off, as with the broker, it begins anew. */
  async #watchWorkers(): Promise<void> {
    const { revision } = this.parts.model;
    while (!this.connection.isClosed()) {
      try {
        const bucket = await openBucket(this.connection);
        const watched = this.#watched = await bucket.watch({ key: `${revision}.*` });
        for await (const { key, operation, value } of watched) {
          const worker = key.slice(revision.length + 1);
          this.#heard = true;
          if (operation !== "PUT") this.#workers.delete(worker);
          else {
            const load = JSON.parse(new TextDecoder().decode(value));
            if (!this.workers().length) this.#since = Date.now();
            this.#workers.set(worker, { load, at: performance.now() });
          }
        }
      } catch (error) {
        if (!this.connection.isClosed()) this.parts.onError?.(error);
      }
      await new Promise((wake) => setTimeout(wake, 500));
    }
  }
}

/** How full a worker is. */
function crowd({ active, waiting, maxActive }: Announcement): number {
  return (active + waiting) / maxActive;
}
