/**
 * Decode tokens a second on WebGPU for 1, 4 and 16 sequences a pass, in a table with the machine's name, after a check
 * that the tokens are WASM's: `deno task bench:webgpu [--model DIR] [--provider dawn|deno] [--tokens 32] [--json FILE]`.
 */

import { parseArgs } from "node:util";
import { openGpu } from "../../functions/gpu.ts";
import { directoryFiles, TINY } from "../../functions/model.ts";
import { type Backend, createWasmBackend } from "../../lib/mod.ts";
import type { Decoder } from "../../lib/decode/decoder.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { argmax } from "../../lib/decode/sampler.ts";
import { readConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";

const { values: flags } = parseArgs({
  options: {
    model: { type: "string", default: TINY },
    provider: { type: "string" },
    tokens: { type: "string", default: "32" },
    json: { type: "string" },
  },
});
const SEQUENCES = [1, 4, 16];
const PREFIX = 64;
const tokens = Number(flags.tokens);
const files = directoryFiles(flags.model!);
const config = await readConfig(files);
const pause = () => Promise.resolve();

/** The likeliest id, and by how much. */
interface Best {
  readonly id: number;
  readonly margin: number;
}

function best(logits: Float32Array): Best {
  const id = argmax(logits);
  const second = logits.reduce((most, it, at) => at === id ? most : Math.max(most, it), -Infinity);
  return { id, margin: logits[id] - second };
}

const GREEDY = { temperature: 0, topK: 0, topP: 1, random: 0 };

/** Milliseconds a pass where the GPU chooses the ids, and nothing but these is read. */
async function runChoosing({ backend, decoder }: Loaded, sequences: number): Promise<number> {
  const caches: ReturnType<Decoder["cache"]>[] = [];
  for (let i = 0; i < sequences; i++) {
    const cache = decoder.cache(PREFIX + tokens);
    const prefix = backend.tensor(PREFIX, config.decoder.width);
    await decoder.prefill(cache, prefix, Array.from({ length: PREFIX }, (_, at) => 10 + at), pause);
    backend.free(prefix);
    caches.push(cache);
  }
  let ids = caches.map((_, i) => 10 + i);
  const times: number[] = [];
  for (let token = 1; token < tokens; token++) {
    const since = performance.now();
    const turns = caches.map((cache, i) => ({ cache, id: ids[i], choice: GREEDY }));
    ids = (await decoder.steps!(turns, pause)).map((it) => it instanceof Float32Array ? argmax(it) : it.id);
    times.push(performance.now() - since);
  }
  for (const cache of caches) cache.free();
  return times.slice(1).sort((a, b) => a - b)[times.length >> 1];
}

/** What so many sequences find likeliest, token by token along ids that are given, or their own; milliseconds a pass. */
async function run({ backend, decoder }: Loaded, sequences: number, given?: readonly (readonly Best[])[]) {
  const caches: ReturnType<Decoder["cache"]>[] = [];
  const found: Best[][] = [[]];
  for (let i = 0; i < sequences; i++) {
    const ids = Array.from({ length: PREFIX }, (_, at) => 10 + (at * 7 + i * 3) % 500);
    const cache = decoder.cache(PREFIX + tokens);
    const prefix = backend.tensor(PREFIX, config.decoder.width);
    found[0].push(best(await decoder.prefill(cache, prefix, ids, pause)));
    backend.free(prefix);
    caches.push(cache);
  }
  const times: number[] = [];
  for (let token = 1; token < tokens; token++) {
    const ids = (given ?? found)[token - 1].map((it) => it.id);
    const since = performance.now();
    const turns = caches.map((cache, i) => ({ cache, id: ids[i] }));
    const logits = await decoder.steps!(turns, pause) as Float32Array[];
    times.push(performance.now() - since);
    found.push(logits.map(best));
  }
  for (const cache of caches) cache.free();
  return { found, ms: times.slice(1).sort((a, b) => a - b)[times.length >> 1] };
}

/** Fails where a token differs that was not a near tie: activations rounded the other way move logits by less than this. */
function check(found: readonly (readonly Best[])[], expected: readonly (readonly Best[])[]): void {
  expected.forEach((row, token) =>
    row.forEach(({ id, margin }, i) => {
      if (found[token][i].id === id || margin < 0.5) return;
      throw new Error(`Sequence ${i}, token ${token}: ${found[token][i].id}, on WASM ${id} by ${margin}`);
    })
  );
}

interface Loaded {
  readonly backend: Backend;
  readonly decoder: Decoder;
}

async function load(backend: Backend): Promise<Loaded> {
  return { backend, decoder: await loadDecoder(backend, await openWeights(files, config)) };
}

const gpu = await openGpu(flags.provider as "dawn" | "deno" | undefined);
const [onGpu, onWasm] = [await load(gpu), await load(createWasmBackend({ simd, relaxed }))];
const cpu = (await Deno.readTextFile("/proc/cpuinfo").catch(() => "")).match(/^model name\s*: (.*)$/m)?.[1];
const machine = {
  adapter: gpu.adapter,
  software: gpu.software,
  features: gpu.features,
  processor: cpu ?? Deno.build.arch,
  cores: navigator.hardwareConcurrency,
  load: Deno.loadavg()[0],
};
const rows = [];
for (const sequences of SEQUENCES) {
  const expected = await run(onWasm, sequences);
  check((await run(onGpu, sequences, expected.found)).found, expected.found); // compiles, too
  const timed = await run(onGpu, sequences, expected.found);
  await runChoosing(onGpu, sequences);
  const choosing = await runChoosing(onGpu, sequences);
  rows.push({
    sequences,
    tokensPerSecond: sequences * 1000 / timed.ms,
    msPerPass: timed.ms,
    choosingTokensPerSecond: sequences * 1000 / choosing,
    wasmTokensPerSecond: sequences * 1000 / expected.ms,
  });
}
const say = (line: string) => Deno.stdout.writeSync(new TextEncoder().encode(`${line}\n`));
say(
  `${machine.adapter}${machine.software ? ", software" : ""}; ${machine.processor}, ${machine.cores} cores`,
);
say(
  "| sequences a pass | tokens/s | ms a pass | ids chosen on the GPU, tokens/s | WASM, one thread, tokens/s |\n|---|---|---|---|---|",
);
for (const { sequences, ...row } of rows) {
  const figures = [row.tokensPerSecond, row.msPerPass, row.choosingTokensPerSecond, row.wasmTokensPerSecond];
  const cells = figures.map((it) => it.toFixed(1));
  say(`| ${sequences} | ${cells.join(" | ")} |`);
}
if (flags.json) await Deno.writeTextFile(flags.json, JSON.stringify({ machine, rows }) + "\n");
gpu.close();
