import assert from "node:assert/strict";
import { f1, iou, map50 } from "../../models/evaluate.ts";
import type { Item } from "../../lib/mod.ts";

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
