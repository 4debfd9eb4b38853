/** The bundled model says what the bundled examples promise, and its masks are the drawn shapes. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { loadModel, TINY } from "../../functions/model.ts";
import { decodePicture } from "../../lib/preprocess/decode.ts";
import { collect, pixelsOf } from "../../lib/mod.ts";
import { examples } from "../../models/demo.ts";

const { directory, list } = await examples();

Deno.test("the bundled model answers every bundled example as written", async () => {
  const pipeline = await loadModel(TINY);
  for (const { image, prompt, answer } of list) {
    const bytes = await Deno.readFile(join(directory, image));
    const { text } = await collect(pipeline.answer({ images: [bytes], prompt }));
    const places = (it: string) => [...it.matchAll(/<loc(\d+)>/g)].map(([, bin]) => Number(bin));
    const words = (it: string) => it.replaceAll(/<loc\d+>/g, "<loc>");
    assert.equal(words(text), words(answer), `${image}: ${prompt}`);
    // Edges between two of the bins that training drew on, ten apart, may fall to either.
    places(text).forEach((bin, i) =>
      assert.ok(Math.abs(bin - places(answer)[i]) <= 10, `${prompt}: ${text}`)
    );
  }
});

Deno.test("its masks are the shapes in the picture, with a mean intersection over union of 0.85 and more", async () => {
  const pipeline = await loadModel(TINY);
  const bytes = await Deno.readFile(join(directory, "five_shapes.png"));
  const picture = await decodePicture(bytes, { maxPixels: 1e6 });
  const unions: number[] = [];
  for (const label of ["cross", "star", "heart", "square", "ring"]) {
    const { items } = await collect(pipeline.answer({ images: [bytes], prompt: `segment ${label}` }));
    assert.equal(items.length, 1, label);
    const [{ mask, boxPixels, confidence }] = items;
    assert.ok(mask && "counts" in mask && boxPixels && confidence > 0.8, label);
    const pixels = pixelsOf(mask);
    // The shape is what has its colour: no other thing of this picture does.
    const wanted = coloured(picture.data, pixels);
    let [both, either] = [0, 0];
    pixels.forEach((it, i) => {
      both += it & wanted[i];
      either += it | wanted[i];
    });
    unions.push(both / either);
    // A ring of 34 pixels in a box that is two larger, one step of its edges, keeps 0.7; other shapes keep more.
    assert.ok(unions.at(-1)! >= (label === "ring" ? 0.65 : 0.8), `${label}: ${unions.at(-1)}`);
  }
  assert.ok(unions.reduce((a, b) => a + b) / unions.length >= 0.85, `${unions}`);
});

/** The pixels of the colour that most pixels of a mask have. */
function coloured(data: Uint8Array, mask: Uint8Array): Uint8Array {
  const colourAt = (i: number) => data[3 * i] << 16 | data[3 * i + 1] << 8 | data[3 * i + 2];
  const counts = new Map<number, number>();
  mask.forEach((it, i) => it && counts.set(colourAt(i), (counts.get(colourAt(i)) ?? 0) + 1));
  const [most] = [...counts].reduce((a, b) => b[1] > a[1] ? b : a);
  return mask.map((_, i) => Number(colourAt(i) === most));
}
