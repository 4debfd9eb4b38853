/** OpenAI's own client against the real server. */

import assert from "node:assert/strict";
import { join } from "@std/path";
// The import map holds what serving needs; this is for tests only.
// deno-lint-ignore no-import-prefix
import OpenAI, { APIError, AuthenticationError, BadRequestError, NotFoundError } from "npm:openai@7.57.0";
import { type Door, startDoor } from "./door.ts";

const PICTURE = join(import.meta.dirname!, "../../models/tiny/pictures/five_shapes.png");
const url = `data:image/png;base64,${(await Deno.readFile(PICTURE)).toBase64()}`;

type Messages = OpenAI.ChatCompletionMessageParam[];

const ask = (text: string): Messages => [{
  role: "user",
  content: [{ type: "text", text }, { type: "image_url", image_url: { url } }],
}];

/** The error a call ends in. */
async function errorOf(promise: PromiseLike<unknown>): Promise<APIError> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof APIError, String(error));
    return error;
  }
  return assert.fail("expected an error");
}

async function conversation(door: Door) {
  const client = new OpenAI({ baseURL: `${door.url}/v1`, apiKey: "key-one", maxRetries: 0 });
  const listed = (await client.models.list()).data;
  assert.deepEqual(listed.map((it) => [it.id, it.object]), [["tiny", "model"]]);
  const model = listed[0].id;
  assert.equal((await client.models.retrieve(model)).id, model);
  const create = (more: Partial<OpenAI.ChatCompletionCreateParamsNonStreaming> = {}) =>
    client.chat.completions.create({ model, messages: ask("caption en"), ...more });

  const whole = await create();
  const text = whole.choices[0].message.content!;
  assert.match(text, /purple cross/);
  assert.equal(whole.choices[0].finish_reason, "stop");
  assert.ok(whole.usage!.prompt_tokens > 16);
  assert.equal(whole.usage!.total_tokens, whole.usage!.prompt_tokens + whole.usage!.completion_tokens);

  // A stream says the same in many pieces, and counts the same.
  const stream = await client.chat.completions.create({
    model,
    messages: ask("caption en"),
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = await Array.fromAsync(stream);
  assert.equal(chunks.map((it) => it.choices[0]?.delta.content ?? "").join(""), text);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.deepEqual(chunks.map((it) => it.choices[0]?.finish_reason).filter(Boolean), ["stop"]);
  const { prompt_tokens_details: details, ...usage } = chunks.at(-1)!.usage!;
  const { prompt_tokens_details: before, ...expected } = whole.usage!;
  assert.deepEqual(usage, expected);
  // The same question about the same picture: nothing before the answer was computed again.
  assert.deepEqual([before!.cached_tokens, details!.cached_tokens], [0, usage.prompt_tokens]);
  assert.deepEqual(chunks.at(-1)!.choices, []);
  assert.equal(new Set(chunks.map((it) => it.id)).size, 1);

  const short = await create({ max_completion_tokens: 2 });
  assert.deepEqual([short.choices[0].finish_reason, short.usage!.completion_tokens], ["length", 2]);

  const { content } = (await create({ logprobs: true, top_logprobs: 3, max_tokens: 5 })).choices[0].logprobs!;
  assert.equal(content!.length, 5);
  assert.equal(
    content!.map((it) => it.token).join(""),
    text.slice(0, content!.map((it) => it.token).join("").length),
  );
  for (const { token, logprob, bytes, top_logprobs } of content!) {
    assert.equal(new TextDecoder().decode(Uint8Array.from(bytes!)), token);
    assert.equal(top_logprobs.length, 3);
    // Greedy: what was chosen is the likeliest. The first token's piece has a space that its text has not.
    assert.equal(top_logprobs[0].logprob, logprob);
    assert.equal(top_logprobs[0].token.trim(), token.trim());
    assert.ok(top_logprobs.reduce((sum, it) => sum + Math.exp(it.logprob), 0) <= 1 + 1e-6);
  }

  const stopped = await create({ stop: ["star", ", a green"] });
  assert.equal(stopped.choices[0].message.content, text.slice(0, text.indexOf(", a green")));
  assert.equal(stopped.choices[0].finish_reason, "stop");
  assert.ok(stopped.usage!.completion_tokens < whole.usage!.completion_tokens);

  const sampled = { temperature: 1.5, top_p: 0.9 };
  const texts = await Promise.all([7, 7, 8].map(async (seed) => {
    return (await create({ ...sampled, seed })).choices[0].message.content;
  }));
  assert.equal(texts[0], texts[1]);

  // Boxes come beside the text.
  const boxes = await create({ messages: ask("detect star ; heart") });
  const { items } = boxes.choices[0].message as unknown as { items: { label: string }[] };
  assert.deepEqual(items.map((it) => it.label), ["star", "heart"]);

  // An earlier turn's picture stays in view; its words, and the system's, are dropped and reported.
  const turns = await create({
    messages: [
      { role: "system", content: "You are a poet." },
      ...ask("caption en"),
      { role: "assistant", content: text },
      { role: "user", content: "answer en what colour is the heart?" },
    ],
  });
  assert.equal(turns.choices[0].message.content, "red");
  assert.deepEqual((turns as unknown as { dropped: unknown }).dropped, [
    { index: 0, role: "system" },
    { index: 2, role: "assistant" },
  ]);

  const refused: [
    Partial<OpenAI.ChatCompletionCreateParamsNonStreaming>,
    new (...args: never[]) => APIError,
    string,
    string | null,
  ][] = [
    [{ model: "gpt-5" }, NotFoundError, "model_not_found", "model"],
    [{ n: 2 }, BadRequestError, "parameter_invalid", "n"],
    [{ temperature: 3 }, BadRequestError, "parameter_invalid", "temperature"],
    [{ messages: [] }, BadRequestError, "parameter_invalid", "messages"],
    [{ messages: [{ role: "system", content: "x" }] }, BadRequestError, "parameter_invalid", "messages"],
    [{ messages: [{ role: "user", content: "caption en" }] }, BadRequestError, "image_missing", null],
    [{ frequency_penalty: 1 }, BadRequestError, "parameter_invalid", "frequency_penalty"],
    [
      { response_format: { type: "json_object" } },
      BadRequestError,
      "parameter_invalid",
      "response_format.type",
    ],
    [{ messages: ask("x ".repeat(5000)) }, BadRequestError, "context_length_exceeded", null],
    [{ top_logprobs: 3 }, BadRequestError, "parameter_invalid", "top_logprobs"],
  ];
  for (const [more, type, code, param] of refused) {
    const error = await errorOf(create(more));
    assert.ok(error instanceof type, `${code}: ${error}`);
    assert.deepEqual(
      [error.code, error.param, error.type],
      [code, param, "invalid_request_error"],
      error.message,
    );
    assert.match(error.requestID!, /^[\w-]+$/);
  }
  for (
    const picture of [
      "data:image/png;base64,AAAA",
      "https://169.254.169.254/latest",
      "http://example.com/a.png",
    ]
  ) {
    const content = [{ type: "image_url" as const, image_url: { url: picture } }];
    assert.equal((await errorOf(create({ messages: [{ role: "user", content }] }))).status, 400, picture);
  }

  // A client that goes away hears no more, and the server goes on to the next.
  const abort = new AbortController();
  let seen = 0;
  const long = await client.chat.completions.create(
    { model, messages: ask("caption en"), stream: true },
    { signal: abort.signal },
  );
  for await (const _ of long) if (++seen === 3) abort.abort();
  assert.equal(seen, 3);
  assert.equal((await create()).choices[0].message.content, text);

  const stranger = new OpenAI({ baseURL: `${door.url}/v1`, apiKey: "another", maxRetries: 0 });
  const error = await errorOf(stranger.models.list());
  assert.ok(error instanceof AuthenticationError);
  assert.equal(error.code, "invalid_api_key");
}

Deno.test({
  name: "OpenAI's client chats, streams, stops, aborts and understands every error",
  // The client keeps its connections.
  sanitizeResources: false,
  async fn() {
    const door = await startDoor({ API_KEYS: "key-one" });
    try {
      await conversation(door);
      assert.equal(door.output().stderr, "");
    } finally {
      door.kill("SIGTERM");
      await door.status;
    }
  },
});
