import assert from "node:assert/strict";
import { int8At, paddedK } from "../../lib/backend/layout.ts";
import { openTensors } from "../../lib/weights/safetensors.ts";
import { convert } from "../../models/convert.ts";
import { describe, verify } from "../../models/inspect.ts";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const PG1 = directoryBytes(new URL("../golden/checkpoints/pg1", import.meta.url).pathname);
const out = await Deno.makeTempDir();
await convert(memoryFiles(PG1), out, { vision: "int8", decoder: "int4" });
const CONVERTED = directoryBytes(out);
await Deno.remove(out, { recursive: true });

const FC1 = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight.q";
const GATE = "language_model.model.layers.0.mlp.gate_proj.weight.q";

/** The converted checkpoint with bytes of one tensor changed. */
async function damaged(tensor: string, change: (bytes: Uint8Array) => void) {
  const bytes = CONVERTED["model.safetensors"].slice();
  const { start, end } = (await openTensors(memoryFiles(CONVERTED))).tensors.get(tensor)!;
  change(bytes.subarray(start, end));
  return memoryFiles({ ...CONVERTED, "model.safetensors": bytes });
}

Deno.test("a directory is described from its config and headers", async () => {
  const plain = await describe(memoryFiles(PG1));
  assert.equal(plain.family, "gemma");
  assert.deepEqual(plain.schemes, { vision: "F32", embedding: "F32", decoder: "F32" });
  const packed = await describe(memoryFiles(CONVERTED));
  assert.deepEqual(packed.schemes, {
    vision: "int8-p8-s4",
    embedding: "int8-p8-s4",
    decoder: "int4-g32-p8",
  });
  assert.ok(packed.memory.peakBytes < plain.memory.peakBytes);
  assert.equal(packed.parameters, plain.parameters);
  assert.deepEqual(packed.doors.map((it) => it.formats), [["as stored"], ["as stored"]]);
});

Deno.test("plain and converted checkpoints are found good, and every byte is looked at", async () => {
  for (const bytes of [PG1, CONVERTED]) {
    const seen: number[] = [];
    const good = await verify(memoryFiles(bytes), { progress: (done, total) => seen.push(done / total) });
    assert.equal(good.length, 3);
    assert.ok(Math.abs(seen.at(-1)! - 1) < 1e-9);
  }
});

Deno.test("int8 that breaks the bound of exact sums is refused by name", async () => {
  const files = await damaged(FC1, (bytes) => {
    const padded = paddedK("int8-p8-s4", 48);
    for (const k of [0, 1, 4, 5]) bytes[int8At(0, k, padded)] = 127;
  });
  await assert.rejects(verify(files), { code: "model_invalid", message: /fc1\.weight\.q.*break the bound/ });
});

Deno.test("an int4 group scale out of range, a scale and a number that are none are refused by name", async () => {
  const group = await damaged(GATE, (bytes) => bytes.set([0xff, 0x7f]));
  await assert.rejects(verify(group), { message: /gate_proj\.weight\.q.*-1023 to 1023, found 32767/ });
  const nan = (bytes: Uint8Array) => bytes.set([0, 0, 0xc0, 0x7f]);
  const scale = await damaged(FC1.replace(/q$/, "scale"), nan);
  await assert.rejects(verify(scale), { message: /expected finite scales, found NaN/ });
  const norm = await damaged("language_model.model.norm.weight", nan);
  await assert.rejects(verify(norm), { message: /norm\.weight": expected finite numbers, found NaN/ });
});

Deno.test("a file that is longer or shorter than its tensors is refused", async () => {
  const whole = CONVERTED["model.safetensors"];
  const files = (bytes: Uint8Array) => memoryFiles({ ...CONVERTED, "model.safetensors": bytes });
  await assert.rejects(verify(files(whole.slice(0, -1))), { code: "model_invalid", message: /ends at/ });
  await assert.rejects(verify(files(new Uint8Array([...whole, 0]))), { message: /tensors end at/ });
});
