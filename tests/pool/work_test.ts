import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { openEngine } from "../../lib/engine.ts";
import { PoolError, type Work } from "../../lib/pool/pool.ts";
import { decodeRows, encodeRows } from "../../lib/pool/rows.ts";
import { decodeWork, encodeWork, HEADER_BYTES, messageBytes, type ModelShape } from "../../lib/pool/work.ts";
import { randomFrom } from "../../lib/decode/sampler.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const MODEL: ModelShape = {
  revision: "0123456789abcdef-int4",
  imageSize: 4,
  imageTokens: 2,
  featureWidth: 6,
  width: 8,
  context: 64,
  vocabulary: 1000,
};

const random = randomFrom(5);
const rows = (count: number, scale = 1) =>
  Float32Array.from({ length: count }, () => (random() - 0.5) * 2 * scale);

const pixels = Uint8Array.from({ length: 2 * 4 * 4 * 3 }, () => random() * 256);
const PIXELS: Work = {
  revision: MODEL.revision,
  images: {
    stage: "pixels",
    dtype: "u8",
    shape: [2, 4, 4, 3],
    blocks: () => [pixels.slice(0, 48), pixels.slice(48)],
  },
  ids: [2, 17, 999, 108],
  sampling: { temperature: 0.1, topK: 2 ** 40, topP: 0.95, seed: 2 ** 32 - 1 },
  maxTokens: 30,
  ignoreEos: true,
  topLogits: 100,
  forced: [4, 5],
  grammar: "detect größte Katze ; 猫",
  given: [4, 5, 6],
};

function projected(dtype: "f16" | "int8", values = rows(2 * 2 * 8), width = 8): Work {
  const { grammar: _, ...work } = PIXELS;
  return {
    ...work,
    given: [],
    images: {
      stage: width === 8 ? "projected" : "features",
      dtype,
      shape: [2, 2, width],
      async *blocks() {
        for (let at = 0; at < values.length; at += width) {
          yield await Promise.resolve(encodeRows(dtype, values.slice(at, at + width), width));
        }
      },
    },
  };
}

async function bytesOf(work: Work): Promise<Uint8Array<ArrayBuffer>> {
  const blocks = await Array.fromAsync(encodeWork(work));
  return new Uint8Array(await new Blob(blocks as BlobPart[]).arrayBuffer());
}

/** As whoever changes a message on purpose would sum it up. */
function summed(bytes: Uint8Array): Uint8Array {
  const end = bytes.length - 32;
  bytes.set(createHash("sha256").update(bytes.subarray(0, end)).digest(), end);
  return bytes;
}

async function sameWork(work: Work): Promise<void> {
  const { images, ...rest } = await decodeWork(await bytesOf(work), MODEL);
  const { images: before, ...expected } = work;
  assert.deepEqual(rest, expected);
  assert.deepEqual([images.stage, images.dtype, images.shape], [before.stage, before.dtype, before.shape]);
  const all = async (it: typeof images) =>
    await new Blob(await Array.fromAsync(it.blocks()) as BlobPart[]).bytes();
  assert.deepEqual(await all(images), await all(before));
}

Deno.test("work comes back as it was sent, in every stage and dtype", async () => {
  await sameWork(PIXELS);
  await sameWork({ ...PIXELS, given: [], forced: [], topLogits: 0, ignoreEos: false });
  for (const dtype of ["f16", "int8"] as const) {
    await sameWork(projected(dtype));
    await sameWork(projected(dtype, rows(2 * 2 * 6), 6));
  }
});

Deno.test("the size is known from the first bytes, and a block leaves before the next is computed", async () => {
  const whole = await bytesOf(projected("int8"));
  assert.equal(messageBytes(whole.subarray(0, HEADER_BYTES), MODEL), whole.length);
  const order: string[] = [];
  const work = projected("f16");
  const { blocks } = work.images;
  const images = {
    ...work.images,
    async *blocks() {
      for await (const block of blocks()) {
        order.push("computed");
        yield block;
      }
    },
  };
  for await (const block of encodeWork({ ...work, images })) order.push(`sent ${block.length}`);
  assert.deepEqual(order.slice(1, 5), ["computed", "sent 16", "computed", "sent 16"]);
});

Deno.test("f16 keeps 11 bits, int8 is within half a step of its row, zeros stay zeros", () => {
  const values = Float32Array.of(...rows(12, 30), 0, 0, 0, 0);
  const half = decodeRows("f16", encodeRows("f16", values, 4), 4);
  const bytes = decodeRows("int8", encodeRows("int8", values, 4), 4);
  for (const [i, value] of values.entries()) {
    const most = Math.max(...values.slice(i - i % 4, i - i % 4 + 4).map(Math.abs));
    assert.ok(Math.abs(half[i] - value) <= Math.abs(value) * 2 ** -11);
    assert.ok(Math.abs(bytes[i] - value) <= most / 127 * 0.5001);
  }
});

const put =
  (at: number, ...bytes: number[]) => (message: Uint8Array) => (message.set(bytes, at), summed(message));
const float = (at: number, value: number) => (message: Uint8Array) => {
  new DataView(message.buffer).setFloat64(HEADER_BYTES + at, value, true);
  return summed(message);
};
const row = (...values: number[]) =>
  projected("f16", Float32Array.from({ length: 32 }, (_, i) => values[i % values.length]));
const refusals: [string, string, (message: Uint8Array) => Uint8Array, Work?][] = [
  ["magic", "another magic", put(0, 0x50, 0x4b)],
  ["version", "version 2", put(4, 2)],
  ["malformed", "a stage that there is not", put(5, 3)],
  ["malformed", "pixels as f16", put(6, 1)],
  ["malformed", "a scale that there is not", put(7, 1)],
  ["revision", "another model", put(8, 0x31)],
  ["shape", "no picture", put(40, 0)],
  ["shape", "more pictures than the context holds", put(40, 33)],
  ["shape", "another size", put(44, 8)],
  ["malformed", "a question of four gigabytes", put(56, 255, 255, 255, 255)],
  ["length", "one byte less", (it) => it.subarray(0, -1)],
  ["length", "one byte more", (it) => Uint8Array.of(...it, 0)],
  ["length", "nothing", () => new Uint8Array()],
  ["sum", "a damaged picture", (it) => (it[it.length - 40] ^= 1, it)],
  ["malformed", "an id beyond the vocabulary", put(HEADER_BYTES + 60, 232, 3, 0, 0)],
  ["malformed", "temperature NaN", float(12, NaN)],
  ["malformed", "half a token", float(4, 0.5)],
  ["shape", "more tokens than the context", float(4, 62)],
  ["malformed", "more ids than there are bytes", put(HEADER_BYTES + 40, 255, 255, 255)],
  ["number", "NaN", (it) => it, row(1, NaN)],
  ["number", "infinite values", (it) => it, row(1, Infinity)],
  ["number", "a scale that is NaN", (it) => it, projected("int8", row8(NaN))],
  ["norm", "huge values", (it) => it, row(60000)],
  ["norm", "nothing but zeros", (it) => it, row(0)],
];
function row8(value: number): Float32Array<ArrayBuffer> {
  const values = rows(32);
  values[9] = value;
  return values;
}
for (const [code, name, damage, work = PIXELS] of refusals) {
  Deno.test(`refused as ${code}: ${name}`, async () => {
    const bytes = damage(await bytesOf(work));
    await assert.rejects(decodeWork(bytes, MODEL), (error) => {
      assert.ok(error instanceof PoolError, `${error}`);
      assert.equal(error.code, code, error.message);
      return true;
    });
  });
}

Deno.test("10,000 damaged messages, summed up again or not, are refused or are work within all bounds", async () => {
  const originals = await Promise.all([PIXELS, projected("f16"), projected("int8")].map(bytesOf));
  const codes = new Map<string, number>();
  for (let i = 0; i < 10_000; i++) {
    let bytes = originals[i % 3].slice();
    for (let changes = 1 + Math.floor(random() * 4); changes > 0; changes--) {
      const at = Math.floor(random() * (random() < 0.7 ? 140 : bytes.length));
      bytes[at] = random() < 0.3 ? [0, 1, 127, 255][Math.floor(random() * 4)] : random() * 256;
    }
    if (random() < 0.1) bytes = bytes.slice(0, random() * bytes.length);
    if (bytes.length > 32 && random() < 0.9) summed(bytes);
    try {
      const { ids, maxTokens, forced, given, images } = await decodeWork(bytes, MODEL);
      assert.ok(images.shape[0] * 2 + ids.length + forced.length + maxTokens <= 64);
      assert.ok([...ids, ...forced, ...given].every((id) => id < 1000));
      codes.set("taken", (codes.get("taken") ?? 0) + 1);
    } catch (error) {
      assert.ok(error instanceof PoolError, `${i}: ${(error as Error).stack}`);
      codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
    }
  }
  const expected = [
    "length",
    "magic",
    "malformed",
    "norm",
    "number",
    "revision",
    "shape",
    "sum",
    "taken",
    "version",
  ];
  assert.deepEqual([...codes.keys()].sort(), expected);
});

Deno.test("image tokens and features of real encoders are within the bounds by far", async () => {
  const picture = Deno.readFileSync(new URL("../fixtures/scene.png", import.meta.url));
  for (const place of ["../golden/checkpoints/pg1", "../golden/checkpoints/pg2", "../../models/tiny"]) {
    const files = memoryFiles(directoryBytes(new URL(place, import.meta.url).pathname));
    const engine = await openEngine({ backend: createWasmBackend({ simd, relaxed }), files });
    const size = engine.config.vision.imageSize;
    const samples = new Uint8Array(size * size * 3).map((_, i) => picture[i % picture.length]);
    const images = {
      stage: "pixels",
      dtype: "u8",
      shape: [1, size, size, 3],
      blocks: () => [samples],
    } as const;
    for (const stage of ["features", "projected"] as const) {
      const { values, shape: [, count, width] } = await engine.embed(images, stage, () => Promise.resolve());
      for (let r = 0; r < count; r++) {
        const row = values.subarray(r * width, (r + 1) * width);
        const rms = Math.sqrt(row.reduce((sum, it) => sum + it * it, 0) / width);
        assert.ok(rms > 0.01 && rms < 100, `${place} ${stage} ${r}: ${rms}`);
      }
    }
  }
});
