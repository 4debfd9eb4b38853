/**
 * Whole requests: the published layout (shards, tokenizer, processor settings) from picture bytes to answer, against
 * transformers 5.18 (tests/golden/checkpoints). The photos of those goldens are not in the repository.
 */

import assert from "node:assert/strict";
import { createReferenceBackend } from "../lib/backend/reference.ts";
import { createWasmBackend } from "../lib/backend/wasm.ts";
import { loadDecoder } from "../lib/decode/gemma.ts";
import { openEngine } from "../lib/engine.ts";
import { RequestError } from "../lib/errors.ts";
import { collect, createPipeline } from "../lib/pipeline.ts";
import { PoolError, type Work } from "../lib/pool/pool.ts";
import { Ledger } from "../lib/schedule/ledger.ts";
import type { AnswerEvent, Memory } from "../lib/types.ts";
import { loadVision } from "../lib/vision/siglip.ts";
import { readConfig } from "../lib/weights/config.ts";
import { openWeights } from "../lib/weights/load.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "./memory_files.ts";
import { wired } from "./pool/wire.ts";

const CHECKPOINTS = new URL("./golden/checkpoints/", import.meta.url).pathname;
const PHOTOS = new URL("../../shared/reference/images/", import.meta.url).pathname;
const PICTURE = Deno.readFileSync(new URL("./fixtures/scene.png", import.meta.url));

interface Case {
  images: string[];
  prompt: string;
  prefix_ids: number[];
  image_tokens: number;
  greedy_ids: number[];
  greedy_text: string;
  top5: [number, number][][];
}

const photos = (() => {
  try {
    return Deno.statSync(PHOTOS).isDirectory;
  } catch {
    return false;
  }
})();

const backends = { reference: createReferenceBackend, wasm: () => createWasmBackend({ simd, relaxed }) };

function load(family: string, backend: keyof typeof backends = "wasm", parts = {}) {
  return createPipeline({
    backend: backends[backend](),
    files: memoryFiles(directoryBytes(`${CHECKPOINTS}${family}`), family),
    name: family,
    ...parts,
  });
}

for (const family of ["pg1", "pg2"]) {
  const cases: Case[] = JSON.parse(Deno.readTextFileSync(`${CHECKPOINTS}${family}/golden.json`)).cases;
  for (const backend of ["reference", "wasm"] as const) {
    Deno.test({
      name: `${backend}: photos through ${family} give transformers' tokens and logits within 2e-4` +
        (photos ? "" : " (skipped: the photos are not here)"),
      ignore: !photos,
      async fn() {
        const pipeline = await load(family, backend);
        for (const it of cases.filter(({ images }) => images.every((name) => !name.endsWith(".ppm")))) {
          const answer = await collect(pipeline.answer({
            images: it.images.map((name) => Deno.readFileSync(PHOTOS + name)),
            prompt: it.prompt,
            maxTokens: it.greedy_ids.length,
            ignoreEos: true,
            topLogits: 5,
          }));
          assert.deepEqual(answer.promptTokenIds, it.prefix_ids, it.prompt);
          assert.equal(answer.imageTokens, it.image_tokens);
          assert.deepEqual(answer.tokenIds, it.greedy_ids, it.prompt);
          assert.equal(answer.text, it.greedy_text);
          answer.logits!.forEach((step, i) => {
            // the golden's best logits were taken before ids that may not be sampled were struck out
            const wanted = it.top5[i].filter(([, id]) =>
              id !== 0 && id !== 2 && id < pipeline.model.vocabulary
            );
            wanted.forEach(([logit, id], rank) => {
              const found = step[rank].logit;
              assert.ok(
                Math.abs(found - logit) < 2e-4,
                `${it.prompt} step ${i} id ${id}: ${found} for ${logit}`,
              );
            });
          });
        }
      },
    });
  }
}

Deno.test("an answer streams tokens, then usage, then done, and the text is the tokens' text", async () => {
  const pipeline = await load("pg1");
  const events: AnswerEvent[] = [];
  for await (
    const event of pipeline.answer({ images: [PICTURE], prompt: "caption en", maxTokens: 6, ignoreEos: true })
  ) {
    events.push(event);
  }
  const tokens = events.filter((it) => it.type === "token");
  assert.equal(tokens.length, 6);
  assert.deepEqual(events.slice(-2).map((it) => it.type), ["usage", "done"]);
  const done = events.at(-1) as Extract<AnswerEvent, { type: "done" }>;
  assert.equal(done.finishReason, "length");
  assert.ok(done.text.startsWith(tokens.map((it) => it.text).join("")));
  for (const { logprob } of tokens) assert.ok(logprob <= 0 && Number.isFinite(logprob));
});

Deno.test("the wasm backend gives back all memory of a request, also when the caller stops listening", async () => {
  const backend = createWasmBackend({ simd, relaxed });
  const pipeline = await createPipeline({
    backend,
    files: memoryFiles(directoryBytes(`${CHECKPOINTS}pg2`)),
    name: "pg2",
  });
  const question = { images: [PICTURE], prompt: "ocr", maxTokens: 4, ignoreEos: true };
  const before = backend.sizeBytes;
  await collect(pipeline.answer(question));
  assert.equal(backend.sizeBytes, before);
  for await (const event of pipeline.answer(question)) if (event.type === "token") break;
  assert.equal(backend.sizeBytes, before);
  await collect(pipeline.answer(question)); // and its turn was given back too
});

Deno.test("an aborted answer ends as cancelled after at most one more token", async () => {
  const pipeline = await load("pg1");
  const stop = new AbortController();
  let tokens = 0;
  const answer = await collect(async function* () {
    const question = { images: [PICTURE], prompt: "", maxTokens: 50, ignoreEos: true };
    for await (const event of pipeline.answer(question, stop.signal)) {
      if (event.type === "token" && ++tokens === 2) stop.abort();
      yield event;
    }
  }());
  assert.equal(answer.finishReason, "cancelled");
  assert.ok(tokens <= 3, `${tokens}`);
});

Deno.test("questions are answered one at a time, in order, and too many waiting are refused", async () => {
  const pipeline = await load("pg1", "wasm", { maxWaiting: 1 });
  const question = { images: [PICTURE], prompt: "ocr", maxTokens: 3, ignoreEos: true };
  const order: number[] = [];
  const ask = async (n: number) => {
    const answer = await collect(pipeline.answer(question));
    order.push(n);
    return answer.tokenIds;
  };
  const results = await Promise.allSettled([ask(0), ask(1), ask(2)]);
  assert.deepEqual(order, [0, 1]);
  assert.deepEqual(results.map((it) => it.status), ["fulfilled", "fulfilled", "rejected"]);
  assert.equal((results[2] as PromiseRejectedResult).reason.code, "overloaded");
});

Deno.test("a caller that goes away while it waits gives up its place at once", async () => {
  const pipeline = await load("pg1");
  const question = { images: [PICTURE], prompt: "ocr", maxTokens: 200, ignoreEos: true };
  const stop = new AbortController();
  const first = collect(pipeline.answer(question));
  const second = collect(pipeline.answer(question, stop.signal));
  let firstDone = false;
  first.then(() => firstDone = true);
  setTimeout(() => stop.abort(), 1);
  await assert.rejects(second, { code: "cancelled" });
  assert.ok(!firstDone, "the waiting one ended before the running one");
  assert.equal((await first).tokenIds.length, 200);
  assert.equal((await collect(pipeline.answer(question))).tokenIds.length, 200);
});

Deno.test("an empty prompt is legal: BOS and newline", async () => {
  const pipeline = await load("pg1");
  const answer = await collect(
    pipeline.answer({ images: [PICTURE], prompt: "", maxTokens: 1, ignoreEos: true }),
  );
  assert.equal(answer.promptTokenIds.length, 2);
});

Deno.test("control words in a prompt are plain text, and loc tokens are tokens only when asked for", async () => {
  const pipeline = await load("pg1");
  const ids = async (tokens?: "allow") =>
    (await collect(pipeline.answer({
      images: [PICTURE],
      prompt: "caption <loc0001> <image> <eos>",
      maxTokens: 1,
      ignoreEos: true,
      tokens,
    }))).promptTokenIds;
  const first = 940; // <loc0000> in this vocabulary
  const [plain, allowed] = [await ids(), await ids("allow")];
  assert.ok(
    plain.slice(1).every((id) =>
      id > 2 && id < pipeline.model.vocabulary && !(id >= first && id < first + 1152)
    ),
  );
  assert.equal(allowed.filter((id) => id >= first && id < first + 1152).length, 1);
  assert.ok(allowed.slice(1).every((id) => id > 2 && id < pipeline.model.vocabulary));
});

Deno.test("sampling: a seed repeats its answer, and ids from the image token upward never come", async () => {
  const pipeline = await load("pg1");
  const ask = async (seed: number) =>
    (await collect(pipeline.answer({
      images: [PICTURE],
      prompt: "caption en",
      maxTokens: 40,
      ignoreEos: true,
      sampling: { temperature: 2, seed },
    }))).tokenIds;
  const [a, b, c] = [await ask(5), await ask(5), await ask(6)];
  assert.deepEqual(a, b);
  assert.notDeepEqual(a, c);
  for (const id of [...a, ...c]) assert.ok(id < pipeline.model.vocabulary && id !== 0 && id !== 2, `${id}`);
});

Deno.test("a model that does not fit is refused before anything is read, with needed and available bytes", async () => {
  const files = memoryFiles(directoryBytes(`${CHECKPOINTS}pg1`), "pg1");
  const backend = createWasmBackend({ simd, relaxed }, { maxBytes: 1_000_000 });
  await assert.rejects(createPipeline({ backend, files, name: "pg1", weights: "f32" }), {
    code: "model_too_large",
    message: /model in pg1: its weights take \d\.\d\d GB, the wasm backend has 0\.00 GB/,
  });
});

Deno.test("stages that the caller opened answer without safetensors; features before the projector are refused", async () => {
  const bytes = directoryBytes(`${CHECKPOINTS}pg1`);
  const backend = createReferenceBackend();
  const whole = memoryFiles(bytes, "pg1");
  const weights = await openWeights(whole, await readConfig(whole));
  const { imageTokens, width, encode } = await loadVision(backend, weights);
  const decoder = await loadDecoder(backend, weights);
  const files = memoryFiles(
    Object.fromEntries(Object.entries(bytes).filter(([name]) => !name.includes("safetensors"))),
  );
  await assert.rejects(createPipeline({ backend, files, name: "x" }), { code: "model_invalid" });
  const stages = { vision: { imageTokens, width, encode }, decoder, revision: "mine" };
  const pipeline = await createPipeline({ backend, files, name: "x", stages });
  assert.equal(pipeline.model.revision, "mine");
  const question = { images: [PICTURE], prompt: "caption en", maxTokens: 4, ignoreEos: true };
  const expected = await collect((await load("pg1", "reference")).answer(question));
  assert.deepEqual((await collect(pipeline.answer(question))).tokenIds, expected.tokenIds);
  assert.deepEqual((await pipeline.embed({ images: [PICTURE] })).shape, [1, imageTokens, width]);
  await assert.rejects(pipeline.embed({ images: [PICTURE], stage: "features" }), {
    code: "parameter_invalid",
    message: /expected stage projected.*found features/,
  });
});

const wrong: [string, object, string, RegExp][] = [
  ["no picture", { images: [] }, "image_missing", /at least one picture/],
  ["not a picture", { images: [new TextEncoder().encode("hello")] }, "image_unsupported", /JPEG, PNG/],
  ["a prompt beyond the context", { prompt: "x ".repeat(10_000) }, "prompt_too_long", /context of/],
  ["maxTokens 0", { maxTokens: 0 }, "parameter_invalid", /maxTokens.*found 0/],
  [
    "temperature 3",
    { sampling: { temperature: 3 } },
    "parameter_invalid",
    /temperature from 0 to 2, found 3/,
  ],
  ["topP 0", { sampling: { topP: 0 } }, "parameter_invalid", /topP/],
  ["seed 0.5", { sampling: { seed: 0.5 } }, "parameter_invalid", /seed/],
];
for (const [name, question, code, message] of wrong) {
  Deno.test(`refused: ${name}`, async () => {
    const pipeline = await load("pg1");
    const ask = collect(pipeline.answer({ images: [PICTURE], prompt: "ocr", ...question }));
    await assert.rejects(ask, (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.message);
      assert.match(error.message, message);
      return true;
    });
  });
}

function engine(family: string) {
  return openEngine({
    backend: createWasmBackend({ simd, relaxed }),
    files: memoryFiles(directoryBytes(`${CHECKPOINTS}${family}`), family),
  });
}

Deno.test("a model that is streamed hands its image tokens to a pool, and the answer is the same", async () => {
  const asked: Work[] = [];
  const pool = wired(await engine("pg2"), { asked: (work) => void asked.push(work) });
  const question = { images: [PICTURE, PICTURE], prompt: "caption en", maxTokens: 6, ignoreEos: true };
  const expected = await collect((await load("pg2")).answer(question));
  const streamed = await load("pg2", "wasm", { residence: "streamed", pool });
  const { tokenIds, imageTokens } = await collect(streamed.answer(question));
  assert.deepEqual([tokenIds, imageTokens], [expected.tokenIds, expected.imageTokens]);
  const { stage, dtype, shape } = asked[0].images;
  assert.deepEqual([stage, dtype, shape[0] * shape[1]], ["projected", "f16", imageTokens]);
});

Deno.test("pictures are encoded once, although the first worker dies while they come", async () => {
  const blocks: Uint8Array[][] = [];
  const pool = wired(await engine("pg2"), {
    asked: () => void blocks.push([]),
    block(block, n) {
      blocks.at(-1)!.push(block);
      if (blocks.length === 1 && n === 2) throw new PoolError("gone", "The worker died");
    },
  });
  const question = { images: [PICTURE], prompt: "caption en", maxTokens: 3, ignoreEos: true };
  for (const stage of ["features", "projected"] as const) {
    blocks.length = 0;
    const poolImages = { stage, dtype: "f16" };
    const answer = await collect((await load("pg2", "wasm", { pool, poolImages })).answer(question));
    assert.equal(answer.tokenIds.length, 3);
    const [first, second] = blocks;
    assert.ok(blocks.length === 2 && first.length === 2 && second.length > 2, stage);
    assert.ok(first[1] === second[1], `${stage}: the first block is the same one`);
  }
});

Deno.test("what image tokens take on their way is asked for, refused by its name, and given back", async () => {
  const elsewhere = await engine("pg2");
  const pool = wired(elsewhere);
  const question = { images: [PICTURE], prompt: "caption en", maxTokens: 2, ignoreEos: true };
  const { imageTokens, width } = elsewhere.shape;
  const bytes = 2 * imageTokens * 2 * width;
  for (const [room, code] of [[bytes - 1, "memory_exceeded"], [bytes, undefined]] as const) {
    const ledger = new Ledger(room, () => 0);
    const memory: Memory = {
      take: (size, what) => what.startsWith("encode") ? ledger.take(size, what) : { [Symbol.dispose]() {} }, // decoding
    };
    const streamed = await load("pg2", "wasm", { residence: "streamed", pool, memory });
    const asked = collect(streamed.answer(question));
    if (code) {
      await assert.rejects(asked, { code, message: /^Cannot encode 1 pictures for a pool: it takes/ });
    } else assert.equal((await asked).tokenIds.length, 2);
    assert.deepEqual([ledger.bytes, ledger.mostBytes], [0, code ? 0 : bytes]);
  }
});

Deno.test("without a pool it refuses what needs a decoder, before it looks at the picture", async () => {
  const alone = await load("pg2", "wasm", { residence: "streamed" });
  const question = { images: [new Uint8Array(9)], prompt: "caption en" };
  const refused = (error: unknown) => error instanceof RequestError && error.code === "pool_needed";
  await assert.rejects(collect(alone.answer(question)), refused);
  // What it lacks for labels is not a pool.
  await assert.rejects(alone.classify({ ...question, labels: ["a"] }), (error: RequestError) => {
    return refused(error) && /^Cannot classify: .*; no pool tells how likely labels are$/.test(error.message);
  });
  const { shape } = await alone.embed({ images: [PICTURE] });
  assert.equal(shape[1], alone.model.imageTokensPerImage);
});
