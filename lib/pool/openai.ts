/**
 * A server with OpenAI's chat completions that sees pictures and has the same model, as a pool; vLLM first.
 *
 * It is sent the prepared picture, a PNG of the model's square, so that its own resizing changes nothing; or, where image
 * tokens are computed here, those as `image_embeds`, a `.npy` in base64 (vLLM with `--enable-mm-embeds`, from pull request
 * 38119 on). What comes back is text with a logarithm of probability for each token. vLLM spells tokens as
 * `token_id:123` when asked to (`return_tokens_as_token_ids`), and says how it read the prompt (`return_token_ids`), which
 * is compared. Of other servers a token's text is looked up in our vocabulary: the answer is then exact by its text, and
 * where a text does not tell its tokens, it goes on elsewhere.
 *
 * Such a server continues nobody's answer, forces no tokens, knows no grammar and reports 20 candidates at most: work that
 * wants this is refused as `unsupported`, and the relay asks the next place. vLLM, whose processor for PaliGemma ends every
 * prompt with a newline, cannot be talked into it by `continue_final_message` either. `ignoreEos` and `topK` are vLLM's
 * fields, and no others'. What is sampled with a seed differs from what is sampled here, as the generators do.
 *
 * What of vLLM's versions differs from the model, by its source:
 *
 * - attention: only the picture is seen both ways, the prompt causally, where PaliGemma sees both both ways. Answers are
 *   near those of the model and not the same, in every version.
 * - scale: from pull request 36787 (March 2026) to 52692 (August 2026) image tokens were divided by √width once too often.
 *   Take one from before or after. The numbers sent are the projector's in any case, divided by nothing.
 * - one picture for each prompt.
 *
 * `deno task cli pool check` tells how far off a server is.
 *
 * Sources: vllm/entrypoints/openai/chat_completion/{protocol,serving}.py, vllm/entrypoints/openai/orca_metrics.py,
 * vllm/model_executor/models/paligemma.py.
 */

import { Address } from "./address.ts";
import { Checker } from "./checker.ts";
import { chunks, MAX_TEXT, npy, type Reading, TokenReader, unsupported } from "./openai_wire.ts";
import {
  type Images,
  type Pool,
  PoolError,
  poolError,
  type PoolErrorCode,
  type PoolEvent,
  type Present,
  type Stage,
  type SubmitOptions,
  type Work,
} from "./pool.ts";
import { Patience, refusalText } from "./patience.ts";
import { ending } from "./relay.ts";

/** What a server is asked with. */
export interface OpenAiParts extends Reading {
  /** A PNG of RGB samples [side, side, 3]. */
  readonly png: (samples: Uint8Array, side: number) => Promise<Uint8Array>;
  /** Its name for the model; by default the only one it has. */
  readonly name?: string;
  readonly apiKey?: string;
  readonly fetch?: typeof fetch;
}

/** Candidates that OpenAI's API gives at most; all are asked for, since neighbouring locations are told by them. */
const MOST_CANDIDATES = 20;
/** What the first token may take, and each further one. */
const FIRST_MS = 60_000;
const NEXT_MS = 15_000;

/** One server. */
export class OpenAiPool implements Pool {
  readonly #address: Address;
  #name: Promise<string> | undefined;
  #running = 0;
  #serviceMs: number | undefined;

  /** @param url up to and with `/v1`. */
  constructor(url: string, private readonly parts: OpenAiParts) {
    this.#address = new Address(url.replace(/\/*$/, ""));
    if (parts.name !== undefined) this.#name = Promise.resolve(parts.name);
  }

  get takes(): readonly Stage[] {
    return this.parts.dialect === "vllm" ? ["pixels", "projected"] : ["pixels"];
  }

  present(): Present | undefined {
    const found = this.#address.present();
    const workers = found?.workers.map((it) => ({ ...it, serviceMs: it.serviceMs ?? this.#serviceMs }));
    return workers && { workers };
  }

  /** One try. */
  async *submit(work: Work, { signal, deadlineMs }: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    const imageTokens = work.images.shape[0] * this.parts.model.imageTokens;
    let count = 0;
    if (signal?.aborted) return yield* ending(work, work.given.length, "cancelled", imageTokens);
    const prompt = this.#promptOf(work);
    this.#address.check();
    const check = new Checker(work, this.parts.model);
    const patience = new Patience(signal);
    if (deadlineMs !== undefined) patience.within("answer", deadlineMs);
    const since = performance.now();
    let first = since;
    this.#running++;
    try {
      const reader = new TokenReader(work, this.parts);
      const response = await this.#post(work, prompt, patience);
      for await (const chunk of chunks(response, () => patience.within("word", NEXT_MS))) {
        for (const event of reader.take(chunk)) {
          if (signal?.aborted) break;
          check.take(event);
          if (!count++) first = performance.now();
          yield event;
        }
      }
      signal?.throwIfAborted();
      const { finishReason } = reader;
      if (!finishReason) throw new PoolError("gone", "The server's answer broke off");
      const [prefill, perToken] = [first - since, count > 1 ? (performance.now() - first) / (count - 1) : 0];
      for (const event of ending(work, count, finishReason, imageTokens)) {
        check.take(event);
        const timings = { preprocess: 0, vision: 0, prefill, perToken };
        yield event.type === "usage" ? { ...event, timings } : event;
      }
      this.#address.succeeded();
      const took = performance.now() - since;
      this.#serviceMs = this.#serviceMs === undefined ? took : this.#serviceMs + (took - this.#serviceMs) / 8;
    } catch (cause) {
      if (signal?.aborted) return yield* ending(work, count, "cancelled", imageTokens);
      const error = patience.lost ?? poolError(cause);
      this.#address.lost(error);
      throw error;
    } finally {
      this.#running--;
      patience.end();
    }
  }

  /**
   * The words of the prompt, without the newline that the server adds.
   *
   * @throws {PoolError} `unsupported` for what such a server does not do.
   */
  #promptOf({ ids, images, forced, given, grammar, topLogits, ignoreEos, sampling }: Work): string {
    const { dialect, words, model } = this.parts;
    const isVllm = dialect === "vllm";
    const wants: readonly [boolean, string][] = [
      [given.length > 0, "continue an answer"],
      [forced.length > 0, "begin with given tokens"],
      [grammar !== undefined, "hold to a grammar"],
      [topLogits > MOST_CANDIDATES, `report ${topLogits} candidates`],
      [ignoreEos && !isVllm, "go on after the end"],
      [sampling.topK > 0 && !isVllm, "sample among the K likeliest"],
      [isVllm && images.shape[0] > 1, "take several pictures"],
      [images.stage === "features" || images.dtype === "int8", `take ${images.stage} as ${images.dtype}`],
    ];
    const wanted = wants.find(([is]) => is)?.[1];
    if (wanted !== undefined) throw unsupported(`an OpenAI server does not ${wanted}`);
    const text = words.decode(ids.slice(1, -1));
    // Hugging Face's tokenizers read `<loc0001>` as a location; others may read it as the characters it is.
    const readings = isVllm ? ["allow"] as const : ["allow", "plain"] as const;
    const newline = words.encode("\n");
    const same = readings.every((tokens) =>
      [ids[0], ...words.encode(text, { tokens }), ...newline].join() === ids.join()
    );
    if (!same || text.endsWith("\n") || ids.some((id) => id >= model.vocabulary)) {
      throw unsupported("the prompt's text does not tell its tokens");
    }
    return text;
  }

  async #post(work: Work, prompt: string, patience: Patience): Promise<Response> {
    const { sampling: { temperature, topP, topK, seed }, maxTokens, ignoreEos } = work;
    const pictures = await imageParts(work.images, this.parts.png);
    const body = JSON.stringify({
      model: await this.#modelName(patience),
      messages: [{ role: "user", content: [...pictures, { type: "text", text: prompt }] }],
      stream: true,
      max_tokens: maxTokens,
      temperature,
      top_p: topP,
      seed,
      logprobs: true,
      top_logprobs: MOST_CANDIDATES,
      ...this.parts.dialect === "vllm" && {
        top_k: topK || -1,
        ignore_eos: ignoreEos,
        return_tokens_as_token_ids: true,
        return_token_ids: true,
      },
    });
    const response = await this.#fetch("/chat/completions", patience, {
      method: "POST",
      body,
      headers: { "content-type": "application/json", "endpoint-load-metrics-format": "JSON" },
    });
    // vLLM tells its load with whole answers, gateways with streams, too.
    this.#address.heard(response.headers, { running: this.#running });
    return response;
  }

  async #fetch(path: string, patience: Patience, init: RequestInit = {}): Promise<Response> {
    const { apiKey } = this.parts;
    patience.within("word", FIRST_MS);
    const response = await (this.parts.fetch ?? fetch)(this.#address.url + path, {
      ...init,
      headers: { ...init.headers, ...apiKey && { authorization: `Bearer ${apiKey}` } },
      redirect: "manual", // which is no answer; Workers know no "error"
      signal: patience.signal,
    });
    if (response.status === 200) return response;
    const error = await refusal(response);
    this.#address.refused(error, response.headers);
    throw error;
  }

  /** What the server calls the model; asked once. */
  async #modelName(patience: Patience): Promise<string> {
    this.#name ??= this.#onlyModel(patience);
    try {
      return await this.#name;
    } catch (error) {
      this.#name = undefined;
      throw error;
    }
  }

  async #onlyModel(patience: Patience): Promise<string> {
    const { data } = await (await this.#fetch("/models", patience)).json() as { data?: { id: string }[] };
    if (data?.length === 1 && typeof data[0].id === "string") return data[0].id;
    const found = data?.map((it) => it.id).join(", ") || "none";
    throw new PoolError("revision", `Cannot choose the server's model: expected one, found ${found}`);
  }
}

/** What OpenAI's statuses mean to a pool. */
const CODES: Readonly<Record<number, PoolErrorCode>> = {
  400: "unsupported",
  401: "unsigned",
  403: "forbidden",
  404: "revision",
  413: "unsupported",
  422: "unsupported",
  429: "busy",
  503: "busy",
};

async function refusal(response: Response): Promise<PoolError> {
  const { status } = response;
  let said = await refusalText(response, MAX_TEXT);
  try {
    const { error, message } = JSON.parse(said);
    said = error?.message ?? message ?? said;
  } catch {
    // not OpenAI's words
  }
  return new PoolError(
    CODES[status] ?? "failed",
    `The server answered ${status}: ${`${said}`.slice(0, 300)}`,
  );
}

/** Pictures as parts of a message. */
async function imageParts({ stage, shape, ...images }: Images, png: OpenAiParts["png"]): Promise<unknown[]> {
  const blocks = await Array.fromAsync(images.blocks());
  const bytes = new Uint8Array(await new Blob(blocks as BlobPart[]).arrayBuffer());
  if (stage !== "pixels") return [{ type: "image_embeds", image_embeds: npy(shape, bytes).toBase64() }];
  const [count, side] = shape;
  const parts: unknown[] = [];
  for (let i = 0; i < count; i++) {
    const size = side * side * 3;
    const url = `data:image/png;base64,${
      (await png(bytes.subarray(i * size, (i + 1) * size), side)).toBase64()
    }`;
    parts.push({ type: "image_url", image_url: { url } });
  }
  return parts;
}
