/**
 * What outlives a request: records, blobs and queues. Every adapter keeps this contract, and one suite of tests holds
 * them to it (`tests/store/suite.ts`).
 *
 * Only single records change as a whole; nothing spans two of them, since Cloudflare's queues and R2 could not keep
 * such a promise. What needs several writes does them in an order in which each may be the last, and can be done again.
 *
 * Keys are words of lower-case letters, digits, `.`, `_` and `-`, separated by `/`, 200 characters at most.
 */

import { sha256 } from "../digest.ts";
import { RequestError } from "../errors.ts";

/** A record as it was found. */
export interface Versioned<T = unknown> {
  readonly value: T;
  /** Changes with every change of the record; to be compared for equality only. */
  readonly version: string;
}

/** Small JSON values by key, changed by compare-and-set. */
export interface Records {
  /**
   * The record under a key.
   *
   * @throws {RequestError} `record_corrupt` when what is stored is not what was written.
   */
  get(key: string): Promise<Versioned | undefined>;
  /**
   * Writes a record if its version is still `expected` (`undefined`: if there is none), and tells its new version;
   * `undefined` when somebody else was first, and nothing was written.
   *
   * @throws {RangeError} when the JSON takes more than {@link MAX_RECORD_BYTES}.
   * @throws {RequestError} `storage_failed` when the disk is full or the database cannot be reached.
   */
  set(key: string, value: unknown, expected: string | undefined): Promise<string | undefined>;
  /** Removes a record, whatever is in it; not an error where there is none. */
  delete(key: string): Promise<void>;
  /** Keys that start with `prefix`, ascending. Records written meanwhile may or may not be among them. */
  keys(prefix: string): AsyncIterable<string>;
}

/** A blob as a listing shows it. */
export interface BlobInfo {
  readonly key: string;
  readonly sizeBytes: number;
  /** When it was written, milliseconds since 1970. */
  readonly writtenAt: number;
}

/** Bytes by key; a blob is there whole or not at all, and what is read is what was written last. */
export interface Blobs {
  get(key: string): Promise<Uint8Array<ArrayBuffer> | undefined>;
  /** @throws {RequestError} `storage_failed` when there is no room; what was under the key before is still there. */
  put(key: string, bytes: Uint8Array): Promise<void>;
  /** Not an error where there is none. */
  delete(key: string): Promise<void>;
  /** Blobs whose keys start with `prefix`, in no order. */
  list(prefix: string): AsyncIterable<BlobInfo>;
}

/** What is to be done, for whoever takes it. */
export interface Message {
  /** A word as in keys, with `/`. */
  readonly id: string;
  /** JSON, 1,000 bytes at most: a queue carries names of things, not things. */
  readonly body: unknown;
}

/** A message in somebody's hands: nobody else gets it until its lease ends. */
export interface Delivery extends Message {
  /** How often it was delivered, this time included. */
  readonly attempts: number;
  /** It is done with. False when the lease had ended: somebody else may be at it. */
  ack(): Promise<boolean>;
  /** It comes again after `delayMs`. False as with `ack`. */
  retry(delayMs: number): Promise<boolean>;
  /** The lease lasts `leaseMs` from now. False as with `ack`. Queues without leases of their own always say true. */
  extend(leaseMs: number): Promise<boolean>;
}

/**
 * Messages that come at least once, not before their time, in no order. A message that is neither acknowledged nor
 * retried comes again when its lease ends.
 */
export interface Queue {
  /**
   * Adds a message. One whose id waits or is leased already is left as it is; a queue that cannot tell adds another.
   *
   * @param delayMs any time, however long.
   */
  send(message: Message, delayMs?: number): Promise<void>;
  /** How many messages wait or are leased whose ids start with `prefix`. */
  depth(prefix: string): Promise<number>;
}

/** A queue that is asked for messages; one that calls its consumer has no need to be. */
export interface PullQueue extends Queue {
  /** Messages that are due, `limit` at most, leased for `leaseMs`. */
  receive(options: { readonly limit: number; readonly leaseMs: number }): Promise<Delivery[]>;
  /** Ends when something may be due: after a `send` here, or after `ms`. */
  wait(ms: number, signal?: AbortSignal): Promise<void>;
}

/** Everything that is kept in one place. */
export interface Store<Q extends Queue = Queue> {
  readonly records: Records;
  readonly blobs: Blobs;
  queue(name: "jobs" | "webhooks"): Q;
}

/** Deno KV holds 65,536 bytes a value. */
export const MAX_RECORD_BYTES = 60_000;

/** @throws {RangeError} for a key that some adapter could not keep. */
export function checkKey(key: string): void {
  if (key.length <= 200 && /^[a-z0-9_.-]+(\/[a-z0-9_.-]+)*$/.test(key) && !/(^|\/)\.+(\/|$)/.test(key)) {
    return;
  }
  throw new RangeError(
    `Store key: expected lower-case words separated by /, found ${JSON.stringify(key.slice(0, 250))}`,
  );
}

/** A value as it is stored: 16 hex digits of the SHA-256 of its JSON, a space, the JSON. */
export async function seal(value: unknown): Promise<string> {
  const json = JSON.stringify(value);
  const size = new TextEncoder().encode(json).length;
  if (size > MAX_RECORD_BYTES) {
    throw new RangeError(`Store record: expected at most ${MAX_RECORD_BYTES} bytes of JSON, found ${size}`);
  }
  return `${await digest(json)} ${json}`;
}

/**
 * The value back from what {@link seal} made of it.
 *
 * @throws {RequestError} `record_corrupt` for anything else.
 */
export async function unseal(key: string, stored: unknown): Promise<unknown> {
  if (typeof stored === "string") {
    const [sum, json] = [stored.slice(0, 16), stored.slice(17)];
    if (await digest(json) === sum) return JSON.parse(json);
  }
  throw new RequestError(
    "record_corrupt",
    `Cannot read the record ${key}: its bytes are not those that were written`,
  );
}

async function digest(text: string): Promise<string> {
  return (await sha256(text)).toHex().slice(0, 16);
}

/**
 * Changes a record that exists, again and again until nobody else was first.
 *
 * @param change gives the new value, or undefined to leave the record as it is.
 * @returns what the record holds then; undefined where there is none.
 */
export async function update<T>(
  records: Records,
  key: string,
  change: (value: T) => T | undefined,
): Promise<T | undefined> {
  while (true) {
    const found = await records.get(key) as Versioned<T> | undefined;
    if (!found) return undefined;
    const value = change(found.value);
    if (value === undefined) return found.value;
    if (await records.set(key, value, found.version) !== undefined) return value;
  }
}
