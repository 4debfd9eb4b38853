/** The command line. `deno task cli help` prints the usage below. */

import { join } from "@std/path";
import {
  type Answer,
  collect,
  promptOf,
  type Question,
  RequestError,
  type ResizeMethod,
  type Task,
  type WeightFormat,
} from "../lib/mod.ts";
import type { AnswerEvent } from "../lib/mod.ts";
import { decodePicture } from "../lib/preprocess/decode.ts";
import { encodePng } from "../lib/vision/mask_forms.ts";
import { annotate } from "../models/annotate.ts";
import { demo } from "../models/demo.ts";
import { evaluate, type Marked, progressLine, report } from "../models/evaluation/evaluate.ts";
import { writeHtml } from "../models/evaluation/html.ts";
import { oneOf, parsed, UsageError } from "./command_line.ts";
import { type Engine, loadModel, type ModelOptions, TINY } from "./model.ts";
import { modelsCommand } from "./models.ts";

const USAGE = `PaliGemma Edge

  run --image FILE [--image FILE …] --prompt TEXT   answer a prompt
  caption IMAGE [LANGUAGE]      describe the picture
  answer IMAGE QUESTION         answer a question about it, in English
  detect IMAGE "A ; B"          boxes around things
  segment IMAGE "A ; B"         boxes and mask tokens
  ocr IMAGE                     read the text in it
  classify IMAGE --labels A,B,C|FILE [--template TEXT]   how likely each label is (FILE: one label a line)
  eval --data FILE.jsonl [--task NAME] [--json FILE] [--html DIR]   accuracy, by the task's own metric, beside what
                                was published; with --json or --html an interrupted run goes on where it was
  models list [DIR]             models that are bundled, known, and in DIR
  models info DIR|ID [--json]   what a model is, takes and fits
  models pull ID|OWNER/REPO[@REVISION] --out DIR   download (HF_TOKEN, HF_ENDPOINT); run again, it goes on
  models verify DIR             every byte that can be checked
  models convert DIR|FILE.npz --out DIR [--vision int8|int4|f16|f32] [--decoder int4|int8|f16|f32]
    [--group 32] [--adapter DIR] [--embedding int8|int4|f16|f32] [--calibrate DIR]
                                quantised weights; a LoRA adapter is merged; int4 is rounded by what pictures show
  models export-onnx DIR --out DIR [--vision int8|f32] [--decoder int4|int8|f32] [--sliding-window off|hf]
                                ONNX files for --backend ort, in the layout of transformers.js
  models eval-quant DIR --data FILE [--questions 100] [--calibrate DIR] [--wider N [--layers 2]] [--json]
                                what each scheme costs against f32 (with N: random weights, N times as wide)
  models synth SHAPE --out DIR [--decoder int4|int8]   random weights of true shape, for benchmarks
  pool check URL [--model DIR] [--tolerance 0.05] [--json]
                                whether workers behind http: (POOL_SIGNING_KEY), or a server behind openai+http: or
                                vllm+http: (POOL_API_KEY), answer as this machine does, and how far they are off
  demo                          the bundled model on bundled pictures

Options
  --out FILE            with a picture: boxes, labels and masks drawn on it, as PNG; prints JSON
  --model DIR           model directory in Hugging Face layout; the bundled model by default
  --max-tokens N        tokens at most
  --temperature T --top-k K --top-p P --seed S      sampling; greedy by default
  --ignore-eos          go on after the end of the answer
  --constrained         hold the answer to detect or segment to its grammar
  --answer-start TEXT   what the answer starts with
  --loc-scale 1024|1023   what 1 is in locations
  --nms IOU             of boxes of one label that overlap more, keep the surest
  --masks rle|polygon|png   form of masks
  --allow-tokens        read <loc0001> and <seg001> in the prompt as tokens, not as text
  --backend wasm|webgpu|reference|ort   our kernels, the same on a GPU (npm's webgpu is fetched), plain loops, or
                        onnxruntime-web on the ONNX files in DIR/onnx
  --threads N           of our kernels, with the same answers, or of onnxruntime-web; by default 1, for
                        models above 128 MB as many as the machine has, at most 8
  --weights as-stored|f32|int8|int4
  --resize hf-bicubic|bv-bilinear-aa
  --alpha drop|white    transparency: ignored, or on white
  --sliding-window off|hf     PaliGemma 2 beyond 4096 positions: as trained, or as in transformers
  --json                one JSON object (with eval: --json FILE)
  --logits N            with --json: the N best logits of every step
`;

const SHORT_FORMS: Readonly<Record<string, (words: string) => Task>> = {
  caption: (language) => ({ task: "caption", language: language || undefined }),
  answer: (question) => ({ task: "answer", question }),
  detect: (things) => ({ task: "detect", labels: things.split(";") }),
  segment: (things) => ({ task: "segment", labels: things.split(";") }),
  ocr: () => ({ task: "ocr" }),
};

function parse(args: readonly string[], jsonTakesFile: boolean) {
  return parsed(args, {
    model: { type: "string", default: TINY },
    image: { type: "string", multiple: true, default: [] },
    prompt: { type: "string" },
    data: { type: "string" },
    task: { type: "string" },
    out: { type: "string" },
    html: { type: "string" },
    labels: { type: "string" },
    template: { type: "string", default: "answer en what is this?" },
    vision: { type: "string", default: "int8" },
    decoder: { type: "string", default: "int4" },
    "max-tokens": { type: "string" },
    temperature: { type: "string" },
    "top-k": { type: "string" },
    "top-p": { type: "string" },
    seed: { type: "string" },
    logits: { type: "string" },
    backend: { type: "string", default: "wasm" },
    threads: { type: "string" },
    weights: { type: "string", default: "as-stored" },
    resize: { type: "string", default: "hf-bicubic" },
    alpha: { type: "string", default: "drop" },
    "sliding-window": { type: "string", default: "off" },
    "ignore-eos": { type: "boolean" },
    "allow-tokens": { type: "boolean" },
    constrained: { type: "boolean" },
    "answer-start": { type: "string" },
    "loc-scale": { type: "string", default: "1024" },
    nms: { type: "string" },
    masks: { type: "string", default: "rle" },
    json: jsonTakesFile ? { type: "string" } : { type: "boolean" },
  });
}

type Flags = ReturnType<typeof parse>["values"];

function number(flag: string, value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  const found = Number(value);
  if (value.trim() === "" || Number.isNaN(found)) {
    throw new UsageError(`--${flag}: expected a number, found "${value}"`);
  }
  return found;
}

function modelOptions(flags: Flags): ModelOptions {
  const threads = number("threads", flags.threads);
  if (threads !== undefined && (!Number.isInteger(threads) || threads < 1 || threads > 64)) {
    throw new UsageError(`--threads: expected a whole number from 1 to 64, found "${flags.threads}"`);
  }
  return {
    threads,
    backend: oneOf<Engine>("backend", flags.backend!, ["wasm", "webgpu", "reference", "ort"]),
    onNotice: warn,
    weights: oneOf<WeightFormat>("weights", flags.weights!, ["as-stored", "f32", "int8", "int4"]),
    resize: oneOf<ResizeMethod>("resize", flags.resize!, ["hf-bicubic", "bv-bilinear-aa"]),
    slidingWindow: oneOf<"off" | "hf">("sliding-window", flags["sliding-window"]!, ["off", "hf"]),
  };
}

async function readImage(path: string): Promise<Uint8Array> {
  try {
    return await Deno.readFile(path);
  } catch (error) {
    throw new RequestError("image_missing", `Cannot read the picture ${path}: ${(error as Error).message}`);
  }
}

async function run(
  flags: Flags,
  paths: readonly string[],
  prompt: string,
  signal: AbortSignal,
): Promise<void> {
  const given = {
    temperature: number("temperature", flags.temperature),
    topK: number("top-k", flags["top-k"]),
    topP: number("top-p", flags["top-p"]),
    seed: number("seed", flags.seed),
  };
  const question: Question = {
    images: await Promise.all(paths.map(readImage)),
    prompt,
    maxTokens: number("max-tokens", flags["max-tokens"]),
    sampling: Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
    ignoreEos: flags["ignore-eos"],
    topLogits: number("logits", flags.logits),
    alpha: oneOf<"drop" | "white">("alpha", flags.alpha!, ["drop", "white"]),
    tokens: flags["allow-tokens"] ? "allow" : "plain",
    constrained: flags.constrained,
    answerStart: flags["answer-start"],
    locScale: oneOf("loc-scale", flags["loc-scale"]!, ["1024", "1023"]) === "1024" ? 1024 : 1023,
    nms: number("nms", flags.nms),
    masks: oneOf<"rle" | "polygon" | "png">("masks", flags.masks!, ["rle", "polygon", "png"]),
  };
  if (flags.out !== undefined && (paths.length !== 1 || question.masks !== "rle")) {
    throw new UsageError("--out: expected one picture, and masks as rle");
  }
  const pipeline = await loadModel(flags.model!, modelOptions(flags));
  const events = pipeline.answer(question, signal);
  const json = flags.json || flags.out !== undefined;
  const answer = await collect(json ? events : shown(events));
  if (flags.out !== undefined) {
    const drawn = annotate(await decodePicture(question.images[0], { maxPixels: Infinity }), answer.items);
    await Deno.writeFile(flags.out, await encodePng(drawn.data, drawn.width, drawn.height));
  }
  if (json) await print(JSON.stringify(answer) + "\n");
  else await summary(answer);
}

async function classify(flags: Flags, path: string, signal: AbortSignal): Promise<void> {
  const pipeline = await loadModel(flags.model!, modelOptions(flags));
  const found = await pipeline.classify({
    images: [await readImage(path)],
    prompt: flags.template!,
    labels: await readLabels(flags.labels!),
    alpha: oneOf<"drop" | "white">("alpha", flags.alpha!, ["drop", "white"]),
    tokens: flags["allow-tokens"] ? "allow" : "plain",
  }, signal);
  if (flags.json) return await print(JSON.stringify(found) + "\n");
  for (const { label, probability } of found.labels) await print(`${probability.toFixed(4)}  ${label}\n`);
}

/** A file with one label a line, or labels with commas between them. */
async function readLabels(value: string): Promise<string[]> {
  const text = await Deno.readTextFile(value).catch((error) => {
    const noFile = [Deno.errors.NotFound, Deno.errors.IsADirectory, Deno.errors.NotADirectory];
    if (noFile.some((it) => error instanceof it)) return undefined;
    throw error;
  });
  return (text?.split("\n") ?? value.split(",")).map((it) => it.trim()).filter(Boolean);
}

/** Passes a stream on while writing its text to the terminal. */
async function* shown(events: AsyncIterable<AnswerEvent>): AsyncGenerator<AnswerEvent> {
  for await (const event of events) {
    if (event.type === "token") await print(event.text);
    yield event;
  }
  await print("\n");
}

async function summary({ items, timings, tokenIds, finishReason }: Answer): Promise<void> {
  for (const { box, label, confidence } of items) {
    const sides = [box.yMin, box.xMin, box.yMax, box.xMax].map((it) => it.toFixed(3)).join(" ");
    await print(`  ${label}  yMin xMin yMax xMax ${sides}  confidence ${confidence.toFixed(2)}\n`);
  }
  const ms = (value: number) => `${value.toFixed(0)} ms`;
  await warn(
    `${tokenIds.length} tokens (${finishReason}) · preprocess ${ms(timings.preprocess)} · vision ${
      ms(timings.vision)
    }` +
      ` · prefill ${ms(timings.prefill)} · ${timings.perToken.toFixed(1)} ms a token`,
  );
}

async function print(text: string, to: typeof Deno.stdout | typeof Deno.stderr = Deno.stdout): Promise<void> {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) at += await to.write(bytes.subarray(at));
}

function warn(line: string): Promise<void> {
  return print(`${line}\n`, Deno.stderr);
}

async function main(args: readonly string[], signal: AbortSignal): Promise<void> {
  const [command = "help", ...rest] = args;
  if (command === "help" || command === "--help") return await print(USAGE);
  if (command === "models") return await modelsCommand(rest, print, signal);
  if (command === "pool") {
    const { poolCommand } = await import("./pool_check.ts"); // NATS and all, which nobody else needs
    return await poolCommand(rest, print);
  }
  const { values: flags, positionals } = parse(rest, command === "eval");
  if (command === "run") {
    if (flags.prompt === undefined) throw new UsageError("run: expected --prompt TEXT, found none");
    return await run(flags, flags.image!, flags.prompt, signal);
  }
  if (command in SHORT_FORMS) {
    const [image, ...words] = positionals;
    if (!image) throw new UsageError(`${command}: expected a picture, found none`);
    return await run(flags, [image], promptOf(SHORT_FORMS[command](words.join(" ").trim())).prompt, signal);
  }
  if (command === "classify") {
    const [image] = positionals;
    if (!image || !flags.labels) throw new UsageError("classify: expected IMAGE --labels A,B,C or a file");
    return await classify(flags, image, signal);
  }
  if (command === "eval") {
    if (!flags.data) throw new UsageError("eval: expected --data FILE, found none");
    const pipeline = await loadModel(flags.model!, modelOptions(flags));
    const { json, html } = flags as { json?: string; html?: string };
    if (html !== undefined) await makeFolder(html);
    const log = json !== undefined
      ? `${json}.answers`
      : html !== undefined
      ? join(html, "answers.jsonl")
      : undefined;
    const marked: Marked[] = [];
    const result = await evaluate(pipeline, flags.data, {
      task: flags.task,
      constrained: flags.constrained,
      log,
      signal,
      progress: evalProgress(),
      marked: (them) => them.forEach((it) => marked.push(it)),
    });
    if (html !== undefined) await writeHtml(html, result, marked, flags.data);
    if (json !== undefined) await writeWhole(json, JSON.stringify(result) + "\n");
    if (log !== undefined) await Deno.remove(log);
    return await print(report(result));
  }
  if (command === "demo") {
    return await demo(await loadModel(flags.model!, modelOptions(flags)), print, signal);
  }
  throw new UsageError(`expected one of the commands below, found "${command}"`);
}

/** A bar on the terminal; silent where the output is not one. Speed is of this run, not of what an earlier one did. */
function evalProgress(): ((done: number, total: number) => void) | undefined {
  if (!Deno.stderr.isTerminal()) return undefined;
  const start = performance.now();
  let before: number | undefined;
  return (done, total) => {
    before ??= done - 1;
    const line = progressLine(done, total, { done: before, elapsedMs: performance.now() - start });
    Deno.stderr.writeSync(new TextEncoder().encode(`\r${line}\x1b[K${done === total ? "\n" : ""}`));
  };
}

async function makeFolder(path: string): Promise<void> {
  try {
    await Deno.mkdir(path, { recursive: true });
  } catch (error) {
    throw new RequestError("storage_failed", `Cannot write to ${path}: ${(error as Error).message}`);
  }
}

/** Writes a file under another name first, so that half of it is never taken for the whole. */
async function writeWhole(path: string, text: string): Promise<void> {
  try {
    await Deno.writeTextFile(`${path}.part`, text);
    await Deno.rename(`${path}.part`, path);
  } catch (error) {
    throw new RequestError("storage_failed", `Cannot write ${path}: ${(error as Error).message}`);
  }
}

const stop = new AbortController();
const interrupt = () => stop.abort();
Deno.addSignalListener("SIGINT", interrupt);
try {
  await main(Deno.args, stop.signal);
  if (stop.signal.aborted) Deno.exitCode = 130;
} catch (error) {
  if (error instanceof UsageError) {
    await warn(`${error.message}\n\n${USAGE}`);
    Deno.exitCode = 2;
  } else if (error instanceof RequestError) {
    await warn(error.message);
    Deno.exitCode = stop.signal.aborted ? 130 : 1;
  } else throw error;
} finally {
  Deno.removeSignalListener("SIGINT", interrupt);
}
