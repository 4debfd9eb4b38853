/**
 * What quantised weights cost, printed beside what they gain: logits of int8 and int4 against f32 on the bundled model
 * and on the small random checkpoints of the tests, and the bundled model's answers to scenes drawn for the purpose.
 */

import { join } from "@std/path";
import { createPipeline, createWasmBackend, type WeightFormat } from "../../lib/mod.ts";
import { directoryFiles, TINY } from "../../functions/model.ts";
import { type LogitError, logitError, trace } from "../../models/eval_quant.ts";
import { evaluate } from "../../models/evaluation/evaluate.ts";
import { readShown, type Shown } from "../../models/stages.ts";
import { relaxed, simd } from "../../wasm/kernels.js";

/** One row: a model with its weights in a format, against the same in f32. */
export interface Quality extends LogitError {
  /** `tiny`, or the name of a checkpoint of the tests. */
  readonly model: string;
  readonly weights: "f32" | "int8" | "int4";
  /** Right answers of all, 0 to 1, and how many were asked for; the bundled model only, and where python3 draws. */
  readonly accuracy?: number;
  readonly questions?: number;
}

/** Scenes drawn, of about eight questions each; their seed is none that training drew. */
const SCENES = { seed: 812_000, count: 25 };
const QUESTIONS = 40;
const TOKENS = 16;
const FORMATS = ["f32", "int8", "int4"] as const;

const CHECKPOINTS = new URL("../golden/checkpoints/", import.meta.url).pathname;
const FIXTURE = new URL("../fixtures/scene.png", import.meta.url).pathname;

/** All rows, each as soon as it is known. */
export async function* quality(): AsyncGenerator<Quality> {
  const scene = await Deno.readFile(FIXTURE);
  for (const name of ["pg1", "pg2"]) {
    const prompts = ["caption en", "ocr", "detect star ; heart", "answer en what is this?"];
    yield* compared(name, join(CHECKPOINTS, name), prompts.map((prompt) => ({ image: scene, prompt })));
  }
  const drawn = await Deno.makeTempDir({ prefix: "scenes" });
  try {
    const data = await draw(drawn);
    if (data) return yield* compared("tiny", TINY, await readShown(data, QUESTIONS), data);
    yield* compared("tiny", TINY, await pictures());
  } finally {
    await Deno.remove(drawn, { recursive: true });
  }
}

async function* compared(
  model: string,
  directory: string,
  questions: readonly Shown[],
  data?: string,
): AsyncGenerator<Quality> {
  const files = directoryFiles(directory);
  const subject = (format: WeightFormat) => ({
    backend: createWasmBackend({ simd, relaxed }),
    files,
    format,
  });
  const truth = await trace(subject("f32"), questions, TOKENS);
  for (const weights of FORMATS) {
    const error = await logitError(subject(weights), questions, truth);
    const answers = data === undefined ? undefined : await evaluate(
      await createPipeline({ ...subject(weights), weights, name: model }),
      data,
    );
    yield {
      ...{ model, weights, ...error },
      ...answers && { accuracy: answers.accuracy, questions: answers.n },
    };
  }
}

/** The data set, or nothing where there is no python3 to draw it. */
async function draw(out: string): Promise<string | undefined> {
  const { seed, count } = SCENES;
  const args = [
    join(TINY, "scenes.py"),
    "--seed",
    `${seed}`,
    "--count",
    `${count}`,
    "--task",
    "all",
    "--out",
    out,
  ];
  try {
    const { success } = await new Deno.Command("python3", { args, stdout: "null", stderr: "inherit" })
      .output();
    return success ? join(out, "data.jsonl") : undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** The pictures that come with the model. */
async function pictures(): Promise<Shown[]> {
  const directory = join(TINY, "pictures");
  const names = [...Deno.readDirSync(directory)].map((it) => it.name).filter((it) => it.endsWith(".png"))
    .sort();
  return (await Promise.all(names.map((it) => Deno.readFile(join(directory, it))))).flatMap((image) =>
    ["caption en", "ocr"].map((prompt) => ({ image, prompt }))
  );
}

/** A row for the terminal. */
export function qualityLine({ model, weights, ...it }: Quality): string {
  const parts = [
    `quality ${model} ${weights}`.padEnd(35),
    `logit error mean ${it.meanError.toFixed(4)} max ${it.maxError.toFixed(3)}`,
    `KL ${it.kl.toExponential(2)}`,
    `top-1 ${(100 * it.top1).toFixed(1)} %`,
  ];
  if (it.accuracy !== undefined) {
    parts.push(`${(100 * it.accuracy).toFixed(1)} % of ${it.questions} questions`);
  }
  return parts.join("  ");
}
