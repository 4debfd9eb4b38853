import assert from "node:assert/strict";
import { annotate } from "../../models/annotate.ts";
import { runLengths } from "../../lib/vision/mask_forms.ts";

const picture = { width: 60, height: 40, data: new Uint8Array(60 * 40 * 3).fill(255) };
const box = { yMin: 0.5, xMin: 0.25, yMax: 0.75, xMax: 0.5 };
const pixel = (
  data: Uint8Array,
  x: number,
  y: number,
) => [...data.subarray(3 * (y * 60 + x), 3 * (y * 60 + x) + 3)];
const WHITE = [255, 255, 255];

Deno.test("a box is framed within its pixels, its label stands above it, the rest of the picture stays", () => {
  const { data } = annotate(picture, [{ box, label: "a", confidence: 0.5 }]);
  for (const [x, y] of [[15, 20], [29, 20], [15, 29], [29, 29], [20, 20], [15, 25]]) {
    assert.notDeepEqual(pixel(data, x, y), WHITE, `${x} ${y}`);
  }
  for (const [x, y] of [[16, 21], [28, 28], [14, 25], [30, 25], [20, 30], [59, 39], [0, 0]]) {
    assert.deepEqual(pixel(data, x, y), WHITE, `${x} ${y}`);
  }
  // "A 0.50": the letter's apex is black on the colour of the box.
  assert.deepEqual([pixel(data, 16, 14), pixel(data, 17, 14)], [pixel(data, 20, 20), [0, 0, 0]]);
  assert.ok(picture.data.every((it) => it === 255), "the picture itself stays");
});

Deno.test("labels have a colour each, masks tint what is inside, boxes over the border do no harm", () => {
  const inside = Uint8Array.from({ length: 10 * 15 }, (_, i) => Number(i < 75));
  const mask = runLengths({ top: 20, left: 15, height: 10, width: 15, inside }, [40, 60]);
  const out = { yMin: 0, xMin: 0.9, yMax: 2, xMax: 3 };
  const { data } = annotate(picture, [
    { box, label: "a", confidence: 0.5, mask },
    { box: out, label: "a very long label, longer than the picture is wide 猫", confidence: 1 },
  ]);
  const tint = pixel(data, 20, 22);
  assert.ok(tint.every((it, c) => it <= 255 && it >= pixel(data, 15, 29)[c]) && tint.some((it) => it < 255));
  assert.deepEqual(pixel(data, 20, 27), WHITE);
  assert.notDeepEqual(pixel(data, 54, 39), pixel(data, 15, 29));
});
