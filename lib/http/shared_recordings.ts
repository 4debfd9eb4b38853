/**
 * Recordings where the next request may come to another process: the events of an answer are copied to a journal, and
 * whoever comes back reads them there. The first client does not wait for it: its events come from the recording itself.
 */

import { RequestError } from "../errors.ts";
import type { Addition, Excerpt, Journals, Wish } from "../store/journals.ts";
import { HttpError } from "./problem.ts";
import type { Reading, Recording, Recordings } from "./recording.ts";
import { within } from "./sse.ts";

/** Events are copied together: those of so long while nobody reads the copy, and while somebody does. */
const COPY_MS = 500;
const READ_COPY_MS = 100;

/** A longer answer is not kept: it would be computed again. */
const MAX_BYTES = 512 * 1024;

/** A server that is not heard of for so long is dead; it is heard of every third of it. */
const LEASE_MS = 9000;
const KEEP_MS = 5 * 60_000;

/** How long one look into a journal may take. */
const LOOK_MS = 10_000;

/** What a journal may take beyond that before it counts as one that cannot be reached. */
const PATIENCE_MS = 2000;

/** What an answer may still cost for a client that has gone, while the journal is asked whether another reads along. */
const LEAVING_MS = 50;

/** Recordings in journals. Where those cannot be reached nothing is kept, and what is asked for again is computed again. */
export class SharedRecordings implements Recordings {
  /**
   * @param onError hears why something could not be kept or found.
   * @param leaseMs after how much silence the server that computes an answer is taken for dead.
   */
  constructor(
    private readonly journals: Journals,
    private readonly onError: (error: unknown) => void,
    private readonly leaseMs = LEASE_MS,
  ) {}

  async find(key: string, from: number): Promise<Reading | undefined> {
    const reader = crypto.randomUUID();
    try {
      const found = await look(this.journals, key, { from, reader, waitMs: 0 });
      if (found && found.state !== "broken") return new Following(this.journals, key, reader, from, found);
    } catch (error) {
      this.onError(error);
    }
  }

  async keep(key: string, recording: Recording): Promise<void> {
    const copy = new Copy(this.journals, key, recording, this.leaseMs);
    recording.others = async () => void await within(LEAVING_MS, copy.send().catch(() => {}));
    await copy.run().catch(this.onError);
  }
}

/** One recording's way into its journal. */
class Copy {
  readonly #writer = crypto.randomUUID();
  #sent = 0;
  #open = true;
  #sending: Promise<void> = Promise.resolve();
  /** While somebody reads the copy: as one of the recording's own readers, so that it goes on without its first client. */
  #reading: Reading | undefined;

  constructor(
    private readonly journals: Journals,
    private readonly key: string,
    private readonly recording: Recording,
    private readonly leaseMs: number,
  ) {}

  /** Copies until the end. */
  async run(): Promise<void> {
    const { recording } = this;
    while (this.#open) {
      if (recording.state === "live" && !recording.since(this.#sent).length) {
        await recording.change(this.leaseMs / 3);
      }
      if (recording.state === "live") await within(this.#reading ? READ_COPY_MS : COPY_MS, recording.ended);
      await this.send();
    }
  }

  /** Sends what has come, one addition after another. */
  send(): Promise<void> {
    return this.#sending = this.#sending.then(() => this.#send());
  }

  async #send(): Promise<void> {
    if (!this.#open) return;
    const { state, sizeBytes } = this.recording;
    const fits = sizeBytes <= MAX_BYTES;
    const end = fits ? state === "live" ? undefined : state : "broken";
    const frames = fits ? this.recording.since(this.#sent) : [];
    if (this.#sent === 0 && (end === "broken" || !frames.length)) {
      // What has not begun there need not be ended there.
      this.#open = !end;
      return;
    }
    try {
      const read = await this.journals.append(this.key, this.#addition(frames, end));
      this.#sent += frames.length;
      this.#open = !end && read !== undefined;
      this.#readAlong(this.#open && read!);
    } catch (error) {
      this.#open = false;
      this.#readAlong(false);
      throw error;
    }
  }

  #addition(frames: readonly Uint8Array[], end: Addition["end"]): Addition {
    const decoder = new TextDecoder();
    const lines = frames.map((it) => decoder.decode(it));
    return { writer: this.#writer, at: this.#sent, lines, end, leaseMs: this.leaseMs, keepMs: KEEP_MS };
  }

  #readAlong(wanted: boolean): void {
    if (wanted && !this.#reading) this.#draw(this.#reading = this.recording.join());
    else if (!wanted && this.#reading) {
      this.#reading.leave();
      this.#reading = undefined;
    }
  }

  /** Draws what the first client has not drawn, or is not there to draw. */
  async #draw(reading: Reading): Promise<void> {
    try {
      for (let i = this.#sent; reading === this.#reading && await reading.frame(i);) i++;
    } catch {
      // Told to those who read the recording itself; in the journal it ends as broken.
    }
  }
}

/** An answer that another process computes or has computed, for one reader. */
class Following implements Reading {
  readonly #encoder = new TextEncoder();
  #left = false;

  constructor(
    private readonly journals: Journals,
    private readonly key: string,
    private readonly reader: string,
    /** Number of the first line of `found`. */
    private first: number,
    private found: Excerpt,
  ) {}

  async leave(): Promise<void> {
    if (this.#left) return;
    this.#left = true;
    // Where nobody can be told, the reader is taken for gone after a while.
    await this.journals.leave(this.key, this.reader).catch(() => {});
  }

  async frame(i: number): Promise<Uint8Array | undefined> {
    while (!this.#left) {
      const line = this.found.lines[i - this.first];
      if (line !== undefined) return this.#encoder.encode(line);
      if (this.found.state === "whole") return undefined;
      if (this.found.state === "broken") {
        throw new HttpError({
          code: "unavailable",
          message: "Cannot go on: who computed this answer is gone; asked again with Last-Event-ID, it is " +
            "computed again",
        });
      }
      const { reader } = this;
      const found = await look(this.journals, this.key, { from: i, reader, waitMs: LOOK_MS });
      [this.first, this.found] = [i, found ?? { lines: [], state: "broken" }];
    }
  }
}

async function look(journals: Journals, key: string, wish: Wish): Promise<Excerpt | undefined> {
  const found = await within(wish.waitMs + PATIENCE_MS, journals.read(key, wish));
  if (found !== "late") return found;
  throw new RequestError(
    "storage_failed",
    `Cannot read a journal: it does not answer within ${PATIENCE_MS} ms`,
  );
}
