/**
 * onnxruntime, compiled to WebAssembly and to this machine, on the shapes of the true models, from the ONNX files this
 * project writes, with random weights.
 *
 *     deno run -A --no-lock tests/bench/peer_ort.ts [--only WORK,…] [--weights f32|int8|int4]
 *         [--engine onnxruntime-web|onnxruntime-node] [--threads N] [--whole]
 *
 * prints one JSON row per work and engine. Every work runs in a process of its own: onnxruntime's memory never shrinks and its
 * threads are set once. Of Gemma's 18 layers 3 are run, with weights of their own, and count six times; the head is run
 * once. The whole takes minutes; `--whole` runs it.
 */

import { directoryFiles } from "../../functions/model.ts";
import { EMBEDDING, VISION_LAYER } from "../../lib/weights/table.ts";
import { type OnnxPart, openSession, type Ort, type OrtTensor, readOnnx } from "../../lib/weights/onnx.ts";
import { exportPart } from "../../models/export_onnx.ts";
import { type OnnxFormat, OnnxOps } from "../../models/onnx_ops.ts";
import { DataType, OnnxWriter } from "../../models/onnx_writer.ts";
import { loadOrt } from "../../functions/ort.ts";
import { oneOf, parseFlags, runCommand, threadsIn, UsageError } from "./command_line.ts";
import { configOf, randomWeights } from "../ort/random_weights.ts";

/** 300 MB unpacked, named here and fetched when it runs. Its binary for a processor is in the package: no script is needed. */
const ORT_NODE = "npm:onnxruntime-node@1.30.0";

/** What measures. */
export type PeerEngine = "onnxruntime-web" | "onnxruntime-node";

export const PEER_ENGINES: readonly PeerEngine[] = ["onnxruntime-web", "onnxruntime-node"];

/** One measured figure, as the benchmark writes it. */
export interface PeerResult {
  readonly work: string;
  readonly engine: PeerEngine;
  readonly weights: OnnxFormat;
  readonly threads: number;
  /** Of `decode-32`: milliseconds per token. */
  readonly medianMs: number;
  readonly runs: number;
  /** Resident memory of the process after the runs. */
  readonly rssBytes: number;
  /** Layers that were run, where they stand for all. */
  readonly layersMeasured?: number;
}

interface Work {
  readonly work: string;
  readonly weights: OnnxFormat;
  readonly runs: number;
}

/** All works. Decoding with int4 takes about 10 s a token, so two must do. */
export const PEER_WORKS: readonly Work[] = [
  { work: "gemm-f32", weights: "f32", runs: 9 },
  { work: "gemm-int8", weights: "int8", runs: 9 },
  { work: "siglip-224", weights: "int8", runs: 3 },
  { work: "siglip-448", weights: "int8", runs: 1 },
  { work: "prefill-264", weights: "int8", runs: 2 },
  { work: "prefill-264", weights: "int4", runs: 1 },
  { work: "decode-32", weights: "int8", runs: 5 },
  { work: "decode-32", weights: "int4", runs: 2 },
];

/** Layers of Gemma that stand for all. */
const LAYERS = 3;

/** Settings of {@link ortWorks}. */
export interface PeerOptions {
  readonly only?: readonly string[];
  readonly weights?: OnnxFormat;
  readonly engine?: PeerEngine;
  readonly threads?: number;
  /** Run all layers of Gemma. */
  readonly whole?: boolean;
}

/**
 * Measures the works that are asked for, one process each.
 *
 * @throws {Error} with the reason where an engine cannot be had or fails.
 */
export async function* ortWorks(
  { only, weights, engine, threads = 1, whole }: PeerOptions,
): AsyncGenerator<PeerResult> {
  for (const it of PEER_WORKS) {
    if (only && !only.includes(it.work) || weights && weights !== it.weights) continue;
    for (const by of engine ? [engine] : PEER_ENGINES) {
      const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
        args: [
          ...["run", "-A", "--quiet", "--no-lock", import.meta.filename!, "--one", "--only", it.work],
          ...[
            "--weights",
            it.weights,
            "--engine",
            by,
            "--threads",
            `${threads}`,
            ...whole ? ["--whole"] : [],
          ],
        ],
      }).output();
      const lines = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim().split("\n");
      if (code) throw new Error(`${by} failed at ${it.work}, ${it.weights}: ${lines(stderr).at(-1)}`);
      yield JSON.parse(lines(stdout).at(-1)!);
    }
  }
}

/** An engine in this process, and what its sessions are told. */
interface Engine {
  readonly ort: Ort;
  readonly session?: Record<string, unknown>;
}

async function load(engine: PeerEngine, threads: number): Promise<Engine> {
  if (engine === "onnxruntime-web") return { ort: await loadOrt(threads) };
  const { default: ort } = await import(ORT_NODE);
  return { ort, session: { intraOpNumThreads: threads, interOpNumThreads: 1 } };
}

/** What a session took, milliseconds. */
interface Timed {
  readonly median: number;
  readonly runs: number;
}

/** Measures one work in this process. */
async function measure(
  { work, weights, runs }: Work,
  by: PeerEngine,
  threads: number,
  whole: boolean,
): Promise<PeerResult> {
  const engine = await load(by, threads);
  const row = ({ median: medianMs, runs }: Timed, more: Partial<PeerResult> = {}): PeerResult => {
    const rssBytes = Deno.memoryUsage().rss;
    return { work, engine: by, weights, threads, medianMs, runs, rssBytes, ...more };
  };
  if (work.startsWith("gemm")) {
    const { width } = configOf({ family: "gemma" }).vision;
    return row(await linear(engine, `${VISION_LAYER}0.mlp.fc1`, weights, [256, width], runs));
  }
  if (work.startsWith("siglip")) return row(await siglip(engine, Number(work.slice(7)), runs));
  const { layers, width } = configOf({ family: "gemma" }).decoder;
  const rows = work === "prefill-264" ? 264 : 1;
  if (whole) return row(await gemma(engine, weights, { layers }, rows, runs));
  const some = await gemma(engine, weights, { layers: LAYERS, vocab: 1024 }, rows, runs);
  const head = await linear(engine, EMBEDDING, "int8", [1, width], 5);
  const median = some.median / LAYERS * layers + head.median;
  return row({ median, runs: some.runs }, { layersMeasured: LAYERS });
}

/** One matrix of the model, with its bias where it has one: x [T, K]. */
function linear(
  engine: Engine,
  name: string,
  format: OnnxFormat,
  shape: [number, number],
  runs: number,
): Promise<Timed> {
  const weights = randomWeights(configOf({ family: "gemma" }), { fast: true });
  const build = async (directory: string) => {
    const file = new OnnxWriter(directory, "linear.onnx");
    const x = file.input("x", DataType.f32, [1, ...shape]);
    const ops = new OnnxOps(file, weights);
    const y = name === EMBEDDING
      ? await ops.linear(x, name, format)
      : await ops.linear(x, `${name}.weight`, format, `${name}.bias`);
    file.output(y, DataType.f32, [1, shape[0], "columns"]);
    await file.close();
    return file.name;
  };
  return time(engine, build, { x: floats(engine, [1, ...shape]) }, runs);
}

/** SigLIP-So400m and the projector, one picture. */
function siglip(engine: Engine, imageSize: number, runs: number): Promise<Timed> {
  const weights = randomWeights(configOf({ family: "gemma", imageSize }), { fast: true });
  const pixels = floats(engine, [1, 3, imageSize, imageSize]);
  return time(engine, (it) => part(weights, it, "vision_encoder", "int8"), { pixel_values: pixels }, runs);
}

/** Gemma-2B, or some of its layers and vocabulary: 264 rows into an empty cache, or one row onto 264. */
function gemma(
  engine: Engine,
  format: OnnxFormat,
  sizes: { layers: number; vocab?: number },
  rows: number,
  runs: number,
): Promise<Timed> {
  const config = configOf({ family: "gemma", decoder: sizes });
  const { width, kvHeads, headDim, layers } = config.decoder;
  const past = rows === 1 ? 264 : 0;
  const feeds: Record<string, OrtTensor> = {
    inputs_embeds: floats(engine, [1, rows, width]),
    position_ids: new engine.ort.Tensor(
      "int64",
      BigInt64Array.from({ length: rows }, (_, i) => BigInt(past + i)),
      [
        1,
        rows,
      ],
    ),
  };
  for (let i = 0; i < layers; i++) {
    for (const it of ["key", "value"]) {
      feeds[`past_key_values.${i}.${it}`] = floats(engine, [1, kvHeads, past, headDim]);
    }
  }
  const weights = randomWeights(config, { fast: true });
  return time(engine, (it) => part(weights, it, "decoder_model_merged", format), feeds, runs);
}

function part(
  weights: ReturnType<typeof randomWeights>,
  directory: string,
  name: OnnxPart,
  format: OnnxFormat,
) {
  const vision = format === "int4" ? "int8" : format;
  return exportPart(weights, directory, name, { vision, decoder: format });
}

/** Builds a model in a temporary directory, runs it once to warm up, then `runs` times. */
async function time(
  { ort, session: options }: Engine,
  build: (directory: string) => Promise<string>,
  feeds: Record<string, OrtTensor>,
  runs: number,
): Promise<Timed> {
  const directory = await Deno.makeTempDir();
  const session = await (async () => {
    try {
      return await openSession(
        ort,
        await readOnnx(directoryFiles(directory), await build(directory)),
        options,
      );
    } finally {
      await Deno.remove(directory, { recursive: true });
    }
  })();
  const times: number[] = [];
  for (let i = 0; i <= runs; i++) {
    const before = performance.now();
    const outputs = await session.run(feeds);
    if (i) times.push(performance.now() - before);
    const { data } = Object.values(outputs)[0];
    if (!(data as Float32Array).every(Number.isFinite)) {
      throw new RangeError("onnxruntime gave no numbers");
    }
  }
  await session.release();
  times.sort((a, b) => a - b);
  return { median: (times[(runs - 1) >> 1] + times[runs >> 1]) / 2, runs };
}

/** Numbers from -1 to 1. */
function floats({ ort }: Engine, dims: number[]): OrtTensor {
  const length = dims.reduce((product, it) => product * it, 1);
  return new ort.Tensor("float32", Float32Array.from({ length }, (_, i) => Math.sin(i * 1.7)), dims);
}

if (import.meta.main) await runCommand(import.meta.filename!, main);

async function main(): Promise<number> {
  const { values: flags } = parseFlags({
    only: { type: "string" },
    weights: { type: "string" },
    engine: { type: "string" },
    threads: { type: "string", default: "1" },
    whole: { type: "boolean", default: false },
    one: { type: "boolean", default: false },
  });
  const works = PEER_WORKS.map((it) => it.work);
  const only = flags.only?.split(",").map((it) => oneOf("only", it, works));
  const weights = flags.weights && oneOf<OnnxFormat>("weights", flags.weights, ["f32", "int8", "int4"]);
  const engine = flags.engine && oneOf("engine", flags.engine, PEER_ENGINES);
  const threads = threadsIn(flags.threads);
  const chosen = PEER_WORKS.filter((it) =>
    (only?.includes(it.work) ?? true) && (weights || it.weights) === it.weights
  );
  if (!chosen.length) {
    const known = PEER_WORKS.map((it) => `${it.work} in ${it.weights}`).join(", ");
    throw new UsageError(`Expected one of ${known}, found ${flags.only} in ${weights}`);
  }
  const say = (to: typeof Deno.stdout | typeof Deno.stderr, text: string) =>
    to.writeSync(new TextEncoder().encode(`${text}\n`));
  if (flags.one) {
    try {
      const row = await measure(chosen[0], engine || "onnxruntime-web", threads, flags.whole);
      say(Deno.stdout, JSON.stringify(row));
    } catch (error) {
      say(Deno.stderr, (error as Error).message.split("\n")[0]);
      Deno.exit(1);
    }
    Deno.exit(0); // the threads of onnxruntime would keep the process alive
  }
  const options = { only, weights: weights || undefined, engine: engine || undefined };
  for await (const row of ortWorks({ ...options, threads, whole: flags.whole })) {
    say(Deno.stdout, JSON.stringify(row));
  }
  return 0;
}
