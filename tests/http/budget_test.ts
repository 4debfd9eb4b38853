/** Budgets on the wire: what the pipeline is told of them, and which are refused. */

import assert from "node:assert/strict";
import { createNetwork } from "../../functions/network.ts";
import { createApp } from "../../lib/http/app.ts";
import { itemWork, jobRoutes } from "../../lib/http/jobs.ts";
import { createOutbound } from "../../lib/http/outbound.ts";
import { createMemoryStore } from "../../lib/store/memory.ts";
import type { Question } from "../../lib/types.ts";
import { harness } from "../jobs/harness.ts";
import { ending, PICTURE, scripted, token } from "./doubles.ts";

const image = PICTURE.toBase64();

/** An app that keeps what its pipeline was asked. */
function service() {
  const asked: Question[] = [];
  const pipeline = scripted(async function* (question) {
    asked.push(question);
    yield token(7, "red");
    yield* ending("red", 1);
  });
  const outbound = createOutbound(createNetwork());
  const parts = harness(createMemoryStore(), itemWork(() => pipeline, outbound));
  const app = createApp({
    pipeline: () => pipeline,
    outbound,
    rooms: [jobRoutes({ ...parts, outbound, heartbeatMs: 50 })],
  });
  const post = async (path: string, body: unknown, headers: Record<string, string> = {}) => {
    const type = { "content-type": "application/json" };
    const request = { method: "POST", headers: { ...type, ...headers }, body: JSON.stringify(body) };
    const response = await app.request(path, request);
    const text = await response.text();
    return { status: response.status, text };
  };
  return { ...parts, app, asked, post };
}

const BUDGET = { ttftMs: 500, totalMs: 2000, maxCost: 0.01, privacy: "pixels-stay", quality: "degrade" };
const HEADERS = {
  "x-ttft-budget-ms": "500",
  "x-latency-budget-ms": "2000",
  "x-max-cost": "0.01",
  "x-privacy": "pixels-stay",
  "x-quality": "degrade",
};
const message = {
  role: "user",
  content: [{ type: "image_url", image_url: { url: `data:image/jpeg;base64,${image}` } }],
};

Deno.test("a budget in the body, in headers or in both reaches the pipeline, from when the request came", async () => {
  const { asked, post } = service();
  const { ttftMs, ...rest } = BUDGET;
  const { "x-ttft-budget-ms": first } = HEADERS;
  const chat = { model: "scripted", messages: [message] };
  const before = Date.now();
  const requests: [string, Record<string, unknown>, Record<string, string>][] = [
    ["/v1/ocr", { image, budget: BUDGET }, {}],
    ["/v1/detect", { image, labels: "a" }, HEADERS],
    ["/v1/generate", { image, prompt: "", budget: rest }, { "x-ttft-budget-ms": first }],
    ["/v1/generate", { image, prompt: "", stream: true, budget: BUDGET }, HEADERS],
    ["/v1/chat/completions", { ...chat, budget: BUDGET }, {}],
    ["/v1/chat/completions", { ...chat, stream: true }, HEADERS],
  ];
  for (const [path, body, headers] of requests) {
    const { status, text } = await post(path, body, headers);
    assert.equal(status, 200, text);
    const { budget, arrivedAt } = asked.pop()!;
    assert.deepEqual(budget, { ...rest, ttftMs }, path);
    assert.ok(arrivedAt! >= before && arrivedAt! <= Date.now());
  }
  await post("/v1/ocr", { image });
  await post("/v1/chat/completions", { ...chat, budget: null });
  for (const { budget, arrivedAt } of asked) assert.deepEqual([budget, arrivedAt], [undefined, undefined]);
});

Deno.test("negative, absurd and contradictory budgets are 400, and the reason is told", async () => {
  const { asked, post } = service();
  const bodies: [unknown, RegExp][] = [
    [{ ttftMs: -1 }, /Cannot read budget\.ttftMs: expected a number from 1 to 86400000, found -1/],
    [{ ttftMs: 0 }, /budget\.ttftMs: expected .* found 0/],
    [{ totalMs: 1e12 }, /budget\.totalMs: expected a number from 1 to 86400000, found 1000000000000/],
    [{ totalMs: "5" }, /budget\.totalMs: expected .* found "5"/],
    [{ maxCost: -0.5 }, /budget\.maxCost: expected a number from 0 to 1000000, found -0\.5/],
    [{ privacy: "secret" }, /budget\.privacy: expected pixels-stay or any, found "secret"/],
    [{ quality: 1 }, /budget\.quality: expected exact or degrade, found 1/],
    [{ ttftMs: 900, totalMs: 800 }, /budget: expected ttftMs of at most totalMs/],
    [{ soon: true }, /found "soon"/],
    [7, /budget: expected an object with ttftMs, totalMs, maxCost, privacy or quality, found 7/],
  ];
  for (const [budget, reason] of bodies) {
    const native = await post("/v1/ocr", { image, budget });
    assert.equal(native.status, 400, native.text);
    assert.match(JSON.parse(native.text).detail, reason);
    const chat = await post("/v1/chat/completions", { model: "scripted", messages: [message], budget });
    assert.equal(chat.status, 400, chat.text);
    assert.match(JSON.parse(chat.text).error.message, reason);
  }
  const headers: [Record<string, string>, RegExp][] = [
    [{ "x-latency-budget-ms": "-5" }, /Cannot read x-latency-budget-ms: expected a number .* found -5/],
    [{ "x-latency-budget-ms": "soon" }, /x-latency-budget-ms: expected a number .* found "soon"/],
    [{ "x-latency-budget-ms": "9".repeat(400) }, /x-latency-budget-ms: expected a number/],
    [{ "x-privacy": "none" }, /x-privacy: expected pixels-stay or any, found "none"/],
    [
      { "x-latency-budget-ms": "800" },
      /x-latency-budget-ms: expected 2000 as in budget\.totalMs, found 800/,
    ],
    [{ "x-ttft-budget-ms": "3000" }, /the budget: expected ttftMs of at most totalMs/],
  ];
  for (const [them, reason] of headers) {
    const { status, text } = await post("/v1/ocr", { image, budget: { totalMs: 2000 } }, them);
    assert.equal(status, 400, text);
    assert.match(JSON.parse(text).detail, reason);
  }
  const alone = await post("/v1/ocr", { image }, { "x-ttft-budget-ms": "900", "x-latency-budget-ms": "800" });
  assert.equal(alone.status, 400);
  assert.match(alone.text, /the budget: expected ttftMs of at most totalMs/);
  assert.equal(asked.length, 0);
});

Deno.test("the items of a job have their own budgets or its headers', from when the job came", async () => {
  const { asked, post, working, ended, jobs } = service();
  const items = [{ image, prompt: "", budget: { totalMs: 9000 } }, { image, prompt: "" }];
  const wrong = await post("/v1/jobs", { items: [{ image, prompt: "", budget: { totalMs: -1 } }] });
  assert.deepEqual([wrong.status, /items\[0\]: .*budget\.totalMs/.test(wrong.text)], [400, true], wrong.text);
  const { status, text } = await post("/v1/jobs", { items }, { "x-latency-budget-ms": "5000" });
  assert.equal(status, 202, text);
  const { id } = JSON.parse(text);
  await working(() => ended(id));
  assert.deepEqual(asked.map((it) => it.budget), [{ totalMs: 9000 }, { totalMs: 5000 }]);
  const { createdAt } = (await jobs.get(id, undefined))!;
  for (const it of asked) assert.equal(it.arrivedAt, Date.parse(createdAt));
});

Deno.test("a form's budget is JSON; where there is only one way to answer a budget is refused by name", async () => {
  const { app, asked, post } = service();
  const form = async (budget: string) => {
    const body = new FormData();
    body.set("image", new Blob([PICTURE]), "a.png");
    body.set("budget", budget);
    const response = await app.request("/v1/ocr", { method: "POST", body });
    return { status: response.status, text: await response.text() };
  };
  assert.equal((await form('{"totalMs": 900}')).status, 200);
  assert.deepEqual(asked.pop()!.budget, { totalMs: 900 });
  for (const wrong of ['{"totalMs": -1}', "900", "soon"]) {
    const { status, text } = await form(wrong);
    assert.deepEqual([status, /Cannot read budget/.test(text)], [400, true], text);
  }
  for (const path of ["/v1/classify", "/v1/embeddings/image"]) {
    const { status, text } = await post(path, {}, { "x-latency-budget-ms": "500" });
    assert.deepEqual(
      [status, /x-latency-budget-ms: expected no budget on \/v1\//.test(text)],
      [400, true],
      text,
    );
    const fields = await post(path, { image, budget: { totalMs: 5 } });
    assert.deepEqual([fields.status, /expected the fields .*, found .*budget/.test(fields.text)], [
      400,
      true,
    ]);
  }
});
