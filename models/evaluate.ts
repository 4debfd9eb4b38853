/**
 * Task accuracy on a data set of one JSON object a line: `image` (relative to the file), `task`, `prompt`,
 * `answers` (accepted texts) and, for located things, `boxes` as [yMin, xMin, yMax, xMax, label] in [0, 1]; for `segment`
 * also `masks`, one picture a box (relative to the file), white inside.
 */

import { dirname, join } from "@std/path";
import { type Box, collect, type Item, type Pipeline, pixelsOf } from "../lib/mod.ts";
import { decodePicture } from "../lib/preprocess/decode.ts";

interface Row {
  readonly image: string;
  readonly task: string;
  readonly prompt: string;
  readonly answers: readonly string[];
  readonly boxes?: readonly (readonly [number, number, number, number, string])[];
  readonly masks?: readonly string[];
}

/** What one task came to. For located things `accuracy` is the F1 at IoU 0.5. */
export interface TaskResult {
  readonly task: string;
  readonly rows: number;
  readonly accuracy: number;
  /** Mean over labels of the average precision at IoU 0.5; located things only. */
  readonly map50?: number;
  /** Expected calibration error of the confidences, as chances that a box is right; located things only. */
  readonly ece?: number;
  /** Mean over wanted things of their mask's intersection over union; where the data have masks. */
  readonly meanIou?: number;
}

/** What a whole data set came to. */
export interface Evaluation {
  readonly model: string;
  readonly rows: number;
  /** Over all rows; of the one task when only one was asked for. */
  readonly accuracy: number;
  readonly tasks: readonly TaskResult[];
}

/** One picture with located things: what was wanted and what was found. */
interface Scene {
  readonly want: readonly Item[];
  readonly found: readonly Item[];
  /** For each wanted thing which pixels are its own, u8 row-major, 0 outside. */
  readonly masks?: readonly Uint8Array[];
}

/** Runs the pipeline on every row of a data set. */
export async function evaluate(
  pipeline: Pipeline,
  data: string,
  options: {
    task?: string;
    constrained?: boolean;
    signal?: AbortSignal;
    progress?: (done: number, total: number) => void;
  } = {},
): Promise<Evaluation> {
  const lines = (await Deno.readTextFile(data)).split("\n").filter((it) => it.trim());
  const rows = lines.map((it) => JSON.parse(it) as Row).filter((it) =>
    !options.task || it.task === options.task
  );
  if (!rows.length) {
    throw new RangeError(`Cannot evaluate ${data}: no row of task "${options.task ?? "any"}"`);
  }
  const right = new Map<string, boolean[]>();
  const scenes = new Map<string, Scene[]>();
  for (const [i, row] of rows.entries()) {
    const image = await Deno.readFile(join(dirname(data), row.image));
    const { text, items, finishReason } = await collect(
      pipeline.answer(
        { images: [image], prompt: row.prompt, constrained: options.constrained && located(row) },
        options.signal,
      ),
    );
    if (finishReason === "cancelled") break;
    if (located(row)) {
      add(scenes, row.task, {
        want: row.boxes!.map(item),
        found: items.filter((it) => !it.flags),
        ...row.masks && { masks: await Promise.all(row.masks.map((it) => maskOf(join(dirname(data), it)))) },
      });
    } else add(right, row.task, row.answers.includes(text.trim()));
    options.progress?.(i + 1, rows.length);
  }
  const share = (marks: readonly boolean[]) => marks.filter(Boolean).length / marks.length;
  const tasks = [
    ...[...right].map(([task, marks]) => ({ task, rows: marks.length, accuracy: share(marks) })),
    ...[...scenes].map(([task, them]) => ({
      task,
      rows: them.length,
      accuracy: f1(them),
      map50: map50(them),
      ece: ece(them),
      ...them.some((it) => it.masks) && { meanIou: meanIou(them) },
    })),
  ];
  const answered = tasks.reduce((sum, it) => sum + it.rows, 0);
  return {
    model: pipeline.model.name,
    rows: answered,
    accuracy: tasks.reduce((sum, it) => sum + it.accuracy * it.rows, 0) / answered,
    tasks,
  };
}

/** A table for the terminal. */
export function report({ model, rows, tasks }: Evaluation): string {
  const line = ({ task, rows, accuracy, map50, ece, meanIou }: TaskResult) =>
    `${task.padEnd(10)} ${String(rows).padStart(5)}  ${(100 * accuracy).toFixed(1).padStart(5)} %` +
    (map50 === undefined ? "" : ` F1@0.5  ${(100 * map50).toFixed(1)} % mAP@0.5`) +
    (ece === undefined ? "" : `  ${ece.toFixed(3)} calibration error`) +
    (meanIou === undefined ? "" : `  ${meanIou.toFixed(3)} mean IoU`);
  return [`${model}: ${rows} questions`, ...tasks.map(line), ""].join("\n");
}

/** Intersection over union of two boxes, 0 to 1. */
export function iou(a: Box, b: Box): number {
  const height = Math.max(0, Math.min(a.yMax, b.yMax) - Math.max(a.yMin, b.yMin));
  const width = Math.max(0, Math.min(a.xMax, b.xMax) - Math.max(a.xMin, b.xMin));
  const area = (box: Box) => (box.yMax - box.yMin) * (box.xMax - box.xMin);
  const both = height * width;
  return both / (area(a) + area(b) - both || 1);
}

/** F1 over all scenes: a found box counts when its label and an unused wanted box of IoU at least 0.5 agree. */
export function f1(scenes: readonly Scene[]): number {
  let [hits, found, want] = [0, 0, 0];
  for (const scene of scenes) {
    hits += matches(scene.want, scene.found).filter(Boolean).length;
    found += scene.found.length;
    want += scene.want.length;
  }
  return found + want === 0 ? 1 : 2 * hits / (found + want);
}

/** Mean over labels of the area under precision and recall, precision made monotone (PASCAL VOC 2010). */
export function map50(scenes: readonly Scene[]): number {
  const labels = [...new Set(scenes.flatMap((scene) => scene.want.map((it) => it.label)))];
  const precisions = labels.map((label) => {
    const only = (items: readonly Item[]) =>
      items.filter((it) => it.label === label).sort((a, b) => b.confidence - a.confidence);
    let want = 0;
    const ranked: { confidence: number; hit: boolean }[] = [];
    for (const scene of scenes) {
      const [wanted, found] = [only(scene.want), only(scene.found)];
      want += wanted.length;
      matches(wanted, found).forEach((hit, i) => ranked.push({ confidence: found[i].confidence, hit }));
    }
    ranked.sort((a, b) => b.confidence - a.confidence);
    let [hits, area] = [0, 0];
    const precision = ranked.map(({ hit }, i) => (hits += Number(hit)) / (i + 1));
    for (let i = precision.length - 2; i >= 0; i--) precision[i] = Math.max(precision[i], precision[i + 1]);
    ranked.forEach(({ hit }, i) => area += hit ? precision[i] / want : 0);
    return area;
  });
  return precisions.reduce((sum, it) => sum + it, 0) / (precisions.length || 1);
}

/**
 * Expected calibration error, 0 to 1: found boxes in ten bins of confidence, in each the distance of the mean confidence
 * from the share of right boxes (as in {@link f1}), weighted by their number (Guo et al., arXiv 1706.04599).
 */
export function ece(scenes: readonly Scene[]): number {
  const bins = Array.from({ length: 10 }, () => ({ confidence: 0, hits: 0 }));
  let all = 0;
  for (const { want, found } of scenes) {
    all += found.length;
    matches(want, found).forEach((hit, i) => {
      const bin = bins[Math.min(9, Math.floor(found[i].confidence * 10))];
      bin.confidence += found[i].confidence;
      bin.hits += Number(hit);
    });
  }
  return bins.reduce((sum, { confidence, hits }) => sum + Math.abs(confidence - hits), 0) / (all || 1);
}

/**
 * Mean over all wanted things of the intersection over union of their masks, 0 to 1: each takes the mask under its label
 * that is still free and fits best; a thing without one counts 0.
 */
export function meanIou(scenes: readonly Scene[]): number {
  let [sum, wanted] = [0, 0];
  for (const { want, found, masks = [] } of scenes) {
    const free = found.flatMap(({ label, mask }) =>
      mask && "counts" in mask ? [{ label, pixels: pixelsOf(mask) }] : []
    );
    masks.forEach((mask, i) => {
      const fits = free.map((it) => it.label === want[i].label ? overlap(it.pixels, mask) : 0);
      const best = fits.indexOf(Math.max(...fits));
      if (best >= 0 && fits[best] > 0) free.splice(best, 1);
      sum += fits[best] ?? 0;
    });
    wanted += masks.length;
  }
  return sum / (wanted || 1);
}

function overlap(a: Uint8Array, b: Uint8Array): number {
  if (a.length !== b.length) {
    throw new RangeError(`Cannot compare masks of ${a.length} and ${b.length} pixels`);
  }
  let [both, either] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    both += Number(a[i] > 0 && b[i] > 0);
    either += Number(a[i] > 0 || b[i] > 0);
  }
  return both / (either || 1);
}

async function maskOf(path: string): Promise<Uint8Array> {
  const { data } = await decodePicture(await Deno.readFile(path), { maxPixels: 50_000_000 });
  return data.filter((_, i) => i % 3 === 0);
}

/** For each found item whether it takes a wanted one that is still free, in the order given. */
function matches(want: readonly Item[], found: readonly Item[]): boolean[] {
  const free = [...want];
  return found.map((it) => {
    const at = free.findIndex((other) => other.label === it.label && iou(other.box, it.box) >= 0.5);
    if (at >= 0) free.splice(at, 1);
    return at >= 0;
  });
}

function located(row: Row): boolean {
  return row.task === "detect" || row.task === "segment";
}

function item([yMin, xMin, yMax, xMax, label]: readonly [number, number, number, number, string]): Item {
  return { box: { yMin, xMin, yMax, xMax }, label, confidence: 1 };
}

function add<T>(map: Map<string, T[]>, key: string, value: T): void {
  map.set(key, [...map.get(key) ?? [], value]);
}
