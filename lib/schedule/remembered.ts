/** What a planner learned, kept in a record, so that a restart does not begin with nothing. */

import { RequestError } from "../errors.ts";
import { MAX_RECORD_BYTES, type Records } from "../store/store.ts";

/** How often it is written at most. */
const EVERY_MS = 15_000;

/** One record. What goes wrong with it does an answer no harm, and is told. */
export class Remembered {
  #writtenAt = -Infinity;

  /** @param name a model's, in letters of any kind; the record's key is made of it. */
  constructor(
    private readonly records: Records,
    private readonly name: string,
    private readonly onError: (error: unknown) => void = () => {},
  ) {}

  /** Hands what was kept to `take`; false where there is nothing, or nothing that it takes. */
  async restore(take: (value: unknown) => void): Promise<boolean> {
    try {
      const found = await this.records.get(this.#key);
      if (!found) return false;
      take(found.value);
      return true;
    } catch (error) {
      this.onError(error);
      return false;
    }
  }

  /** Writes it, unless that was done a moment ago. Of several servers the last one counts. */
  async keep(value: { toJSON(): unknown }): Promise<void> {
    const now = Date.now();
    if (now - this.#writtenAt < EVERY_MS) return;
    this.#writtenAt = now;
    try {
      const json = value.toJSON();
      const bytes = new TextEncoder().encode(JSON.stringify(json)).length;
      if (bytes > MAX_RECORD_BYTES) {
        throw new RequestError(
          "storage_failed",
          `Cannot keep what the planner learned: it takes ${bytes} bytes`,
        );
      }
      const before = await this.records.get(this.#key);
      await this.records.set(this.#key, json, before?.version);
    } catch (error) {
      this.onError(error);
    }
  }

  get #key(): string {
    return `planner/${this.name.toLowerCase().replaceAll(/[^a-z0-9_-]+/g, "-").slice(0, 150) || "model"}`;
  }
}
