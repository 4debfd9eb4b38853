/**
 * What a worker of a pool does on this machine:
 *
 *     deno task bench:pool [--backend wasm|webgpu] [--model DIR] [--tokens 32] [--worker false] [--json FILE]
 *
 * Tokens a second of 1, 4 and 16 answers at once, each next one chosen; the time of a prefill; and for every
 * form in which pictures travel, its bytes and the time from the edge's submit to the first token, over loopback, from a
 * worker that is a process of its own. Every picture is another; those that are sent as features were encoded before.
 *
 * First the tokens are held against WASM's.
 */

import { join, resolve } from "@std/path";
import { openGpu } from "../../functions/gpu.ts";
import { loadEngine, TINY } from "../../functions/model.ts";
import { connectBroker } from "../../functions/pool.ts";
import { writePoolKeys } from "../../functions/pool_keys.ts";
import type { WebgpuBackend } from "../../lib/backend/webgpu.ts";
import type { Engine } from "../../lib/engine.ts";
import { createWasmBackend } from "../../lib/mod.ts";
import { HttpPool } from "../../lib/pool/http.ts";
import { NatsPool } from "../../lib/pool/nats.ts";
import type { Images, Pool, Work } from "../../lib/pool/pool.ts";
import { trialWork } from "../../lib/pool/serving.ts";
import { createSign } from "../../lib/pool/signature.ts";
import { encodeWork } from "../../lib/pool/work.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { startWorker } from "../doors/pool_worker.ts";
import { haveNats, startBroker } from "../pool/broker.ts";
import { oneOf, parseFlags, runCommand, whole } from "./command_line.ts";
import { check, load, prefillTimes, tokenTimes } from "./decoding.ts";
import { numbers } from "./random.ts";
import { median } from "./statistics.ts";

const TOGETHER = [1, 4, 16];
/** Rounds of a journey; the median of their times is told. */
const ROUNDS = 11;
const pause = () => Promise.resolve();

/** A picture that nobody has seen. */
function pictureOf({ imageSize }: Engine["shape"], seed: number): Images {
  const samples = Uint8Array.from(numbers(imageSize * imageSize * 3, seed), (it) => 128 + it * 60);
  return { stage: "pixels", dtype: "u8", shape: [1, imageSize, imageSize, 3], blocks: () => [samples] };
}

/** The forms in which pictures travel. */
const FORMS = [undefined, "features-f16", "features-int8", "projected-f16", "projected-int8"] as const;

interface Journey {
  readonly form: string;
  readonly bytes: number;
  /** To the first token. */
  readonly httpMs: number;
  readonly natsMs?: number;
  /** Here, without a worker, where that computes the same. */
  readonly hereMs?: number;
}

/** From submit to the first token, each time with another picture. */
async function firstMs(pool: Pool, works: readonly Work[]): Promise<number> {
  const times: number[] = [];
  for (const work of works) {
    const since = performance.now();
    for await (const event of pool.submit(work)) {
      if (event.type !== "token") continue;
      times.push(performance.now() - since);
      break;
    }
  }
  return median(times.slice(1));
}

async function journeys(directory: string, backend: "wasm" | "webgpu"): Promise<Journey[]> {
  const edge = await loadEngine(directory, { threads: 1, prefixCacheBytes: 0 });
  const broker = haveNats ? await startBroker(true) : undefined;
  const keys = broker?.keys ?? join(await Deno.makeTempDir({ prefix: "bench" }), "keys");
  if (!broker) await writePoolKeys(keys, true);
  const worker = await startWorker({
    POOL_TRUSTED_KEYS: join(keys, "trusted.jwks"),
    ...broker?.env("worker"),
    MODEL: directory,
    BACKEND: backend,
    THREADS: "1",
  });
  const connection = broker && await connectBroker(broker.settings("server"), "server");
  try {
    const model = edge.shape;
    const sign = await createSign(JSON.parse(await Deno.readTextFile(join(keys, "server.jwk"))));
    const http = new HttpPool(worker.url, { model, sign });
    const nats = connection && new NatsPool(connection, { model, sign, onError() {} });
    let seed = 1;
    const works = async (form: typeof FORMS[number]): Promise<Work[]> => {
      const all: Work[] = [];
      for (let round = 0; round <= ROUNDS; round++) {
        const work = { ...trialWork(model), maxTokens: 2, images: pictureOf(model, seed++) };
        if (!form) {
          all.push(work);
          continue;
        }
        const [stage, dtype] = form.split("-") as ["features" | "projected", "f16" | "int8"];
        using encoded = edge.encoded(work.images, stage, dtype, pause);
        const blocks = await Array.fromAsync(encoded.blocks());
        all.push({ ...work, images: { stage, dtype, shape: encoded.shape, blocks: () => blocks } });
      }
      return all;
    };
    const rows: Journey[] = [];
    for (const form of FORMS) {
      let bytes = 0;
      for await (const block of encodeWork((await works(form))[0])) bytes += block.length;
      rows.push({
        form: form?.replace("-", ", ") ?? "pixels",
        bytes,
        httpMs: await firstMs(http, await works(form)),
        natsMs: nats && await firstMs(nats, await works(form)),
        hereMs: form ? undefined : await firstMs(edge, await works(form)),
      });
    }
    return rows;
  } finally {
    worker.kill("SIGTERM");
    await worker.status;
    await connection?.close();
    await broker?.stop();
  }
}

async function main(): Promise<number> {
  const { values: flags } = parseFlags({
    backend: { type: "string", default: "wasm" },
    model: { type: "string", default: TINY },
    tokens: { type: "string", default: "32" },
    worker: { type: "string", default: "true" },
    json: { type: "string" },
  });
  const backend = oneOf("backend", flags.backend, ["wasm", "webgpu"]);
  const tokens = whole("tokens", flags.tokens, 1);
  const directory = resolve(flags.model);
  const wasm = await load(directory, createWasmBackend({ simd, relaxed }));
  const gpu = backend === "webgpu" ? await openGpu() : undefined;
  const loaded = gpu ? await load(directory, gpu) : wasm;
  if (gpu) await check(loaded, wasm);
  const machine = await describe(gpu);
  const prefill = median(await prefillTimes(loaded));
  const speeds = [];
  for (const together of TOGETHER) {
    const ms = median(await tokenTimes(loaded, together, tokens));
    speeds.push({ together, ms, tokensPerSecond: together * 1000 / ms });
  }
  gpu?.close();
  const ways = oneOf("worker", flags.worker, ["true", "false"]) === "true"
    ? await journeys(directory, backend)
    : [];
  say(`${machine.adapter}; ${machine.processor}, ${machine.cores} cores; load ${machine.load.toFixed(1)}`);
  say("| answers at once | tokens/s | ms a pass |\n|---|---|---|");
  for (const { together, tokensPerSecond, ms } of speeds) {
    say(`| ${together} | ${tokensPerSecond.toFixed(1)} | ${ms.toFixed(2)} |`);
  }
  say(`\nprefill, ${loaded.rows} positions: ${prefill.toFixed(1)} ms\n`);
  if (ways.length) {
    say("| pictures as | bytes of a request | first token, HTTP | NATS | here |\n|---|---|---|---|---|");
  }
  for (const { form, bytes, ...way } of ways) {
    const cells = [way.httpMs, way.natsMs, way.hereMs].map((it) =>
      it === undefined ? "" : `${it.toFixed(1)} ms`
    );
    say(`| ${form} | ${bytes} | ${cells.join(" | ")} |`);
  }
  if (flags.json) {
    const found = { machine, model: directory, prefillMs: prefill, speeds, ways };
    await Deno.writeTextFile(flags.json, JSON.stringify(found, null, 1) + "\n");
  }
  return 0;
}

async function describe(gpu: WebgpuBackend | undefined) {
  const text = await Deno.readTextFile("/proc/cpuinfo").catch(() => "");
  const field = (name: string) => text.match(new RegExp(`^${name}\\s*: (.*)$`, "mi"))?.[1] ?? "?";
  return {
    adapter: gpu ? `${gpu.adapter}${gpu.software ? ", software" : ""}` : "WebAssembly, one thread",
    features: gpu?.features,
    processor: `${field("model name")}, family ${field("cpu family")}, model ${field("model")}`,
    cores: navigator.hardwareConcurrency,
    load: Deno.loadavg()[0],
  };
}

const say = (line: string) => Deno.stdout.writeSync(new TextEncoder().encode(`${line}\n`));

if (import.meta.main) await runCommand(import.meta.filename!, main);
