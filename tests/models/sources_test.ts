import assert from "node:assert/strict";
import { convert } from "../../models/convert.ts";
import { readConfig } from "../../lib/weights/config.ts";
import { encodeHeader, openTensors } from "../../lib/weights/safetensors.ts";
import { tensorTable } from "../../lib/weights/table.ts";
import { openSafetensors } from "../../models/checkpoint.ts";
import { npzBytes } from "./npz_writer.ts";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const bytesOf = (kind: string) =>
  directoryBytes(new URL(`../golden/checkpoints/${kind}`, import.meta.url).pathname);

async function converted(run: (out: string) => Promise<void>): Promise<Record<string, Uint8Array>> {
  const out = await Deno.makeTempDir();
  try {
    await run(`${out}/model`);
    return directoryBytes(`${out}/model`);
  } finally {
    await Deno.remove(out, { recursive: true });
  }
}

async function weightsOf(kind: string): Promise<Map<string, Float32Array>> {
  const files = memoryFiles(bytesOf(kind));
  const config = await readConfig(files);
  const source = await openSafetensors(files, config);
  const out = new Map<string, Float32Array>();
  for (const spec of tensorTable(config)) {
    out.set(spec.name, (await source.reader(spec).rows(0, spec.shape[0])).slice());
  }
  return out;
}

for (const kind of ["pg1", "pg2"]) {
  for (const variant of ["stored", "deflated", "fortran"] as const) {
    Deno.test(`${kind}: the same weights as ${variant} npz and as safetensors give the same files`, async () => {
      const files = bytesOf(kind);
      const config = await readConfig(memoryFiles(files));
      const npz = await npzBytes(await weightsOf(kind), config, variant);
      const { "config.json": json, "preprocessor_config.json": pre, "tokenizer.model": words } = files;
      const beside = memoryFiles({
        "config.json": json,
        "preprocessor_config.json": pre,
        "tokenizer.model": words,
        "a.npz": npz,
      });
      for (const decoder of ["int4", "f16"] as const) {
        const options = { vision: decoder === "f16" ? "f16" : "int8", decoder } as const;
        assert.deepEqual(
          await converted((out) => convert(beside, out, { ...options, npz: "a.npz" })),
          await converted((out) => convert(memoryFiles(files), out, options)),
        );
      }
    });
  }
}

Deno.test("npz: truncated, pickled and object arrays are refused by name", async () => {
  const files = bytesOf("pg1");
  const config = await readConfig(memoryFiles(files));
  const npz = await npzBytes(await weightsOf("pg1"), config, "stored");
  const attempt = (bytes: Uint8Array) =>
    converted((out) =>
      convert(memoryFiles({ "config.json": files["config.json"], "a.npz": bytes }), out, {
        vision: "int8",
        decoder: "int4",
        npz: "a.npz",
      })
    );
  for (const size of [2, 1000, npz.length >> 1, npz.length - 30]) {
    await assert.rejects(attempt(npz.slice(0, size)), { code: "model_invalid" }, `${size} bytes`);
  }
  await assert.rejects(attempt(Uint8Array.of(0x80, 4, 0x95, 0)), /never unpickled/);
  const objects = npz.slice();
  const at = new TextDecoder("latin1").decode(objects).indexOf("'<f4'");
  objects.set(new TextEncoder().encode("'|O' "), at);
  await assert.rejects(attempt(objects), /never unpickled/);
});

Deno.test("an adapter is merged as W + alpha / r · B A; another base's and DoRA are refused by name", async () => {
  const files = bytesOf("pg1");
  const config = await readConfig(memoryFiles(files));
  const { width, heads, headDim } = config.decoder;
  const name = "language_model.model.layers.1.self_attn.q_proj";
  const adapter = (k: number, extra: object = {}, module = name) => {
    const [a, b] = [new Float32Array(2 * k), new Float32Array(heads * headDim * 2)];
    a.forEach((_, i) => a[i] = Math.fround(Math.sin(i)));
    b.forEach((_, i) => b[i] = Math.fround(Math.cos(i) / 9));
    const entries = [["A", [2, k], a], ["B", [heads * headDim, 2], b]] as const;
    const header = encodeHeader(
      entries.map(([side, shape, data]) => ({
        name: `base_model.model.${module}.lora_${side}.weight`,
        dtype: "F32",
        shape,
        sizeBytes: data.byteLength,
      })),
      {},
    );
    const bytes = new Uint8Array(header.length + a.byteLength + b.byteLength);
    bytes.set(header);
    bytes.set(new Uint8Array(a.buffer), header.length);
    bytes.set(new Uint8Array(b.buffer), header.length + a.byteLength);
    const json = { peft_type: "LORA", r: 2, lora_alpha: 8, bias: "none", ...extra };
    return { a, b, files: memoryFiles({ "adapter_config.json": json, "adapter_model.safetensors": bytes }) };
  };
  const run = (of: ReturnType<typeof adapter>) =>
    converted((out) =>
      convert(memoryFiles(files), out, { vision: "f32", decoder: "f32", adapter: of.files })
    );
  const plain = await weightsOf("pg1");
  for (const [extra, scaling] of [[{}, 4], [{ use_rslora: true }, 8 / Math.SQRT2]] as const) {
    const given = adapter(width, extra);
    const merged = await openTensors(memoryFiles(await run(given)));
    const found = await merged.f32(`${name}.weight`);
    plain.get(`${name}.weight`)!.forEach((w, i) => {
      const [n, k] = [Math.floor(i / width), i % width];
      const sum = given.b[2 * n] * given.a[k] + given.b[2 * n + 1] * given.a[width + k];
      assert.ok(Math.abs(found[i] - (w + scaling * sum)) < 1e-5);
    });
    const other = "language_model.model.layers.0.self_attn.q_proj.weight";
    assert.deepEqual(await merged.f32(other), plain.get(other));
  }
  await assert.rejects(
    run(adapter(width + 1)),
    new RegExp(`q_proj.lora_A.weight.*needs shape \\[2,${width}\\]`),
  );
  await assert.rejects(run(adapter(width, {}, name.replace("layers.1", "layers.99"))), /does not have/);
  await assert.rejects(run(adapter(width, { use_dora: true })), /DoRA/);
});

Deno.test("a full disk is a sentence, and nothing half-written stays", async () => {
  const out = await Deno.makeTempDir();
  try {
    await Deno.symlink("/dev/full", `${out}/model.safetensors.part`); // every write fails with ENOSPC
    const files = memoryFiles(bytesOf("pg1"));
    await assert.rejects(convert(files, out, { vision: "int8", decoder: "int4" }), /No space left on device/);
    assert.deepEqual([...Deno.readDirSync(out)], []);
  } finally {
    await Deno.remove(out, { recursive: true });
  }
});
