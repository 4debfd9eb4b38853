/** Data sets on disk: a file of one JSON object a line, read and checked, and the pictures it names. */

import { dirname, join } from "@std/path";
import { RequestError } from "../../lib/mod.ts";
import { decodePicture } from "../../lib/preprocess/decode.ts";
import { resizeBicubic } from "../../lib/preprocess/resize.ts";
import { encodePng } from "../../lib/vision/mask_forms.ts";
import { type Benchmark, BENCHMARKS, FRAMES } from "./benchmarks.ts";

type Sides = readonly [yMin: number, xMin: number, yMax: number, xMax: number];

/** One question. Paths are relative to the file; boxes are in [0, 1]. */
export interface Row {
  /** In the file, from 1. */
  readonly line: number;
  readonly task: string;
  readonly prompt: string;
  /** A picture, several, or a folder with the frames of a video in the order of their names; one of the three. */
  readonly image?: string;
  readonly images?: readonly string[];
  readonly frames?: string;
  /** Texts that are right, or that people wrote. */
  readonly answers: readonly string[];
  /** Wanted things, for tasks that locate: yMin, xMin, yMax, xMax, label. */
  readonly boxes?: readonly (readonly [...Sides, string])[];
  /** Pictures, one a box or one for all, white inside. */
  readonly masks?: readonly string[];
  /** Drawn on the picture in red, as WidgetCap wants it. */
  readonly box?: Sides;
  /** The part of the benchmark, scored by itself; the benchmark's score is then the mean of its parts. */
  readonly split?: string;
  /** Questions of one group are right together (MMVP's pairs). */
  readonly group?: string;
}

/** What is known of a task by its name; scenes' tasks that are not in the table are matched exactly. */
export function benchmark(task: string): Benchmark {
  return Object.hasOwn(BENCHMARKS, task) ? BENCHMARKS[task] : { metric: "exact match" };
}

/** Whether answers are things with places, not texts. */
export function locates(task: string): boolean {
  return ["F1@0.5", "mAP", "mean IoU"].includes(benchmark(task).metric);
}

/**
 * Reads the rows of one task, or of all. A row says its `task`, or all are of the one asked for; it has its `prompt`, or a
 * `question` that the benchmark's prompt takes.
 *
 * @throws {RequestError} `parameter_invalid` for a file that cannot be read, a line that is not such a row, or no row.
 */
export async function readRows(data: string, asked?: string): Promise<{ rows: Row[]; text: string }> {
  const text = await Deno.readTextFile(data).catch((error) => {
    throw new RequestError("parameter_invalid", `Cannot read ${data}: ${(error as Error).message}`);
  });
  const rows = text.split("\n").flatMap((it, i) => it.trim() ? [readRow(it, i + 1, data, asked)] : []);
  const found = rows.filter((it) => !asked || it.task === asked);
  if (!found.length) {
    const tasks = [...new Set(rows.map((it) => it.task))].sort().join(", ");
    throw new RequestError(
      "parameter_invalid",
      `Cannot evaluate ${data}: expected rows of task "${asked ?? "any"}", found ${tasks || "none"}`,
    );
  }
  return { rows: found, text };
}

function readRow(text: string, line: number, data: string, asked?: string): Row {
  const refuse = (expected: string, found: unknown): never => {
    const what = found === undefined ? "none" : JSON.stringify(found);
    throw new RequestError(
      "parameter_invalid",
      `Cannot read ${data}, line ${line}: expected ${expected}, found ${what.slice(0, 100)}`,
    );
  };
  const row = parsed(text);
  if (typeof row !== "object" || row === null || Array.isArray(row)) refuse("one JSON object", row ?? text);
  const check = (name: string, holds: (value: unknown) => boolean, expected: string) => {
    if (row[name] !== undefined && !holds(row[name])) refuse(`"${name}" to be ${expected}`, row[name]);
  };
  for (const name of ["task", "prompt", "question", "image", "frames", "split", "group"]) {
    check(name, isText, "text");
  }
  for (const name of ["answers", "images", "masks"]) {
    check(name, (it) => isList(it, isText), "a list of texts");
  }
  check("box", isSides, "[yMin, xMin, yMax, xMax] in [0, 1]");
  const isBox = (it: unknown) =>
    Array.isArray(it) && it.length === 5 && isSides(it.slice(0, 4)) && isText(it[4]);
  check("boxes", (it) => isList(it, isBox), "a list of [yMin, xMin, yMax, xMax, label] in [0, 1]");
  const task: string = row.task ?? asked ??
    refuse(`"task", or --task with one of ${Object.keys(BENCHMARKS).join(", ")}`, row.task);
  if (row.task === undefined && !Object.hasOwn(BENCHMARKS, task)) {
    refuse(`"task" in the row, or --task with one of ${Object.keys(BENCHMARKS).join(", ")}`, task);
  }
  const template = benchmark(task).prompt;
  const prompt = row.prompt ??
    (template?.includes("{question}")
      ? template.replace("{question}", () => row.question ?? refuse(`"prompt" or "question"`, undefined))
      : template ?? refuse(`"prompt"`, undefined));
  const pictures = ["image", "images", "frames"].filter((it) => row[it] !== undefined);
  if (pictures.length !== 1) refuse(`one of "image", "images" and "frames"`, pictures);
  const { metric } = benchmark(task);
  if (metric === "mean IoU" && row.masks?.length !== 1) refuse(`"masks" with one picture`, row.masks);
  if ((metric === "F1@0.5" || metric === "mAP") && !row.boxes) refuse(`"boxes"`, row.boxes);
  if (metric !== "mean IoU" && row.masks && row.masks.length !== row.boxes?.length) {
    refuse(`"masks" for each of ${row.boxes?.length ?? 0} boxes`, row.masks);
  }
  if (!locates(task) && !row.answers?.length) refuse(`"answers"`, row.answers);
  if (metric === "POPE F1" && !["yes", "no"].includes(row.answers[0])) {
    refuse(`"answers" to be ["yes"] or ["no"]`, row.answers);
  }
  if (metric === "paired accuracy" && row.group === undefined) refuse(`"group"`, undefined);
  return { ...row, line, task, prompt, answers: row.answers ?? [] };
}

function parsed(text: string) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const isText = (it: unknown) => typeof it === "string";
const isList = (it: unknown, of: (it: unknown) => boolean) => Array.isArray(it) && it.every(of);
const isSides = (it: unknown) =>
  isList(it, (side) => typeof side === "number" && side >= 0 && side <= 1) && (it as unknown[]).length === 4;

/** Paths of a row's pictures. */
export async function picturePaths(row: Row, data: string): Promise<string[]> {
  const folder = dirname(data);
  if (row.frames === undefined) return (row.images ?? [row.image!]).map((it) => join(folder, it));
  const names = (await Array.fromAsync(Deno.readDir(join(folder, row.frames)))).filter((it) => it.isFile)
    .map((it) => it.name).sort();
  if (!names.length) {
    throw new RequestError(
      "image_missing",
      `Cannot read ${data}, line ${row.line}: expected pictures in ${row.frames}, found none`,
    );
  }
  return Array.from(
    { length: FRAMES.count },
    (_, i) => join(folder, row.frames!, names[i * FRAMES.stride % names.length]),
  );
}

/**
 * A row's pictures as a question takes them.
 *
 * @param imageSize of the model; where a box is to be drawn, it is drawn one pixel wide on the square that the model sees
 * @throws {RequestError} `image_missing` for a picture that cannot be read, with the line that names it.
 */
export async function pictures(row: Row, data: string, imageSize: number): Promise<Uint8Array[]> {
  try {
    const files = await Promise.all((await picturePaths(row, data)).map((it) => Deno.readFile(it)));
    return row.box ? await Promise.all(files.map((it) => withBox(it, row.box!, imageSize))) : files;
  } catch (error) {
    if (error instanceof RequestError) throw error;
    throw new RequestError(
      "image_missing",
      `Cannot read ${data}, line ${row.line}: ${(error as Error).message}`,
    );
  }
}

/** As big_vision's `draw_bbox` does, by tf.image.draw_bounding_boxes, after the picture is resized. */
async function withBox(
  image: Uint8Array,
  [yMin, xMin, yMax, xMax]: Sides,
  size: number,
): Promise<Uint8Array> {
  const pixels = resizeBicubic(await decodePicture(image, { maxPixels: 50_000_000 }), size);
  const [top, left, bottom, right] = [yMin, xMin, yMax, xMax].map((it) => Math.trunc(it * (size - 1)));
  const dot = (y: number, x: number) => pixels.set([255, 0, 0], 3 * (y * size + x));
  for (let x = left; x <= right; x++) [top, bottom].forEach((y) => dot(y, x));
  for (let y = top; y <= bottom; y++) [left, right].forEach((x) => dot(y, x));
  return await encodePng(pixels, size, size);
}

/** A row's masks: for each one byte a pixel of its picture, 0 outside. */
export async function masks(row: Row, data: string): Promise<Uint8Array[]> {
  return await Promise.all((row.masks ?? []).map(async (it) => {
    const picture = await decodePicture(await Deno.readFile(join(dirname(data), it)), {
      maxPixels: 50_000_000,
    });
    return picture.data.filter((_, i) => i % 3 === 0);
  }));
}
