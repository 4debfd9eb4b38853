/** What is wrong with a checkpoint is named: the tensor, what was expected, what was found. */

import assert from "node:assert/strict";
import { readConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { encodeHeader, openTensors, toFloat32 } from "../../lib/weights/safetensors.ts";
import { canonicalName, EMBEDDING, tensorTable } from "../../lib/weights/table.ts";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const PG1 = directoryBytes(new URL("../golden/checkpoints/pg1", import.meta.url).pathname);
const SHARD = "model-00001-of-00002.safetensors";

async function open(files: Record<string, Uint8Array | string | object>) {
  const directory = memoryFiles(files, "broken");
  return await openWeights(directory, await readConfig(directory));
}

async function refused(files: Record<string, Uint8Array | string | object>, message: RegExp) {
  await assert.rejects(open(files), (error: Error & { code?: string }) => {
    assert.equal(error.code, "model_invalid", error.message);
    assert.match(error.message, message);
    return true;
  });
}

/** The header of a safetensors file as JSON, and its data. */
function split(
  bytes: Uint8Array,
): { header: Record<string, { shape: number[]; data_offsets: number[]; dtype: string }>; data: Uint8Array } {
  const length = Number(new DataView(bytes.slice(0, 8).buffer).getBigUint64(0, true));
  return {
    header: JSON.parse(new TextDecoder().decode(bytes.slice(8, 8 + length))),
    data: bytes.slice(8 + length),
  };
}

function join(header: object, data: Uint8Array): Uint8Array {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + data.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  bytes.set(data, 8 + text.length);
  return bytes;
}

Deno.test("a missing shard is named, with a tensor it should hold", async () => {
  const { [SHARD]: _, ...rest } = PG1;
  await refused(rest, /shard model-00001-of-00002.safetensors is missing; .* tensor "/);
});

Deno.test("a truncated shard is refused before any tensor is read", async () => {
  const cut = { ...PG1, [SHARD]: PG1[SHARD].slice(0, PG1[SHARD].length / 2) };
  await refused(
    cut,
    /tensor ".*" in model-00001-of-00002.safetensors: expected bytes up to \d+, the file ends at \d+/,
  );
  await refused(
    { ...PG1, [SHARD]: PG1[SHARD].slice(0, 100) },
    /its header says it takes \d+ bytes, the file has 100/,
  );
  await refused({ ...PG1, [SHARD]: new Uint8Array(3) }, /expected at least 8 bytes, found 3/);
});

Deno.test("a tensor of another shape is named with both shapes", async () => {
  const { header, data } = split(PG1[SHARD]);
  const name = Object.keys(header).find((it) => it.endsWith("q_proj.weight"))!;
  const [n, k] = header[name].shape;
  header[name].shape = [n / 2, 2 * k];
  const message = `tensor "${canonicalName(name)}": expected shape [${n},${k}], found [${n / 2},${2 * k}]`;
  await refused({ ...PG1, [SHARD]: join(header, data) }, new RegExp(RegExp.escape(message)));
});

Deno.test("a tensor that is not there is named", async () => {
  const { header, data } = split(PG1[SHARD]);
  const name = Object.keys(header).find((it) =>
    it.endsWith("layernorm.weight") || it.endsWith("layer_norm1.weight")
  )!;
  delete header[name];
  await refused({ ...PG1, [SHARD]: join(header, data) }, new RegExp(`expected tensor "${name}", found none`));
});

Deno.test("sizes that do not fit their shape, and headers that are no JSON, are refused", async () => {
  const { header, data } = split(PG1[SHARD]);
  const [name, it] = Object.entries(header).find(([name]) => name !== "__metadata__")!;
  it.shape[0] += 1;
  await refused(
    { ...PG1, [SHARD]: join(header, data) },
    new RegExp(`tensor "${name}" in .*takes \\d+ bytes, found`),
  );
  const noise = PG1[SHARD].slice();
  noise[9] = 0xff;
  await refused({ ...PG1, [SHARD]: noise }, /Cannot read model-00001-of-00002.safetensors/);
});

Deno.test("an unknown quantisation scheme is refused by name", async () => {
  const directory = memoryFiles(PG1);
  const config = await readConfig(directory);
  const stored = await openTensors(directory);
  const entries = [...stored.tensors].map(([name, it]) => ({ name, ...it, sizeBytes: it.end - it.start }))
    .filter(({ name }) => canonicalName(name) !== EMBEDDING);
  const data: Uint8Array[] = await Promise.all(entries.map(({ name }) => stored.bytes(name)));
  const bytes = new Uint8Array(16);
  const packed = [...entries, { name: `${EMBEDDING}.q`, dtype: "U8", shape: [16], sizeBytes: 16 }];
  const file = new Uint8Array(
    await new Blob([encodeHeader(packed, { embedding: "int3-g7" }), ...data, bytes] as BlobPart[])
      .arrayBuffer(),
  );
  const broken = memoryFiles({ "config.json": PG1["config.json"], "model.safetensors": file });
  await assert.rejects(openWeights(broken, config), /int3-g7/);
});

Deno.test("old and new tensor names are one table", () => {
  const old = "language_model.model.layers.3.mlp.up_proj.weight";
  assert.equal(canonicalName(old), old);
  assert.equal(canonicalName("model.language_model.layers.3.mlp.up_proj.weight"), old);
  assert.equal(
    canonicalName("model.vision_tower.vision_model.post_layernorm.bias"),
    "vision_tower.vision_model.post_layernorm.bias",
  );
  assert.equal(
    canonicalName("model.vision_tower.post_layernorm.bias"),
    "vision_tower.vision_model.post_layernorm.bias",
  );
  assert.equal(canonicalName("model.multi_modal_projector.linear.bias"), "multi_modal_projector.linear.bias");
  assert.equal(canonicalName("lm_head.weight"), undefined);
  assert.equal(canonicalName("language_model.lm_head.weight"), undefined);
});

Deno.test("a checkpoint saved with the new names gives the same weights", async () => {
  const shards = Object.fromEntries(
    Object.entries(PG1).filter(([name]) => name.endsWith(".safetensors")).map(([name, bytes]) => {
      const { header, data } = split(bytes);
      const renamed = Object.entries(header).map(([name, it]) => [
        name.replace("language_model.model.", "model.language_model.").replace(
          "vision_tower.vision_model.",
          "model.vision_tower.",
        )
          .replace(/^multi_modal/, "model.multi_modal"),
        it,
      ]);
      return [name, join(Object.fromEntries(renamed), data)];
    }),
  );
  const index = JSON.parse(new TextDecoder().decode(PG1["model.safetensors.index.json"]));
  assert.ok(Object.keys(index.weight_map).some((it) => it.startsWith("language_model.model.")));
  const [old, renamed] = [await open(PG1), await open({ ...PG1, ...shards })];
  for (const { name } of tensorTable(old.config)) {
    assert.deepEqual(await renamed.vector(name), await old.vector(name));
  }
});

Deno.test("float types become f32 exactly; others are refused by name", () => {
  assert.deepEqual(toFloat32("BF16", new Uint8Array([0x80, 0x3f, 0x00, 0xc0])), Float32Array.of(1, -2));
  assert.deepEqual(toFloat32("F16", new Uint8Array([0x00, 0x3c, 0x01, 0x00])), Float32Array.of(1, 2 ** -24));
  assert.deepEqual(toFloat32("F64", new Uint8Array(new Float64Array([0.5]).buffer)), Float32Array.of(0.5));
  const odd = new Uint8Array(9).subarray(1); // a view that no typed array may lie on
  assert.deepEqual(toFloat32("F32", odd), Float32Array.of(0, 0));
  assert.throws(() => toFloat32("I64", new Uint8Array(8)), /found I64/);
});
