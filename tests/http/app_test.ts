import assert from "node:assert/strict";
import { type ErrorCode, RequestError } from "../../lib/errors.ts";
import { type AppParts, createApp } from "../../lib/http/app.ts";
import type { Question } from "../../lib/types.ts";
import { ending, parseEvents, PICTURE, scripted, token, twoTokens } from "./doubles.ts";

const image = PICTURE.toBase64();

function app(parts: Partial<AppParts> = {}) {
  return createApp({ pipeline: twoTokens, ...parts });
}

function post(body: unknown, headers: Record<string, string> = {}): RequestInit {
  return {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  };
}

/** The question a request becomes. */
async function questionOf(init: RequestInit): Promise<Question> {
  let asked: Question | undefined;
  const pipeline = scripted(async function* (question) {
    asked = question;
    yield* ending("", 0);
  });
  const response = await app({ pipeline: () => pipeline }).request("/v1/generate", init);
  assert.equal(response.status, 200, await response.text());
  return asked!;
}

Deno.test("JSON in, JSON out", async () => {
  const response = await app().request("/v1/generate", post({ image, prompt: "detect circle" }));
  assert.equal(response.status, 200);
  assert.match(response.headers.get("content-type")!, /^application\/json/);
  assert.equal(response.headers.get("x-content-type-options"), "nosniff");
  assert.deepEqual(await response.json(), {
    model: "scripted",
    text: "red\né",
    tokenIds: [7, 9],
    items: [{ box: { yMin: 0.1, xMin: 0.2, yMax: 0.5, xMax: 0.6 }, label: "circle", confidence: 0.9 }],
    finishReason: "stop",
    promptTokenIds: [2, 10, 11, 108],
    imageTokens: 16,
    timings: { preprocess: 1, vision: 2, prefill: 3, perToken: 4 },
  });
});

Deno.test("a stream comes where the body or the Accept header asks for one; the body has the last word", async () => {
  const cases = [
    [{ stream: true }, {}, true],
    [{}, { accept: "text/event-stream" }, true],
    [{ stream: false }, { accept: "text/event-stream" }, false],
    [{}, { accept: "*/*" }, false],
  ] as const;
  for (const [fields, headers, streamed] of cases) {
    const response = await app().request("/v1/generate", post({ image, prompt: "", ...fields }, headers));
    const type = response.headers.get("content-type")!;
    assert.equal(type.startsWith("text/event-stream"), streamed, JSON.stringify([fields, headers, type]));
    const text = await response.text();
    if (!streamed) continue;
    assert.equal(response.headers.get("cache-control"), "no-store");
    const events = parseEvents(text);
    assert.deepEqual(events.map((it) => it.event), ["token", "box", "token", "usage", "done"]);
    for (const { event, data } of events) assert.equal((data as { type: string }).type, event);
  }
});

Deno.test("every field of the body reaches the question, from JSON and from a form", async () => {
  const settings = {
    maxTokens: 7,
    temperature: 0.5,
    topK: 3,
    topP: 0.25,
    seed: 42,
    ignoreEos: true,
    resize: "bv-bilinear-aa",
    alpha: "white",
    tokens: "allow",
    constrained: true,
    answerStart: "<loc",
    locScale: 1023,
    nms: 0.5,
    masks: "polygon",
  };
  const { temperature, topK, topP, seed, ...rest } = settings;
  const expected = { prompt: "answer en é ; x", ...rest, sampling: { temperature, topK, topP, seed } };
  const json = await questionOf(post({ image, prompt: expected.prompt, ...settings }));
  assert.deepEqual(json, { ...expected, images: [PICTURE] });

  const form = new FormData();
  form.append("image", new Blob([PICTURE]), "a.png");
  form.append("image", new Blob([PICTURE.slice(0, 3)]), "b.png");
  form.append("prompt", expected.prompt);
  for (const [name, value] of Object.entries(settings)) form.append(name, String(value));
  const posted = await questionOf({ method: "POST", body: form });
  assert.deepEqual(posted, { ...expected, images: [PICTURE, PICTURE.slice(0, 3)] });

  const bare = await questionOf(post({ images: [image, `data:image/png;base64,${image}`], prompt: "" }));
  assert.deepEqual(bare, { images: [PICTURE, PICTURE], prompt: "" });
});

Deno.test("every code has its status, thrown before the answer or within it", async () => {
  const statuses: Record<ErrorCode, number> = {
    body_invalid: 400,
    body_too_large: 413,
    image_missing: 400,
    image_unsupported: 415,
    image_corrupt: 422,
    image_too_large: 413,
    parameter_invalid: 400,
    prompt_too_long: 400,
    model_invalid: 500,
    model_too_large: 500,
    url_refused: 400,
    url_failed: 422,
    download_failed: 502,
    upload_failed: 502,
    memory_exceeded: 413,
    pool_needed: 503,
    signature_invalid: 401,
    idempotency_mismatch: 422,
    storage_failed: 507,
    record_corrupt: 500,
    budget_hopeless: 504,
    overloaded: 503,
    cancelled: 499,
  };
  for (const [code, status] of Object.entries(statuses) as [ErrorCode, number][]) {
    const broken = (after: boolean) =>
      scripted(async function* () {
        if (after) yield token(1, "a");
        throw new RequestError(code, "what happened");
      });
    for (const stream of [false, true]) {
      const response = await app({ pipeline: () => broken(false) })
        .request("/v1/generate", post({ image, prompt: "", stream }));
      assert.equal(response.status, status, code);
      assert.equal(response.headers.get("content-type"), "application/problem+json");
      const { type, title, instance, ...rest } = await response.json();
      assert.deepEqual(rest, { status, detail: "what happened", code });
      assert.deepEqual([type, typeof title], ["about:blank", "string"]);
      assert.equal(instance, `urn:request:${response.headers.get("x-request-id")}`);
      const passes = status === 503 && code !== "pool_needed";
      assert.equal(response.headers.get("retry-after"), passes ? "1" : null);
    }
    const late = await app({ pipeline: () => broken(true) })
      .request("/v1/generate", post({ image, prompt: "", stream: true }));
    assert.equal(late.status, 200);
    const last = parseEvents(await late.text()).at(-1)!;
    assert.deepEqual([last.event, last.data], ["error", { code, message: "what happened" }]);
  }
});

Deno.test("our own mistake is a 500 that tells nothing and a stack for the log, once", async () => {
  for (const stream of [false, true]) {
    for (const after of [false, true]) {
      const told: (Readonly<Record<string, unknown>> | undefined)[] = [];
      const pipeline = scripted(async function* () {
        if (after) yield token(1, "a");
        throw new TypeError("at /secret/path");
      });
      const response = await app({ pipeline: () => pipeline, log: (_, __, facts) => told.push(facts) })
        .request("/v1/generate", post({ image, prompt: "", stream }));
      assert.equal(response.status, stream && after ? 200 : 500);
      const text = await response.text();
      assert.match(text, /"code":"internal"/);
      assert.doesNotMatch(text, /secret/);
      const failures = told.filter((it) => it?.error);
      assert.equal(failures.length, 1);
      assert.match((failures[0]!.error as Error).stack!, /app_test/);
    }
  }
});

Deno.test("health and models tell what is loaded; without a model there is a 503 that asks to come back", async () => {
  const health = await app().request("/health");
  assert.equal(health.status, 200);
  assert.equal((await health.json()).model.name, "scripted");
  const models = await (await app().request("/v1/models")).json();
  assert.deepEqual([models.object, models.data[0].id, models.data[0].imageSize], ["list", "scripted", 56]);

  const loading = app({ pipeline: () => undefined });
  for (const [path, init] of [["/health", {}], ["/v1/generate", post({ image, prompt: "" })]] as const) {
    const response = await loading.request(path, init);
    assert.equal(response.status, 503);
    assert.equal(response.headers.get("retry-after"), "1");
    assert.equal((await response.json()).code, "unavailable");
  }
  assert.deepEqual((await (await loading.request("/v1/models")).json()).data, []);
});

Deno.test("unknown routes are 404, other methods 405 with what is allowed", async () => {
  for (const path of ["/v2", "/v1/generate/x", "/samples/none.png", "/%ff", "/v1"]) {
    const response = await app().request(path);
    assert.equal(response.status, 404, path);
    assert.equal((await response.json()).code, "not_found");
  }
  const wrong = [["GET", "/v1/generate", "POST"], ["PUT", "/health", "GET, HEAD"], [
    "DELETE",
    "/",
    "GET, HEAD",
  ]];
  for (const [method, path, allow] of wrong) {
    const response = await app().request(path, { method });
    assert.equal(response.status, 405, path);
    assert.equal(response.headers.get("allow"), allow);
    assert.equal((await response.json()).code, "method_not_allowed");
  }
  assert.equal((await app().request("/health", { method: "HEAD" })).status, 200);
});

Deno.test("the page carries a policy that only its own script and style satisfy, new for every visit", async () => {
  const nonces = new Set<string>();
  for (let i = 0; i < 2; i++) {
    const response = await app().request("/");
    assert.match(response.headers.get("content-type")!, /^text\/html/);
    const policy = response.headers.get("content-security-policy")!;
    const nonce = /script-src 'nonce-([^']+)'/.exec(policy)![1];
    const html = await response.text();
    assert.match(policy, /default-src 'none'/);
    assert.equal(html.split(`<script nonce="${nonce}">`).length, 2);
    assert.equal(html.split("<script").length, 2);
    assert.equal(html.split("<style").length, html.split(`<style nonce="${nonce}">`).length);
    assert.doesNotMatch(html, /\{nonce\}|\{head\}| style="| on\w+="/);
    nonces.add(nonce);
  }
  assert.equal(nonces.size, 2);
});

Deno.test("samples are listed and served as they are", async () => {
  const bytes = new Uint8Array(PICTURE);
  const offering = app({ samples: [{ name: "a b.png", prompt: "ocr", type: "image/png", bytes }] });
  const [sample] = await (await offering.request("/samples")).json();
  assert.deepEqual([sample.name, sample.prompt], ["a b.png", "ocr"]);
  const response = await offering.request("/" + sample.url);
  assert.equal(response.headers.get("content-type"), "image/png");
  assert.deepEqual(new Uint8Array(await response.arrayBuffer()), bytes);
});
