import assert from "node:assert/strict";
import { measure, WORKS } from "./bench.ts";
import { kernel } from "./kernels.ts";
import { type LimitName, openLimits, type Yardstick } from "./limits.ts";
import type { Peer, PeerEngine } from "./peers.ts";
import { judge, median, race } from "./statistics.ts";
import { type Clock, openBackend, timed } from "./work.ts";

const settings = { threads: 1 };
const patience = { leastMs: 0, minRounds: 3 };

/** Limits of 10, 20, 30 …, in the order in which they are asked for. */
function yardstick(): Yardstick & { asked: LimitName[] } {
  const asked: LimitName[] = [];
  return { threads: 1, asked, measure: (name) => Promise.resolve(asked.push(name) * 10), close() {} };
}

Deno.test("a figure holds what the JSON promises, its share is that of the limit measured in turns with it", async () => {
  const means = { settings, yardstick: yardstick(), patience };
  const [gemm] = await measure(kernel("tiny", "f32", { t: 5, n: 24, k: 40 }), means);
  assert.deepEqual(
    [gemm.work, gemm.engine, gemm.weights, gemm.threads, gemm.runs, gemm.limit],
    ["tiny", "wasm", "f32", 1, 3, "FMA"],
  );
  assert.deepEqual(means.yardstick.asked, ["multiply_add", "multiply_add", "multiply_add"]);
  assert.equal(gemm.limitRate, 20);
  const operations = 2 * 5 * 24 * 40;
  assert.equal(gemm.gops, operations / gemm.medianMs / 1e6);

  const [once] = await measure(kernel("tiny", "f32", { t: 5, n: 24, k: 40 }), {
    ...means,
    yardstick: yardstick(),
    patience: { leastMs: 0, minRounds: 1 },
  });
  assert.equal(once.shareOfLimit, operations / once.medianMs / 1e6 / 10);
});

Deno.test("a token's figure is held against reads, integers against the kernel that multiplies them", async () => {
  const means = { settings, yardstick: yardstick(), patience };
  const [token] = await measure(kernel("tiny", "int4", { t: 1, n: 16, k: 64 }, 1000), means);
  assert.equal(token.limit, "DRAM read");
  assert.deepEqual(means.yardstick.asked, ["dramRead", "dramRead", "dramRead"]);
  const work = kernel("tiny", "int8", { t: 4, n: 16, k: 64 });
  const six = kernel("tiny", "int8", { t: 6, n: 16, k: 64 });
  for (const [multiplier, limit] of [["dot", "dot-add"], ["words", "pmaddubsw S = 4"]] as const) {
    const asked = { ...means, settings: { ...settings, multiplier, twins: true } };
    assert.equal((await measure(work, asked))[0].limit, limit);
    assert.equal((await measure(six, asked))[0].limit, `${limit} of twins`);
  }
});

Deno.test("peers take their turns by their own clock, and one that failed is left out", async () => {
  const order: string[] = [];
  const peer = (engine: PeerEngine, more: Partial<Peer> = {}): Peer => ({
    ...{ engine, weights: "int8", rssBytes: 1, close: () => Promise.resolve() },
    run: () => Promise.resolve(order.push(engine)),
    ...more,
  });
  const means = { settings, yardstick: yardstick(), patience };
  const peers = [peer("onnxruntime-web"), peer("onnxruntime-node", { failed: "no memory", most: 1 })];
  const [, ...rows] = await measure(kernel("tiny", "f32", { t: 2, n: 8, k: 8 }), means, peers);
  assert.deepEqual(order, ["onnxruntime-web", "onnxruntime-node", "onnxruntime-web", "onnxruntime-web"]);
  assert.deepEqual(rows, [{
    ...{ work: "tiny", engine: "onnxruntime-web", weights: "int8", threads: 1, medianMs: 3, runs: 3 },
    rssBytes: 1,
  }]);
});

Deno.test("every work that the benchmark promises can be asked for", () => {
  const promised = [
    ...["gemm-int8", "gemm-f32", "matvec-int4", "siglip-224", "siglip-448", "siglip-224-streamed"],
    ...["prefill-264", "decode-32"],
  ];
  assert.deepEqual(promised.filter((it) => !WORKS.includes(it)), []);
});

async function run(file: string, ...args: string[]) {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      "--quiet",
      "--no-lock",
      "--no-check",
      new URL(file, import.meta.url).pathname,
      ...args,
    ],
  }).output();
  const text = (it: Uint8Array) => new TextDecoder().decode(it);
  return { code, out: text(stdout), err: text(stderr) };
}

const wrong: [string, string[], RegExp][] = [
  ["bench.ts", ["--only", "gemm-int7"], /^--only: expected gemm-int8, .*, found "gemm-int7"$/],
  ["bench.ts", ["--only", ""], /^--only: expected gemm-int8, .*, found ""$/],
  ["bench.ts", ["--threads", "1,2"], /^--threads: expected a whole number from 1 to 64, found "1,2"$/],
  ["bench.ts", ["--threads", "0"], /^--threads: .* found "0"$/],
  ["bench.ts", ["--least", "soon"], /^--least: expected a whole number of 1 or more, found "soon"$/],
  ["bench.ts", ["--speed"], /^Unknown option '--speed'$/],
  ["bench.ts", ["all"], /^Unexpected argument 'all'$/],
  ["bench.ts", ["--build", "fast"], /^--build: expected simd, relaxed, found "fast"$/],
  ["bench.ts", ["--json", "nowhere/at/all.json"], /^--json: expected a file in a directory that is there, /],
  ["compare.ts", [], /^Expected a git revision, found none/],
  ["compare.ts", ["no-such-thing"], /^Expected a git revision, found "no-such-thing"$/],
  ["compare.ts", ["HEAD", "--rounds", "x"], /^--rounds: expected a whole number of 1 or more, found "x"$/],
  ["workerd.ts", ["--ms", "-1"], /^.*--ms.*$/],
];
Deno.test("a command line that cannot be understood: status 2 and one line, before anything is measured", async () => {
  for (const [file, args, message] of wrong) {
    const { code, out, err } = await run(file, ...args);
    assert.equal(code, 2, `${file} ${args}: ${err}`);
    assert.match(err.replace(/\n$/, ""), message);
    assert.equal(out, "");
  }
});

Deno.test("--help prints what stands at the head of the file, and the works", async () => {
  const { code, out } = await run("bench.ts", "--help");
  assert.equal(code, 0);
  assert.match(out, /^The benchmark: .*\n[\s\S]*deno task bench \[--only WORK,…\] \[--threads N\]/);
  assert.match(out, /\nWorks: gemm-int8, .*quality\n$/);
  assert.doesNotMatch(out, /\*|import/);
});

Deno.test("the limits are ones that a processor can have", () => {
  const measure = openLimits();
  const products = [
    "multiply_add",
    "dot_add",
    "words_1",
    "words_2",
    "words_4",
    "words_8",
    "words_16",
  ] as const;
  const names = [...products, ...products.map((it) => `${it}_twins` as const)] as const;
  for (const rate of names.map((it) => measure(it, 10))) {
    // 3 products of 16 lanes a cycle at 6 GHz are 576; more would mean that the engine left some of them out.
    assert.ok(rate > 1 && rate < 600, `${rate}`);
  }
});

Deno.test("medians, and turns that alternate", async () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 2, 3]), 2.5);
  assert.throws(() => median([]), RangeError);
  const order: string[] = [];
  const runner = (name: string) => ({
    ready: () => Promise.resolve(void order.push(`(${name})`)),
    run: () => Promise.resolve(void order.push(name)),
  });
  const times = await race([runner("a"), runner("b")], { leastMs: 0, minRounds: 3 });
  assert.equal(order.join(" "), "(a) a (b) b (b) b (a) a (a) a (b) b");
  assert.deepEqual(times.map((it) => it.length), [3, 3]);
});

Deno.test("more than 5 % slower is red, 5 % is not, and works that one side lacks are left out", () => {
  const before = new Map([["a", [100, 100, 500]], ["b", [100, 90, 110]], ["c", [1]]]);
  const after = new Map([["a", [105, 105, 1]], ["b", [106, 106, 106]], ["d", [1]]]);
  assert.deepEqual(judge(before, after).map((it) => [it.work, it.ratio, it.red]), [
    ["a", 1.05, false],
    ["b", 1.06, true],
  ]);
});

Deno.test("time is kept by operation, and results stay what they are", async () => {
  const { backend } = await openBackend(settings);
  const clock: Clock = new Map();
  const watched = timed(backend, clock);
  const x = watched.tensor(1, 4);
  watched.write(x, new Float32Array([1, 2, 3, 4]));
  watched.add(x, x);
  assert.deepEqual([...await watched.read(x)], [2, 4, 6, 8]);
  assert.deepEqual([...clock.keys()], ["tensor", "write", "add", "read"]);
  assert.equal(watched.memoryBytes, backend.memoryBytes);
});
