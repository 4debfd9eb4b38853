/**
 * An answer's events as they were sent, kept for a while, so that a client whose connection broke goes on after the
 * last event it has.
 *
 * A client resumes by sending its request again with `Last-Event-ID`. What is still recorded is read from here. What is
 * not is computed again, since the same question and seed give the same answer, and the events that the client has are
 * left out. So nothing needs to go on computing for somebody who may never come back.
 */

import { Bell } from "../store/bell.ts";
import { encodeEvent, type ServerEvent } from "./sse.ts";

/** The events of one answer as bytes of its stream, for one reader, who counts until it leaves. */
export interface Reading {
  /** Event `i`, or undefined where the answer ended before it. Rejects with what it failed for. */
  frame(i: number): Promise<Uint8Array | undefined>;
  /** To be called when the reader goes. Settles when all is told whom it concerns. */
  leave(): void | Promise<void>;
}

/** What is kept of answers, by what was asked. */
export interface Recordings {
  /** An answer that is whole or still drawn, to be read from event `from` on; undefined where there is none. */
  find(key: string, from: number): Promise<Reading | undefined>;
  /**
   * Keeps a recording in the place of another with its key. Settles when it has ended and is kept, or will not be: a
   * platform that drops a request's work with its connection has to wait for that.
   */
  keep(key: string, recording: Recording): Promise<void>;
}

/** The events of one answer, drawn from their source when somebody asks for the next one. */
export class Recording {
  readonly #frames: Uint8Array[] = [];
  readonly #encoder = new TextEncoder();
  readonly #bell = new Bell();
  readonly #ended = Promise.withResolvers<void>();
  #drawing: Promise<void> | undefined;
  #state: "live" | "whole" | "broken" = "live";
  #failure: unknown;
  #readers = 0;
  #sizeBytes = 0;

  /** @param stop called when the last reader leaves before the end. */
  constructor(private readonly source: AsyncIterator<ServerEvent>, private readonly stop: () => void) {}

  /** Settles at its end, however it comes. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** Asked when the last reader leaves before the end: here others may join who read elsewhere. */
  others?: () => Promise<void>;

  /** `live` while it is drawn, `whole` when it has all events, `broken` after an error or a stop. */
  get state(): "live" | "whole" | "broken" {
    return this.#state;
  }

  /** Bytes of the events so far. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Events so far, from number `from` on. */
  since(from: number): readonly Uint8Array[] {
    return this.#frames.slice(from);
  }

  /** Ends with the next event, at the end, or after so long. */
  change(ms: number): Promise<void> {
    return this.#bell.wait(ms);
  }

  /** Counts a reader in. Without readers nothing is drawn any more. */
  join(): Reading {
    this.#readers++;
    let inside = true;
    const leave = () => {
      if (!inside) return;
      inside = false;
      if (--this.#readers > 0 || this.#state !== "live") return;
      return this.others ? this.others().then(() => this.#abandon()) : this.#abandon();
    };
    return { frame: (i) => this.#frame(i), leave };
  }

  #abandon(): void {
    if (this.#readers > 0 || this.#state !== "live") return;
    this.stop();
    this.#end("broken");
    // It may be computing still; it hears of the stop there.
    this.source.return?.().then(undefined, () => {});
  }

  async #frame(i: number): Promise<Uint8Array | undefined> {
    while (i >= this.#frames.length && this.#state === "live") await (this.#drawing ??= this.#draw());
    if (i >= this.#frames.length && this.#failure) throw this.#failure;
    return this.#frames[i];
  }

  async #draw(): Promise<void> {
    try {
      const { done, value } = await this.source.next();
      if (this.#state !== "live") return;
      if (done) return this.#end("whole");
      const frame = this.#encoder.encode(encodeEvent({ id: String(this.#frames.length), ...value }));
      this.#frames.push(frame);
      this.#sizeBytes += frame.length;
      this.#bell.ring();
    } catch (error) {
      this.#failure = error;
      this.#end("broken");
    } finally {
      this.#drawing = undefined;
    }
  }

  #end(state: "whole" | "broken"): void {
    if (this.#state !== "live") return;
    this.#state = state;
    this.#ended.resolve();
    this.#bell.ring();
  }
}

/** Recordings in the memory of this process, the oldest forgotten first. */
export class MemoryRecordings implements Recordings {
  readonly #kept = new Map<string, { readonly recording: Recording; readonly since: number }>();

  /**
   * @param maxBytes of all events kept.
   * @param maxAgeMs from the question on.
   */
  constructor(private readonly maxBytes: number, private readonly maxAgeMs: number) {}

  /** Bytes of all events kept. */
  get sizeBytes(): number {
    return this.#kept.values().reduce((sum, it) => sum + it.recording.sizeBytes, 0);
  }

  find(key: string): Promise<Reading | undefined> {
    const { recording } = this.#kept.get(key) ?? {};
    return Promise.resolve(recording?.state === "broken" ? undefined : recording?.join());
  }

  async keep(key: string, recording: Recording): Promise<void> {
    this.#kept.delete(key);
    this.#kept.set(key, { recording, since: performance.now() });
    await recording.ended;
    this.#tidy();
  }

  /** Forgets what is broken, too old or too much. */
  #tidy(): void {
    const now = performance.now();
    let size = this.sizeBytes;
    for (const [key, { recording, since }] of this.#kept) {
      const gone = recording.state === "broken" || now - since > this.maxAgeMs;
      if (!gone && size <= this.maxBytes) continue;
      this.#kept.delete(key);
      size -= recording.sizeBytes;
    }
  }
}
