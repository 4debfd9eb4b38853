/**
 * Cloudflare: records in the SQLite of one Durable Object, blobs in R2, queues in Queues.
 *
 * Queues bring a message at least once, perhaps twice at a time, after at most half a day, and no more than a hundred
 * times. What the contract asks beyond that is made here: a lease is a record, what is to come later than a queue can wait,
 * or comes again, is sent anew, and a record for each message tells how many there are.
 */

import { RequestError } from "../errors.ts";
import {
  type BlobInfo,
  type Blobs,
  checkKey,
  type Delivery,
  type Message,
  type Queue,
  type Records,
  seal,
  type Store,
  unseal,
  type Versioned,
} from "./store.ts";

/** A Durable Object's namespace, as far as it is used. */
export interface ObjectNamespace {
  idFromName(name: string): unknown;
  get(id: unknown): { fetch(url: string, init: RequestInit): Promise<Response> };
}

/** What R2 tells of an object, as far as it is used. */
interface R2Info {
  readonly key: string;
  readonly size: number;
  readonly uploaded: Date;
}

/** An R2 bucket, as far as it is used. */
export interface R2Bucket {
  head(key: string): Promise<R2Info | null>;
  get(
    key: string,
    options?: { range: { offset: number; length: number } },
  ): Promise<{ arrayBuffer(): Promise<ArrayBuffer> } | null>;
  put(key: string, bytes: Uint8Array): Promise<unknown>;
  delete(key: string): Promise<void>;
  list(options: { prefix: string; cursor?: string }): Promise<{
    readonly objects: readonly R2Info[];
    readonly truncated: boolean;
    readonly cursor?: string;
  }>;
}

/** A queue's sending end, as far as it is used. */
export interface QueueBinding {
  send(body: unknown, options?: { delaySeconds?: number }): Promise<unknown>;
}

/** A message as a queue's consumer gets it, as far as it is used. */
export interface QueueMessage {
  readonly id: string;
  readonly body: unknown;
  readonly attempts: number;
  ack(): void;
  retry(options?: { delaySeconds?: number }): void;
}

/** The bindings of a store. */
export interface CloudflareParts {
  /** The namespace of {@link RecordsObject}. */
  readonly records: ObjectNamespace;
  readonly blobs: R2Bucket;
  readonly queues: Readonly<Record<"jobs" | "webhooks", QueueBinding>>;
  /** The object that holds the records; stores of other names share nothing with it but blobs. */
  readonly name?: string;
}

/** A store whose queues call their consumer. */
export interface CloudflareStore extends Store {
  /**
   * A message that a queue brought, leased for `leaseMs`; undefined when it is nobody's to handle now: not due yet, or
   * in the hands of somebody who has it too.
   */
  take(queue: "jobs" | "webhooks", message: QueueMessage, leaseMs: number): Promise<Delivery | undefined>;
}

/** Queues wait no longer than 12 hours. */
const MAX_DELAY_MS = 12 * 3_600_000;

/** Opens the store; nothing is asked of it yet. */
export function createCloudflareStore(
  { records, blobs, queues, name = "records" }: CloudflareParts,
): CloudflareStore {
  const remote = new ObjectRecords(records, name);
  return {
    records: remote,
    blobs: createR2Blobs(blobs),
    queue: (name) => createQueue(remote, name, queues[name]),
    take: (name, message, leaseMs) => take(remote, name, queues[name], message, leaseMs),
  };
}

/** A Durable Object's state, as far as it is used. */
interface ObjectState {
  readonly storage: {
    readonly sql: { exec(query: string, ...values: unknown[]): { toArray(): Record<string, string>[] } };
  };
}

/** What is asked of the object. */
type Ask =
  | { readonly do: "get"; readonly key: string }
  | { readonly do: "delete"; readonly key: string }
  | { readonly do: "set"; readonly key: string; readonly text: string; readonly expected?: string }
  | { readonly do: "keys"; readonly prefix: string; readonly after: string }
  | { readonly do: "count"; readonly prefix: string };

/** Keys in one answer to `keys`. */
const PAGE = 200;

/** The Durable Object with the records. One question at a time is what makes compare-and-set whole. */
export class RecordsObject {
  readonly #sql: ObjectState["storage"]["sql"];

  constructor({ storage }: ObjectState) {
    this.#sql = storage.sql;
    this.#sql.exec(
      "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, text TEXT, version TEXT) WITHOUT ROWID",
    );
  }

  async fetch(request: Request): Promise<Response> {
    return Response.json(this.#answer(await request.json()) ?? null);
  }

  #answer(ask: Ask): unknown {
    const rows = (query: string, ...values: unknown[]) => this.#sql.exec(query, ...values).toArray();
    if (ask.do === "count") {
      const query = "SELECT count(*) AS count FROM records WHERE key >= ? AND key < ?";
      return rows(query, ask.prefix, ask.prefix + "\x7f")[0].count;
    }
    if (ask.do === "keys") {
      // Keys are ASCII below DEL.
      const [low, high] = [ask.after || ask.prefix, ask.prefix + "\x7f"];
      const query =
        `SELECT key FROM records WHERE key >= ? AND key < ? AND key <> ? ORDER BY key LIMIT ${PAGE}`;
      return rows(query, low, high, ask.after).map((it) => it.key);
    }
    if (ask.do === "delete") return void rows("DELETE FROM records WHERE key = ?", ask.key);
    const [found] = rows("SELECT text, version FROM records WHERE key = ?", ask.key);
    if (ask.do !== "set") return found;
    if (found?.version !== ask.expected) return undefined;
    const version = crypto.randomUUID();
    rows("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", ask.key, ask.text, version);
    return version;
  }
}

class ObjectRecords implements Records {
  constructor(private readonly namespace: ObjectNamespace, private readonly name: string) {}

  async get(key: string): Promise<Versioned | undefined> {
    checkKey(key);
    const found = await this.#ask({ do: "get", key }) as { text: string; version: string } | null;
    return found ? { value: await unseal(key, found.text), version: found.version } : undefined;
  }

  async set(key: string, value: unknown, expected: string | undefined): Promise<string | undefined> {
    checkKey(key);
    const text = await seal(value);
    return await this.#ask({ do: "set", key, text, expected }) as string | null ?? undefined;
  }

  async delete(key: string): Promise<void> {
    checkKey(key);
    await this.#ask({ do: "delete", key });
  }

  async *keys(prefix: string): AsyncGenerator<string> {
    for (let after = "";;) {
      const page = await this.#ask({ do: "keys", prefix, after }) as string[];
      yield* page;
      if (page.length < PAGE) return;
      after = page.at(-1)!;
    }
  }

  /** How many keys start with `prefix`. */
  async count(prefix: string): Promise<number> {
    return await this.#ask({ do: "count", prefix }) as number;
  }

  #ask(ask: Ask): Promise<unknown> {
    return askObject(this.namespace, this.name, ask);
  }
}

/**
 * Asks an object of a namespace, JSON in and out.
 *
 * @throws {RequestError} `storage_failed` where it cannot be reached.
 */
export async function askObject(namespace: ObjectNamespace, name: string, ask: unknown): Promise<unknown> {
  return await orFailed("reach a Durable Object", async () => {
    // A stub belongs to the request that made it.
    const stub = namespace.get(namespace.idFromName(name));
    const response = await stub.fetch("https://object/", { method: "POST", body: JSON.stringify(ask) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    return await response.json();
  });
}

function createR2Blobs(bucket: R2Bucket): Blobs {
  return {
    async get(key) {
      checkKey(key);
      return await orFailed(`read ${key}`, async () => {
        const found = await bucket.get(key);
        return found ? new Uint8Array(await found.arrayBuffer()) : undefined;
      });
    },
    async put(key, bytes) {
      checkKey(key);
      await orFailed(`store ${bytes.length} bytes`, () => bucket.put(key, bytes));
    },
    async delete(key) {
      checkKey(key);
      await orFailed(`delete ${key}`, () => bucket.delete(key));
    },
    async *list(prefix): AsyncGenerator<BlobInfo> {
      let cursor: string | undefined;
      do {
        const page = await orFailed("list blobs", () => bucket.list({ prefix, cursor }));
        for (const { key, size, uploaded } of page.objects) {
          yield { key, sizeBytes: size, writtenAt: uploaded.getTime() };
        }
        cursor = page.truncated ? page.cursor : undefined;
      } while (cursor);
    },
  };
}

/** A message within a message: when it is due, and how often it was delivered before it was sent anew. */
interface Envelope {
  readonly id: string;
  readonly text: string;
  readonly at: number;
  readonly before: number;
}

async function post(binding: QueueBinding, envelope: Envelope): Promise<void> {
  const waitMs = Math.min(MAX_DELAY_MS, Math.max(0, envelope.at - Date.now()));
  await orFailed("queue a message", () => binding.send(envelope, { delaySeconds: Math.ceil(waitMs / 1000) }));
}

/** The record that tells of a message which is not done with; the queue itself does not tell. */
const openKey = (name: string, id: string) => `open/${name}/${id}`;

function createQueue(records: ObjectRecords, name: string, binding: QueueBinding): Queue {
  return {
    async send({ id, body }: Message, delayMs = 0) {
      checkKey(id);
      const envelope = { id, text: await seal(body), at: Date.now() + delayMs, before: 0 };
      await records.set(openKey(name, id), 0, undefined);
      await post(binding, envelope);
    },
    depth: (prefix) => records.count(openKey(name, prefix)),
  };
}

/** Who has a message, and until when. */
interface Lease {
  readonly holder: string;
  readonly until: number;
}

async function take(
  records: Records,
  name: string,
  binding: QueueBinding,
  message: QueueMessage,
  leaseMs: number,
): Promise<Delivery | undefined> {
  const envelope = message.body as Envelope;
  const { id, text, at, before } = envelope;
  if (at > Date.now()) {
    await post(binding, envelope);
    message.ack();
    return undefined;
  }
  const key = `leases/${name}/${id}`;
  const found = await records.get(key) as Versioned<Lease> | undefined;
  // A holder that died has its message come again, under the same id.
  if (found && found.value.holder !== message.id && found.value.until > Date.now()) {
    message.ack();
    return undefined;
  }
  const lease = () => ({ holder: message.id, until: Date.now() + leaseMs });
  let version = await records.set(key, lease(), found?.version);
  if (version === undefined) {
    message.retry();
    return undefined;
  }
  const attempts = before + message.attempts;
  const held = async (change: () => Promise<string | undefined>) => {
    if (version === undefined) return false;
    version = await change();
    return version !== undefined;
  };
  const end = async (settle: () => Promise<void>) => {
    const mine = await held(() => records.set(key, { holder: message.id, until: 0 }, version));
    version = undefined;
    if (mine) {
      await settle();
      await records.delete(key);
    }
    message.ack();
    return mine;
  };
  return {
    id,
    attempts,
    body: await unseal(id, text),
    ack: () => end(() => records.delete(openKey(name, id))),
    retry: (delayMs) => end(() => post(binding, { id, text, at: Date.now() + delayMs, before: attempts })),
    extend: (ms) => held(() => records.set(key, { holder: message.id, until: Date.now() + ms }, version)),
  };
}

/** @throws {RequestError} `storage_failed` with what the platform said. */
async function orFailed<T>(action: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    throw new RequestError("storage_failed", `Cannot ${action}: ${(cause as Error).message}`, { cause });
  }
}
