import assert from "node:assert/strict";
import { decodePicture } from "../../lib/preprocess/decode.ts";
import { normalise } from "../../lib/preprocess/normalise.ts";
import { preprocess } from "../../lib/preprocess/preprocess.ts";
import { resizeBicubic, resizeBilinear } from "../../lib/preprocess/resize.ts";
import { fixture } from "./pictures.ts";

const half = [0.5, 0.5, 0.5];

Deno.test("every level is normalised within one f32 step of (x/255 − ½)/½", () => {
  const levels = Uint8Array.from({ length: 768 }, (_, i) => i / 3);
  const out = normalise(levels, half, half);
  for (let i = 0; i < levels.length; i++) {
    const exact = (levels[i] / 255 - 0.5) / 0.5;
    // x/255 is rounded to f32 near ½, where a step is 2⁻²⁴; the subtraction is exact, the division doubles it.
    assert.ok(Math.abs(out[i] - exact) <= 2 ** -24, `${levels[i]}: ${out[i]}, exact ${exact}`);
  }
  assert.deepEqual([out[0], out[767]], [-1, 1]);
});

Deno.test("each channel has its own mean and deviation", () => {
  const out = normalise(new Uint8Array([255, 0, 51, 0, 255, 51]), [0, 0.5, 0.2], [1, 0.25, 0.1]);
  assert.deepEqual([...out].map((it) => Number(it.toFixed(5))), [1, -2, 0, 0, 2, 0]);
  assert.throws(() => normalise(new Uint8Array(4), half, half), RangeError);
  assert.throws(() => normalise(new Uint8Array(3), [0.5], half), RangeError);
});

Deno.test("preprocess is decode, resize and normalise, in the way asked for", async () => {
  const bytes = fixture("orientation6.jpg");
  const common = { size: 28, maxPixels: 1e6, mean: half, std: half };
  const picture = await decodePicture(bytes, common);
  const bicubic = await preprocess(bytes, { ...common, method: "hf-bicubic" });
  const bilinear = await preprocess(bytes, { ...common, method: "bv-bilinear-aa" });
  assert.equal(bicubic.size, 28);
  assert.deepEqual(bicubic.data, normalise(resizeBicubic(picture, 28), half, half));
  assert.deepEqual(bilinear.data, normalise(resizeBilinear(picture, 28), half, half));
  assert.notDeepEqual(bicubic.data, bilinear.data);

  const clear = fixture("rgba.png");
  const white = await preprocess(clear, { ...common, method: "hf-bicubic", alpha: "white" });
  const drop = await preprocess(clear, { ...common, method: "hf-bicubic" });
  assert.ok(white.data.reduce((a, b) => a + b) > drop.data.reduce((a, b) => a + b) + 100);
});
