import assert from "node:assert/strict";
import { type ErrorCode, RequestError } from "../../lib/errors.ts";
import { decodePicture } from "../../lib/preprocess/decode.ts";
import { chunk, concat, deflate, fixture, fixtureNames, png, random } from "./pictures.ts";

const options = { maxPixels: 50e6 };
const good = fixtureNames().filter((it) => !/^(unsupported|cmyk)/.test(it));
const rgb8 = { depth: 8, colour: 2 };

Deno.test("what is not JPEG, PNG or WebP is refused by name", async () => {
  const text = (it: string) => new TextEncoder().encode(it);
  const cases: [Uint8Array, RegExp][] = [
    [fixture("unsupported.gif"), /GIF \(first bytes 47 49 46 38/],
    [fixture("unsupported.bmp"), /BMP/],
    [fixture("unsupported.tiff"), /TIFF/],
    [fixture("unsupported.avif"), /AVIF/],
    [text("\0\0\0\x18ftypheic\0\0\0\0mif1heic"), /HEIC/],
    [text("\0\0\0\x18ftypqt  \0\0\0\0"), /brand "qt {2}"/],
    [text("RIFF\x10\0\0\0WAVEfmt "), /RIFF file that is not WebP/],
    [text("<!doctype html>"), /HTML/],
    [text("data:image/png;base64,iVBO"), /data URL/],
    [text("hello"), /found first bytes 68 65 6c 6c 6f$/],
    [fixture("cmyk.jpg"), /CMYK/],
    [new Uint8Array(), /no bytes/],
  ];
  for (const [bytes, message] of cases) await refused(bytes, "image_unsupported", message);
  await refused(frame(0xc3, [8, 0, 9, 0, 9, 3]), "image_unsupported", /lossless/);
  await refused(frame(0xc9, [8, 0, 9, 0, 9, 3]), "image_unsupported", /arithmetic/);
  await refused(frame(0xc1, [12, 0, 9, 0, 9, 3]), "image_unsupported", /12 bits/);
  await refused(frame(0xc0, [8, 0, 9, 0, 9, 2]), "image_unsupported", /2 colour components/);
});

Deno.test("a picture cut short anywhere is refused", async () => {
  for (const name of good) {
    const bytes = fixture(name);
    for (let i = 0; i < 24; i++) {
      const cut = bytes.subarray(0, Math.floor(bytes.length * i / 24));
      await refused(
        cut,
        cut.length < 12 ? undefined : "image_corrupt",
        /./,
        `${name} cut to ${cut.length} bytes`,
      );
    }
    await refused(bytes.subarray(0, -1), "image_corrupt", /./, `${name} without its last byte`);
  }
});

Deno.test("a JPEG whose first scan is cut short is refused though its end marker is there", async () => {
  for (const name of ["baseline.jpg", "progressive.jpg", "grey.jpg"]) {
    const bytes = fixture(name);
    const scan = bytes.findIndex((byte, i) => byte === 0xff && bytes[i + 1] === 0xda);
    const cut = concat([bytes.subarray(0, scan + 16), new Uint8Array([0xff, 0xd9])]);
    await refused(cut, "image_corrupt", /premature end/, name);
  }
});

Deno.test("a JPEG of more scans than any camera writes is refused before decoding", async () => {
  const bytes = fixture("progressive.jpg");
  const scan = bytes.findLastIndex((byte, i) => byte === 0xff && bytes[i + 1] === 0xda);
  const again = bytes.subarray(scan, -2);
  const many = concat([bytes.subarray(0, -2), ...Array(100).fill(again), new Uint8Array([0xff, 0xd9])]);
  await refused(many, "image_unsupported", /more than 100 scans/);
});

Deno.test("too many pixels are refused from the header, within 50 ms", async () => {
  const bomb = await png(
    { width: 20_000, height: 20_000, depth: 1, colour: 0 },
    new Uint8Array(2501 * 20_000),
  );
  assert.ok(bomb.length < 100_000);
  const view = new DataView(new ArrayBuffer(30));
  new Uint8Array(view.buffer).set(new TextEncoder().encode("RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0"));
  new Uint8Array(view.buffer).set([0x2f, 0x75, 0, 0x2f, 0x75, 0], 24);
  const cases: [Uint8Array, RegExp][] = [
    [bomb, /20000 x 20000 = 400,000,000 pixels, at most 50,000,000 are allowed/],
    [await png({ width: 30_000, height: 30_000, ...rgb8 }, new Uint8Array(9)), /30000 x 30000/],
    [
      (await png({ width: 30_000, height: 30_000, ...rgb8 }, new Uint8Array(9))).subarray(0, 33),
      /30000 x 30000/,
    ],
    [frame(0xc0, [8, 0x75, 0x30, 0x75, 0x30, 3]), /30000 x 30000/],
    [new Uint8Array(view.buffer), /30000 x 30000/],
    [
      await png({ width: 1_000_000, height: 2, ...rgb8 }, new Uint8Array(9)),
      /1000000 x 2 pixels, sides at most 65535/,
    ],
    [
      await png({ width: 2 ** 31 - 1, height: 2 ** 31 - 1, ...rgb8 }, new Uint8Array(9)),
      /2147483647 x 2147483647/,
    ],
  ];
  for (const [bytes, message] of cases) {
    let best = Infinity; // of five: on a busy machine one may wait for its turn
    for (let i = 0; i < 5; i++) {
      const start = performance.now();
      await refused(bytes, "image_too_large", message);
      best = Math.min(best, performance.now() - start);
    }
    assert.ok(best < 50, `${best} ms for ${message}`);
  }
  await refused(
    await png({ width: 0, height: 5, ...rgb8 }, new Uint8Array(9)),
    "image_corrupt",
    /0 x 5 pixels/,
  );
  const { width, height } = await decodePicture(fixture("rgba.png"), { maxPixels: 240 });
  assert.equal(width * height, 240);
  await assert.rejects(decodePicture(fixture("rgba.png"), { maxPixels: 239 }), { code: "image_too_large" });
});

Deno.test("a PNG cannot take more time or memory than its size says", async () => {
  const zeros = new Uint8Array(100_000_000);
  const name = new TextEncoder().encode("x\0\0");
  const squeezed = await deflate(zeros);
  const header = { width: 4, height: 4, ...rgb8 };
  const pixels = new Uint8Array(13 * 4);
  const little = await png({ width: 7_000, height: 7_000, ...rgb8 }, new Uint8Array(9));
  // Many zeros, then noise enough to make the file large.
  const padded = new Uint8Array(60_000_000);
  for (let at = 59_000_000; at < padded.length; at += 50_000) {
    crypto.getRandomValues(padded.subarray(at, at + 50_000));
  }
  const much = await png(header, padded);
  const texts = [chunk("iCCP", concat([name, squeezed])), chunk("zTXt", concat([name, squeezed]))];
  const laden = await png(header, pixels, texts);
  const timed = async (what: string, limitMs: number, task: () => Promise<unknown>) => {
    const start = performance.now();
    await task();
    const ms = performance.now() - start;
    assert.ok(ms < limitMs, `${what}: ${ms} ms`);
  };
  await timed("too little data", 50, () => refused(little, "image_corrupt", /cannot hold them/));
  await timed(
    "too much data",
    500,
    () => refused(much, "image_corrupt", /inflates to more than 1048\d+ bytes/),
  );
  await timed("compressed metadata", 200, async () => {
    assert.deepEqual((await decodePicture(laden, options)).data, new Uint8Array(48));
  });
});

Deno.test("damaged bytes either decode or are refused, and the next picture is not touched", async () => {
  const next = random(20);
  const seen = { decoded: 0, refused: 0 };
  const reference = new Map<string, Uint8Array>();
  for (const name of good) reference.set(name, (await decodePicture(fixture(name), options)).data);
  for (let i = 0; i < 300; i++) {
    const name = good[i % good.length];
    const bytes = damage(fixture(name), next);
    try {
      const { width, height, data } = await decodePicture(bytes, { ...options, maxPixels: 1e6 });
      assert.equal(data.length, width * height * 3);
      seen.decoded++;
    } catch (error) {
      expectRequestError(error);
      seen.refused++;
    }
    const after = good[Math.floor(next() * good.length)];
    assert.deepEqual(
      (await decodePicture(fixture(after), options)).data,
      reference.get(after),
      `${after} after ${name}`,
    );
  }
  assert.ok(seen.decoded > 20 && seen.refused > 60, JSON.stringify(seen));
});

Deno.test("a damaged PNG whose checksums are right is refused", async () => {
  const raw = new Uint8Array(13 * 4);
  raw[13] = 9; // no such filter
  await refused(await png({ width: 4, height: 4, ...rgb8 }, raw), "image_corrupt", /PNG/);
  await refused(await png({ width: 4, height: 4, ...rgb8 }, raw.slice(0, 30)), "image_corrupt", /PNG/);
  await refused(
    await png({ width: 4, height: 4, depth: 8, colour: 3 }, new Uint8Array(20)),
    "image_corrupt",
    /PNG/,
  );
  await refused(
    await png({ width: 4, height: 4, depth: 3, colour: 2 }, raw),
    "image_corrupt",
    /colour type 2 with 3 bits/,
  );
});

/** One of: flipped bytes, a hole, a doubled part, random bytes in a row. */
function damage(bytes: Uint8Array, next: () => number): Uint8Array {
  const out = bytes.slice(), at = Math.floor(next() * bytes.length);
  switch (Math.floor(next() * 4)) {
    case 0:
      for (let k = 0; k < 1 + next() * 8; k++) out[Math.floor(next() * out.length)] = next() * 256;
      return out;
    case 1:
      return concat([bytes.subarray(0, at), bytes.subarray(at + Math.ceil(next() * 20))]);
    case 2:
      return concat([bytes.subarray(0, at), bytes.subarray(at / 2)]);
    default:
      for (let k = at; k < Math.min(at + 16, out.length); k++) out[k] = next() * 256;
      return out;
  }
}

async function refused(
  bytes: Uint8Array,
  code: ErrorCode | undefined,
  message: RegExp,
  what = "",
): Promise<void> {
  await assert.rejects(decodePicture(bytes, options), (error) => {
    expectRequestError(error);
    if (code) assert.equal((error as RequestError).code, code, `${what}: ${error}`);
    assert.match((error as Error).message, message);
    return true;
  }, what || undefined);
}

function expectRequestError(error: unknown): void {
  assert.ok(error instanceof RequestError, `expected a RequestError, found ${error}`);
  assert.match(error.code, /^image_(unsupported|corrupt|too_large)$/);
}

/** A JPEG that ends after its frame header. */
function frame(marker: number, body: number[]): Uint8Array {
  return new Uint8Array([0xff, 0xd8, 0xff, marker, 0, body.length + 2, ...body]);
}
