import assert from "node:assert/strict";
import { decodePicture } from "../../lib/preprocess/decode.ts";
import { exifOrientation } from "../../lib/preprocess/orientation.ts";
import { concat, fixture, golden } from "./pictures.ts";

interface Golden {
  width: number;
  height: number;
  tolerance: number;
  rgb: string;
  white?: string;
}
const goldens = Object.entries<Golden>(golden("pictures.json").pictures);
const options = { maxPixels: 1e6 };

for (
  const [kind, pattern] of [["in all eight orientations", /^orientation/], [
    "of every kind",
    /^(?!orientation)/,
  ]] as const
) {
  Deno.test(`pictures ${kind} decode to what Pillow gives`, async () => {
    const chosen = goldens.filter(([name]) => pattern.test(name));
    assert.ok(chosen.length >= 19, `${chosen.length} goldens`);
    for (const [name, it] of chosen) {
      const found = await decodePicture(fixture(name), options);
      assert.deepEqual([found.width, found.height], [it.width, it.height], name);
      compare(name, found.data, it.rgb, it.tolerance);
    }
  });
}

Deno.test("transparency is composited on white when asked for, as Pillow's paste does it", async () => {
  const chosen = goldens.filter(([, it]) => it.white);
  assert.ok(chosen.length >= 6, `${chosen.length} goldens`);
  for (const [name, it] of chosen) {
    compare(
      name,
      (await decodePicture(fixture(name), { ...options, alpha: "white" })).data,
      it.white!,
      it.tolerance,
    );
  }
  const opaque = fixture("orientation1.png");
  assert.deepEqual(
    await decodePicture(opaque, { ...options, alpha: "white" }),
    await decodePicture(opaque, options),
  );
});

Deno.test("a view into a larger buffer decodes like its own bytes", async () => {
  for (const name of ["orientation6.jpg", "orientation6.png", "orientation6.webp", "animated_offset.webp"]) {
    const bytes = fixture(name);
    const view = concat([new Uint8Array(7).fill(0xff), bytes, new Uint8Array(9).fill(0xff)]).subarray(7, -9);
    assert.deepEqual(await decodePicture(view, options), await decodePicture(bytes, options), name);
  }
});

Deno.test("pictures decode side by side", async () => {
  const names = goldens.map(([name]) => name);
  const together = await Promise.all(names.map((it) => decodePicture(fixture(it), options)));
  for (const [i, name] of names.entries()) {
    assert.deepEqual(together[i], await decodePicture(fixture(name), options), name);
  }
});

Deno.test("stray bytes after the end of a picture do no harm", async () => {
  for (const name of ["baseline.jpg", "rgba.png", "rgba.webp"]) {
    const bytes = fixture(name);
    const longer = concat([
      bytes,
      new TextEncoder().encode("SEFT and what else cameras append \xff\xd8\xff"),
    ]);
    assert.deepEqual(await decodePicture(longer, options), await decodePicture(bytes, options), name);
  }
});

Deno.test("orientation is read in both byte orders and ignored where EXIF is broken", () => {
  const tiff = (little: boolean, type = 3, value = 6, directory = 8) => {
    const view = new DataView(new ArrayBuffer(26));
    view.setUint16(0, little ? 0x4949 : 0x4d4d);
    view.setUint16(2, 42, little);
    view.setUint32(4, directory, little);
    view.setUint16(8, 1, little);
    view.setUint16(10, 0x0112, little);
    view.setUint16(12, type, little);
    view.setUint32(14, 1, little);
    view.setUint16(18, value, little);
    return new Uint8Array(view.buffer);
  };
  const exif = new TextEncoder().encode("Exif\0\0");
  assert.equal(exifOrientation(tiff(true)), 6);
  assert.equal(exifOrientation(tiff(false)), 6);
  assert.equal(exifOrientation(concat([exif, tiff(false, 3, 8)])), 8);
  for (const value of [0, 9, 65535]) assert.equal(exifOrientation(tiff(true, 3, value)), undefined);
  assert.equal(exifOrientation(tiff(true, 2)), undefined);
  assert.equal(exifOrientation(tiff(true, 3, 6, 4_000_000_000)), undefined);
  for (let length = 0; length < 22; length++) {
    assert.equal(exifOrientation(tiff(true).subarray(0, length)), undefined);
  }
});

function compare(name: string, found: Uint8Array, base64: string, tolerance: number): void {
  const expected = Uint8Array.fromBase64(base64);
  assert.equal(found.length, expected.length, name);
  let worst = 0;
  for (let i = 0; i < found.length; i++) worst = Math.max(worst, Math.abs(found[i] - expected[i]));
  assert.ok(worst <= tolerance, `${name}: ${worst} levels off, allowed ${tolerance}`);
}
