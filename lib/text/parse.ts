/**
 * Boxes out of an answer, as its tokens come.
 *
 * ```text
 * answer := item ( ";" item )*
 * item   := text? loc loc loc loc seg* label?      loc y1, x1, y2, x2      label: anything but ; < >
 * ```
 *
 * This goes by token ids, so that `<loc0001>` spelled out in characters is text. An item also ends where the next one
 * starts without a semicolon, as in big_vision's demo. Four locations make a box: after fewer, or after five or more
 * in a row, there is none, and the item is dropped and counted. What else is wrong with an item is flagged.
 */

import type { AnswerEvent, Box, BoxPixels, Item, ItemFlag, Picture } from "../types.ts";
import { CODES_PER_MASK, findLocations, type Locations } from "./locations.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** An item as it is streamed. */
export type BoxEvent = Extract<AnswerEvent, { type: "box" }>;

/** Reads one answer. */
export interface BoxParser {
  /**
   * Takes a token and the natural logarithm of its probability, for a location of all that are near it
   * (`nearby` of locations.ts); returns the items that it completes.
   */
  push(id: number, logprob: number): readonly BoxEvent[];
  /**
   * Takes the end of the answer. `truncated` means that the token limit ended it: the last item may lack a part of
   * its label or mask and is flagged.
   */
  end(options?: { readonly truncated?: boolean }): readonly BoxEvent[];
  /** The text so far that belongs to no item: before one's first location, after its label, between semicolons. */
  readonly plainText: string;
  /** Items so far that had some locations, but not four. */
  readonly brokenItems: number;
}

/** How locations are read. */
export interface BoxOptions {
  /**
   * What 1 is in bins: 1024, the default, as the tools around PaliGemma have it, or 1023, the exact inverse of
   * training, which rounds v · 1023. They differ by a thousandth of the picture's side.
   */
  readonly locScale?: 1023 | 1024;
  /** The location pieces of the vocabulary, where they have been looked up before. */
  readonly locations?: Locations;
}

/**
 * A parser for one answer of a model with this tokenizer; it never finds anything where that has no location pieces.
 *
 * `confidence` is the geometric mean of the four locations' probabilities times that of the label's tokens, so that
 * a long label costs no more than a short one. A location counts with all that are near it: the probability of the very
 * bin says how finely a model draws its boxes, not how likely they are right. How well that is calibrated depends on the
 * model; `deno task eval` measures it.
 */
export function createBoxParser(tokenizer: Tokenizer, options: BoxOptions = {}): BoxParser {
  const scale = options.locScale ?? 1024;
  const { bins, codes } = options.locations ?? findLocations(tokenizer);
  const text = tokenizer.stream();
  let item = new OpenItem();
  const plain: string[] = [];
  let brokenItems = 0;

  function close(to: BoxEvent[], cutOff = false): void {
    const event = item.close(scale, cutOff);
    if (event) to.push(event);
    else if (item.isBroken) brokenItems++;
    if (item.plain.trim()) plain.push(item.plain.trim());
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
      } else if (codes.has(id)) item.maskCode(codes.get(id)!);
      else {
        item.labelToken(logprob);
        read(part, events);
      }
      return events;
    },
    end({ truncated = false } = {}) {
      const events: BoxEvent[] = [];
      read(text.end(), events);
      close(events, truncated);
      return events;
    },
    get plainText() {
      return plain.join(" ; ");
    },
    get brokenItems() {
      return brokenItems;
    },
  };
}

/** What is known of an item before it ends. */
class OpenItem {
  readonly #bins: number[] = [];
  readonly #codes: number[] = [];
  #codesApart = false;
  #locations = 0;
  #label = "";
  #labelLogprob = 0;
  #labelTokens = 0;
  /** Tokens that have not shown a character of the label yet: white space, separators, bytes of an open character. */
  #waitingLogprob = 0;
  #waitingTokens = 0;
  #state: "locations" | "label" | "after" = "locations";
  /** Text that is not the label. */
  plain = "";

  /** Whether a location still belongs here: it does until something else has followed the first. */
  get takesLocation(): boolean {
    return this.#state === "locations";
  }

  location(bin: number, logprob: number): void {
    this.#bins.push(bin);
    this.#locations += logprob;
  }

  get isBroken(): boolean {
    return this.#bins.length > 0 && this.#bins.length !== 4;
  }

  /** Codes of one mask follow one another after the locations; elsewhere they mean nothing. */
  maskCode(code: number): void {
    if (this.#bins.length === 0) return;
    if (this.#state !== "locations" && (this.#codes.length === 0 || this.#labelTokens > 0)) {
      this.#codesApart = true;
    } else this.#codes.push(code);
    if (this.#state === "locations") this.#state = "label";
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
      if (stop >= 0) this.plain += piece.slice(stop);
    } else this.plain += piece;
    this.#waitingLogprob = this.#waitingTokens = 0;
  }

  close(scale: number, cutOff: boolean): BoxEvent | undefined {
    if (this.#bins.length !== 4) return undefined;
    const [y1, x1, y2, x2] = this.#bins;
    const mean = this.#locations / 4 + this.#labelLogprob / Math.max(1, this.#labelTokens);
    const whole = this.#codes.length === CODES_PER_MASK && !this.#codesApart;
    const flags: ItemFlag[] = [
      ...cutOff ? ["cut-off" as const] : [],
      ...y2 <= y1 || x2 <= x1 ? ["empty" as const] : [],
      ...(this.#codes.length || this.#codesApart) && !whole ? ["mask" as const] : [],
    ];
    return {
      type: "box",
      box: { yMin: y1 / scale, xMin: x1 / scale, yMax: y2 / scale, xMax: x2 / scale },
      label: this.#label.trim(),
      confidence: Math.min(1, Math.max(Number.MIN_VALUE, Math.exp(mean))),
      ...whole && { maskCodes: this.#codes },
      ...flags.length && { flags },
    };
  }
}

/** A box in whole pixels of the picture whose fractions it gives. */
export function inPixels(box: Box, { width, height }: Pick<Picture, "width" | "height">): BoxPixels {
  return {
    yMin: Math.round(box.yMin * height),
    xMin: Math.round(box.xMin * width),
    yMax: Math.round(box.yMax * height),
    xMax: Math.round(box.xMax * width),
  };
}

/** Intersection over union of two boxes, 0 to 1. */
export function overlap(a: Box, b: Box): number {
  const height = Math.max(0, Math.min(a.yMax, b.yMax) - Math.max(a.yMin, b.yMin));
  const width = Math.max(0, Math.min(a.xMax, b.xMax) - Math.max(a.xMin, b.xMin));
  const area = (box: Box) => Math.max(0, box.yMax - box.yMin) * Math.max(0, box.xMax - box.xMin);
  const both = height * width;
  return both === 0 ? 0 : both / (area(a) + area(b) - both);
}

/**
 * Non-maximum suppression within each label: without the items whose box overlaps that of a surer one by more than
 * `iou`. The order stays; of equally sure ones the earlier is kept.
 */
export function withoutDuplicates<T extends Item>(items: readonly T[], iou: number): T[] {
  const kept: T[] = [];
  for (const item of items.toSorted((a, b) => b.confidence - a.confidence)) {
    if (kept.every((it) => it.label !== item.label || overlap(it.box, item.box) <= iou)) kept.push(item);
  }
  return items.filter((it) => kept.includes(it));
}
