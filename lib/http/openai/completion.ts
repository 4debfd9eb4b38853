/** Answers -> OpenAI's objects: `chat.completion`, and the `chat.completion.chunk`s of a stream. */

import type { Answer, AnswerEvent, Candidate, FinishReason, ModelInfo } from "../../types.ts";
import type { Wire } from "../answering.ts";
import { openAiError } from "../problem.ts";
import type { ServerEvent } from "../sse.ts";
import type { Chat } from "./chat.ts";
import { untilStop } from "./stop.ts";

type Token = Extract<AnswerEvent, { type: "token" }>;

/** What the objects of one completion have in common. */
function envelope(object: "chat.completion" | "chat.completion.chunk", model: ModelInfo, { dropped }: Chat) {
  return {
    id: `chatcmpl-${crypto.randomUUID().replaceAll("-", "")}`,
    object,
    created: Math.floor(Date.now() / 1000),
    model: model.name,
    // Not OpenAI's: messages that did not take part.
    ...dropped.length && { dropped },
  };
}

/** A whole completion; `items` of its message are the boxes, where there are any. */
export function completion(answer: Answer, tokens: readonly Token[], model: ModelInfo, chat: Chat) {
  return {
    ...envelope("chat.completion", model, chat),
    ...answer.model !== undefined && { model: answer.model },
    choices: [{
      index: 0,
      message: {
        role: "assistant",
        content: answer.text,
        refusal: null,
        ...answer.items.length && { items: answer.items },
      },
      logprobs: chat.logprobs ? { content: tokens.map((it) => logprobOf(it, chat)), refusal: null } : null,
      finish_reason: finishReasonOf(answer.finishReason),
    }],
    usage: usageOf(answer, answer.tokenIds.length, model),
    // Not OpenAI's: for who speaks of budgets.
    ...chat.question.budget && { route: answer.route },
  };
}

/** A stream of chunks that ends in `[DONE]`. */
export function chunks(chat: Chat): Wire {
  return {
    key: JSON.stringify([chat.stop, chat.logprobs, chat.tokenIds, chat.includeUsage]),
    until: (events, enough) => untilStop(events, chat.stop, enough),
    async *write(answer, { model }): AsyncGenerator<ServerEvent> {
      let common = envelope("chat.completion.chunk", model, chat);
      const usage = chat.includeUsage ? { usage: null as unknown } : {};
      const chunk = (delta: unknown, token?: Token, finish: string | null = null): ServerEvent => {
        const logprobs = token && chat.logprobs ? { content: [logprobOf(token, chat)], refusal: null } : null;
        const choices = [{ index: 0, delta, logprobs, finish_reason: finish }];
        return { data: JSON.stringify({ ...common, choices, ...usage }) };
      };
      let used: unknown;
      let begun = false;
      for await (const event of answer) {
        if (event.type === "route" && event.variant !== undefined) {
          common = { ...common, model: event.variant };
        }
        if (!begun) yield chunk({ role: "assistant", content: "", refusal: null });
        begun = true;
        if (event.type === "token") yield chunk({ content: event.text }, event);
        else if (event.type === "box") {
          const { type: _, ...item } = event;
          yield chunk({ items: [item] });
        } else if (event.type === "usage") {
          used = usageOf(event, event.completionTokens, model);
        } else if (event.type === "done") yield chunk({}, undefined, finishReasonOf(event.finishReason));
      }
      if (chat.includeUsage) yield { data: JSON.stringify({ ...common, choices: [], usage: used }) };
      yield { data: "[DONE]" };
    },
    failed: (problem) => ({ data: JSON.stringify(openAiError(problem)) }),
  };
}

/** OpenAI has no word for an answer that the server broke off. */
function finishReasonOf(reason: FinishReason): "stop" | "length" {
  return reason === "stop" ? "stop" : "length";
}

function usageOf(
  { imageTokens, promptTokenIds, cached }: Pick<Answer, "imageTokens" | "promptTokenIds" | "cached">,
  completionTokens: number,
  { imageTokensPerImage }: ModelInfo,
) {
  const promptTokens = imageTokens + promptTokenIds.length;
  const known = cached?.prefix ? promptTokens : (cached?.images ?? 0) * imageTokensPerImage;
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { image_tokens: imageTokens, cached_tokens: known },
  };
}

function logprobOf({ top = [], ...token }: Token, { tokenIds }: Chat) {
  const entry = (it: Token | Candidate) => spelled(tokenIds ? `token_id:${it.id}` : it.text, it);
  return { ...entry(token), top_logprobs: top.map(entry) };
}

/** OpenAI has -9999 for what cannot be; JSON has no infinity. */
function spelled(token: string, { text, logprob }: Token | Candidate) {
  return { token, logprob: Math.max(logprob, -9999), bytes: [...new TextEncoder().encode(text)] };
}
