/** What a worker says, against what can be: an answer is not believed because it came. */

import { PoolError, type PoolEvent, type Work } from "./pool.ts";
import type { ModelShape } from "./work.ts";

/** Whether what a worker says can be an answer to the work. */
export class Checker {
  #count: number;

  constructor(private readonly work: Work, private readonly model: ModelShape) {
    this.#count = work.given.length;
  }

  /** @throws {PoolError} `broken` */
  take(event: PoolEvent): void {
    const { forced, maxTokens, ignoreEos, topLogits } = this.work;
    const most = forced.length + maxTokens;
    const broken = (what: string) => new PoolError("broken", `The worker answered ${what}`);
    const chance = (value: unknown) => typeof value === "number" && value <= 0;
    if (event.type === "token") {
      const { id, logprob, nearLogprob, top = [] } = event;
      if (!Number.isInteger(id) || id < 0 || id >= this.model.vocabulary) throw broken(`token ${id}`);
      if (this.#count < forced.length && id !== forced[this.#count]) {
        throw broken(`${id} instead of what was forced`);
      }
      if (!chance(logprob) || !chance(nearLogprob)) throw broken(`probabilities ${logprob}, ${nearLogprob}`);
      if (top.length !== Math.min(topLogits, this.model.vocabulary)) throw broken(`${top.length} candidates`);
      if (++this.#count > most) throw broken(`more than ${most} tokens`);
    } else if (event.type === "done") {
      const { finishReason } = event;
      if (finishReason === "cancelled") throw new PoolError("gone", "The worker gave the answer up");
      const whole = this.#count === most;
      const fits = finishReason === "length" ? whole : finishReason === "stop" && !ignoreEos;
      if (!fits) throw broken(`${finishReason} after ${this.#count} of ${most} tokens`);
    } else if (event.type !== "usage") throw broken("something else");
  }
}
