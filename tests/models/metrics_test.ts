/** The metrics against golden values of their reference implementations; the golden file says what made it. */

import assert from "node:assert/strict";
import { anls, choiceMatch, countMatch, exactMatch, relaxedMatch } from "../../models/metrics/answers.ts";
import { ece, f1, iou, type Located, meanAveragePrecision } from "../../models/metrics/boxes.ts";
import { captionTokens, ciderD } from "../../models/metrics/caption.ts";
import { maskIou, meanIou, overlap, referringIou } from "../../models/metrics/masks.ts";
import { normalAnswer, vqaAccuracy } from "../../models/metrics/vqa.ts";
import { groupAccuracy, yesNoScores } from "../../models/metrics/yes_no.ts";

const golden = JSON.parse(Deno.readTextFileSync(new URL("../golden/metrics.json", import.meta.url)));

function close(found: number, wanted: number, what = ""): void {
  assert.ok(Math.abs(found - wanted) < 1e-12, `${what}: expected ${wanted}, found ${found}`);
}

Deno.test("CIDEr-D: every caption's score is coco-caption's", () => {
  const { captions, mean } = golden.cider;
  const found = ciderD(captions);
  found.forEach((it, i) => close(it, captions[i].score, captions[i].candidate));
  close(found.reduce((sum, it) => sum + it, 0) / found.length, mean);
  assert.deepEqual(ciderD([captions[0]]), [0]);
  assert.throws(
    () => ciderD([{ candidate: "a", references: [] }]),
    /caption 0: expected references, found none/,
  );
});

Deno.test("captions are cut into words as the Penn Treebank does, without punctuation", () => {
  for (
    const [text, words] of [
      ["A man's dog, sitting. ", "a man 's dog sitting"],
      ["It doesn't fit; you're right!", "it does n't fit you 're right"],
      ['"Hello" (again) -- cannot... go', "hello again can not go"],
      ["A well-known U.S. brand - 1,000 at 12:30", "a well-known u.s. brand 1,000 at 12:30"],
      ["“Stop” isn’t 50%", "stop is n't 50 %"],
      ["", ""],
    ]
  ) assert.equal(captionTokens(text), words);
});

Deno.test("VQA: answers are normalised, and scored, as the official script does", () => {
  for (const { text, normal } of golden.vqa.normal) assert.equal(normalAnswer(text), normal, text);
  for (const { answer, answers, accuracy } of golden.vqa.answers) {
    close(vqaAccuracy(answer, answers), accuracy, answer);
  }
  assert.throws(() => vqaAccuracy("yes", []), /expected answers, found none/);
});

Deno.test("ANLS, relaxed accuracy and counting are big_vision's", () => {
  for (const { answer, answers, score } of golden.anls) close(anls(answer, answers), score, answer);
  for (const [want, found, right] of golden.relaxed) {
    assert.equal(relaxedMatch(found, [want]), right, `${found} for ${want}`);
  }
  for (const [want, found, right] of golden.count) {
    assert.equal(countMatch(found, [want]), right, `${found} for ${want}`);
  }
});

Deno.test("exact match and choices", () => {
  assert.ok(exactMatch(" red\n", ["blue", "red"]));
  assert.ok(!exactMatch("Red", ["red"]) && !exactMatch("red", []));
  assert.ok(choiceMatch("the answer is b.", ["The answer is B."]));
  assert.ok(!choiceMatch("The answer is C.", ["The answer is B."]));
  assert.ok(!choiceMatch("B", ["The answer is B."]) && !choiceMatch("B", ["B"]));
});

Deno.test("mAP is pycocotools', over ten thresholds, at 0.5 and at 0.75", () => {
  const located = (it: { label: string; box: number[]; confidence?: number }): Located => {
    const [yMin, xMin, yMax, xMax] = it.box;
    return { box: { yMin, xMin, yMax, xMax }, label: it.label, confidence: it.confidence ?? 1 };
  };
  for (const { want, found, map, map50, map75 } of golden.map) {
    const scenes = want.map((it: Parameters<typeof located>[0][], i: number) => ({
      want: it.map(located),
      found: found[i].map(located),
    }));
    close(meanAveragePrecision(scenes), map, "mAP");
    close(meanAveragePrecision(scenes, [0.5]), map50, "mAP@0.5");
    close(meanAveragePrecision(scenes, [0.75]), map75, "mAP@0.75");
  }
});

Deno.test("masks: IoU of each pair is pycocotools', and mean and cumulative IoU follow", () => {
  const pixels = (text: string) => Uint8Array.from(text, (it) => Number(it === "#"));
  type Pair = { want: string; found: string; iou: number; both: number; either: number };
  const pairs: Pair[] = golden.masks;
  const found = pairs.map((it) => overlap(pixels(it.want), pixels(it.found)));
  found.forEach((it, i) => {
    assert.deepEqual(it, { both: pairs[i].both, either: pairs[i].either });
    close(maskIou(it), pairs[i].iou);
  });
  const total = (of: (it: Pair) => number) => pairs.reduce((sum, it) => sum + of(it), 0);
  const { mean, cumulative } = referringIou(found);
  close(mean, total((it) => it.iou) / pairs.length);
  close(cumulative, total((it) => it.both) / total((it) => it.either));
  assert.deepEqual(referringIou([overlap(pixels("#."))]), { mean: 0, cumulative: 0 });
  assert.throws(() => overlap(pixels("#"), pixels("##")), /masks of 1 and 2 pixels/);
});

Deno.test("POPE: F1, precision, recall, accuracy and the share of yes are evaluate.py's", () => {
  const { pairs, ...wanted } = golden.pope;
  const found = yesNoScores(pairs.map(([want, found]: ["yes" | "no", string]) => ({ want, found })));
  for (const [name, value] of Object.entries(found)) close(value, wanted[name], name);
  assert.deepEqual(yesNoScores([]), { f1: 0, precision: 0, recall: 0, accuracy: 0, yesShare: 0 });
});

Deno.test("pairs: both questions must be right", () => {
  const right = (group: string, right: boolean) => ({ group, right });
  assert.equal(groupAccuracy([right("1", true), right("2", false), right("1", true), right("2", true)]), 0.5);
  assert.equal(groupAccuracy([]), 0);
});

const item = (
  label: string,
  yMin: number,
  xMin: number,
  yMax: number,
  xMax: number,
  confidence = 1,
): Located => ({
  box: { yMin, xMin, yMax, xMax },
  label,
  confidence,
});
const a = item("cat", 0, 0, 0.5, 0.5);
const b = item("cat", 0.5, 0.5, 1, 1);
const miss = (confidence: number) => item("cat", 0, 0.9, 0.1, 1, confidence);

Deno.test("iou: whole, half, none", () => {
  assert.equal(iou(a.box, a.box), 1);
  assert.equal(iou(a.box, item("", 0, 0, 0.5, 0.25).box), 0.5);
  assert.equal(iou(a.box, b.box), 0);
});

Deno.test("f1: a box counts once, and only under its own label", () => {
  assert.equal(f1([{ want: [a, b], found: [a, b] }]), 1);
  assert.equal(f1([{ want: [a, b], found: [a] }]), 2 / 3);
  assert.equal(f1([{ want: [a], found: [a, a] }]), 2 / 3);
  assert.equal(f1([{ want: [a], found: [{ ...a, label: "dog" }] }]), 0);
  assert.equal(f1([{ want: [], found: [] }]), 1);
});

Deno.test("mAP: a spare box costs only when it is surer than a right one, and labels weigh the same", () => {
  assert.equal(meanAveragePrecision([{ want: [a, b], found: [a, b, miss(0.1)] }]), 1);
  const surer = [miss(1), { ...a, confidence: 0.9 }, { ...b, confidence: 0.8 }];
  close(meanAveragePrecision([{ want: [a, b], found: surer }], [0.5]), 2 / 3);
  assert.equal(meanAveragePrecision([{ want: [a, item("dog", 0, 0, 1, 1)], found: [a] }]), 0.5);
});

Deno.test("ece: how far confidence is from the share of right boxes", () => {
  const sure = (it: Located, confidence: number) => ({ ...it, confidence });
  assert.equal(ece([{ want: [a, b], found: [a, b] }]), 0);
  assert.equal(ece([{ want: [a], found: [miss(1)] }]), 1);
  const scenes = [{ want: [a, b], found: [sure(a, 0.5), sure(b, 0.55)] }, {
    want: [a],
    found: [sure(a, 0.6)],
  }];
  close(ece(scenes), (0.5 + 0.45 + 0.4) / 3);
  close(ece([{ want: [a], found: [sure(a, 0.52), miss(0.58)] }]), Math.abs(1.1 - 1) / 2);
  assert.equal(ece([]), 0);
});

Deno.test("meanIou: a missed thing counts nothing, a mask counts once and under its own label", () => {
  const cat = (text: string, label = "cat") => ({
    label,
    pixels: Uint8Array.from(text, (it) => Number(it === "#")),
  });
  assert.equal(meanIou([{ want: [cat("##..")], found: [cat("##..")] }]), 1);
  assert.equal(meanIou([{ want: [cat("##.."), cat("#.#.")], found: [cat("##..")] }]), 0.5);
  assert.equal(meanIou([{ want: [cat("##..")], found: [cat("#.#.")] }]), 1 / 3);
  assert.equal(meanIou([{ want: [cat("##..")], found: [cat("##..", "dog")] }]), 0);
  assert.equal(meanIou([{ want: [cat("##..")], found: [] }]), 0);
  // whichever comes first, each thing gets the mask that fits it
  assert.equal(meanIou([{ want: [cat("##.."), cat("#.#.")], found: [cat("#.#."), cat("##..")] }]), 1);
});
