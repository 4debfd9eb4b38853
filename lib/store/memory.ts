/** Everything in this process's memory: for tests, and where there is nothing better. */

import {
  type BlobInfo,
  type Blobs,
  checkKey,
  type Delivery,
  type Message,
  type PullQueue,
  type Records,
  seal,
  type Store,
  unseal,
  type Versioned,
} from "./store.ts";
import { Bell } from "./bell.ts";

/** @param now milliseconds since 1970. */
export function createMemoryStore({ now = Date.now }: { now?: () => number } = {}): Store<PullQueue> {
  const queues = { jobs: new MemoryQueue(now), webhooks: new MemoryQueue(now) };
  return { records: new MemoryRecords(), blobs: new MemoryBlobs(now), queue: (name) => queues[name] };
}

class MemoryRecords implements Records {
  readonly #records = new Map<string, { readonly text: string; readonly version: string }>();
  #changes = 0;

  async get(key: string): Promise<Versioned | undefined> {
    checkKey(key);
    const found = this.#records.get(key);
    return found && { value: await unseal(key, found.text), version: found.version };
  }

  async set(key: string, value: unknown, expected: string | undefined): Promise<string | undefined> {
    checkKey(key);
    const text = await seal(value);
    if (this.#records.get(key)?.version !== expected) return undefined;
    const version = String(++this.#changes);
    this.#records.set(key, { text, version });
    return version;
  }

  delete(key: string): Promise<void> {
    checkKey(key);
    this.#records.delete(key);
    return Promise.resolve();
  }

  async *keys(prefix: string): AsyncGenerator<string> {
    yield* [...this.#records.keys()].filter((it) => it.startsWith(prefix)).sort();
  }
}

class MemoryBlobs implements Blobs {
  readonly #blobs = new Map<
    string,
    { readonly bytes: Uint8Array<ArrayBuffer>; readonly writtenAt: number }
  >();

  constructor(private readonly now: () => number) {}

  get(key: string): Promise<Uint8Array<ArrayBuffer> | undefined> {
    checkKey(key);
    return Promise.resolve(this.#blobs.get(key)?.bytes.slice());
  }

  put(key: string, bytes: Uint8Array): Promise<void> {
    checkKey(key);
    this.#blobs.set(key, { bytes: new Uint8Array(bytes), writtenAt: this.now() });
    return Promise.resolve();
  }

  delete(key: string): Promise<void> {
    checkKey(key);
    this.#blobs.delete(key);
    return Promise.resolve();
  }

  async *list(prefix: string): AsyncGenerator<BlobInfo> {
    for (const [key, { bytes, writtenAt }] of [...this.#blobs]) {
      if (key.startsWith(prefix)) yield { key, sizeBytes: bytes.length, writtenAt };
    }
  }
}

interface Waiting {
  readonly text: string;
  attempts: number;
  /** Due, or leased until then. */
  at: number;
  /** Counts deliveries and their ends: who holds an older number holds nothing. */
  turn: number;
}

class MemoryQueue implements PullQueue {
  readonly #messages = new Map<string, Waiting>();
  readonly #bell = new Bell();

  constructor(private readonly now: () => number) {}

  async send({ id, body }: Message, delayMs = 0): Promise<void> {
    checkKey(id);
    const text = await seal(body);
    if (this.#messages.has(id)) return;
    this.#messages.set(id, { text, attempts: 0, at: this.now() + delayMs, turn: 0 });
    this.#bell.ring();
  }

  async receive({ limit, leaseMs }: { limit: number; leaseMs: number }): Promise<Delivery[]> {
    const due = [...this.#messages].filter(([, it]) => it.at <= this.now()).slice(0, limit);
    return await Promise.all(due.map(async ([id, message]) => {
      message.attempts++;
      message.at = this.now() + leaseMs;
      return this.#delivery(id, message, ++message.turn, await unseal(id, message.text));
    }));
  }

  depth(prefix: string): Promise<number> {
    return Promise.resolve([...this.#messages.keys()].filter((it) => it.startsWith(prefix)).length);
  }

  wait(ms: number, signal?: AbortSignal): Promise<void> {
    return this.#bell.wait(ms, signal);
  }

  #delivery(id: string, message: Waiting, turn: number, body: unknown): Delivery {
    const held = (action: () => void) => {
      const mine = this.#messages.get(id) === message && message.turn === turn;
      if (mine) action();
      return Promise.resolve(mine);
    };
    return {
      id,
      body,
      attempts: message.attempts,
      ack: () => held(() => this.#messages.delete(id)),
      retry: (delayMs) =>
        held(() => {
          message.turn++;
          message.at = this.now() + delayMs;
          this.#bell.ring();
        }),
      extend: (leaseMs) => held(() => message.at = this.now() + leaseMs),
    };
  }
}
