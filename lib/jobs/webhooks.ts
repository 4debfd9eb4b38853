/**
 * Tells others that a job has ended, by Standard Webhooks: signed, again and again until they have it or there is no hope,
 * and then kept as a dead letter until somebody sends it once more.
 */

import { sha256 } from "../digest.ts";
import { RequestError } from "../errors.ts";
import { inTrace } from "../metrics.ts";
import { type Queue, type Records, update, type Versioned } from "../store/store.ts";
import type { Handler } from "./consume.ts";
import { isFor, type Owned } from "./job.ts";
import { sign } from "./signature.ts";

/** An answer to a webhook. Redirects are answers too, and nobody follows them. */
export interface WebhookResponse {
  readonly status: number;
  readonly headers: Headers;
}

/** Sends one webhook; throws when there is no answer. */
export type Post = (
  url: string,
  request: { readonly headers: Record<string, string>; readonly body: string; readonly signal: AbortSignal },
) => Promise<WebhookResponse>;

/** How one attempt went. */
export interface Attempt {
  /** Milliseconds since 1970. */
  readonly at: number;
  /** Of the answer, where there was one. */
  readonly status?: number;
  readonly error?: string;
}

/** A webhook and what became of it. */
export interface Letter {
  /** `webhook-id`: the same in every attempt. */
  readonly id: string;
  readonly job: string;
  readonly url: string;
  readonly type: string;
  readonly status: "pending" | "delivered" | "dead";
  /** Why it is dead. */
  readonly reason?: string;
  readonly createdAt: number;
  /** The last ones, oldest first. */
  readonly attempts: readonly Attempt[];
}

interface StoredLetter extends Letter, Owned {
  readonly secrets?: readonly string[];
  readonly body: string;
  readonly traceparent?: string;
  /** Attempts since it was sent, or sent again. */
  readonly tries: number;
  /** Not before. */
  readonly dueAt: number;
}

/** What webhooks are sent with. */
export interface WebhookParts {
  readonly records: Records;
  readonly queue: Queue;
  readonly post: Post;
  /** The server's own, for letters without theirs; read anew for every attempt. */
  readonly secrets: readonly string[];
  readonly now: () => number;
  /** Milliseconds from one attempt to the next; after the last the letter is dead. */
  readonly schedule: readonly number[];
}

const [SECOND, MINUTE, HOUR] = [1000, 60_000, 3_600_000];

/** That of Standard Webhooks: three days of patience. The first attempt is made at once. */
export const SCHEDULE = [
  5 * SECOND,
  5 * MINUTE,
  30 * MINUTE,
  ...[2, 5, 10, 14, 20, 24].map((it) => it * HOUR),
];

/** A receiver may ask for a longer pause, but not for a longer one than this. */
const LONGEST_PAUSE_MS = 24 * HOUR;

/** Attempts that are kept to be looked at. */
const KEPT_ATTEMPTS = 20;

const letterKey = (id: string) => `letters/${id}`;

/** The letters of one store; each belongs to its job's owner. To whoever may not know of a letter, there is none. */
export class Webhooks {
  constructor(private readonly parts: WebhookParts) {}

  /** Writes a letter and has it sent. Doing it again changes nothing. */
  async send(
    letter: Pick<StoredLetter, "id" | "owner" | "job" | "url" | "type" | "body" | "traceparent" | "secrets">,
  ): Promise<void> {
    const now = this.parts.now();
    const whole: StoredLetter = {
      ...letter,
      status: "pending",
      createdAt: now,
      attempts: [],
      tries: 0,
      dueAt: now,
    };
    await this.parts.records.set(letterKey(letter.id), whole, undefined);
    const found = await this.#read(letter.id);
    if (found?.status === "pending") await this.#queue(letter.id);
  }

  /** Letters, in no order; those that cannot be read are dead ones without a job. */
  async *list(status?: Letter["status"], caller?: string): AsyncGenerator<Letter> {
    for await (const letter of this.#all()) {
      if ((!status || letter.status === status) && isFor(caller, letter)) yield shown(letter);
    }
  }

  /** One letter. */
  async get(id: string, caller?: string): Promise<Letter | undefined> {
    const letter = await this.#read(id);
    return letter && isFor(caller, letter) ? shown(letter) : undefined;
  }

  /** Sends a letter again that is dead or was delivered, from the beginning of the schedule. Undefined if unknown. */
  async sendAgain(id: string, caller?: string): Promise<Letter | undefined> {
    if (!/^msg_[a-z0-9_]{1,100}$/.test(id) || !await this.get(id, caller)) return undefined;
    const letter = await update<StoredLetter>(this.parts.records, letterKey(id), (it) => {
      if (it.status === "pending") return undefined;
      const { reason: _, ...rest } = it;
      return { ...rest, status: "pending", tries: 0, dueAt: this.parts.now() };
    });
    if (!letter) return undefined;
    await this.parts.records.delete(await endpointKey(letter.url));
    await this.#queue(id);
    return shown(letter);
  }

  /** Queues again what its queue may have lost. To be called when a server starts. */
  async recover(): Promise<void> {
    for await (const { id, status } of this.#all()) if (status === "pending") await this.#queue(id);
  }

  async delete(id: string): Promise<void> {
    await this.parts.records.delete(letterKey(id));
  }

  /** Makes one attempt, when it is time. */
  readonly handle: Handler = async (delivery, signal) => {
    const { now, records } = this.parts;
    const { letter: id } = delivery.body as { letter: string };
    const letter = await this.#read(id);
    if (letter?.status !== "pending") return void await delivery.ack();
    // A clock that was turned back must not stop it for longer than the longest pause.
    const early = Math.min(letter.dueAt - now(), LONGEST_PAUSE_MS);
    if (early > 0) return void await delivery.retry(early);
    const endpoint = await endpointKey(letter.url);
    if (await records.get(endpoint)) {
      await this.#note(id, { status: "dead", reason: "its receiver answered 410 (Gone) before" });
      return void await delivery.ack();
    }
    const attempt = await this.#attempt(letter, signal);
    if (attempt === "stopped") return void await delivery.retry(0);
    const { response, ...facts } = attempt;
    const gone = response?.status === 410;
    if (gone) await records.set(endpoint, { url: letter.url, since: now() }, undefined);
    const pause = this.parts.schedule[letter.tries];
    const outcome: Partial<StoredLetter> = response && response.status >= 200 && response.status < 300
      ? { status: "delivered" }
      : gone
      ? { status: "dead", reason: "its receiver answered 410 (Gone)" }
      : pause === undefined
      ? { status: "dead", reason: `none of ${letter.tries + 1} attempts was answered with success` }
      : { dueAt: now() + jittered(pause, retryAfter(response?.headers, now())) };
    await this.#note(id, { ...outcome, tries: letter.tries + 1 }, { at: now(), ...facts });
    if (outcome.dueAt === undefined) await delivery.ack();
    else await delivery.retry(outcome.dueAt - now());
  };

  async #attempt(letter: StoredLetter, signal: AbortSignal) {
    const { id, url, body, traceparent, secrets = this.parts.secrets } = letter;
    try {
      const headers = {
        "content-type": "application/json",
        "user-agent": "paligemma-edge",
        ...traceparent && { traceparent },
        ...sign(secrets, id, new Date(this.parts.now()), body),
      };
      // Where requests have spans of their own, it is the span's traceparent that is sent, in the same trace.
      const response = await inTrace(traceparent, () => this.parts.post(url, { headers, body, signal }));
      return { response, status: response.status };
    } catch (error) {
      if (signal.aborted) return "stopped";
      return { error: error instanceof Error ? error.message.slice(0, 300) : String(error) };
    }
  }

  async #note(id: string, change: Partial<StoredLetter>, attempt?: Attempt): Promise<void> {
    await update<StoredLetter>(this.parts.records, letterKey(id), (it) => {
      if (it.status !== "pending") return undefined;
      const attempts = attempt ? [...it.attempts, attempt].slice(-KEPT_ATTEMPTS) : it.attempts;
      return { ...it, ...change, attempts };
    });
  }

  /** Has a letter looked at, if nobody is about to. */
  async #queue(id: string): Promise<void> {
    await this.parts.queue.send({ id: letterKey(id), body: { letter: id } });
  }

  async *#all(): AsyncGenerator<StoredLetter> {
    for await (const key of this.parts.records.keys("letters/")) {
      const id = key.slice("letters/".length);
      const letter = await this.#read(id).catch((error) => broken(id, error));
      if (letter) yield letter;
    }
  }

  async #read(id: string): Promise<StoredLetter | undefined> {
    return (await this.parts.records.get(letterKey(id)) as Versioned<StoredLetter> | undefined)?.value;
  }
}

/** What others may see of it: no secrets, no body. */
function shown({ id, job, url, type, status, reason, createdAt, attempts }: StoredLetter): Letter {
  return { id, job, url, type, status, ...reason && { reason }, createdAt, attempts };
}

function broken(id: string, error: unknown): StoredLetter {
  if (!(error instanceof RequestError)) throw error;
  const nothing = { job: "", url: "", type: "", body: "", createdAt: 0, attempts: [], tries: 0, dueAt: 0 };
  return { ...nothing, id, status: "dead", reason: error.message };
}

/** The record that is there while a receiver wants nothing more. */
async function endpointKey(url: string): Promise<string> {
  return `gone/${(await sha256(url)).toHex().slice(0, 32)}`;
}

/** Up to a fifth longer, so that what failed together does not come back together; and never before it was asked for. */
function jittered(pause: number, atLeast: number): number {
  return Math.max(pause, Math.min(atLeast, LONGEST_PAUSE_MS)) * (1 + Math.random() / 5);
}

/** Milliseconds that `Retry-After` asks for: seconds, or a time by the clock of whoever sent it. */
function retryAfter(headers: Headers | undefined, now: number): number {
  const value = headers?.get("retry-after")?.trim() ?? "";
  if (/^\d{1,9}$/.test(value)) return Number(value) * SECOND;
  const [until, theirs] = [Date.parse(value), Date.parse(headers?.get("date") ?? "")];
  return Number.isNaN(until) ? 0 : Math.max(0, until - (Number.isNaN(theirs) ? now : theirs));
}
