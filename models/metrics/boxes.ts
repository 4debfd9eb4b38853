/** Scores of located things: found boxes against wanted ones, over a set of pictures. */

import type { Box, Item } from "../../lib/mod.ts";

/** What counts of a found thing; of a wanted one the confidence does not matter. */
export type Located = Pick<Item, "box" | "label" | "confidence">;

/** One picture: what was wanted and what was found. */
export interface Scene {
  readonly want: readonly Located[];
  readonly found: readonly Located[];
}

/** COCO's ten thresholds, 0.50 to 0.95. */
export const COCO_IOUS: readonly number[] = Array.from({ length: 10 }, (_, i) => (50 + 5 * i) / 100);

/** Boxes of one label in one picture that count, the surest ones, as COCO's `maxDets` has it. */
const MOST = 100;

/** Intersection over union of two boxes, 0 to 1. */
export function iou(a: Box, b: Box): number {
  const height = Math.max(0, Math.min(a.yMax, b.yMax) - Math.max(a.yMin, b.yMin));
  const width = Math.max(0, Math.min(a.xMax, b.xMax) - Math.max(a.xMin, b.xMin));
  const area = (box: Box) => (box.yMax - box.yMin) * (box.xMax - box.xMin);
  const both = height * width;
  return both / (area(a) + area(b) - both || 1);
}

/**
 * Mean average precision, 0 to 1: over thresholds and over the labels that are wanted anywhere, the mean of the precision at
 * 101 recalls, made monotone. Found boxes take wanted ones of their label, surest first, each the one that it overlaps
 * most. Regions that COCO marks as crowds are not known here.
 *
 * Source: Lin et al., arXiv 1405.0312; cocoeval.py of https://github.com/cocodataset/cocoapi.
 *
 * @param ious IoUs from which a box is right: COCO's ten, or one
 */
export function meanAveragePrecision(scenes: readonly Scene[], ious: readonly number[] = COCO_IOUS): number {
  const labels = [...new Set(scenes.flatMap((scene) => scene.want.map((it) => it.label)))];
  const each = labels.flatMap((label) => {
    const only = scenes.map(({ want, found }) => ({
      want: want.filter((it) => it.label === label),
      found: found.filter((it) => it.label === label).sort((a, b) => b.confidence - a.confidence).slice(
        0,
        MOST,
      ),
    }));
    return ious.map((least) => averagePrecision(only, least));
  });
  return each.reduce((sum, it) => sum + it, 0) / (each.length || 1);
}

/** Of one label at one IoU; found boxes surest first. */
function averagePrecision(scenes: readonly Scene[], least: number): number {
  const ranked = scenes.flatMap(({ want, found }) => {
    const right = best(want, found, least);
    return found.map(({ confidence }, i) => ({ confidence, right: right[i] }));
  }).sort((a, b) => b.confidence - a.confidence);
  const wanted = scenes.reduce((sum, { want }) => sum + want.length, 0);
  let hits = 0;
  const recall: number[] = [], precision: number[] = [];
  for (const [i, { right }] of ranked.entries()) {
    hits += Number(right);
    recall.push(hits / wanted);
    precision.push(hits / (i + 1));
  }
  for (let i = precision.length - 2; i >= 0; i--) precision[i] = Math.max(precision[i], precision[i + 1]);
  let sum = 0;
  for (let step = 0, at = 0; step <= 100; step++) {
    while (at < recall.length && recall[at] < step * 0.01) at++;
    sum += precision[at] ?? 0;
  }
  return sum / 101;
}

/** For each found box whether it takes the free wanted one that it overlaps most, of several the last, as COCO's does. */
function best(want: readonly Located[], found: readonly Located[], least: number): boolean[] {
  const free = new Set(want);
  return found.map(({ box }) => {
    let [most, taken]: [number, Located | undefined] = [Math.min(least, 1 - 1e-10), undefined];
    for (const it of free) {
      const overlap = iou(it.box, box);
      if (overlap >= most) [most, taken] = [overlap, it];
    }
    if (taken) free.delete(taken);
    return taken !== undefined;
  });
}

/** F1 over all scenes, 0 to 1: a found box is right when its label and a free wanted box of IoU at least 0.5 agree. */
export function f1(scenes: readonly Scene[]): number {
  let [hits, found, want] = [0, 0, 0];
  for (const scene of scenes) {
    hits += matches(scene.want, scene.found).filter(Boolean).length;
    found += scene.found.length;
    want += scene.want.length;
  }
  return found + want === 0 ? 1 : 2 * hits / (found + want);
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

/** For each found item whether it takes a wanted one that is still free, in the order given. */
export function matches(want: readonly Located[], found: readonly Located[]): boolean[] {
  const free = [...want];
  return found.map((it) => {
    const at = free.findIndex((other) => other.label === it.label && iou(other.box, it.box) >= 0.5);
    if (at >= 0) free.splice(at, 1);
    return at >= 0;
  });
}
