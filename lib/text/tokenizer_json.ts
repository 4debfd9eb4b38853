/**
 * Reads `tokenizer.json` of Hugging Face's tokenizers, of type BPE over characters with `▁` for spaces.
 *
 * The file is walked as bytes: Gemma's 17 MB would be some 200 MB of JavaScript strings and objects, more than a
 * Worker has. The 580,000 merges are redundant but for the order in which their results come, which becomes the
 * rank of each piece; two pairs that make the same piece share its rank, and the leftmost goes first.
 */

import { decodeUtf8, fail, Kind, NO_RANK, type TokenizerFile, VocabularyBuilder } from "./vocabulary.ts";

type Json = Record<string, unknown>;

interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special?: boolean;
  readonly normalized?: boolean;
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
  readonly single_word?: boolean;
}

/**
 * The vocabulary in the bytes of a `tokenizer.json`. `place` is for messages.
 *
 * Added tokens that are special are control pieces, and never come from text; the others are found whole, those
 * with `normalized: false` before spaces are replaced.
 *
 * @throws {RequestError} `model_invalid`, saying what was expected and what was found.
 */
export function readTokenizerJson(data: Uint8Array, place: string): TokenizerFile {
  const json = new JsonBytes(data, place);
  const top = new Map<string, number>(), model = new Map<string, number>();
  json.members(json.from(0), top, new Map([["model", model]]));
  if (!top.has("model")) fail(place, "an object model, found none");
  const setting = (from: Map<string, number>, name: string) => {
    const at = from.get(name);
    return at === undefined ? undefined : json.value(at);
  };
  const refuse = (name: string, found: unknown, expected: string) =>
    fail(place, `${name} to be ${expected}, found ${JSON.stringify(found)}`);

  checkSteps(setting(top, "normalizer"), setting(top, "pre_tokenizer"), setting(top, "decoder"), refuse);
  const type = setting(model, "type") ?? "BPE";
  if (type !== "BPE") refuse("model.type", type, '"BPE"');
  for (const name of ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"]) {
    const found = setting(model, name);
    if (found) refuse(`model.${name}`, found, "off");
  }
  const byteFallback = setting(model, "byte_fallback") === true;
  const unknown = setting(model, "unk_token") ?? undefined;
  const added = (setting(top, "added_tokens") ?? []) as AddedToken[];
  if (!Array.isArray(added)) refuse("added_tokens", added, "an array");

  const vocabularyAt = model.get("vocab") ?? fail(place, "model.vocab, found none");
  const builder = new VocabularyBuilder(place, Math.ceil(data.length / 8));
  const kinds = new Map<string, number>();
  for (const token of added) kinds.set(token.content, kindOf(token, unknown, refuse));
  if (typeof unknown === "string") kinds.set(unknown, Kind.unknown);

  // Few pieces have a kind of their own. They are told by their bytes only when one of them has that length.
  const special = new SpecialPieces(kinds);
  const seen = new Set<string>();
  json.eachMember(vocabularyAt, (start, end, escaped, at) => {
    let source = data;
    if (escaped) {
      source = json.unescape(start, end);
      [start, end] = [0, source.length];
    }
    let kind = special.kind(source, start, end);
    if (kind === undefined) kind = byteFallback && isByteName(source, start, end) ? Kind.byte : Kind.normal;
    else seen.add(decodeUtf8(source.subarray(start, end)));
    const [id, after] = json.integer(at);
    builder.add(id, source, start, end, kind);
    return after;
  });
  for (const token of added) {
    if (seen.has(token.content)) continue;
    seen.add(token.content);
    const bytes = new TextEncoder().encode(token.content);
    builder.add(token.id, bytes, 0, bytes.length, kinds.get(token.content)!);
  }
  if (builder.size === 0) fail(place, "a vocabulary, found no pieces");
  const vocabulary = builder.finish();
  for (const token of added) {
    const bytes = new TextEncoder().encode(token.content);
    const id = vocabulary.find(bytes, 0, bytes.length);
    if (id !== token.id) refuse(`the id of ${JSON.stringify(token.content)}`, id, `${token.id}`);
  }

  const { ranks } = vocabulary, fixed = Kind.location | Kind.control | Kind.unknown | Kind.byte;
  let rank = 0;
  json.eachMerge(model.get("merges") ?? fail(place, "model.merges, found none"), (piece) => {
    const id = vocabulary.find(piece, 0, piece.length);
    if (id < 0) {
      fail(place, `merges of pieces, found ${JSON.stringify(decodeUtf8(piece))} not in the vocabulary`);
    }
    if (ranks[id] === NO_RANK && (vocabulary.kinds[id] & fixed) === 0) ranks[id] = rank;
    rank++;
  });
  return { vocabulary, byteFallback, dummyPrefix: false };
}

type Refuse = (name: string, found: unknown, expected: string) => never;

/** The steps around the model must be Gemma's: space to `▁`, nothing split, and back with byte fallback. */
function checkSteps(normalizer: unknown, preTokenizer: unknown, decoder: unknown, refuse: Refuse): void {
  const replace = (normalizer ?? {}) as Json;
  if (replace.type !== "Replace" || (replace.pattern as Json)?.String !== " " || replace.content !== "▁") {
    refuse("normalizer", normalizer, 'Replace " " by "▁"');
  }
  // Gemma's later files split at spaces, of which the normaliser has left none.
  const split = (preTokenizer ?? undefined) as Json | undefined;
  if (split && !(split.type === "Split" && (split.pattern as Json)?.String === " ")) {
    refuse("pre_tokenizer", preTokenizer, "null");
  }
  const steps = ((decoder as Json)?.decoders ?? [decoder]) as Json[];
  const names = steps.map((step) => step?.type);
  if (names.some((name) => !["Replace", "ByteFallback", "Fuse"].includes(name as string))) {
    refuse("decoder", names, "Replace, ByteFallback and Fuse");
  }
}

function kindOf(token: AddedToken, unknown: unknown, refuse: Refuse): number {
  if (typeof token?.content !== "string" || !Number.isInteger(token.id)) {
    refuse("an added token", token, "an object with id and content");
  }
  if (token.content === unknown) return Kind.unknown;
  if (token.special) return Kind.control;
  if (token.lstrip || token.rstrip || token.single_word) {
    refuse(`added token ${JSON.stringify(token.content)}`, token, "without lstrip, rstrip and single_word");
  }
  return token.normalized === false ? Kind.raw : Kind.user;
}

/** Kinds of the pieces named outside the vocabulary, found without making a string of every piece. */
class SpecialPieces {
  readonly #byLength = new Map<number, Map<string, number>>();

  constructor(kinds: ReadonlyMap<string, number>) {
    for (const [content, kind] of kinds) {
      const length = new TextEncoder().encode(content).length;
      if (!this.#byLength.has(length)) this.#byLength.set(length, new Map());
      this.#byLength.get(length)!.set(content, kind);
    }
  }

  kind(source: Uint8Array, start: number, end: number): number | undefined {
    return this.#byLength.get(end - start)?.get(decodeUtf8(source.subarray(start, end)));
  }
}

/** `<0xHH>`. */
function isByteName(source: Uint8Array, start: number, end: number): boolean {
  return end - start === 6 && source[start] === 0x3c && source[start + 1] === 0x30 &&
    source[start + 2] === 0x78 && source[end - 1] === 0x3e;
}

const QUOTE = 0x22, BACKSLASH = 0x5c, COMMA = 0x2c, COLON = 0x3a, SPACE = 0x20;
const OPEN_OBJECT = 0x7b, CLOSE_OBJECT = 0x7d, OPEN_ARRAY = 0x5b, CLOSE_ARRAY = 0x5d;
/** What may follow a number or a word directly, of the bytes between `+` and `z`. */
const ENDS_VALUE = [COMMA, COLON, OPEN_ARRAY, CLOSE_ARRAY, BACKSLASH];

/** JSON walked in place. Positions are byte offsets of values; small values are parsed when asked for. */
class JsonBytes {
  constructor(readonly data: Uint8Array, readonly place: string) {}

  /** The first byte at or after `at` that is no white space. */
  from(at: number): number {
    const data = this.data;
    while (data[at] === SPACE || data[at] === 10 || data[at] === 13 || data[at] === 9) at++;
    return at;
  }

  /**
   * Notes where the values of an object's members are, by name, and returns where it ends. Members named in `inner`
   * are objects whose own members are noted there: the file is large, and so it is gone through only once.
   */
  members(at: number, found: Map<string, number>, inner = new Map<string, Map<string, number>>()): number {
    return this.eachMember(at, (start, end, _, value) => {
      const name = this.#parse(start - 1, end + 1) as string, members = inner.get(name);
      found.set(name, value);
      return members ? this.members(value, members) : this.#skip(value);
    });
  }

  /**
   * Walks an object: `visit` gets the bytes of each name, whether they hold a backslash, and where the value is;
   * it returns where the value ends.
   */
  eachMember(
    at: number,
    visit: (start: number, end: number, escaped: boolean, value: number) => number,
  ): number {
    at = this.from(this.#expect(at, OPEN_OBJECT));
    if (this.data[at] === CLOSE_OBJECT) return at + 1;
    for (;;) {
      const [end, escaped] = this.#string(at);
      const value = this.from(this.#expect(this.from(end + 1), COLON));
      at = this.from(visit(at + 1, end, escaped, value));
      if (this.data[at] === CLOSE_OBJECT) return at + 1;
      at = this.from(this.#expect(at, COMMA));
    }
  }

  /** Walks an array: `visit` gets where each element is and returns where it ends. */
  eachElement(at: number, visit: (at: number) => number): number {
    at = this.from(this.#expect(at, OPEN_ARRAY));
    if (this.data[at] === CLOSE_ARRAY) return at + 1;
    for (;;) {
      at = this.from(visit(at));
      if (this.data[at] === CLOSE_ARRAY) return at + 1;
      at = this.from(this.#expect(at, COMMA));
    }
  }

  /** Walks the merges, `"left right"` or `["left", "right"]`: `visit` gets the UTF-8 of the union, for the moment. */
  eachMerge(at: number, visit: (piece: Uint8Array) => void): void {
    let scratch = new Uint8Array(256), used = 0;
    const append = (at: number, splits: boolean) => {
      const [end, escaped] = this.#string(at);
      const source = escaped ? this.unescape(at + 1, end) : this.data;
      const [from, to] = escaped ? [0, source.length] : [at + 1, end];
      if (used + to - from > scratch.length) {
        const larger = new Uint8Array(2 * (used + to - from));
        larger.set(scratch);
        scratch = larger;
      }
      for (let i = from; i < to; i++) {
        if (splits && source[i] === SPACE) splits = false;
        else scratch[used++] = source[i];
      }
      return end + 1;
    };
    this.eachElement(at, (at) => {
      used = 0;
      const end = this.data[at] === OPEN_ARRAY
        ? this.eachElement(at, (at) => append(at, false))
        : append(at, true);
      visit(scratch.subarray(0, used));
      return end;
    });
  }

  /** The value at `at`, parsed. */
  value(at: number): unknown {
    return this.#parse(at, this.#skip(at));
  }

  /** The whole number at `at`, and where it ends. */
  integer(at: number): [number, number] {
    let value = 0, end = at;
    for (let digit; (digit = this.data[end] - 48) >= 0 && digit <= 9; end++) value = value * 10 + digit;
    if (end === at) this.#refuse(at, "a whole number");
    return [value, end];
  }

  /** UTF-8 of a string's inside, bytes [start, end), without its escapes. */
  unescape(start: number, end: number): Uint8Array {
    return new TextEncoder().encode(this.#parse(start - 1, end + 1) as string);
  }

  #parse(start: number, end: number): unknown {
    try {
      return JSON.parse(decodeUtf8(this.data.subarray(start, end)));
    } catch (error) {
      fail(this.place, `JSON at byte ${start}, found ${(error as Error).message}`);
    }
  }

  /** The closing quote of the string at `at`, and whether there is a backslash in it. */
  #string(at: number): [number, boolean] {
    const data = this.data;
    let escaped = false, end = this.#expect(at, QUOTE);
    for (; data[end] !== QUOTE; end++) {
      if (end >= data.length) this.#refuse(end, 'a closing "');
      if (data[end] === BACKSLASH) {
        escaped = true;
        end++;
      }
    }
    return [end, escaped];
  }

  /** Where the value at `at` ends. */
  #skip(at: number): number {
    switch (this.data[at]) {
      case QUOTE:
        return this.#string(at)[0] + 1;
      case OPEN_OBJECT:
        return this.eachMember(at, (_start, _end, _escaped, value) => this.#skip(value));
      case OPEN_ARRAY:
        return this.eachElement(at, (at) => this.#skip(at));
    }
    let end = at;
    // Numbers, true, false and null are made of these: + - . 0-9 A-Z a-z.
    for (let byte; (byte = this.data[end]) >= 0x2b && byte <= 0x7a && !ENDS_VALUE.includes(byte);) end++;
    if (end === at) this.#refuse(at, "a value");
    return end;
  }

  #expect(at: number, byte: number): number {
    if (this.data[at] !== byte) this.#refuse(at, JSON.stringify(String.fromCharCode(byte)));
    return at + 1;
  }

  #refuse(at: number, expected: string): never {
    const found = at < this.data.length
      ? JSON.stringify(decodeUtf8(this.data.subarray(at, at + 8)))
      : `the end of the file, ${this.data.length} bytes`;
    fail(this.place, `${expected} at byte ${at}, found ${found}`);
  }
}
