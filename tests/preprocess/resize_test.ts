import assert from "node:assert/strict";
import { decodePicture } from "../../lib/preprocess/decode.ts";
import { bilinearValues, resizeBicubic, resizeBilinear } from "../../lib/preprocess/resize.ts";
import type { Picture } from "../../lib/types.ts";
import { golden, photo, photosAreHere, sha256, synthetic, why } from "./pictures.ts";

Deno.test("bicubic equals Pillow in every byte, whatever the size and the contents", async () => {
  for (const it of golden("resize_synthetic.json").cases) {
    const out = resizeBicubic(synthetic(it.kind, it.width, it.height), it.size);
    const what = `${it.kind} ${it.width} x ${it.height} to ${it.size}`;
    assert.equal(out.length, it.size * it.size * 3, what);
    for (const [at, pixel] of Object.entries(it.bicubic)) {
      assert.deepEqual(pixelAt(out, it.size, at), pixel, `${what}, pixel ${at}`);
    }
    assert.equal(await sha256(out), it.bicubicSha256, what);
  }
});

Deno.test("bilinear equals torch's antialiased bilinear within 0.01 of a level", () => {
  for (const it of golden("resize_synthetic.json").cases) {
    const out = bilinearValues(synthetic(it.kind, it.width, it.height), it.size);
    for (const [at, pixel] of Object.entries<number[]>(it.bilinear)) {
      const found = pixelAt(out, it.size, at);
      pixel.forEach((value, c) =>
        assert.ok(
          Math.abs(value - found[c]) < 0.01,
          `${it.kind} ${it.width} x ${it.height} to ${it.size}, pixel ${at}: expected ${pixel}, found ${found}`,
        )
      );
    }
  }
});

Deno.test("bilinear is cut off to whole levels, and an even area keeps its level", () => {
  const picture = synthetic("noise", 37, 53);
  const exact = bilinearValues(picture, 28), cut = resizeBilinear(picture, 28);
  for (let i = 0; i < cut.length; i++) {
    const fraction = exact[i] - Math.floor(exact[i]);
    if (fraction < 0.998) assert.equal(cut[i], Math.floor(exact[i]));
  }
  const values = new Uint8Array(71 * 43 * 3);
  for (let level = 0; level < 256; level++) {
    const out = resizeBilinear({ width: 71, height: 43, data: values.fill(level) }, 28);
    assert.ok(out.every((it) => it === level), `level ${level} became ${out.find((it) => it !== level)}`);
  }
});

Deno.test("a picture of the model's size comes out unchanged, as a copy", () => {
  const picture = synthetic("noise", 28, 28);
  for (const resize of [resizeBicubic, resizeBilinear]) {
    const out = resize(picture, 28);
    assert.deepEqual(out, picture.data);
    assert.notEqual(out.buffer, picture.data.buffer);
  }
});

Deno.test("a picture whose size does not fit its bytes is a broken contract", () => {
  const short = { width: 3, height: 2, data: new Uint8Array(17) };
  assert.throws(
    () => resizeBicubic(short, 8),
    new RangeError("Cannot resize: 3 x 2 x 3 does not fit 17 bytes"),
  );
  assert.throws(() => resizeBilinear(short, 8), RangeError);
  assert.throws(() => resizeBicubic(synthetic("noise", 2, 2), 0), RangeError);
});

Deno.test("12 megapixels become 448 x 448 in under half a second", () => {
  const picture = synthetic("slopes", 4000, 3000);
  // The best of four: other things run on the machine too.
  let ms = Infinity;
  for (let i = 0; i < 4; i++) {
    const start = performance.now();
    resizeBicubic(picture, 448);
    ms = Math.min(ms, performance.now() - start);
  }
  assert.ok(ms < 500, `${ms.toFixed(0)} ms`);
});

Deno.test({
  name: `photos: both ways of resizing give the reference's pixels${why}`,
  ignore: !photosAreHere,
  async fn() {
    for (const [name, it] of Object.entries<Golden>(golden("resize.json"))) {
      const picture = name.endsWith(".ppm")
        ? readPpm(photo(name))
        : await decodePicture(photo(name), { maxPixels: 4e6 });
      assert.deepEqual([picture.width, picture.height], it.size_wh, name);
      for (const size of [224, 448] as const) {
        const bicubic = resizeBicubic(picture, size), bilinear = bilinearValues(picture, size);
        assert.equal(await sha256(bicubic), it[size].pil_bicubic_sha256, `${name} ${size}`);
        for (const [at, pixel] of Object.entries(it[size].tfstyle_bilinear_aa_px)) {
          const found = pixelAt(bilinear, size, at);
          assert.ok(pixel.every((value, c) => Math.abs(value - found[c]) < 0.01), `${name} ${size}: ${at}`);
        }
      }
    }
  },
});

interface Sized {
  pil_bicubic_sha256: string;
  tfstyle_bilinear_aa_px: Record<string, number[]>;
}
interface Golden {
  size_wh: number[];
  224: Sized;
  448: Sized;
}

function pixelAt(data: Uint8Array | Float32Array, size: number, at: string): number[] {
  const [y, x] = at.split(",").map(Number);
  return [...data.subarray(3 * (y * size + x), 3 * (y * size + x) + 3)];
}

/** P6 with comments between its header fields. */
function readPpm(bytes: Uint8Array): Picture {
  const text = String.fromCharCode(...bytes.subarray(0, 1000));
  const [head, width, height] = /^P6\s(?:#.*\n|\s)*(\d+)(?:\s+|#.*\n)+(\d+)(?:\s+|#.*\n)+255\s/.exec(text)!;
  return { width: Number(width), height: Number(height), data: bytes.subarray(head.length) };
}
