/**
 * Lines that one process writes and others may read meanwhile, for minutes. On Cloudflare, where the next request may
 * come to another isolate, each journal is a Durable Object of its own: no two of them wait for each other.
 */

import { Bell } from "./bell.ts";
import { askObject, type ObjectNamespace } from "./cloudflare.ts";

/** What one writer adds. */
export interface Addition {
  /** Who writes. Another who begins takes the journal over, and what was in it is gone. */
  readonly writer: string;
  /** Number of the first of `lines`: as many as there are, or 0 to begin. */
  readonly at: number;
  readonly lines: readonly string[];
  /** No more will come: all is there, or never will be. */
  readonly end?: "whole" | "broken";
  /** A writer who adds nothing for so long, not even no lines, is dead. */
  readonly leaseMs: number;
  /** For how long it is kept after that. */
  readonly keepMs: number;
}

/** What a reader asks for. */
export interface Wish {
  /** Number of the first line wanted. */
  readonly from: number;
  /** Who reads. One who neither comes back nor leaves counts for half a minute. */
  readonly reader: string;
  /** How long to wait for that line, where it may still come. */
  readonly waitMs: number;
}

/** What a reader finds. */
export interface Excerpt {
  /** Those from `from` on; none yet, perhaps. */
  readonly lines: readonly string[];
  /** `live` while the writer is heard of, `whole` when it has said all, `broken` when it gave up or died. */
  readonly state: "live" | "whole" | "broken";
}

/** Journals by key, any text. Every method throws {RequestError} `storage_failed` where it cannot be reached. */
export interface Journals {
  /** Whether somebody reads along; undefined, and nothing is added, where the journal is another writer's. */
  append(key: string, addition: Addition): Promise<boolean | undefined>;
  /** Undefined where there is no such journal. */
  read(key: string, wish: Wish): Promise<Excerpt | undefined>;
  /** This reader does not come back. */
  leave(key: string, reader: string): Promise<void>;
}

/** The journals of a namespace of {@link JournalObject}s. */
export function createObjectJournals(namespace: ObjectNamespace): Journals {
  const ask = (key: string, ask: Ask) => askObject(namespace, key, ask);
  return {
    append: async (key, addition) =>
      await ask(key, { do: "append", ...addition }) as boolean | null ?? undefined,
    read: async (key, wish) => await ask(key, { do: "read", ...wish }) as Excerpt | null ?? undefined,
    leave: async (key, reader) => void await ask(key, { do: "leave", reader }),
  };
}

type Ask =
  | { readonly do: "append" } & Addition
  | { readonly do: "read" } & Wish
  | { readonly do: "leave"; readonly reader: string };

/** A Durable Object's state, as far as it is used. */
interface ObjectState {
  blockConcurrencyWhile(work: () => Promise<void>): void;
  readonly storage: {
    get(key: string): Promise<unknown>;
    list(options: { prefix: string }): Promise<Map<string, unknown>>;
    put(entries: Record<string, unknown>): Promise<void>;
    deleteAll(): Promise<void>;
    setAlarm(time: number): Promise<void>;
  };
}

/** Whose it is, and what was last heard. Times are milliseconds since 1970. */
interface Head extends Pick<Addition, "writer"> {
  readonly state: Excerpt["state"];
  readonly aliveUntil: number;
  readonly keptUntil: number;
}

const READER_MS = 30_000;

/** The Durable Object with one journal. What is told to be written is on disk, and survives the object's own restart. */
export class JournalObject {
  #head: Head | undefined;
  #lines: string[] = [];
  /** Until when each of them counts. */
  readonly #readers = new Map<string, number>();
  readonly #bell = new Bell();

  constructor(private readonly state: ObjectState) {
    const { storage } = state;
    state.blockConcurrencyWhile(async () => {
      this.#head = await storage.get("head") as Head | undefined;
      this.#lines = [...(await storage.list({ prefix: "lines/" })).values()].flat() as string[];
    });
  }

  async fetch(request: Request): Promise<Response> {
    return Response.json(await this.#answer(await request.json()) ?? null);
  }

  /** Forgets what nobody added to for long enough. */
  async alarm(): Promise<void> {
    const { storage } = this.state;
    if (this.#head && Date.now() < this.#head.keptUntil) return await storage.setAlarm(this.#head.keptUntil);
    this.#head = undefined;
    this.#lines = [];
    await storage.deleteAll();
  }

  #answer(ask: Ask): Promise<unknown> | undefined {
    if (ask.do === "append") return this.#append(ask);
    if (ask.do === "read") return this.#read(ask);
    this.#readers.delete(ask.reader);
  }

  async #append(
    { writer, at, lines, end = undefined, leaseMs, keepMs }: Addition,
  ): Promise<boolean | undefined> {
    const { storage } = this.state;
    const begins = at === 0 && this.#head?.writer !== writer;
    if (!begins && (this.#head?.writer !== writer || at !== this.#lines.length)) return undefined;
    const aliveUntil = Date.now() + leaseMs;
    const head: Head = { writer, state: end ?? "live", aliveUntil, keptUntil: aliveUntil + keepMs };
    this.#head = head;
    // Without a wait between them these are written together or not at all.
    const written = [];
    if (begins) {
      this.#lines = [];
      written.push(storage.deleteAll(), storage.setAlarm(head.keptUntil));
    }
    this.#lines.push(...lines);
    written.push(
      storage.put({ head, ...lines.length && { [`lines/${String(at).padStart(9, "0")}`]: lines } }),
    );
    this.#bell.ring();
    await Promise.all(written);
    const now = Date.now();
    for (const [reader, until] of this.#readers) if (until < now) this.#readers.delete(reader);
    return this.#readers.size > 0;
  }

  async #read({ from, reader, waitMs }: Wish): Promise<Excerpt | undefined> {
    const until = Date.now() + waitMs;
    // Once: one who leaves meanwhile has left.
    if (this.#head?.state === "live") this.#readers.set(reader, until + READER_MS);
    while (this.#head) {
      const { state, aliveUntil } = this.#head;
      const lines = this.#lines.slice(from);
      const now = Date.now();
      const dead = state === "live" && aliveUntil <= now;
      if (lines.length || state !== "live" || dead || now >= until) {
        return { lines, state: dead ? "broken" : state };
      }
      await this.#bell.wait(Math.min(until, aliveUntil) - now);
    }
  }
}
