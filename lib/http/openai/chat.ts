/**
 * OpenAI's chat body -> a question. PaliGemma answers one prompt about pictures, it does not converse: the text of the
 * last user message becomes the prefix, the pictures are those of the last user message that has some, and all other
 * messages are dropped and reported as such.
 */

import * as z from "zod/mini";
import type { Question, Sampling } from "../../types.ts";
import { BUDGET } from "../budget.ts";
import { HttpError } from "../problem.ts";
import { between, flag, optional, read, share, text, whole } from "../schema.ts";

const PART = z.discriminatedUnion("type", [
  z.object({ type: z.literal("text"), text: text("text") }),
  z.object({
    type: z.literal("image_url"),
    image_url: z.object({ url: text("a data: URL or an https: URL") }, { error: "an object with a url" }),
  }),
], { error: "a part of the type text or image_url" });

const USER = z.object({
  role: z.literal("user"),
  content: z.union([text(), z.array(PART)], { error: "text or an array of text and image_url parts" }),
});

/** Read no further: they are dropped. */
const OTHER = z.object({ role: z.enum(["system", "developer", "assistant", "tool", "function"]) });

/** What changes nothing at its default, and what this model cannot do at any other value. */
const NEUTRAL = {
  n: optional(z.literal(1, { error: "1" }), "One choice."),
  frequency_penalty: optional(z.literal(0, { error: "0" }), "Penalties would spoil boxes."),
  presence_penalty: optional(z.literal(0, { error: "0" }), "Penalties would spoil boxes."),
  tools: optional(z.array(z.unknown()).check(z.maxLength(0, "no tools")), "None."),
  logit_bias: optional(z.strictObject({}, { error: "no logit bias" }), "None."),
  response_format: optional(z.object({ type: z.literal("text", { error: "text" }) }), "Text."),
};

const STOP = text("a string or up to 4 of them").check(z.minLength(1, "text"));

/** The body of `POST /v1/chat/completions`. Fields that are not here change no answer and are ignored. */
export const CHAT = z.looseObject({
  model: text("the name of a model").check(z.describe("As GET /v1/models tells it.")),
  messages: z.array(
    z.discriminatedUnion("role", [USER, OTHER], { error: "a message of a known role" }),
    { error: "an array of messages" },
  ).check(z.minLength(1, "at least one message")),
  max_tokens: orNull(whole(1), "Tokens at most; by default what the task needs."),
  max_completion_tokens: orNull(whole(1), "The same, by its newer name."),
  temperature: orNull(between(0, 2), "0, the default here, is greedy."),
  top_p: orNull(share(), "Sample among the likeliest of this mass."),
  seed: orNull(
    z.number({ error: "a whole number" }).check(z.int("a whole number")),
    "Modulo 2³²; 0 by default.",
  ),
  stop: orNull(
    z.union([STOP, z.array(STOP).check(z.maxLength(4, "at most 4"))]),
    "Texts that the answer ends before.",
  ),
  stream: orNull(flag(), "Chunks as server-sent events."),
  stream_options: orNull(
    z.object({ include_usage: optional(flag(), "A last chunk with the usage.") }, { error: "an object" }),
    "Only with stream.",
  ),
  logprobs: orNull(flag(), "The logarithm of every token's probability."),
  top_logprobs: orNull(whole(0, 20), "So many candidates with every token; only with logprobs."),
  top_k: orNull(whole(-1), "vLLM's: sample among the K likeliest; 0 and -1 for all."),
  ignore_eos: orNull(flag(), "vLLM's: go on after the end of the answer."),
  return_tokens_as_token_ids: orNull(flag(), "vLLM's: with logprobs, tokens are spelled `token_id:123`."),
  budget: orNull(BUDGET, "Not OpenAI's: within what the answer is wanted."),
  ...NEUTRAL,
});

/** A message that does not take part in the answer. */
export interface Dropped {
  readonly index: number;
  readonly role: string;
}

/** A chat body that was read. */
export interface Chat {
  readonly model: string;
  readonly question: Omit<Question, "images">;
  /** URLs of the pictures, `data:` or `https:`. */
  readonly pictures: readonly string[];
  readonly stop: readonly string[];
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly logprobs: boolean;
  /** Whether tokens are told by their ids. */
  readonly tokenIds: boolean;
  /** Candidates to report with every token. */
  readonly topLogprobs: number;
  readonly dropped: readonly Dropped[];
}

/** @throws {RequestError | HttpError} naming the field, with what was expected and found. */
export function readChat(value: unknown): Chat {
  const body = read(CHAT, value);
  const { messages, stream, logprobs } = body;
  const last = messages.findLastIndex((it) => it.role === "user");
  if (last < 0) throw wrong("messages", "at least one of the role user, found none");
  const users = messages.map((it) => it.role === "user" ? partsOf(it.content) : undefined);
  const words = users[last]!.filter((it) => it.type === "text").map((it) => it.text);
  const pictured = users.findLastIndex((it) => it?.some((part) => part.type === "image_url"));
  const pictures = users[pictured]?.filter((it) => it.type === "image_url").map((it) => it.image_url.url) ??
    [];
  if (body.top_logprobs && !logprobs) {
    throw wrong("top_logprobs", "logprobs to be true as well, found it is not");
  }
  if (body.stream_options && !stream) {
    throw wrong("stream_options", "stream to be true as well, found it is not");
  }
  const sampling = samplingOf(body);
  const topLogprobs = body.top_logprobs ?? 0;
  const maxTokens = body.max_completion_tokens ?? body.max_tokens ?? undefined;
  return {
    model: body.model,
    question: {
      prompt: words.join(" "),
      ...Object.keys(sampling).length && { sampling },
      ...maxTokens !== undefined && { maxTokens },
      ...topLogprobs && { topLogits: topLogprobs },
      ...body.ignore_eos && { ignoreEos: true },
      ...body.budget && { budget: body.budget },
    },
    pictures,
    stop: typeof body.stop === "string" ? [body.stop] : body.stop ?? [],
    stream: stream ?? false,
    includeUsage: body.stream_options?.include_usage ?? false,
    logprobs: logprobs ?? false,
    tokenIds: body.return_tokens_as_token_ids ?? false,
    topLogprobs,
    dropped: messages.flatMap(({ role }, index) =>
      index === last || index === pictured ? [] : [{ index, role }]
    ),
  };
}

type Body = z.infer<typeof CHAT>;

function partsOf(content: z.infer<typeof USER>["content"]): readonly z.infer<typeof PART>[] {
  return typeof content === "string" ? [{ type: "text", text: content }] : content;
}

function samplingOf({ temperature, top_p, top_k, seed }: Body): Partial<Sampling> {
  return {
    ...typeof temperature === "number" && { temperature },
    ...typeof top_p === "number" && { topP: top_p },
    ...typeof top_k === "number" && { topK: Math.max(0, top_k) },
    ...typeof seed === "number" && { seed: seed >>> 0 },
  };
}

/** OpenAI's clients may send null for what they leave out. */
function orNull<T extends z.ZodMiniType>(schema: T, description: string) {
  return optional(z.nullable(schema), description);
}

function wrong(field: string, expected: string): HttpError {
  return new HttpError({
    code: "parameter_invalid",
    message: `Cannot read ${field}: expected ${expected}`,
    field,
  });
}
