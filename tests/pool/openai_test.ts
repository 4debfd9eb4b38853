/** A server with OpenAI's API as a pool: ours, as a process; vLLM's own words from its source, where ours says nothing so. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { loadEngine, TINY } from "../../functions/model.ts";
import { openPool } from "../../functions/pool.ts";
import { readSettings } from "../../functions/settings.ts";
import { npy } from "../../lib/pool/openai_wire.ts";
import { OpenAiPool } from "../../lib/pool/openai.ts";
import { type Pool, type PoolEvent, type TokenEvent, type Work } from "../../lib/pool/pool.ts";
import { Relay } from "../../lib/pool/relay.ts";
import { trialWork } from "../../lib/pool/serving.ts";
import { prepare } from "../../lib/preprocess/preprocess.ts";
import { PoolView } from "../../lib/schedule/pool_view.ts";
import { nearby } from "../../lib/text/locations.ts";
import { prefixIds } from "../../lib/text/prompt.ts";
import { encodePng } from "../../lib/vision/mask_forms.ts";
import { CHECKPOINT, startDoor } from "../doors/door.ts";
import { until } from "../until.ts";
import { refused } from "./refused.ts";

const engine = await loadEngine(TINY);
const PICTURE = await Deno.readFile(join(TINY, "pictures/five_shapes.png"));
const { samples } = await prepare(PICTURE, {
  size: engine.shape.imageSize,
  method: "hf-bicubic",
  maxPixels: 1e7,
});

function work(prompt = "caption en", more: Partial<Work> = {}): Work {
  const trial = trialWork(engine.shape);
  const ids = prefixIds(engine.tokenizer, prompt, { bosId: engine.config.bosId });
  const images = { ...trial.images, blocks: () => [samples] };
  return { ...trial, images, ids, maxTokens: 40, ignoreEos: false, ...more };
}

const isToken = (it: PoolEvent): it is TokenEvent => it.type === "token";
const ids = (events: PoolEvent[]) => events.filter(isToken).map((it) => it.id);

async function open(url: string, env: Record<string, string> = {}): Promise<Pool> {
  const { pool } = readSettings((name) => name === "POOL_URL" ? url : env[name]);
  return (await openPool(pool!, (error) => assert.fail(String(error))))(engine.shape, engine);
}

const headers = { "content-type": "application/json", authorization: "Bearer secret" };

async function ask(url: string, more: object = {}) {
  const body = JSON.stringify({ image: PICTURE.toBase64(), prompt: "caption en", ...more });
  const answer = await fetch(`${url}/v1/generate`, { method: "POST", body, headers });
  assert.equal(answer.status, 200, await answer.clone().text());
  const { timings: _, cached: __, ...rest } = await answer.json();
  return rest;
}

async function metrics(url: string): Promise<(name: string) => number> {
  const text = await (await fetch(`${url}/metrics`, { headers })).text();
  return (name) => Number(new RegExp(`^${RegExp.escape(name)} (\\S+)$`, "m").exec(text)?.[1] ?? 0);
}

async function check(...args: string[]) {
  const cli = new URL("../../functions/cli.ts", import.meta.url).pathname;
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", cli, "pool", "check", ...args],
  }).output();
  return { code, out: new TextDecoder().decode(stdout), err: new TextDecoder().decode(stderr) };
}

Deno.test({
  name:
    "our server as the pool of another: the same answers; what it does not do, and what it leaves undone, from here",
  async fn(t) {
    const server = await startDoor({ API_KEYS: "secret" });
    const door = await startDoor({ POOL_URL: `openai+${server.url}/v1`, POOL_API_KEY: "secret" });
    try {
      await t.step("event by event, and in several forms", async () => {
        const pool = await open(`openai+${server.url}/v1/`, { POOL_API_KEY: "secret", POOL_MODEL: "tiny" });
        for (
          const asked of [
            work(),
            work("", { maxTokens: 3 }),
            work("detect star ; heart"),
            work("segment star", { topLogits: 3 }),
            work("caption en", { sampling: { temperature: 1.5, topK: 0, topP: 0.95, seed: 7 } }),
            work("caption en", { maxTokens: 4, topLogits: 20 }),
          ]
        ) {
          const here = await Array.fromAsync(engine.submit(asked));
          const there = await Array.fromAsync(pool.submit(asked));
          const plain = (all: PoolEvent[]) =>
            all.map((it) => {
              if (it.type === "usage") return { ...it, timings: 0, cached: 0 };
              if (it.type !== "token") return it;
              const { nearLogprob: _, top, ...rest } = it;
              return { ...rest, ...top && { top: top.map(({ id, logprob }) => ({ id, logprob })) } };
            });
          assert.deepEqual(plain(there), plain(here));
          for (const [i, it] of there.filter(isToken).entries()) {
            const { nearLogprob } = here.filter(isToken)[i];
            assert.ok(it.nearLogprob <= nearLogprob + 1e-6 && it.nearLogprob > nearLogprob - 0.02);
          }
        }
        const stop = new AbortController();
        const events: PoolEvent[] = [];
        for await (const event of pool.submit(work(), { signal: stop.signal })) {
          events.push(event);
          if (events.length === 3) stop.abort();
        }
        assert.deepEqual(ids(events), ids(await Array.fromAsync(engine.submit(work()))).slice(0, 3));
        assert.equal((events.at(-1) as { finishReason?: string }).finishReason, "cancelled");
      });

      await t.step(
        "what such a server does not do is refused, before it is asked, as is a wrong key",
        async () => {
          const pool = await open(`openai+${server.url}/v1`, { POOL_API_KEY: "secret" });
          const images = engine.encoded(work().images, "projected", "f16", () => Promise.resolve());
          const answered = async () => (await metrics(server.url))('paligemma_routes_total{route="local"}');
          await until(async () => await answered() === 7); // the last one only ends when its cancelling is seen
          const prompts = [work("caption <loc0001>"), work("a", { ids: [2, 50, 3] })];
          for (
            const it of [
              ...prompts,
              work("", { given: [5] }),
              work("", { forced: [5] }),
              work("detect a", { grammar: "detect a" }),
              work("", { topLogits: 21 }),
              work("", { ignoreEos: true }),
              work("", { sampling: { temperature: 1, topK: 5, topP: 1, seed: 0 } }),
              work("", { images: { ...images, dtype: "int8" } }),
              work("", { images }), // ours takes no image tokens, and says so
            ]
          ) await refused(pool.submit(it), "unsupported");
          assert.equal(await answered(), 7);
          await refused((await open(`openai+${server.url}/v1`)).submit(work()), "unsigned");
          await refused(
            (await open(`openai+${server.url}/v1`, { POOL_API_KEY: "secret", POOL_MODEL: "x" })).submit(
              work(),
            ),
            "revision",
          );
        },
      );

      await t.step("through both servers, and what the pool does not do from here", async () => {
        const sure = ({ items, route: _, ...rest }: { items: object[]; route: unknown }) => ({
          ...rest,
          items: items.map((it) => ({ ...it, confidence: 0 })),
        });
        for (
          const more of [
            {},
            { prompt: "detect star ; heart" },
            { temperature: 1, seed: 4 },
            { prompt: "detect star", constrained: true },
          ]
        ) {
          assert.deepEqual(sure(await ask(door.url, more)), sure(await ask(server.url, more)));
        }
        const metric = await metrics(door.url);
        assert.equal(metric('paligemma_routes_total{route="pool"}'), 3);
        assert.equal(metric('paligemma_detours_total{route="pool",reason="unsupported"}'), 1);
        assert.equal(metric('paligemma_routes_total{route="local"}'), 1);
      });
    } finally {
      for (const it of [server, door]) it.kill("SIGKILL");
      await Promise.all([server.status, door.status]);
    }
  },
});

Deno.test("by ids all of an answer is told; a server that is killed half way leaves no gap; pool check", async () => {
  const MODEL = CHECKPOINT;
  const server = await startDoor({ MODEL });
  let killed = false;
  const door = await startDoor({ MODEL, POOL_URL: `vllm+${server.url}/v1` });
  try {
    const good = await check(`vllm+${server.url}/v1`, "--model", MODEL);
    assert.equal(good.code, 0, good.out + good.err);
    assert.match(good.out, /^five_shapes\.png caption en +32\/32 +0\.0e\+0 /m);
    assert.match(good.out, /^sampled with a seed +32\/32 +0\.0e\+0 /m);
    assert.match(good.out, /^continued +unsupported: /m);
    const bad = await check(`vllm+${server.url}/v1`, "--model", CHECKPOINT.replace(/1$/, "2"), "--json");
    assert.equal(bad.code, 1, bad.err);
    const { findings } = JSON.parse(bad.out);
    const { alike, difference } = findings.find((it: { work: string }) => it.work === "pixels");
    assert.ok(difference.at === alike && difference.here !== difference.there, bad.out);

    const asked = { maxTokens: 400, ignoreEos: true, temperature: 1, seed: 5 };
    const alone = await ask(server.url, asked);
    const body = JSON.stringify({ image: PICTURE.toBase64(), prompt: "caption en", stream: true, ...asked });
    const answer = await fetch(`${door.url}/v1/generate`, { method: "POST", body, headers });
    const found: number[] = [];
    let firsts: number | undefined;
    for await (const text of answer.body!.pipeThrough(new TextDecoderStream())) {
      for (const [, id] of text.matchAll(/"type":"token","id":(\d+)/g)) found.push(Number(id));
      if (found.length > 3 && !killed) server.kill("SIGKILL");
      killed ||= found.length > 3;
      firsts ??= killed ? found.length : undefined;
    }
    assert.ok(firsts! < 400);
    assert.deepEqual(found, alone.tokenIds);
    const metric = await metrics(door.url);
    assert.equal(metric('paligemma_detours_total{route="pool",reason="gone"}'), 1);
    assert.equal(metric('paligemma_detours_total{route="pool",reason="unsupported"}'), 1);
  } finally {
    for (const it of killed ? [door] : [server, door]) it.kill("SIGKILL");
    await Promise.all([server.status, door.status]);
  }
});

/** A server that says this to every question, and what it was asked. */
function serve(
  answer: () => Response,
  dialect: "openai" | "vllm" = "vllm",
) {
  const asked: { body: Record<string, unknown>; headers: Headers }[] = [];
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
    asked.push({ body: await request.json(), headers: request.headers });
    return answer();
  });
  const { shape: model, tokenizer: words, locations, config: { eosIds } } = engine;
  const pool = new OpenAiPool(`http://127.0.0.1:${server.addr.port}/v1`, {
    model,
    words,
    eosIds,
    dialect,
    name: "google/paligemma-3b-mix-224",
    near: (id) => nearby(locations, id),
    png: (samples, side) => encodePng(samples, side, side),
  });
  return { pool, asked, [Symbol.asyncDispose]: () => server.shutdown() };
}

/**
 * A stream as vLLM 0.10.2 and later write it: chat_completion_stream_generator and _create_chat_logprobs of
 * vllm/entrypoints/openai/chat_completion/serving.py, with return_tokens_as_token_ids and return_token_ids. The token that
 * was chosen comes first among the candidates, the one that ends an answer with its probability and no text.
 */
function vllmStream(
  prompt: readonly number[],
  tokens: readonly (readonly [id: number, logprob: number])[],
): string {
  const chunk = (choice: object, more: object = {}) =>
    `data: ${
      JSON.stringify({
        id: "chatcmpl-6f0c",
        object: "chat.completion.chunk",
        created: 1,
        model: "google/paligemma-3b-mix-224",
        choices: [{ index: 0, ...choice }],
        ...more,
      })
    }\n\n`;
  const bytes = [116];
  return chunk({ delta: { role: "assistant", content: "" }, logprobs: null, finish_reason: null }, {
    prompt_token_ids: prompt,
  }) +
    tokens.map(([id, logprob], i) =>
      chunk({
        delta: { content: id === 1 ? "" : "x" },
        logprobs: {
          content: [{
            token: `token_id:${id}`,
            logprob,
            bytes,
            top_logprobs: [
              { token: `token_id:${id}`, logprob, bytes },
              { token: `token_id:${id + 1}`, logprob: -0.5, bytes },
              { token: "token_id:7", logprob: -9, bytes },
            ],
          }],
        },
        finish_reason: i === tokens.length - 1 ? "stop" : null,
        token_ids: [id],
      })
    ).join("") + "data: [DONE]\n\n";
}

const stream = (text: string, headers: HeadersInit = {}) =>
  new Response(text, { headers: { "content-type": "text/event-stream", ...headers } });

Deno.test("vLLM is asked in its words, and its tokens are read by their ids", async () => {
  const { ids: prefix } = work();
  const picture = new Array(engine.imageTokens).fill(engine.shape.vocabulary);
  const location = engine.locations.ids[500]!;
  const tokens = [[location, -1.5], [326, -0.5], [1, -0.125]] as const;
  const text = vllmStream([...picture, ...prefix], tokens);
  // vllm/entrypoints/openai/orca_metrics.py
  const orca = {
    "endpoint-load-metrics":
      'JSON {"named_metrics": {"kv_cache_usage_perc": 0.42, "num_requests_waiting": 3.0}}',
  };
  await using server = serve(() => stream(text, orca), "vllm");
  const events = await Array.fromAsync(server.pool.submit(work("caption en", { topLogits: 2 })));
  const { top, nearLogprob, ...first } = events[0] as TokenEvent;
  assert.deepEqual(first, { type: "token", id: location, text: "", logprob: -1.5 });
  assert.deepEqual(top!.map((it) => [it.id, it.logprob]), [[location + 1, -0.5], [location, -1.5]]);
  assert.equal(nearLogprob, Math.log(Math.exp(-1.5) + Math.exp(-0.5)));
  assert.deepEqual(ids(events), [location, 326]);
  assert.deepEqual((events.at(-1) as { finishReason?: string }).finishReason, "stop");
  const { messages, ...body } = server.asked[0].body;
  assert.deepEqual(body, {
    model: "google/paligemma-3b-mix-224",
    stream: true,
    max_tokens: 40,
    temperature: 0,
    top_p: 1,
    top_k: -1,
    seed: 0,
    logprobs: true,
    top_logprobs: 20,
    ignore_eos: false,
    return_tokens_as_token_ids: true,
    return_token_ids: true,
  });
  const [{ role, content: [image, words] }] = messages as [
    { role: string; content: { image_url?: { url: string } }[] },
  ];
  assert.deepEqual([role, words], ["user", { type: "text", text: "caption en" }]);
  const { samples: sent } = await prepare(
    Uint8Array.fromBase64(image.image_url!.url.replace("data:image/png;base64,", "")),
    { size: engine.shape.imageSize, method: "hf-bicubic", maxPixels: 1e7 },
  );
  assert.deepEqual(sent, samples);
  assert.equal(server.asked[0].headers.get("endpoint-load-metrics-format"), "JSON");
  const { worker, serviceMs, ...load } = server.pool.present()!.workers[0];
  assert.deepEqual(load, { slots: 1, running: 1, waiting: 3 });
  assert.ok(worker.endsWith("/v1") && serviceMs! > 0);
  assert.equal(new PoolView(() => server.pool.present()).waitMs(0), 4 * serviceMs!);

  // Image tokens are a .npy, byte for byte NumPy's.
  const images = engine.encoded(work().images, "projected", "f16", () => Promise.resolve());
  await Array.fromAsync(server.pool.submit(work("caption en", { images })));
  const [{ content: [embeds] }] = server.asked[1].body.messages as [{ content: Record<string, string>[] }];
  const file = Uint8Array.fromBase64(embeds.image_embeds);
  const [block] = [
    new Uint8Array(await new Blob(await Array.fromAsync(images.blocks()) as BlobPart[]).arrayBuffer()),
  ];
  assert.deepEqual(embeds.type, "image_embeds");
  assert.deepEqual(file.subarray(128), block);
  const numpy = "k05VTVBZAQB2AHsnZGVzY3InOiAnPGYyJywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzog" +
    "KDEsIDIsIDMpLCB9ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAA8AEAAQgBEAEU=";
  assert.equal(npy([1, 2, 3], new Uint8Array(Float16Array.of(0, 1, 2, 3, 4, 5).buffer)).toBase64(), numpy);
});

Deno.test("what a server says that cannot be ends with a code, and costs no token", async () => {
  const picture = new Array(engine.imageTokens).fill(engine.shape.vocabulary);
  const vllm = (prompt: readonly number[], id = 326) => stream(vllmStream(prompt, [[id, -1], [1, -1]]));
  const whole = [...picture, ...work().ids];
  const cases: [() => Response, string, RegExp][] = [
    [() => vllm([...picture, 2, ...work().ids]), "broken", /read another prompt/],
    [() => vllm(whole.slice(1)), "broken", /expected 64 image tokens .* found 63/],
    [() => vllm(whole, 999_999), "broken", /token 999999/],
    [
      () => stream(vllmStream(whole, [[326, -1], [1, -1]]).replaceAll("token_id:", "")),
      "broken",
      /instead of a token's id/,
    ],
    [() => stream("data: <html>\n\n"), "broken", /JSON/],
    [() => stream("data: {}\n\n"), "gone", /broke off/],
    [() => stream('data: {"error":{"message":"CUDA"}}\n\n'), "failed", /CUDA/],
    [() => stream('data: {"choices":[{"delta":{"content":"a"}}]}\n\n'), "unsupported", /no probabilities/],
    [() => new Response("slow", { status: 429, headers: { "retry-after": "9" } }), "busy", /429/],
    [
      () => Response.json({ error: { message: "too many images" } }, { status: 400 }),
      "unsupported",
      /too many images/,
    ],
    [() => new Response("<html>", { status: 502 }), "failed", /502/],
  ];
  for (const [answer, code, message] of cases) {
    await using server = serve(answer);
    const error = await refused(server.pool.submit(work()), code);
    assert.match(error.message, message);
    const again = await refused(
      server.pool.submit(work()),
      {
        broken: "nobody", // its circuit is open
        failed: "nobody",
        busy: "busy",
      }[code] ?? code,
    );
    assert.ok(again);
    assert.equal(server.asked.length, ["broken", "failed", "busy"].includes(code) ? 1 : 2);
  }
  await using late = serve(() => new Response(new ReadableStream()));
  await refused(late.pool.submit(work(), { deadlineMs: 50 }), "late");

  // The relay goes on from what came.
  await using half = serve(() =>
    stream(vllmStream(whole, [[326, -1], [1, -1]]).replace(/data: [^\n]*"token_ids":\[1\].*/s, ""))
  );
  const relay = new Relay([{ name: "pool", submit: (it, options) => half.pool.submit(it, options) }, {
    name: "local",
    submit: (it, options) => engine.submit(it, options),
  }]);
  const here = ids(await Array.fromAsync(engine.submit(work())));
  assert.equal(here[0], 326);
  assert.deepEqual(ids(await Array.fromAsync(relay.submit(work()))), here);
});

Deno.test("texts that are several tokens, or one of several, are told by our vocabulary or not at all", async () => {
  const says = (tokens: readonly string[]) =>
    stream(
      `data: ${
        JSON.stringify({
          choices: [{
            delta: {},
            logprobs: { content: tokens.map((token) => ({ token, logprob: -1, top_logprobs: [] })) },
            finish_reason: "stop",
          }],
        })
      }\n\ndata: [DONE]\n\n`,
    );
  const read = async (...tokens: string[]) => {
    await using server = serve(() => says(tokens), "openai");
    return ids(await Array.fromAsync(server.pool.submit(work())));
  };
  const { tokenizer } = engine;
  assert.deepEqual(await read("a", " purple", "<loc0500>"), [
    ...tokenizer.encode("a purple"),
    engine.locations.ids[500],
  ]);
  const bytes = tokenizer.encode("€");
  assert.ok(bytes.length === 3, "spelled by its bytes");
  assert.deepEqual(await read("", "", "€"), bytes); // as our server tells them
  assert.deepEqual(await read("\ufffd", "", "a").catch((it) => it.code), "unsupported");
  assert.deepEqual(await read("", "€").catch((it) => it.code), "unsupported");
  assert.deepEqual(await read("a", "").catch((it) => it.code), "unsupported");
});
