/** Ray Serve on the CPU as a process, asked over HTTP: the tokens are those of our own kernels. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { exportJWK, generateKeyPair } from "jose";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { type Engine, openEngine } from "../../lib/engine.ts";
import { HttpPool } from "../../lib/pool/http.ts";
import type { PoolEvent, TokenEvent, Work } from "../../lib/pool/pool.ts";
import { encodeRows } from "../../lib/pool/rows.ts";
import { trialWork } from "../../lib/pool/serving.ts";
import { createSign, type Sign } from "../../lib/pool/signature.ts";
import { encodeWork } from "../../lib/pool/work.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "../memory_files.ts";
import { startDoor } from "./door.ts";
import { refused } from "../pool/refused.ts";

const ROOT = join(import.meta.dirname!, "../..");
const PACKAGES = [
  "ray",
  "torch",
  "safetensors",
  "sentencepiece",
  "jwt",
  "cryptography",
  "starlette",
  "uvicorn",
];
const PATIENCE_MS = 240_000;

const found = await new Deno.Command("python3", {
  args: [
    "-c",
    `import importlib.util as i, sys; sys.exit(any(i.find_spec(it) is None for it in ${
      JSON.stringify(PACKAGES)
    }))`,
  ],
  stdout: "null",
  stderr: "null",
}).output().then((it) => it.success, () => false);

const pair = await generateKeyPair("EdDSA", { extractable: true });
const [secret, known] = await Promise.all(
  [pair.privateKey, pair.publicKey].map(async (it) => ({ ...await exportJWK(it), kid: "server" })),
);

/** Starts it with a golden checkpoint and waits until it takes work. */
async function startRay(model: string, keys: object, sign: Sign) {
  using free = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const { port } = free.addr as Deno.NetAddr;
  free.close();
  const child = new Deno.Command("python3", {
    args: [join(ROOT, "functions/ray_serve.py")],
    cwd: "/",
    env: {
      MODEL: model,
      PORT: `${port}`,
      POOL_TRUSTED_KEYS: JSON.stringify(keys),
      POOL_ACTIVE: "3",
      POOL_WAITING: "2",
    },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const errors = new Response(child.stderr).text();
  const late = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
  let said = "";
  for await (const it of child.stdout.pipeThrough(new TextDecoderStream()).values({ preventCancel: true })) {
    said += it;
    if (said.includes("takes work at")) break;
  }
  clearTimeout(late);
  if (!said.includes("takes work at")) throw new Error(`Ray Serve did not start: ${said}${await errors}`);
  const files = memoryFiles(directoryBytes(model), "golden");
  const engine = await openEngine({ backend: createWasmBackend({ simd, relaxed }), files });
  const url = `http://127.0.0.1:${port}`;
  return {
    url,
    engine,
    pool: new HttpPool(url, { model: engine.shape, sign }),
    async [Symbol.asyncDispose]() {
      child.kill("SIGINT");
      await child.status;
      await errors;
    },
  };
}

const isToken = (it: PoolEvent): it is TokenEvent => it.type === "token";

/** Asserts that both give the same tokens, probabilities but for rounding, and the same end. */
function same(remote: PoolEvent[], local: PoolEvent[]): void {
  const rough = (it: PoolEvent) => {
    if (it.type === "usage") return { ...it, timings: 0, cached: 0 };
    if (it.type !== "token") return it;
    return { ...it, logprob: 0, nearLogprob: 0, top: it.top?.map(({ id }) => id) };
  };
  assert.deepEqual(remote.map(rough), local.map(rough));
  for (const [i, it] of local.filter(isToken).entries()) {
    const other = remote.filter(isToken)[i];
    for (const name of ["logprob", "nearLogprob"] as const) {
      assert.ok(Math.abs(it[name] - other[name]) < 1e-3, `${name} ${other[name]}, expected ${it[name]}`);
    }
  }
}

/** Work of every kind: pixels, features, image tokens; greedy and drawn; forced, continued, held to a grammar. */
async function kinds(engine: Engine): Promise<Work[]> {
  const { imageSize, context } = engine.shape;
  const golden: Work = {
    ...trialWork(engine.shape),
    ids: [2, ...engine.tokenizer.encode("caption en"), ...engine.tokenizer.encode("\n")],
    maxTokens: Math.min(16, context),
  };
  const pixels = Uint8Array.from({ length: imageSize * imageSize * 3 }, (_, i) => (i * 7919) % 251);
  const images = { ...golden.images, blocks: () => [pixels] };
  const rows = async (stage: "features" | "projected", dtype: "f16" | "int8"): Promise<Work["images"]> => {
    const { shape, values } = await engine.embed(images, stage, () => Promise.resolve());
    return { stage, dtype, shape, blocks: () => [encodeRows(dtype, values, shape[2])] };
  };
  const pictures = [pixels, new Uint8Array(pixels.length).fill(90)];
  const sampling = { temperature: 0.7, topK: 40, topP: 0.9, seed: 7 };
  return [
    { ...golden, images },
    { ...golden, images, topLogits: 5, ignoreEos: false },
    { ...golden, images: { ...images, shape: [2, imageSize, imageSize, 3], blocks: () => pictures } },
    { ...golden, images: await rows("features", "f16") },
    { ...golden, images: await rows("projected", "f16") },
    { ...golden, images: await rows("projected", "int8") },
    { ...golden, images, sampling },
    { ...golden, images, forced: [300, 301, 302] },
    { ...golden, images, sampling, given: [400, 401, 402] },
    { ...golden, images, grammar: "detect cat ; dog", ignoreEos: false, maxTokens: 40 },
  ];
}

for (const family of ["pg1", "pg2"]) {
  Deno.test({
    name: `Ray Serve answers as our kernels do: ${family}` +
      (found ? "" : " (skipped: python3 lacks ray or a package)"),
    ignore: !found,
    async fn() {
      const sign = await createSign(secret);
      const model = join(ROOT, "tests/golden/checkpoints", family);
      await using ray = await startRay(model, { keys: [{ ...known, features: true }] }, sign);
      const { engine, pool, url } = ray;
      const works = await kinds(engine);
      for (const work of works) {
        same(await Array.fromAsync(pool.submit(work)), await Array.fromAsync(engine.submit(work)));
      }
      // Side by side, joining while others are under way: nobody's tokens change.
      const three = await Promise.all(
        works.slice(0, 3).map(async (it, i) => {
          await new Promise((wake) => setTimeout(wake, 15 * i));
          return await Array.fromAsync(pool.submit({ ...it, maxTokens: 60, ignoreEos: true }));
        }),
      );
      for (const [i, events] of three.entries()) {
        same(events, await Array.fromAsync(engine.submit({ ...works[i], maxTokens: 60, ignoreEos: true })));
      }
      if (family === "pg2") return;

      const long = { ...works[0], maxTokens: 900, ignoreEos: true };
      const stop = new AbortController();
      const events: PoolEvent[] = [];
      for await (const event of pool.submit(long, { signal: stop.signal })) {
        events.push(event);
        if (events.length === 3) stop.abort();
      }
      assert.deepEqual(events.slice(3).map((it) => it.type), ["usage", "done"]);
      const seated = async () => {
        const { active, waiting } = await (await fetch(`${url}/health`)).json();
        return active + waiting;
      };
      for (const since = performance.now(); await seated();) {
        assert.ok(performance.now() - since < 5000, "a cancelled answer keeps its place");
      }

      await refused(pool.submit(works[0], { deadlineMs: 0 }), "late");
      const other = { ...engine.shape, revision: "0000000000000000" };
      await refused(
        new HttpPool(url, { model: other, sign }).submit({ ...works[0], revision: other.revision }),
        "revision",
      );
      await refused(
        new HttpPool(url, { model: other, sign: () => Promise.resolve("x") }).submit(works[0]),
        "unsigned",
      );
      const post = async (bytes: Uint8Array<ArrayBuffer>) => {
        const response = await fetch(`${url}/work`, { method: "POST", body: bytes });
        return [response.status, (await response.json()).code];
      };
      const bytes = await new Blob(await Array.fromAsync(encodeWork(works[4])) as BlobPart[]).bytes();
      assert.deepEqual(await post(bytes.with(0, 0)), [400, "magic"]);
      assert.deepEqual(await post(bytes.with(bytes.length - 100, 1)), [400, "sum"]);
      assert.deepEqual(await post(bytes.subarray(0, 50)), [400, "length"]);
      const odd = (value: number) => {
        const [block] = works[4].images.blocks() as Uint8Array[];
        const changed = block.slice();
        new DataView(changed.buffer).setFloat16(0, value, true);
        return pool.submit({ ...works[4], images: { ...works[4].images, blocks: () => [changed] } });
      };
      await refused(odd(NaN), "number");
      await refused(odd(Infinity), "number");

      const stops = Array.from({ length: 5 }, () => new AbortController());
      const many = stops.map(({ signal }) => Array.fromAsync(pool.submit(long, { signal })));
      for (const since = performance.now(); await seated() < 5;) {
        assert.ok(performance.now() - since < 5000, "five answers do not find a place");
      }
      await refused(new HttpPool(url, { model: engine.shape, sign }).submit(works[0]), "busy");
      for (const it of stops) it.abort();
      await Promise.all(many);

      // A picture at the edge, tokens from Ray.
      const env = { MODEL: model, POOL_URL: url, POOL_SIGNING_KEY: JSON.stringify(secret) };
      const doors = await Promise.all([startDoor({ MODEL: model }), startDoor(env)]);
      const picture = await Deno.readFile(join(ROOT, "models/tiny/pictures/five_shapes.png"));
      const body = JSON.stringify({ image: picture.toBase64(), prompt: "caption en" });
      const headers = { "content-type": "application/json" };
      const [here, there] = await Promise.all(doors.map(async (it) => {
        const answer = await (await fetch(`${it.url}/v1/generate`, { method: "POST", body, headers })).json();
        return answer.text;
      }));
      assert.equal(typeof here, "string");
      assert.equal(there, here);
      assert.match(
        await (await fetch(`${doors[1].url}/metrics`)).text(),
        /paligemma_routes_total\{route="pool"\} 1/,
      );
      for (const it of doors) it.kill("SIGKILL");
      await Promise.all(doors.map((it) => it.status));
    },
  });
}
