import assert from "node:assert/strict";
import { ece, f1, iou, map50, meanIou } from "../../models/evaluate.ts";
import type { Item } from "../../lib/mod.ts";
import { runLengths } from "../../lib/vision/mask_forms.ts";

const item = (
  label: string,
  yMin: number,
  xMin: number,
  yMax: number,
  xMax: number,
  confidence = 1,
): Item => ({
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

Deno.test("map50: a spare box costs only when it is surer than a right one", () => {
  assert.equal(map50([{ want: [a, b], found: [a, b, miss(0.1)] }]), 1);
  // ranked: miss, a, b -> precision 1/2 at recall 1/2, 2/3 at recall 1; made monotone 2/3 and 2/3
  assert.ok(
    Math.abs(
      map50([{ want: [a, b], found: [miss(1), { ...a, confidence: 0.9 }, { ...b, confidence: 0.8 }] }]) -
        2 / 3,
    ) < 1e-12,
  );
  // labels weigh the same
  assert.equal(map50([{ want: [a, item("dog", 0, 0, 1, 1)], found: [a] }]), 0.5);
});

Deno.test("ece: how far confidence is from the share of right boxes", () => {
  const sure = (it: Item, confidence: number) => ({ ...it, confidence });
  assert.equal(ece([{ want: [a, b], found: [a, b] }]), 0);
  assert.equal(ece([{ want: [a], found: [miss(1)] }]), 1);
  const scenes = [{ want: [a, b], found: [sure(a, 0.5), sure(b, 0.55)] }, {
    want: [a],
    found: [sure(a, 0.6)],
  }];
  assert.ok(Math.abs(ece(scenes) - (0.5 + 0.45 + 0.4) / 3) < 1e-12);
  assert.ok(
    Math.abs(ece([{ want: [a], found: [sure(a, 0.52), miss(0.58)] }]) - Math.abs(1.1 - 1) / 2) < 1e-12,
  );
  assert.equal(ece([]), 0);
});

Deno.test("meanIou: a missed thing counts nothing, a mask counts once and under its own label", () => {
  const pixels = (text: string) => Uint8Array.from(text, (it) => Number(it === "#"));
  const mask = (text: string) =>
    runLengths({ top: 0, left: 0, height: 2, width: 2, inside: pixels(text) }, [2, 2]);
  const [top, left] = [pixels("##.."), pixels("#.#.")];
  assert.equal(meanIou([{ want: [a], found: [{ ...a, mask: mask("##..") }], masks: [top] }]), 1);
  assert.equal(meanIou([{ want: [a, b], found: [{ ...a, mask: mask("##..") }], masks: [top, left] }]), 0.5);
  assert.equal(meanIou([{ want: [a], found: [{ ...a, mask: mask("#.#.") }], masks: [top] }]), 1 / 3);
  assert.equal(
    meanIou([{ want: [a], found: [{ ...a, label: "dog", mask: mask("##..") }], masks: [top] }]),
    0,
  );
  assert.equal(meanIou([{ want: [a], found: [a], masks: [top] }]), 0);
  // whichever comes first, each thing gets the mask that fits it
  const found = [{ ...b, mask: mask("#.#.") }, { ...a, mask: mask("##..") }];
  assert.equal(meanIou([{ want: [a, b], found, masks: [top, left] }]), 1);
});
