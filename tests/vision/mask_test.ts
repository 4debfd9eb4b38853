import assert from "node:assert/strict";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { decodePicture } from "../../lib/preprocess/decode.ts";
import { loadMaskDecoder, MASK_DECODER } from "../../lib/vision/mask_decoder.ts";
import { encodePng, formed, pixelsOf, polygons, runLengths } from "../../lib/vision/mask_forms.ts";
import { paste, type Patch } from "../../lib/vision/mask_paste.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { memoryFiles } from "../memory_files.ts";

const GOLDEN = new URL("../golden/tiny/", import.meta.url);
const weights = Deno.readFileSync(new URL("vq_random_f16.safetensors", GOLDEN));
const golden = JSON.parse(Deno.readTextFileSync(new URL("vq_golden.json", GOLDEN)));

/** A patch drawn with characters. */
function drawn(rows: readonly string[], top = 0, left = 0): Patch {
  const inside = Uint8Array.from(rows.join(""), (it) => Number(it === "#"));
  return { top, left, height: rows.length, width: rows[0].length, inside };
}

for (
  const [name, backend] of [
    ["reference", createReferenceBackend()],
    ["wasm", createWasmBackend({ simd, relaxed })],
  ] as const
) {
  Deno.test(`${name}: masks are those of PyTorch and Flax within 1e-4`, async () => {
    const decoder = (await loadMaskDecoder(backend, memoryFiles({ [MASK_DECODER]: weights })))!;
    const held = backend.sizeBytes;
    for (const [n, codes] of golden.indices.entries()) {
      const mask = await decoder.decode(codes);
      assert.equal(mask.length, 64 * 64);
      for (const row of [0, 31]) {
        golden[`mask_row${row}`][n].forEach((value: number, x: number) =>
          assert.ok(
            Math.abs(mask[64 * row + x] - value) < 1e-4,
            `${n} ${row} ${x}: ${mask[64 * row + x]} ${value}`,
          )
        );
      }
      assert.ok(Math.abs(mask.reduce((a, b) => a + b, 0) - golden.sum[n]) < 0.05);
      assert.ok(Math.abs(mask.filter((it) => it > 0).length - golden.positive_count[n]) <= 1);
    }
    assert.equal(backend.sizeBytes, held, "a mask leaves nothing behind");
  });
}

Deno.test("a directory without a mask decoder has none; a broken one is refused by its tensor", async () => {
  const backend = createReferenceBackend();
  assert.equal(await loadMaskDecoder(backend, memoryFiles({})), undefined);
  const renamed = weights.slice();
  const at = new TextDecoder("latin1").decode(weights.subarray(0, 4000)).indexOf("decoder.4.weight");
  renamed.set(new TextEncoder().encode("decoder.5"), at);
  await assert.rejects(loadMaskDecoder(backend, memoryFiles({ [MASK_DECODER]: renamed }, "here")), {
    code: "model_invalid",
    message:
      /mask_decoder\.safetensors of here: expected tensor "decoder\.4\.weight" \[128,128,4,4\], found none/,
  });
});

Deno.test("a mask lands in its box: sides cut to pixels, halves where the logits change sign", () => {
  const logits = Float32Array.from({ length: 64 * 64 }, (_, i) => i % 64 < 32 ? 1 : -1);
  const box = { yMin: 0.25, xMin: 0.1, yMax: 0.759, xMax: 0.9 };
  for (const [width, height] of [[1000, 400], [40, 40]]) { // larger and smaller than the mask
    const patch = paste(logits, box, { width, height });
    assert.deepEqual([patch.top, patch.left], [Math.trunc(0.25 * height), Math.trunc(0.1 * width)]);
    assert.deepEqual([patch.height, patch.width], [
      Math.trunc(0.759 * height) - Math.trunc(0.25 * height),
      Math.trunc(0.9 * width) - Math.trunc(0.1 * width),
    ]);
    patch.inside.forEach((it, i) =>
      assert.equal(it, Number(i % patch.width < patch.width / 2), `${width} ${i}`)
    );
  }
  assert.equal(
    paste(logits, { yMin: 0.1, xMin: 0.1, yMax: 0.1001, xMax: 0.9 }, { width: 50, height: 50 }).height,
    0,
  );
});

Deno.test("pasted masks have every pixel of Pillow 12.3's BILINEAR above 0, larger and smaller", async () => {
  const level = (i: number) => Math.fround((i * 7919 + 104729) % 2003 / 1001.5 - 1);
  const block = (i: number) => level(Math.floor(i / 512) * 8 + Math.floor(i % 64 / 8));
  const logits = Float32Array.from(
    { length: 64 * 64 },
    (_, i) => block(i) + Math.fround(Math.fround(0.3) * level(i)),
  );
  // np.asarray(Image.fromarray(logits, mode="F").resize((width, height), Image.BILINEAR)) > 0, as bytes
  const expected: [number, number, number, string][] = [
    [37, 90, 1673, "d779f4de88f08591c8af6d02cb1a49f84d15114d4669345ad06a3cf960c25611"],
    [200, 150, 14920, "37531fc6b8c621da89fb1deb2e135bb8c42b02d871aa9fae677f6633845139d9"],
    [64, 64, 2035, "a8a72e9751967b43c4bc7c992bb78e34f63a1dc114e89532c2262155480f5747"],
    [13, 21, 138, "eb88c1f842ad39a5bc43cb3bcf40481229bf62e0814d44c3d2ef46e486d41759"],
    [1, 500, 308, "fc9e606ebb74a142e5fc01e0f8b2ff6dc67a4ba6af5d8079f01076203c31913e"],
  ];
  for (const [width, height, count, sha256] of expected) {
    const { inside } = paste(logits, { yMin: 0, xMin: 0, yMax: 1, xMax: 1 }, { width, height });
    assert.equal(inside.reduce((a, b) => a + b, 0), count, `${width} x ${height}`);
    const digest = await crypto.subtle.digest("SHA-256", inside as Uint8Array<ArrayBuffer>);
    assert.equal(new Uint8Array(digest).toHex(), sha256, `${width} x ${height}`);
  }
});

Deno.test("run lengths are those of pycocotools 2.0.11", async () => {
  const ring = drawn(["####", "#..#", "####"], 1, 1);
  assert.deepEqual(runLengths(ring, [5, 6]), { size: [5, 6], counts: "632NO010O0124" });
  assert.deepEqual(runLengths(drawn(["."]), [3, 3]), { size: [3, 3], counts: "9" });
  assert.deepEqual(runLengths(drawn(["###", "###"]), [2, 3]), { size: [2, 3], counts: "06" });
  const inside = Uint8Array.from({ length: 480 * 640 }, (_, i) => {
    const [x, y] = [i % 640, Math.floor(i / 640)];
    return Number((x - 300) ** 2 / 200 ** 2 + (y - 200) ** 2 / 130 ** 2 < 1);
  });
  const { counts } = runLengths({ top: 0, left: 0, height: 480, width: 640, inside }, [480, 640]);
  assert.ok(counts.startsWith("l`_1i0Q><F8I6J6J6J6K4L4L4L4L4L4M2M4M2M4M2M4M2N2M4M2N2N2M4M2N"), counts);
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(counts));
  assert.equal(
    new Uint8Array(digest).toHex(),
    "0f4677dc180b2b97c5b67dc009e9ed00e71d6539790e17e0ac2acdd80ab747e8",
  );
});

Deno.test("run lengths hold every pixel: 300 random masks come back", () => {
  let seed = 7;
  const next = () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  for (let n = 0; n < 300; n++) {
    const [height, width] = [1 + Math.floor(next() * 60), 1 + Math.floor(next() * 60)];
    const [top, left] = [Math.floor(next() * height), Math.floor(next() * width)];
    const share = next();
    const patch = { top, left, height: height - top, width: width - left };
    const inside = Uint8Array.from({ length: patch.height * patch.width }, () => Number(next() < share));
    const whole = pixelsOf(runLengths({ ...patch, inside }, [height, width]));
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const expected = y < top || x < left ? 0 : inside[(y - top) * patch.width + x - left];
        assert.equal(whole[y * width + x], expected);
      }
    }
  }
});

Deno.test("polygons go along pixel borders, holes the other way, and enclose as many pixels as there are", () => {
  assert.deepEqual(polygons(drawn(["##", "##"], 3, 5)), [[7, 3, 7, 5, 5, 5, 5, 3]]);
  const area = (ring: readonly number[]) => {
    let sum = 0;
    for (let i = 0; i < ring.length; i += 2) {
      const [x, y, nx, ny] = [ring[i], ring[i + 1], ring[(i + 2) % ring.length], ring[(i + 3) % ring.length]];
      sum += (x * ny - nx * y) / 2;
    }
    return sum;
  };
  assert.deepEqual(polygons(drawn(["###", "#.#", "###"])).map(area), [9, -1]);
  assert.deepEqual(polygons(drawn(["#.", ".#"])).map(area), [1, 1]);
  let seed = 3;
  for (let n = 0; n < 100; n++) {
    const inside = Uint8Array.from(
      { length: 12 * 9 },
      () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) >>> 31,
    );
    const rings = polygons({ top: 2, left: 4, height: 9, width: 12, inside });
    assert.equal(rings.reduce((sum, it) => sum + area(it), 0), inside.reduce((a, b) => a + b, 0));
  }
});

Deno.test("a PNG mask, and an RGB picture, are read back pixel for pixel", async () => {
  const mask = await formed(drawn([".#", "##"], 1, 0), [3, 4], "png");
  assert.ok("png" in mask);
  const picture = await decodePicture(Uint8Array.fromBase64(mask.png), { maxPixels: 100 });
  const grey = picture.data.filter((_, i) => i % 3 === 0);
  assert.deepEqual([...grey], [0, 0, 0, 0, 0, 255, 0, 0, 255, 255, 0, 0]);
  const samples = Uint8Array.from({ length: 5 * 7 * 3 }, (_, i) => (i * 37) % 256);
  const back = await decodePicture(await encodePng(samples, 5, 7), { maxPixels: 100 });
  assert.deepEqual([back.width, back.height, [...back.data]], [5, 7, [...samples]]);
});
