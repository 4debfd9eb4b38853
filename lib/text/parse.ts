/**
 * Boxes out of an answer, as its tokens come.
 *
 * ```text
 * answer := item ( ";" item )*
 * item   := text? loc loc loc loc seg* label?      loc y1, x1, y2, x2      label: anything but ; < >
 * ```
 *
 * This goes by token ids, so that `<loc0001>` spelled out in characters is text. An item also ends where the next one
 * starts without a semicolon, as in big_vision's demo. Four locations make a box: after fewer, after five or more in
 * a row, and where bottom or right is not beyond top or left, the item is dropped.
 */

import type { AnswerEvent } from "../types.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** An item as it is streamed. */
export type BoxEvent = Extract<AnswerEvent, { type: "box" }>;

/** Reads one answer. */
export interface BoxParser {
  /** Takes a token and the natural logarithm of its probability; returns the items that it completes. */
  push(id: number, logprob: number): readonly BoxEvent[];
  /**
   * Takes the end of the answer. `truncated` means that the token limit ended it: the last item may lack a part of
   * its label and is dropped.
   */
  end(options?: { readonly truncated?: boolean }): readonly BoxEvent[];
}

/** How locations are read. */
export interface BoxOptions {
  /**
   * What 1 is in bins: 1024, the default, as the tools around PaliGemma have it, or 1023, the exact inverse of
   * training, which rounds v · 1023. They differ by a thousandth of the picture's side.
   */
  readonly locScale?: 1023 | 1024;
}

/**
 * A parser for one answer of a model with this tokenizer; it never finds anything where that has no location pieces.
 *
 * `confidence` is the geometric mean of the four locations' probabilities times that of the label's tokens, so that
 * a long label costs no more than a short one. It ranks the items of one model; it is not calibrated.
 */
export function createBoxParser(tokenizer: Tokenizer, options: BoxOptions = {}): BoxParser {
  const scale = options.locScale ?? 1024;
  const bins = numbered(tokenizer, "loc", 1024, 4), masks = numbered(tokenizer, "seg", 128, 3);
  const text = tokenizer.stream();
  let item = new OpenItem();

  function close(to: BoxEvent[]): void {
    const event = item.close(scale);
    if (event) to.push(event);
    item = new OpenItem();
  }

  /** Text may hold a semicolon anywhere: what stands before it is still this item's. */
  function read(part: string, to: BoxEvent[]): void {
    part.split(";").forEach((piece, index) => {
      if (index > 0) close(to);
      item.text(piece);
    });
  }

  return {
    push(id, logprob) {
      const events: BoxEvent[] = [], bin = bins.get(id), part = text.push(id);
      if (bin !== undefined) {
        if (!item.takesLocation) close(events);
        item.location(bin, logprob);
      } else if (masks.has(id)) item.mask();
      else {
        item.labelToken(logprob);
        read(part, events);
      }
      return events;
    },
    end({ truncated = false } = {}) {
      const events: BoxEvent[] = [];
      if (!truncated) {
        read(text.end(), events);
        close(events);
      }
      item = new OpenItem();
      return events;
    },
  };
}

/** What is known of an item before it ends. */
class OpenItem {
  readonly #bins: number[] = [];
  #locations = 0;
  #label = "";
  #labelLogprob = 0;
  #labelTokens = 0;
  /** Tokens that have not shown a character of the label yet: white space, separators, bytes of an open character. */
  #waitingLogprob = 0;
  #waitingTokens = 0;
  #state: "locations" | "label" | "after" = "locations";

  /** Whether a location still belongs here: it does until something else has followed the first. */
  get takesLocation(): boolean {
    return this.#state === "locations";
  }

  location(bin: number, logprob: number): void {
    this.#bins.push(bin);
    this.#locations += logprob;
  }

  mask(): void {
    if (this.#bins.length > 0 && this.#state === "locations") this.#state = "label";
  }

  /** A token whose text comes next, and counts when that is part of the label. */
  labelToken(logprob: number): void {
    this.#waitingLogprob += logprob;
    this.#waitingTokens++;
  }

  text(piece: string): void {
    if (piece === "") return;
    if (this.#bins.length > 0 && this.#state !== "after") {
      const stop = piece.search(/[<>]/), label = stop < 0 ? piece : piece.slice(0, stop);
      this.#state = stop < 0 ? "label" : "after";
      this.#label += label;
      if (label.trim() !== "") {
        this.#labelLogprob += this.#waitingLogprob;
        this.#labelTokens += this.#waitingTokens;
      }
    }
    this.#waitingLogprob = this.#waitingTokens = 0;
  }

  close(scale: number): BoxEvent | undefined {
    const [y1, x1, y2, x2] = this.#bins;
    if (this.#bins.length !== 4 || y2 <= y1 || x2 <= x1) return undefined;
    const mean = this.#locations / 4 + this.#labelLogprob / Math.max(1, this.#labelTokens);
    return {
      type: "box",
      box: { yMin: y1 / scale, xMin: x1 / scale, yMax: y2 / scale, xMax: x2 / scale },
      label: this.#label.trim(),
      confidence: Math.min(1, Math.max(Number.MIN_VALUE, Math.exp(mean))),
    };
  }
}

/** Numbers of the pieces `<loc0000>` and on, by id. */
function numbered(tokenizer: Tokenizer, name: string, count: number, digits: number): Map<number, number> {
  const numbers = new Map<number, number>();
  for (let number = 0; number < count; number++) {
    const id = tokenizer.idOf(`<${name}${String(number).padStart(digits, "0")}>`);
    if (id !== undefined) numbers.set(id, number);
  }
  return numbers;
}
