/**
 * A checkpoint in Hugging Face layout becomes a directory of quantised weights, one tensor after another, so that
 * memory stays at a few tensors whatever the checkpoint's size.
 */

import { join } from "@std/path";
import { readConfig } from "../lib/weights/config.ts";
import { fileEntries, openWeights, schemeFor } from "../lib/weights/load.ts";
import { encodeHeader } from "../lib/weights/safetensors.ts";
import { tensorTable } from "../lib/weights/table.ts";
import type { TensorSpec } from "../lib/weights/table.ts";
import type { ModelFiles } from "../lib/mod.ts";

/** Files that are copied as they are, where they exist. */
const COPIED = [
  "config.json",
  "preprocessor_config.json",
  "generation_config.json",
  "tokenizer.model",
  "tokenizer.json",
];

/** What to convert to; vision and decoder are chosen apart. */
export interface ConvertOptions {
  readonly vision: "f32" | "int8";
  readonly decoder: "f32" | "int8" | "int4";
  readonly progress?: (done: number, total: number) => void;
}

/** Writes `config.json`, the tokenizer and `model.safetensors` to the directory `out`. */
export async function convert(files: ModelFiles, out: string, options: ConvertOptions): Promise<void> {
  const config = await readConfig(files);
  const weights = await openWeights(files, config);
  const table = tensorTable(config);
  const scheme = (spec: TensorSpec) => schemeFor(spec, options[spec.part]);
  const { entries, metadata } = fileEntries(table, scheme);

  await Deno.mkdir(out, { recursive: true });
  for (const name of COPIED) {
    if (await files.size(name) !== undefined) await Deno.writeFile(join(out, name), await files.read(name));
  }
  // Under another name until it is whole: a half-written file is never taken for a model.
  const part = join(out, "model.safetensors.part");
  {
    using file = await Deno.open(part, { write: true, create: true, truncate: true });
    const write = async (values: Float32Array | Uint8Array) => {
      const bytes = new Uint8Array(values.buffer as ArrayBuffer, values.byteOffset, values.byteLength);
      for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
    };
    await write(encodeHeader(entries, metadata));
    for (const [i, spec] of table.entries()) {
      const to = scheme(spec);
      if (spec.lowest === "f32") await write(await weights.vector(spec.name));
      else {
        const { data, scale } = await weights.matrix(spec.name, to);
        await write(data);
        if (scale) await write(scale);
      }
      options.progress?.(i + 1, table.length);
    }
  }
  await Deno.rename(part, join(out, "model.safetensors"));
}
