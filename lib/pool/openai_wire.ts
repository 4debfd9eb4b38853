/** What a server with OpenAI's API says, read: events of a stream, tokens, load; and image tokens as it takes them. */

import { lines, parsedObject } from "./patience.ts";
import { PoolError, type TokenEvent, type Work } from "./pool.ts";
import type { ModelShape } from "./work.ts";

/** Of a line or of a refusal, characters. */
export const MAX_TEXT = 1 << 20;

/** Whose fields beyond OpenAI's a server understands. */
export type Dialect = "openai" | "vllm";

/** Text to ids and back, as `Tokenizer` of `lib/text` does. */
export interface Words {
  encode(text: string, options?: { readonly tokens?: "plain" | "allow" }): number[];
  decode(ids: Iterable<number>): string;
  idOf(piece: string): number | undefined;
}

/** What a server's words are read with. */
export interface Reading {
  readonly model: ModelShape;
  readonly words: Words;
  /** The ids that end an answer. */
  readonly eosIds: readonly number[];
  readonly dialect: Dialect;
  /** Ids [first, end) that mean what an id means, itself among them, where there are such. */
  readonly near?: (id: number) => readonly (readonly [first: number, end: number])[] | undefined;
}

/** One token as the server tells it. */
interface Spelled {
  readonly token: string;
  readonly logprob: number;
  readonly top_logprobs?: readonly Spelled[];
}

/** What is read of a `chat.completion.chunk`. */
interface Chunk {
  readonly error?: { readonly message?: string };
  readonly prompt_token_ids?: readonly number[] | null;
  readonly choices?: readonly {
    readonly delta?: { readonly content?: string | null };
    readonly logprobs?: { readonly content?: readonly Spelled[] | null } | null;
    readonly finish_reason?: string | null;
  }[];
}

/** Turns what a server says into tokens. */
export class TokenReader {
  finishReason: "stop" | "length" | undefined;
  /** Told, but what they are is not known yet: the bytes of one character. */
  readonly #held: Spelled[] = [];

  constructor(private readonly work: Work, private readonly parts: Reading) {}

  /** @throws {PoolError} `failed`, `broken` or `unsupported`. */
  *take({ error, prompt_token_ids: asked, choices }: Chunk): Generator<TokenEvent> {
    if (error) throw new PoolError("failed", `The server failed: ${`${error.message}`.slice(0, 300)}`);
    if (asked) this.#checkPrompt(asked);
    const [choice] = choices ?? [];
    if (!choice) return;
    const { delta, logprobs, finish_reason: reason } = choice;
    if (delta?.content && !logprobs?.content?.length) throw unsupported("the server tells no probabilities");
    for (const it of logprobs?.content ?? []) yield* this.#tokens(it);
    if (!reason) return;
    if (this.#held.length) throw unsupported("the answer's text does not tell its tokens");
    if (reason !== "stop" && reason !== "length") {
      throw new PoolError("failed", `The server ended its answer with ${JSON.stringify(reason)}`);
    }
    this.finishReason = reason;
  }

  #checkPrompt(asked: readonly number[]): void {
    const { ids, images } = this.work;
    const { vocabulary, imageTokens } = this.parts.model;
    const pictures = asked.findIndex((id) => id < vocabulary);
    const expected = images.shape[0] * imageTokens;
    if (pictures === expected && asked.slice(pictures).join() === ids.join()) return;
    throw new PoolError(
      "broken",
      `The server read another prompt: expected ${expected} image tokens and [${ids}], found ${pictures} and [${
        asked.slice(Math.max(0, pictures))
      }]`,
    );
  }

  *#tokens(spelled: Spelled): Generator<TokenEvent> {
    this.#held.push(spelled);
    const { eosIds } = this.parts;
    const ids = this.#idsOfHeld();
    if (!ids) return;
    const entries = this.#held.splice(0);
    for (const [i, id] of ids.entries()) {
      if (!this.work.ignoreEos && eosIds.includes(id)) continue;
      yield this.#event(id, entries[i]);
    }
  }

  /** The ids of what is held, as many; undefined while it is no whole text. */
  #idsOfHeld(): number[] | undefined {
    const [{ token }] = this.#held;
    if (this.#held.length === 1) {
      const id = this.#idOf(token);
      if (id !== undefined) return [id];
    }
    const text = this.#held.map((it) => it.token).join("");
    if (!text || text.includes("\ufffd")) return undefined;
    const ids = this.parts.words.encode(text, { tokens: "allow" });
    if (ids.length === this.#held.length) return ids;
    throw unsupported(`the text ${JSON.stringify(text.slice(0, 100))} does not tell its tokens`);
  }

  #idOf(token: string): number | undefined {
    const { dialect, words } = this.parts;
    if (dialect === "openai") return words.idOf(token.replaceAll(" ", "▁"));
    const id = Number(/^token_id:(\d{1,9})$/.exec(token)?.[1] ?? NaN);
    if (!Number.isNaN(id)) return id;
    throw new PoolError(
      "broken",
      `The server answered ${JSON.stringify(token.slice(0, 100))} instead of a token's id`,
    );
  }

  #event(id: number, { logprob, top_logprobs: told = [] }: Spelled): TokenEvent {
    const { topLogits } = this.work;
    const near = this.parts.near?.(id);
    const candidates = topLogits || near ? told.map((it) => ({ ...it, id: this.#idOf(it.token) })) : [];
    // Of the candidates, not of the whole vocabulary: at least so much.
    const means = candidates.filter((it) =>
      near?.some(([start, end]) => it.id! >= start && it.id! < end && it.id !== id)
    );
    const mass = means.reduce((sum, it) => sum + Math.exp(it.logprob), Math.exp(logprob));
    const best = candidates.toSorted((a, b) => b.logprob - a.logprob).slice(0, topLogits);
    if (topLogits && best.some((it) => it.id === undefined)) {
      throw unsupported("the candidates' texts do not tell their tokens");
    }
    return {
      type: "token",
      id,
      text: "",
      logprob,
      nearLogprob: means.length ? Math.min(0, Math.log(mass)) : logprob,
      // Logits are known up to what all of a step have in common; that is left out.
      ...topLogits &&
        { top: best.map((it) => ({ id: it.id!, text: "", logit: it.logprob, logprob: it.logprob })) },
    };
  }
}

/** The data of server-sent events up to `[DONE]`. */
export async function* chunks(response: Response, onWord: () => void): AsyncGenerator<Chunk> {
  for await (const line of lines(response, MAX_TEXT, onWord)) {
    const data = /^data: ?(.*)$/.exec(line)?.[1];
    if (data === "[DONE]") return;
    if (data !== undefined) yield parsedObject(data);
  }
}

/** Refuses work of which such a server cannot do all. */
export function unsupported(why: string): PoolError {
  return new PoolError("unsupported", `Cannot take work: ${why}`);
}

/**
 * Half floats, row-major, as NumPy's file format 1.0 has them (numpy.lib.format).
 *
 * @param data little-endian, two bytes for each number of the shape.
 */
export function npy(shape: readonly number[], data: Uint8Array): Uint8Array<ArrayBuffer> {
  const form = `{'descr': '<f2', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
  // All before the data is a multiple of 64 bytes and ends with a newline.
  const size = Math.ceil((10 + form.length + 1) / 64) * 64;
  const bytes = new Uint8Array(size + data.length);
  bytes.set([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0]);
  new DataView(bytes.buffer).setUint16(8, size - 10, true);
  bytes.set(new TextEncoder().encode(form.padEnd(size - 11) + "\n"), 10);
  bytes.set(data, size);
  return bytes;
}
