/** What an ONNX export leaves behind; that the files are right is for tests/ort, which has onnxruntime, to say. */

import assert from "node:assert/strict";
import { directoryFiles } from "../../functions/model.ts";
import { findOnnx, readOnnx } from "../../lib/weights/onnx.ts";
import { exportOnnx } from "../../models/export_onnx.ts";

const CHECKPOINT = directoryFiles(new URL("../golden/checkpoints/pg1", import.meta.url).pathname);
const SMALL = { vision: "int8", decoder: "int4" } as const;
const PARTS = ["vision_encoder", "embed_tokens", "decoder_model_merged"] as const;

function names(directory: string): string[] {
  return [...Deno.readDirSync(directory)].map((it) => it.name).sort();
}

async function inTemporary(test: (directory: string) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir();
  try {
    await test(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

for (
  const options of [SMALL, { vision: "f32", decoder: "f32" }, { vision: "f32", decoder: "int8" }] as const
) {
  Deno.test(`${options.vision}, ${options.decoder}: what is announced is what is written, within 3 %`, () =>
    inTemporary(async (out) => {
      const told: [number, number][] = [];
      await exportOnnx(CHECKPOINT, out, { ...options, progress: (...it) => told.push(it) });
      const sizes = names(`${out}/onnx`).filter((it) => /_data/.test(it))
        .map((it) => Deno.statSync(`${out}/onnx/${it}`).size);
      const total = told[0][1];
      const written = sizes.reduce((sum, it) => sum + it);
      // Of so small a model some is in tensors so small that they stand in the graphs.
      assert.ok(Math.abs(written / total - 1) < 0.03, `${written} of ${total}`);
      assert.ok(told.every(([done, all], i) => all === total && done >= (told[i - 1]?.[0] ?? 0)));
      assert.deepEqual(told.at(-1), [total, total]);
      assert.ok(told.length > 20);
    }));
}

Deno.test("an export that is cancelled leaves nothing, and what was there before stays", () =>
  inTemporary(async (directory) => {
    for (const before of [undefined, "whole"]) {
      const out = `${directory}/model`;
      if (before) await exportOnnx(CHECKPOINT, out, SMALL);
      const stop = new AbortController();
      const progress = (done: number, total: number) => done > total / 2 && stop.abort();
      const cancelled = exportOnnx(CHECKPOINT, out, { ...SMALL, signal: stop.signal, progress });
      await assert.rejects(cancelled, { code: "cancelled" });
      if (!before) assert.deepEqual(names(directory), []);
      else {
        assert.ok(!names(out).includes("onnx.part"));
        for (const part of PARTS) await findOnnx(directoryFiles(out), part);
      }
    }
  }));

Deno.test("a run that was killed is begun anew; another format goes beside the first", () =>
  inTemporary(async (out) => {
    await Deno.mkdir(`${out}/onnx.part/onnx`, { recursive: true });
    await Deno.writeTextFile(`${out}/onnx.part/onnx/rest`, "of a run that was killed");
    await exportOnnx(CHECKPOINT, out, SMALL);
    await exportOnnx(CHECKPOINT, out, { vision: "f32", decoder: "f32" });
    const files = directoryFiles(out);
    for (const part of PARTS) {
      assert.equal((await findOnnx(files, part, "f32")).name, `${part}.onnx`);
      assert.notEqual((await findOnnx(files, part)).name, `${part}.onnx`);
    }
    assert.deepEqual(names(out), ["config.json", "onnx", "preprocessor_config.json", "tokenizer.model"]);
    assert.equal(names(`${out}/onnx`).length, 12);
    assert.deepEqual(
      (await readOnnx(files, "vision_encoder.onnx")).files,
      ["onnx/vision_encoder.onnx", "onnx/vision_encoder.onnx_data"],
    );
  }));

Deno.test("a place that cannot be written to is told, not thrown", () =>
  inTemporary(async (directory) => {
    await Deno.writeTextFile(`${directory}/file`, "");
    await assert.rejects(exportOnnx(CHECKPOINT, `${directory}/file`, SMALL), {
      code: "storage_failed",
      message: /^Cannot write to .*file: /,
    });
  }));
