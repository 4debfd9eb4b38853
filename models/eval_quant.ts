/**
 * What quantising a checkpoint costs: each scheme against the same weights in f32, on the same pictures and prompts.
 *
 * The f32 model answers greedily; every other model is then led along that answer, so that its logits stand beside
 * those of f32 at every position. Two figures tell where a loss comes from: `rounded` has the weights rounded and
 * everything else in f32, `whole` computes as the product does, with rounded activations too.
 */

import { type Backend, createPipeline, type ModelFiles, RequestError } from "../lib/mod.ts";
import type { WeightFormat } from "../lib/types.ts";
import { directoryFiles } from "../functions/model.ts";
import { type Calibration, convert, type ConvertOptions } from "./convert.ts";
import { evaluate, type TaskResult } from "./evaluation/evaluate.ts";
import { argmax } from "../lib/decode/sampler.ts";
import { openStages, run, type Shown } from "./stages.ts";

/** A way to store a model, by the name that tables give it. */
export interface QuantScheme
  extends Pick<ConvertOptions, "vision" | "decoder" | "embedding" | "calibration"> {
  readonly name: string;
}

/** The schemes that tables compare; those with feedback where a calibration is given. */
export function quantSchemes(calibration?: Calibration): QuantScheme[] {
  const plain: QuantScheme[] = [
    { name: "int8", vision: "int8", decoder: "int8" },
    { name: "int8, decoder int4", vision: "int8", decoder: "int4" },
    { name: "int8, decoder and embedding int4", vision: "int8", decoder: "int4", embedding: "int4" },
    { name: "int4, embedding int8", vision: "int4", decoder: "int4" },
  ];
  if (!calibration) return plain;
  const rounded = plain.slice(1).map((it) => ({ ...it, name: `${it.name}, calibrated`, calibration }));
  return [...plain, ...rounded];
}

/** How far logits are from those of f32, over all positions of all answers. */
export interface LogitError {
  /** Kullback–Leibler divergence of the next-token distribution from that of f32, nats; mean over positions. */
  readonly kl: number;
  /** Share of positions where the likeliest token is that of f32. */
  readonly top1: number;
  /** Of |logit − f32's logit| over positions and vocabulary. */
  readonly meanError: number;
  readonly maxError: number;
}

/** One row of the table. */
export interface QuantResult {
  readonly scheme: string;
  /** Of `model.safetensors`. */
  readonly sizeBytes: number;
  readonly rounded: LogitError;
  readonly whole: LogitError;
  /** With a data set only. */
  readonly accuracy?: number;
  readonly tasks?: readonly TaskResult[];
}

/** What to evaluate on. */
export interface EvalQuantOptions {
  /** Makes the backend of each run. */
  readonly backend: () => Backend;
  readonly schemes: readonly QuantScheme[];
  readonly questions: readonly Shown[];
  /** Tokens that f32 answers with at most, 24 by default. */
  readonly maxTokens?: number;
  /** A data set as `evaluate` takes it, for the accuracy. */
  readonly data?: string;
  readonly signal?: AbortSignal;
  /** Called with each row as it is done, f32 first. */
  readonly done?: (result: QuantResult) => void;
}

/** What a model answered to one question: a token for each position, and the logits that it was chosen from. */
export type Trace = readonly { readonly id: number; readonly logits: Float32Array }[];

/** A model that logits are taken from. */
export interface Subject {
  readonly backend: Backend;
  readonly files: ModelFiles;
  readonly format: WeightFormat;
  readonly signal?: AbortSignal;
}

/** The greedy answers of a model, at most `maxTokens` long, the one that ends them included. */
export async function trace(
  { backend, files, format, signal }: Subject,
  questions: readonly Shown[],
  maxTokens: number,
): Promise<Trace[]> {
  const stages = await openStages(backend, files, format);
  const { eosIds } = stages.config;
  const traces: Trace[] = [];
  for (const shown of questions) {
    const answer: { id: number; logits: Float32Array }[] = [];
    await run(stages, shown, maxTokens, (logits) => {
      const id = argmax(logits);
      answer.push({ id, logits: logits.slice() });
      return eosIds.includes(id) ? undefined : id;
    }, pause(signal));
    traces.push(answer);
  }
  return traces;
}

/** How far a model's logits are from those in the traces, along the answers that the traces tell. */
export async function logitError(
  { backend, files, format, signal }: Subject,
  questions: readonly Shown[],
  traces: readonly Trace[],
): Promise<LogitError> {
  const stages = await openStages(backend, files, format);
  const sum = new ErrorSum();
  for (const [i, shown] of questions.entries()) {
    await run(stages, shown, traces[i].length, (logits, position) => {
      sum.add(logits, traces[i][position].logits);
      return traces[i][position].id;
    }, pause(signal));
  }
  return sum.mean();
}

function pause(signal?: AbortSignal): () => Promise<void> {
  return () => {
    if (!signal?.aborted) return Promise.resolve();
    return Promise.reject(new RequestError("cancelled", "Evaluation cancelled"));
  };
}

/**
 * Converts a checkpoint in each scheme, into a temporary directory that does not outlive the call, and compares.
 *
 * @throws {RequestError} `model_too_large` for a checkpoint that the backend cannot hold in f32; as `convert`.
 */
export async function evalQuant(files: ModelFiles, options: EvalQuantOptions): Promise<QuantResult[]> {
  const { schemes, questions, maxTokens = 24, signal } = options;
  const subject = (from: ModelFiles, format: WeightFormat): Subject => ({
    backend: options.backend(),
    files: from,
    format,
    signal,
  });
  const traces = await trace(subject(files, "f32"), questions, maxTokens);
  const results: QuantResult[] = [];
  const add = async (scheme: string, from: ModelFiles, format: WeightFormat) => {
    const whole = await logitError(subject(from, format), questions, traces);
    const rounded = format === "f32" ? whole : await logitError(subject(from, "f32"), questions, traces);
    const evaluation = options.data === undefined ? undefined : await evaluate(
      await createPipeline({ backend: options.backend(), files: from, name: scheme, weights: format }),
      options.data,
      { signal },
    );
    const sizeBytes = await weightBytes(from);
    const { accuracy, tasks } = evaluation ?? {};
    const result = { scheme, sizeBytes, rounded, whole, accuracy, tasks };
    results.push(result);
    options.done?.(result);
  };
  await add("f32", files, "f32");
  for (const { name, ...format } of schemes) {
    const out = await Deno.makeTempDir({ prefix: "quant" });
    try {
      await convert(files, out, { ...format, signal });
      await add(name, directoryFiles(out), "as-stored");
    } finally {
      await Deno.remove(out, { recursive: true });
    }
  }
  return results;
}

/** Gathers the figures of {@link LogitError} position by position. */
export class ErrorSum {
  #positions = 0;
  #values = 0;
  #kl = 0;
  #agreed = 0;
  #error = 0;
  #most = 0;

  /** Logits found and logits of f32, of one position and one length. */
  add(found: Float32Array, truth: Float32Array): void {
    if (found.length !== truth.length) {
      throw new RangeError(`Cannot compare logits: expected ${truth.length}, found ${found.length}`);
    }
    const [lower, upper] = [logSumExp(found), logSumExp(truth)];
    for (let i = 0; i < truth.length; i++) {
      const logprob = truth[i] - upper;
      this.#kl += Math.exp(logprob) * (logprob - (found[i] - lower));
      const error = Math.abs(found[i] - truth[i]);
      this.#error += error;
      this.#most = Math.max(this.#most, error);
    }
    this.#agreed += Number(argmax(found) === argmax(truth));
    this.#values += truth.length;
    this.#positions++;
  }

  mean(): LogitError {
    return {
      kl: this.#kl / this.#positions,
      top1: this.#agreed / this.#positions,
      meanError: this.#error / this.#values,
      maxError: this.#most,
    };
  }
}

function logSumExp(logits: Float32Array): number {
  let most = -Infinity;
  for (const it of logits) most = Math.max(most, it);
  let sum = 0;
  for (const it of logits) sum += Math.exp(it - most);
  return most + Math.log(sum);
}

async function weightBytes(files: ModelFiles): Promise<number> {
  const names = (await files.list()).filter((it) => it.endsWith(".safetensors"));
  const sizes = await Promise.all(names.map((it) => files.size(it)));
  return sizes.reduce<number>((sum, it) => sum + (it ?? 0), 0);
}

/** The table for a terminal or a README. */
export function quantTable(results: readonly QuantResult[]): string {
  const tasks = results[0]?.tasks?.map((it) => it.task) ?? [];
  const heads = ["scheme", "MB", "KL, weights only", "KL", "top-1 %", "mean error", "max error"];
  const rows = results.map((it) => [
    it.scheme,
    (it.sizeBytes / 1e6).toFixed(1),
    it.rounded.kl.toExponential(2),
    it.whole.kl.toExponential(2),
    (100 * it.whole.top1).toFixed(2),
    it.whole.meanError.toFixed(4),
    it.whole.maxError.toFixed(3),
    ...it.accuracy === undefined ? [] : [(100 * it.accuracy).toFixed(2)],
    ...it.tasks?.map(({ accuracy }) => (100 * accuracy).toFixed(1)) ?? [],
  ]);
  const head = [...heads, ...tasks.length ? ["all tasks %", ...tasks] : []];
  return [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |\n`).join("");
}
