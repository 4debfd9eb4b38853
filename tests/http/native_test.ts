/** The native routes over a real model: what they ask it, and what they answer. */

import assert from "node:assert/strict";
import * as z from "zod/mini";
import { createNetwork } from "../../functions/network.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { createApp } from "../../lib/http/app.ts";
import { ANSWER, CLASSIFICATION, EMBEDDED, PLANNER, PROBLEM } from "../../lib/http/openapi/answers.ts";
import { createOutbound } from "../../lib/http/outbound.ts";
import { collect, createPipeline } from "../../lib/pipeline.ts";
import type { Question } from "../../lib/types.ts";
import { MASK_DECODER } from "../../lib/vision/mask_decoder.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const TESTS = new URL("..", import.meta.url).pathname;
const PICTURE = await Deno.readFile(`${TESTS}fixtures/scene.png`);
const image = PICTURE.toBase64();
const pipeline = await createPipeline({
  backend: createWasmBackend({ simd, relaxed }),
  files: memoryFiles({
    ...directoryBytes(`${TESTS}golden/checkpoints/pg1`),
    [MASK_DECODER]: await Deno.readFile(`${TESTS}golden/tiny/vq_random_f16.safetensors`),
  }),
  name: "pg1",
});
const app = createApp({
  pipeline: () => pipeline,
  outbound: createOutbound(createNetwork(), { allowPrivate: true }),
});

async function post(path: string, body: unknown): Promise<Response> {
  const headers = { "content-type": "application/json" };
  return await app.request(path, { method: "POST", headers, body: JSON.stringify(body) });
}

async function answered(path: string, body: unknown) {
  const response = await post(path, body);
  assert.equal(response.status, 200, await response.clone().text());
  return await response.json();
}

Deno.test("every task asks in PaliGemma's words and answers with the object that the command line prints", async () => {
  const cases: [string, Record<string, unknown>, Partial<Question> & { prompt: string }][] = [
    ["generate", { prompt: "caption de" }, { prompt: "caption de" }],
    ["caption", {}, { prompt: "caption en" }],
    ["caption", { language: "fr" }, { prompt: "caption fr" }],
    ["caption", { style: "describe" }, { prompt: "describe en" }],
    ["caption", { box: { yMin: 0, xMin: 0.5, yMax: 1, xMax: 1 } }, {
      prompt: "caption <loc0000><loc0512><loc1023><loc1023>",
      tokens: "allow",
    }],
    ["answer", { question: "how many?" }, { prompt: "answer en how many?" }],
    ["answer", { question: "which?", choices: ["a", "b"] }, {
      prompt: "answer en which? choose from: a \t b",
    }],
    ["ocr", {}, { prompt: "ocr" }],
    ["detect", { labels: ["cat", "dog"] }, { prompt: "detect cat ; dog" }],
    ["detect", { labels: "cat ;dog", constrained: true }, { prompt: "detect cat ; dog", constrained: true }],
    ["segment", { labels: ["cat"], constrained: true }, { prompt: "segment cat", constrained: true }],
  ];
  for (const [route, fields, question] of cases) {
    const found = await answered(`/v1/${route}`, { image, maxTokens: 30, ...fields });
    const { timings, cached: _, route: way, ...answer } = z.parse(ANSWER, found);
    assert.ok(Object.values(timings).every((it) => it >= 0));
    assert.deepEqual([way!.reason, way!.actual!.met], ["usual", undefined]);
    const { timings: __, cached: ___, route: ____, ...expected } = await collect(
      pipeline.answer({ images: [PICTURE], maxTokens: 30, ...question }),
    );
    assert.deepEqual(answer, { model: "pg1", ...expected }, JSON.stringify([route, fields]));
  }
});

Deno.test("the live planner is told as it is documented, with the last answers", async () => {
  await answered("/v1/ocr", { image, maxTokens: 2, budget: { totalMs: 60_000 } });
  const { recent, ledger, calibration } = z.parse(PLANNER, await (await app.request("/v1/planner")).json());
  assert.deepEqual([recent[0].budget, recent[0].actual!.met], [{ totalMs: 60_000 }, true]);
  assert.ok(ledger.met >= 1 && calibration.edge.step.baseMs > 0 && !calibration.pool);
});

Deno.test("segment answers with masks on the picture, in the form asked for", async () => {
  const start = `<loc0100><loc0100><loc0900><loc0900>${"<seg007>".repeat(16)}`;
  for (const masks of ["rle", "polygon", "png"]) {
    const body = { image, labels: "cat", answerStart: start, tokens: "allow", maxTokens: 1, masks };
    const { items: [item] } = z.parse(ANSWER, await answered("/v1/segment", body));
    assert.equal(item.maskCodes!.length, 16);
    assert.ok({ rle: "counts", polygon: "polygons", png: "png" }[masks]! in item.mask!, masks);
  }
});

Deno.test("classify answers with all labels' probabilities", async () => {
  const labels = ["cat", "dog", "red car"];
  const found = z.parse(CLASSIFICATION, await answered("/v1/classify", { image, labels }));
  const expected = await pipeline.classify({ images: [PICTURE], labels, prompt: "answer en what is this?" });
  assert.deepEqual(found.labels, expected.labels);
  const refused = await post("/v1/classify", { image, labels: ["a", "a"] });
  assert.deepEqual([refused.status, (await refused.json()).code], [400, "parameter_invalid"]);
});

Deno.test("embeddings come in f16 and int8, projected or before, with their shape and the weights' revision", async () => {
  for (const stage of ["projected", "features"] as const) {
    const { shape, values } = await pipeline.embed({ images: [PICTURE, PICTURE], stage });
    assert.deepEqual([shape[0], shape[1]], [2, 16]);
    const most = values.reduce((max, it) => Math.max(max, Math.abs(it)), 0);
    const half = z.parse(EMBEDDED, await answered("/v1/embeddings/image", { images: [image, image], stage }));
    assert.deepEqual([half.shape, half.revision, half.scale], [shape, pipeline.model.revision, "unscaled"]);
    const f16 = new Float16Array(Uint8Array.fromBase64(half.data).buffer);
    assert.equal(f16.length, values.length);
    f16.forEach((it, i) => assert.ok(Math.abs(it - values[i]) <= most * 2 ** -11, `${it} ${values[i]}`));

    const body = { images: [image, image], stage, dtype: "int8" };
    const whole = z.parse(EMBEDDED, await answered("/v1/embeddings/image", body));
    const bytes = new Int8Array(Uint8Array.fromBase64(whole.data).buffer);
    const scales = new Float32Array(Uint8Array.fromBase64(whole.scales!).buffer);
    assert.deepEqual([bytes.length, scales.length], [values.length, 32]);
    bytes.forEach((it, i) => {
      const scale = scales[Math.floor(i / shape[2])];
      assert.ok(Math.abs(it * scale - values[i]) <= scale * 0.5001, `${it} · ${scale}, ${values[i]}`);
    });
  }
});

Deno.test("pictures are fetched from their URLs, and what is none is told nothing of", async () => {
  const server = Deno.serve({ port: 0, onListen() {} }, (request) => {
    const { pathname } = new URL(request.url);
    if (pathname === "/moved") return Response.redirect(new URL("/scene.png", request.url));
    if (pathname === "/scene.png") return new Response(PICTURE);
    if (pathname === "/secret") return new Response("root:x:0:0");
    return new Response(null, { status: 404 });
  });
  const at = (path: string) => `http://localhost:${server.addr.port}${path}`;
  try {
    const expected = await answered("/v1/ocr", { image, maxTokens: 4 });
    for (const path of ["/scene.png", "/moved"]) {
      assert.deepEqual(
        (await answered("/v1/ocr", { image: at(path), maxTokens: 4 })).tokenIds,
        expected.tokenIds,
      );
    }
    const cases = [["/secret", 415, "image_unsupported"], ["/gone", 422, "url_failed"]] as const;
    for (const [path, status, code] of cases) {
      const response = await post("/v1/ocr", { image: at(path) });
      const problem = z.parse(PROBLEM, await response.json());
      assert.deepEqual([response.status, problem.status, problem.code], [status, status, code]);
      assert.doesNotMatch(problem.detail, /root/);
    }
  } finally {
    await server.shutdown();
  }
  const guarded = createApp({ pipeline: () => pipeline, outbound: createOutbound(createNetwork()) });
  for (
    const url of [
      "http://example.com/a.png",
      "https://127.0.0.1/a.png",
      "https://0x7f000001/",
      "https://localhost/",
    ]
  ) {
    const body = JSON.stringify({ image: url });
    const headers = { "content-type": "application/json" };
    const response = await guarded.request("/v1/ocr", { method: "POST", headers, body });
    assert.deepEqual([response.status, (await response.json()).code], [400, "url_refused"], url);
  }
});

Deno.test("what a task does not take is refused by name", async () => {
  const cases: [string, Record<string, unknown>, RegExp][] = [
    ["caption", { prompt: "x" }, /Cannot read the request: expected the fields image, .*found "prompt"/],
    ["caption", { box: { yMin: 2 } }, /Cannot read box\.yMin: expected a number from 0 to 1, found 2/],
    ["caption", { language: "English" }, /language to be a code of two or three letters, found "English"/],
    ["answer", {}, /Cannot read question: expected a question, found nothing/],
    ["detect", { labels: [] }, /Cannot read labels: expected/],
    ["detect", { labels: ["a ; b"] }, /labels to be text without/],
    ["detect", { labels: "a", nms: 0 }, /Cannot read nms: expected a number above 0, up to 1, found 0/],
    ["ocr", { deadline: 5 }, /found "deadline"/],
  ];
  for (const [route, fields, message] of cases) {
    const response = await post(`/v1/${route}`, { image, ...fields });
    const { detail } = z.parse(PROBLEM, await response.json());
    assert.equal(response.status, 400, detail);
    assert.match(detail, message);
  }
});
