/** Answers of one task become its score. */

import { type Item, pixelsOf } from "../../lib/mod.ts";
import { anls, choiceMatch, countMatch, exactMatch, relaxedMatch } from "../metrics/answers.ts";
import { ece, f1, meanAveragePrecision } from "../metrics/boxes.ts";
import { captionTokens, ciderD } from "../metrics/caption.ts";
import { maskIou, meanIou, overlap, referringIou } from "../metrics/masks.ts";
import { vqaAccuracy } from "../metrics/vqa.ts";
import { groupAccuracy, yesNoScores } from "../metrics/yes_no.ts";
import type { Metric } from "./benchmarks.ts";
import { masks, type Row } from "./data.ts";

/** What the model said to one question. */
export interface Answered {
  readonly row: Row;
  readonly text: string;
  readonly items: readonly Item[];
}

/** What the answers of one task came to. */
export interface Score {
  /** The metric, 0 to 1; of CIDEr-D, whose range is 0 to 10, a tenth. */
  readonly accuracy: number;
  /** Further figures, by the names under which they are printed. */
  readonly details: Readonly<Record<string, number>>;
  /** Each answer by itself, 0 to 1, in the order of the answers. */
  readonly each: readonly number[];
}

/**
 * Scores answers of one task.
 *
 * @param data the file they are of, where masks are to be found
 */
export async function score(metric: Metric, answers: readonly Answered[], data: string): Promise<Score> {
  switch (metric) {
    case "exact match":
      return mean(answers, (it) => exactMatch(it.text, it.row.answers));
    case "VQA accuracy":
      return mean(answers, (it) => vqaAccuracy(it.text, it.row.answers));
    case "ANLS":
      return mean(answers, (it) => anls(it.text, it.row.answers));
    case "relaxed accuracy":
      return mean(answers, (it) => relaxedMatch(it.text, it.row.answers));
    case "counting accuracy":
      return mean(answers, (it) => countMatch(it.text, it.row.answers));
    case "choice accuracy":
      return mean(answers, (it) => choiceMatch(it.text, it.row.answers));
    case "CIDEr-D": {
      const scores = ciderD(answers.map(({ text, row }) => ({
        candidate: captionTokens(text),
        references: row.answers.map(captionTokens),
      })));
      return mean(answers, (_, i) => scores[i] / 10);
    }
    case "paired accuracy": {
      const { each, accuracy } = mean(answers, ({ text, row }) => exactMatch(text, row.answers));
      const groups = answers.map(({ row }, i) => ({ group: row.group!, right: each[i] === 1 }));
      return { accuracy: groupAccuracy(groups), each, details: { "each question": accuracy } };
    }
    case "POPE F1": {
      const asked = answers.map(({ row, text }) => ({ want: row.answers[0] as "yes" | "no", found: text }));
      const { f1, ...details } = yesNoScores(asked);
      return { accuracy: f1, details, each: asked.map((it) => yesNoScores([it]).accuracy) };
    }
    case "mean IoU": {
      const pairs = await Promise.all(answers.map(async ({ row, items }) => {
        const [want] = await masks(row, data);
        return overlap(want, items.map(inside).find((it) => it));
      }));
      const { mean, cumulative } = referringIou(pairs);
      return { accuracy: mean, details: { "cumulative IoU": cumulative }, each: pairs.map(maskIou) };
    }
    case "F1@0.5":
    case "mAP":
      return await located(metric, answers, data);
  }
}

function mean(answers: readonly Answered[], mark: (it: Answered, i: number) => number | boolean): Score {
  const each = answers.map((it, i) => Number(mark(it, i)));
  return { accuracy: each.reduce((sum, it) => sum + it, 0) / (each.length || 1), details: {}, each };
}

async function located(metric: "F1@0.5" | "mAP", answers: readonly Answered[], data: string): Promise<Score> {
  const scenes = answers.map(({ row, items }) => ({
    want: row.boxes!.map(([yMin, xMin, yMax, xMax, label]) => (
      { box: { yMin, xMin, yMax, xMax }, label, confidence: 1 }
    )),
    found: items.filter((it) => !it.flags),
  }));
  const masked = answers.filter(({ row }) => row.masks);
  const map = meanAveragePrecision(scenes), f1Score = f1(scenes);
  const details = {
    ...(metric === "mAP" ? { "F1@0.5": f1Score } : { "mAP": map }),
    "mAP@0.5": meanAveragePrecision(scenes, [0.5]),
    "calibration error": ece(scenes),
    ...masked.length && {
      "mean IoU": meanIou(
        await Promise.all(masked.map(async ({ row, items }) => ({
          want: (await masks(row, data)).map((pixels, i) => ({ label: row.boxes![i][4], pixels })),
          found: items.flatMap((it) => {
            const pixels = it.flags ? undefined : inside(it);
            return pixels ? [{ label: it.label, pixels }] : [];
          }),
        }))),
      ),
    },
  };
  return { accuracy: metric === "mAP" ? map : f1Score, details, each: scenes.map((it) => f1([it])) };
}

function inside({ mask }: Item): Uint8Array | undefined {
  return mask && "counts" in mask ? pixelsOf(mask) : undefined;
}
