/** Accuracy of a model on a data set: questions are asked, answers kept as they come, and scored by their task's metric. */

import { sha256 } from "../../lib/digest.ts";
import { collect, type Pipeline, RequestError } from "../../lib/mod.ts";
import { openAnswerLog } from "./answer_log.ts";
import type { Published } from "./benchmarks.ts";
import { benchmark, locates, pictures, readRows, type Row } from "./data.ts";
import { type Answered, score } from "./score.ts";

/** What one task, or one part of it, came to. */
export interface TaskResult {
  readonly task: string;
  /** Questions. */
  readonly n: number;
  readonly metric: string;
  /** 0 to 1: the metric; of CIDEr-D, whose range is 0 to 10, a tenth. */
  readonly accuracy: number;
  /** The metric as articles print it: percent, or a hundred times CIDEr-D. */
  readonly score: number;
  readonly details: Readonly<Record<string, number>>;
  /** The parts of the task, where rows name them; `accuracy` is then the mean of theirs. */
  readonly splits?: Readonly<Record<string, TaskResult>>;
  /** What articles say of it. */
  readonly published?: readonly Published[];
  readonly measuredOn?: string;
}

/** What a whole data set came to; of several tasks the accuracy is the mean over rows. */
export interface Evaluation {
  readonly model: string;
  readonly imageSize: number;
  /** The one task, or `all`. */
  readonly task: string;
  readonly n: number;
  readonly metric: string;
  readonly accuracy: number;
  readonly tasks: readonly TaskResult[];
}

/** One question with its answer and what that was worth, 0 to 1. */
export interface Marked extends Answered {
  readonly mark: number;
}

/** How to evaluate. */
export interface EvaluateOptions {
  /** The only task, or that of rows that name none. */
  readonly task?: string;
  /** Holds answers that locate to their grammar. */
  readonly constrained?: boolean;
  /** A file that keeps answers until all are there: a run with the same file goes on from it. */
  readonly log?: string;
  readonly signal?: AbortSignal;
  readonly progress?: (done: number, total: number) => void;
  /** Gets every answer, task by task, when all are scored. */
  readonly marked?: (answers: readonly Marked[]) => void;
}

/**
 * Runs the pipeline on every row of a data set.
 *
 * @throws {RequestError} `parameter_invalid` for data that cannot be read, naming the line; `cancelled` when the signal
 * aborts; and what the pipeline refuses.
 */
export async function evaluate(
  pipeline: Pipeline,
  data: string,
  options: EvaluateOptions = {},
): Promise<Evaluation> {
  const { rows, text } = await readRows(data, options.task);
  const answers = await answer(pipeline, rows, data, text, options);
  const tasks: TaskResult[] = [];
  for (const [task, them] of Map.groupBy(answers, (it) => it.row.task)) {
    const { result, marked } = await scoreTask(task, them, data);
    tasks.push(result);
    options.marked?.(marked);
  }
  const one = tasks.length === 1 ? tasks[0] : undefined;
  return {
    model: pipeline.model.name,
    imageSize: pipeline.model.imageSize,
    task: one?.task ?? "all",
    n: rows.length,
    metric: one?.metric ?? "mean over questions",
    accuracy: one?.accuracy ?? tasks.reduce((sum, it) => sum + it.accuracy * it.n, 0) / rows.length,
    tasks,
  };
}

async function answer(
  pipeline: Pipeline,
  rows: readonly Row[],
  data: string,
  text: string,
  { task, constrained = false, log: path, signal, progress }: EvaluateOptions,
): Promise<Answered[]> {
  const { name, revision, imageSize } = pipeline.model;
  const log = path === undefined ? undefined : await openAnswerLog(path, {
    ...{ model: name, revision, data: (await sha256(text)).toHex(), task, constrained },
  });
  const answers: Answered[] = [];
  try {
    for (const row of rows) {
      let said = log?.said.get(row.line);
      if (!said) {
        const { text, items, finishReason } = await collect(pipeline.answer({
          images: await pictures(row, data, imageSize),
          prompt: row.prompt,
          maxTokens: benchmark(row.task).maxTokens,
          constrained: constrained && locates(row.task),
        }, signal));
        if (finishReason === "cancelled") signal?.throwIfAborted();
        said = { text, items };
        await log?.add(row.line, said);
      }
      answers.push({ row, ...said });
      progress?.(answers.length, rows.length);
    }
  } catch (error) {
    if (!signal?.aborted) throw error;
    const kept = log ? "; the same command goes on from there" : "; nothing is kept without --json or --html";
    throw new RequestError("cancelled", `Stopped after ${answers.length} of ${rows.length} questions${kept}`);
  } finally {
    log?.close();
  }
  return answers;
}

async function scoreTask(
  task: string,
  answers: readonly Answered[],
  data: string,
): Promise<{ result: TaskResult; marked: Marked[] }> {
  const { metric, published, measuredOn } = benchmark(task);
  const marked: Marked[] = [];
  const parts: [string, TaskResult][] = [];
  for (const [split = "", them] of Map.groupBy(answers, (it) => it.row.split)) {
    const { accuracy, details, each } = await score(metric, them, data);
    marked.push(...them.map((it, i) => ({ ...it, mark: each[i] })));
    parts.push([split, {
      task,
      n: them.length,
      metric,
      accuracy,
      score: printed(metric, accuracy),
      details,
    }]);
  }
  const accuracy = parts.reduce((sum, [, it]) => sum + it.accuracy, 0) / parts.length;
  const result = {
    ...{ task, n: answers.length, metric, accuracy, score: printed(metric, accuracy) },
    details: parts.length === 1 ? parts[0][1].details : {},
    ...answers.some((it) => it.row.split !== undefined) && { splits: Object.fromEntries(parts) },
    ...published && { published, measuredOn },
  };
  return { result, marked };
}

/** As articles print it. */
function printed(metric: string, accuracy: number): number {
  return (metric === "CIDEr-D" ? 1000 : 100) * accuracy;
}

/** Published scores to hold a result against: those at the model's picture size, or all where there are none. */
export function comparable(published: readonly Published[], imageSize: number): readonly Published[] {
  const same = published.filter((it) => it.imageSize === imageSize);
  return same.length ? same : published;
}

/** A table for the terminal. */
export function report({ model, imageSize, n, tasks }: Evaluation): string {
  const details = (of: Readonly<Record<string, number>>) =>
    Object.entries(of).map(([name, value]) => `  ${name} ${value.toFixed(3)}`).join("");
  const line = (name: string, it: TaskResult) =>
    `${name.padEnd(10)} ${String(it.n).padStart(5)}  ${it.score.toFixed(1).padStart(5)}  ${it.metric}${
      details(it.details)
    }`;
  const lines = tasks.flatMap((it) => [
    line(it.task, it),
    ...Object.entries(it.splits ?? {}).map(([split, part]) => line(`  ${split}`, part)),
    ...comparable(it.published ?? [], imageSize).map((score) =>
      `  ${score.score.toFixed(1).padStart(21)}  published: ${score.model}, ${score.imageSize} px` +
      `${score.split ? `, ${score.split}` : ""} (${it.measuredOn})`
    ),
  ]);
  return [`${model}: ${n} questions`, ...lines, ""].join("\n");
}

/** A line that tells how far a run is, how fast, and how long it will take; times in milliseconds. */
export function progressLine(
  done: number,
  total: number,
  begun: { done: number; elapsedMs: number },
): string {
  const width = 24, filled = Math.floor(width * done / total);
  const perMs = (done - begun.done) / begun.elapsedMs;
  const leftS = Math.ceil((total - done) / perMs / 1000);
  const left = leftS >= 3600
    ? `${Math.floor(leftS / 3600)} h ${Math.floor(leftS % 3600 / 60)} min`
    : leftS >= 60
    ? `${Math.floor(leftS / 60)} min ${leftS % 60} s`
    : `${leftS} s`;
  const bar = "#".repeat(filled) + ".".repeat(width - filled);
  const speed = perMs > 0 ? `  ${(1000 * perMs).toPrecision(2)} a second  ${left} left` : "";
  return `[${bar}] ${done} of ${total}${speed}`;
}
