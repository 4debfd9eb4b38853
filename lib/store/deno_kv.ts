/// <reference lib="deno.unstable" />

/**
 * Records, queues and blobs in Deno KV: a SQLite file on one machine, the platform's database on Deno Deploy. Where there
 * is a disk, blobs lie better in files.
 *
 * The queues are records too, and not KV's own: those cannot extend a lease, try five times and then drop a message, and
 * Deno Deploy has none.
 */

import { RequestError } from "../errors.ts";
import { Bell } from "./bell.ts";
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

/** What {@link openKvStore} opens. */
export interface KvStore extends Store<PullQueue> {
  close(): void;
}

/** How a database is opened. */
export interface KvOptions {
  /** Of the SQLite file; without it, the platform's database. */
  readonly path?: string;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
  /** Told of messages that are dropped because their bytes are not those that were written. */
  readonly onCorrupt?: (error: RequestError) => void;
}

/**
 * Opens the database, and makes it if need be. Whoever is alone with a file takes over what its predecessor had leased,
 * so that after a crash nobody waits for leases of the dead.
 *
 * @throws {RequestError} `storage_failed` when it cannot be opened.
 */
export async function openKvStore({ path, now = Date.now, onCorrupt }: KvOptions = {}): Promise<KvStore> {
  const kv = await guarded(() => Deno.openKv(path));
  // The system gives the lock back when a process dies, however it does.
  const lock = path === undefined
    ? undefined
    : await Deno.open(`${path}.lock`, { create: true, write: true });
  const alone = await lock?.tryLock(true) ?? false;
  const queues = {
    jobs: new KvQueue(kv, "jobs", now, onCorrupt),
    webhooks: new KvQueue(kv, "webhooks", now, onCorrupt),
  };
  if (alone) { for (const queue of Object.values(queues)) await queue.takeOver(); }
  return {
    records: new KvRecords(kv),
    blobs: new KvBlobs(kv, now),
    queue: (name) => queues[name],
    close() {
      kv.close();
      lock?.close();
    },
  };
}

class KvRecords implements Records {
  constructor(private readonly kv: Deno.Kv) {}

  async get(key: string): Promise<Versioned | undefined> {
    checkKey(key);
    const { value, versionstamp } = await guarded(() => this.kv.get(["records", key]));
    return versionstamp === null ? undefined : { value: await unseal(key, value), version: versionstamp };
  }

  async set(key: string, value: unknown, expected: string | undefined): Promise<string | undefined> {
    checkKey(key);
    const text = await seal(value);
    const change = this.kv.atomic()
      .check({ key: ["records", key], versionstamp: expected ?? null })
      .set(["records", key], text);
    const result = await guarded(() => change.commit());
    return result.ok ? result.versionstamp : undefined;
  }

  async delete(key: string): Promise<void> {
    checkKey(key);
    await guarded(() => this.kv.delete(["records", key]));
  }

  async *keys(prefix: string): AsyncGenerator<string> {
    const range = { start: ["records", prefix], end: ["records", `${prefix}\u{10ffff}`] };
    for await (const { key } of this.kv.list(range)) yield key[1] as string;
  }
}

/** A message as it is stored. It stands a second time in the order of its time, for whoever looks for the next one. */
interface Stored {
  readonly text: string;
  readonly attempts: number;
  /** Due, or leased until then. */
  readonly at: number;
  readonly leased: boolean;
}

/** What is known of a blob; its bytes stand apart, in pieces that KV can hold. */
interface Head {
  /** Of this writing: pieces are never changed, but written anew and then pointed to. */
  readonly id: string;
  readonly sizeBytes: number;
  readonly writtenAt: number;
}

const PIECE_BYTES = 60_000;

class KvBlobs implements Blobs {
  constructor(private readonly kv: Deno.Kv, private readonly now: () => number) {}

  async get(key: string): Promise<Uint8Array<ArrayBuffer> | undefined> {
    checkKey(key);
    while (true) {
      const head = await guarded(() => this.kv.get<Head>(["blobs", key]));
      if (!head.value) return undefined;
      const bytes = new Uint8Array(head.value.sizeBytes);
      let at = 0;
      for await (const { value } of this.kv.list<Uint8Array>({ prefix: ["pieces", head.value.id] })) {
        bytes.set(value, at);
        at += value.length;
      }
      if (at === bytes.length) return bytes;
      // Replaced meanwhile, or broken.
      const again = await guarded(() => this.kv.get(["blobs", key]));
      if (again.versionstamp === head.versionstamp) {
        throw new RequestError(
          "record_corrupt",
          `Cannot read the blob ${key}: expected ${bytes.length} bytes, found ${at}`,
        );
      }
    }
  }

  async put(key: string, bytes: Uint8Array): Promise<void> {
    checkKey(key);
    const id = crypto.randomUUID();
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
      const piece = bytes.slice(at, at + PIECE_BYTES);
      await guarded(() => this.kv.set(["pieces", id, at], piece));
    }
    const former = await guarded(() => this.kv.get<Head>(["blobs", key]));
    const head: Head = { id, sizeBytes: bytes.length, writtenAt: this.now() };
    await guarded(() => this.kv.set(["blobs", key], head));
    if (former.value) await this.#drop(former.value);
  }

  async delete(key: string): Promise<void> {
    checkKey(key);
    const { value } = await guarded(() => this.kv.get<Head>(["blobs", key]));
    await guarded(() => this.kv.delete(["blobs", key]));
    if (value) await this.#drop(value);
  }

  async *list(prefix: string): AsyncGenerator<BlobInfo> {
    const range = { start: ["blobs", prefix], end: ["blobs", `${prefix}\u{10ffff}`] };
    for await (const { key, value: { sizeBytes, writtenAt } } of this.kv.list<Head>(range)) {
      yield { key: key[1] as string, sizeBytes, writtenAt };
    }
  }

  async #drop({ id }: Head): Promise<void> {
    for await (const { key } of this.kv.list({ prefix: ["pieces", id] })) {
      await guarded(() => this.kv.delete(key));
    }
  }
}

class KvQueue implements PullQueue {
  readonly #bell = new Bell();

  constructor(
    private readonly kv: Deno.Kv,
    private readonly name: string,
    private readonly now: () => number,
    private readonly onCorrupt: KvOptions["onCorrupt"],
  ) {}

  async send({ id, body }: Message, delayMs = 0): Promise<void> {
    checkKey(id);
    await this.#put(
      id,
      { text: await seal(body), attempts: 0, at: this.now() + delayMs, leased: false },
      null,
    );
    this.#bell.ring();
  }

  async receive({ limit, leaseMs }: { limit: number; leaseMs: number }): Promise<Delivery[]> {
    const due = { start: this.#at(0), end: this.#at(this.now() + 1) };
    const list = await guarded(() => Array.fromAsync(this.kv.list<string>(due, { limit })));
    const leased = await Promise.all(list.map(({ key }) => this.#lease(key, leaseMs)));
    return leased.filter((it) => it !== undefined);
  }

  async depth(prefix: string): Promise<number> {
    const range = { start: this.#message(prefix), end: this.#message(`${prefix}\u{10ffff}`) };
    return (await guarded(() => Array.fromAsync(this.kv.list(range)))).length;
  }

  wait(ms: number, signal?: AbortSignal): Promise<void> {
    return this.#bell.wait(ms, signal);
  }

  /** Makes everything that is leased due. Nobody else may have this database open. */
  async takeOver(): Promise<void> {
    const all = this.kv.list<Stored>({ prefix: ["queues", this.name, "messages"] });
    for await (const { key, value, versionstamp } of all) {
      if (!isStored(value) || !value.leased) continue;
      await this.#put(key[3] as string, { ...value, at: this.now(), leased: false }, { value, versionstamp });
    }
  }

  /** Takes the message that an entry of the order points to; undefined when there is none, or somebody was first. */
  async #lease(entry: Deno.KvKey, leaseMs: number): Promise<Delivery | undefined> {
    const id = entry[4] as string;
    const { value, versionstamp } = await guarded(() => this.kv.get<Stored>(this.#message(id)));
    try {
      if (versionstamp === null || !isStored(value) || value.at !== entry[3]) throw corrupt(id);
      const body = await unseal(id, value.text);
      const leased = { ...value, attempts: value.attempts + 1, at: this.now() + leaseMs, leased: true };
      const version = await this.#put(id, leased, { value, versionstamp });
      return version === undefined ? undefined : this.#delivery(id, body, leased, version);
    } catch (error) {
      if (!(error instanceof RequestError) || error.code !== "record_corrupt") throw error;
      await this.#drop(entry, id, error);
    }
  }

  /** Drops an entry whose message cannot be read, unless it changed meanwhile. */
  async #drop(entry: Deno.KvKey, id: string, error: RequestError): Promise<void> {
    const { value, versionstamp } = await guarded(() => this.kv.get<Stored>(this.#message(id)));
    const moved = isStored(value) && value.at !== entry[3];
    const change = this.kv.atomic().check({ key: this.#message(id), versionstamp }).delete(entry);
    if (!moved) change.delete(this.#message(id));
    const { ok } = await guarded(() => change.commit());
    // An entry without its message is what a message that was acknowledged between two reads looks like.
    if (ok && !moved && versionstamp !== null) this.onCorrupt?.(error);
  }

  #delivery(id: string, body: unknown, message: Stored, version: string): Delivery {
    const held = { value: message, versionstamp: version };
    return {
      id,
      body,
      attempts: message.attempts,
      ack: async () => {
        const change = this.kv.atomic()
          .check({ key: this.#message(id), versionstamp: held.versionstamp })
          .delete(this.#message(id))
          .delete(this.#at(held.value.at, id));
        return (await guarded(() => change.commit())).ok;
      },
      retry: async (delayMs) => {
        const due = { ...held.value, at: this.now() + delayMs, leased: false };
        const done = await this.#put(id, due, held) !== undefined;
        this.#bell.ring();
        return done;
      },
      extend: async (leaseMs) => {
        const longer = { ...held.value, at: this.now() + leaseMs };
        const version = await this.#put(id, longer, held);
        if (version === undefined) return false;
        [held.value, held.versionstamp] = [longer, version];
        return true;
      },
    };
  }

  /** Writes a message and its place in the order, in place of `former` (null: where there is none). */
  async #put(
    id: string,
    message: Stored,
    former: { readonly value: Stored; readonly versionstamp: string } | null,
  ): Promise<string | undefined> {
    const change = this.kv.atomic().check({
      key: this.#message(id),
      versionstamp: former?.versionstamp ?? null,
    });
    if (former) change.delete(this.#at(former.value.at, id));
    change.set(this.#message(id), message).set(this.#at(message.at, id), null);
    const result = await guarded(() => change.commit());
    return result.ok ? result.versionstamp : undefined;
  }

  #message(id: string): Deno.KvKey {
    return ["queues", this.name, "messages", id];
  }

  #at(time: number, id?: string): Deno.KvKey {
    return ["queues", this.name, "order", time, ...id === undefined ? [] : [id]];
  }
}

function isStored(value: unknown): value is Stored {
  const { text, attempts, at } = (value ?? {}) as Partial<Stored>;
  return typeof text === "string" && typeof attempts === "number" && typeof at === "number";
}

function corrupt(id: string): RequestError {
  return new RequestError(
    "record_corrupt",
    `Cannot read the message ${id}: expected its text, attempts and time`,
  );
}

/** SQLite says so at once when another process is writing, and has then done nothing. */
const LOCKED = /database is locked/;
const PATIENCE_MS = 5000;

/** What the database cannot do is `storage_failed`, with its own words. */
async function guarded<T>(action: () => Promise<T>): Promise<T> {
  const since = performance.now();
  while (true) {
    try {
      return await action();
    } catch (cause) {
      const { message } = cause as Error;
      if (!LOCKED.test(message) || performance.now() - since > PATIENCE_MS) {
        throw new RequestError("storage_failed", `Cannot use the database: ${message}`, { cause });
      }
      await new Promise((resolve) => setTimeout(resolve, 5 + 20 * Math.random()));
    }
  }
}
