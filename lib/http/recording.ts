/**
 * An answer's events as they were sent, kept for a while, so that a client whose connection broke goes on after the
 * last event it has.
 *
 * A client resumes by sending its request again with `Last-Event-ID`. What is still recorded is read from here. What is
 * not is computed again, since the same question and seed give the same answer, and the events that the client has are
 * left out. So nothing needs to go on computing for somebody who may never come back.
 */

import { encodeEvent, type ServerEvent } from "./sse.ts";

/** The events of one answer, drawn from their source when somebody asks for the next one. */
export class Recording {
  readonly #frames: Uint8Array[] = [];
  readonly #encoder = new TextEncoder();
  #drawing: Promise<void> | undefined;
  #state: "live" | "whole" | "broken" = "live";
  #failure: unknown;
  #readers = 0;
  #sizeBytes = 0;

  /**
   * @param stop called when the last reader leaves before the end.
   * @param ended called once, however it ends.
   */
  constructor(
    private readonly source: AsyncIterator<ServerEvent>,
    private readonly stop: () => void,
    private readonly ended: () => void,
  ) {}

  /** `live` while it is drawn, `whole` when it has all events, `broken` after an error or a stop. */
  get state(): "live" | "whole" | "broken" {
    return this.#state;
  }

  /** Bytes of the events so far. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Counts a reader in; call what it returns when it goes. Without readers nothing is drawn any more. */
  join(): () => void {
    this.#readers++;
    let inside = true;
    return () => {
      if (!inside) return;
      inside = false;
      if (--this.#readers > 0 || this.#state !== "live") return;
      this.stop();
      this.#end("broken");
      // It may be computing still; it hears of the stop there.
      this.source.return?.().then(undefined, () => {});
    };
  }

  /** Event `i`, encoded, or undefined where the answer ended before it. Rejects with the answer's own error. */
  async frame(i: number): Promise<Uint8Array | undefined> {
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
    this.ended();
  }
}

/** Recordings by what was asked, the oldest forgotten first. */
export class Recordings {
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

  /** What is recorded of an answer that is whole or still drawn. */
  get(key: string): Recording | undefined {
    const { recording } = this.#kept.get(key) ?? {};
    return recording?.state === "broken" ? undefined : recording;
  }

  /** Keeps a recording in the place of another with its key. */
  keep(key: string, recording: Recording): void {
    this.#kept.delete(key);
    this.#kept.set(key, { recording, since: performance.now() });
  }

  /** Forgets what is broken, too old or too much. To be called when a recording ends. */
  tidy(): void {
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
