/**
 * The process behind a peer of `peers.ts`: onnxruntime, compiled to WebAssembly or to this machine, with one work of the
 * benchmark on random weights of true shape, from the ONNX files this project writes.
 *
 *     deno run -A --no-lock tests/bench/peer_ort.ts WORK WEIGHTS ENGINE THREADS
 *
 * Writes a line of JSON when it is ready, and one for each line that it reads: the milliseconds of a run. Of Gemma's 18
 * layers 3 are run, with weights of their own, and count six times; the head is run once.
 */

import process from "node:process";
import { createInterface } from "node:readline";
import { directoryFiles } from "../../functions/model.ts";
import { loadOrt } from "../../functions/ort.ts";
import { type OnnxPart, openSession, type Ort, type OrtTensor, readOnnx } from "../../lib/weights/onnx.ts";
import { EMBEDDING, VISION_LAYER } from "../../lib/weights/table.ts";
import { exportPart } from "../../models/export_onnx.ts";
import { type OnnxFormat, OnnxOps } from "../../models/onnx_ops.ts";
import { DataType, OnnxWriter } from "../../models/onnx_writer.ts";
import { configOf, randomWeights } from "../ort/random_weights.ts";
import type { PeerAnswer, PeerEngine } from "./peers.ts";

/** 300 MB unpacked, named here and fetched when it runs. Its binary for a processor is in the package: no script is needed. */
const ORT_NODE = "npm:onnxruntime-node@1.30.0";

/** Layers of Gemma that stand for all. */
const LAYERS = 3;

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

/** One run; resolves to its milliseconds. */
type Timed = () => Promise<number>;

/** Sets a work up, warm, and says of how many layers its time is made. */
async function open(
  work: string,
  weights: OnnxFormat,
  engine: Engine,
): Promise<{ run: Timed; layersMeasured?: number }> {
  const { vision, decoder } = configOf({ family: "gemma" });
  if (work.startsWith("gemm")) {
    return { run: await linear(engine, `${VISION_LAYER}0.mlp.fc1`, weights, [256, vision.width]) };
  }
  if (work.startsWith("siglip")) return { run: await siglip(engine, Number(work.slice(7))) };
  const some = await gemma(engine, weights, work === "prefill-264" ? 264 : 1);
  const head = await linear(engine, EMBEDDING, "int8", [1, decoder.width]);
  const run = async () => await some() / LAYERS * decoder.layers + await head();
  return { run, layersMeasured: LAYERS };
}

/** One matrix of the model, with its bias where it has one: x [T, K]. */
function linear(
  engine: Engine,
  name: string,
  format: OnnxFormat,
  shape: [number, number],
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
  return warm(engine, build, { x: floats(engine, [1, ...shape]) });
}

/** SigLIP-So400m and the projector, one picture. */
function siglip(engine: Engine, imageSize: number): Promise<Timed> {
  const weights = randomWeights(configOf({ family: "gemma", imageSize }), { fast: true });
  const pixels = floats(engine, [1, 3, imageSize, imageSize]);
  return warm(engine, (it) => part(weights, it, "vision_encoder", "int8"), { pixel_values: pixels });
}

/** Some layers of Gemma-2B without its head: 264 rows into an empty cache, or one row onto 264. */
function gemma(engine: Engine, format: OnnxFormat, rows: number): Promise<Timed> {
  const config = configOf({ family: "gemma", decoder: { layers: LAYERS, vocab: 1024 } });
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
  return warm(engine, (it) => part(weights, it, "decoder_model_merged", format), feeds);
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

/** Builds a model in a temporary directory and runs it once, so that it is warm. */
async function warm(
  { ort, session: options }: Engine,
  build: (directory: string) => Promise<string>,
  feeds: Record<string, OrtTensor>,
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
  const run = async () => {
    const before = performance.now();
    const outputs = await session.run(feeds);
    const ms = performance.now() - before;
    const { data } = Object.values(outputs)[0];
    if (!(data as Float32Array).every(Number.isFinite)) {
      throw new RangeError("onnxruntime gave no numbers");
    }
    return ms;
  };
  await run();
  return run;
}

/** Numbers from -1 to 1. */
function floats({ ort }: Engine, dims: number[]): OrtTensor {
  const length = dims.reduce((product, it) => product * it, 1);
  return new ort.Tensor("float32", Float32Array.from({ length }, (_, i) => Math.sin(i * 1.7)), dims);
}

if (import.meta.main) {
  const [work, weights, engine, threads] = Deno.args;
  const say = (answer: PeerAnswer) =>
    Deno.stdout.writeSync(new TextEncoder().encode(`${JSON.stringify(answer)}\n`));
  try {
    const { run, layersMeasured } = await open(
      work,
      weights as OnnxFormat,
      await load(engine as PeerEngine, Number(threads)),
    );
    say({ layersMeasured });
    for await (const _ of createInterface({ input: process.stdin })) {
      say({ ms: await run(), rssBytes: Deno.memoryUsage().rss });
    }
  } catch (error) {
    say({ error: (error as Error).message.split("\n")[0] });
  }
  Deno.exit(0); // the threads of onnxruntime would keep the process alive
}
