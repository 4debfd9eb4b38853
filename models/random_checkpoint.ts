/**
 * A checkpoint of random weights in f32, the same for the same seed: for measuring what rounding costs where no
 * trained weights are at hand, at any width.
 *
 * Gaussian matrices alone would flatter every scheme. As in trained models a few channels of the norms are large and
 * columns of the matrices differ in size: both are log-normal.
 */

import { join } from "@std/path";
import { randomFrom } from "../lib/decode/sampler.ts";
import { parseConfig } from "../lib/weights/config.ts";
import { width } from "../lib/weights/load.ts";
import { encodeHeader } from "../lib/weights/safetensors.ts";
import { EMBEDDING, type TensorSpec, tensorTable } from "../lib/weights/table.ts";

/** Values made before they are written. */
const BLOCK = 2 ** 20;

/** How such a checkpoint differs from the one it takes its configuration and tokenizer from. */
export interface RandomOptions {
  /** Every width times this, heads included; head width, vocabulary and picture stay. */
  readonly wider: number;
  /** Layers of each tower at most. */
  readonly layers: number;
  readonly seed: number;
}

/** Writes the checkpoint: configuration, tokenizer, and `model.safetensors` in bf16. */
export async function randomCheckpoint(
  from: string,
  out: string,
  { wider, layers, seed }: RandomOptions,
): Promise<void> {
  const json = JSON.parse(await Deno.readTextFile(join(from, "config.json")));
  for (const part of [json.text_config, json.vision_config]) {
    part.num_hidden_layers = Math.min(layers, part.num_hidden_layers);
    for (const name of ["hidden_size", "intermediate_size", "num_attention_heads", "projection_dim"]) {
      if (name in part) part[name] *= wider;
    }
  }
  json.projection_dim *= wider;
  const preprocessor = JSON.parse(await Deno.readTextFile(join(from, "preprocessor_config.json")));
  const table = tensorTable(parseConfig(json, preprocessor));
  await Deno.mkdir(out, { recursive: true });
  await Deno.writeTextFile(join(out, "config.json"), JSON.stringify(json));
  await Deno.writeTextFile(join(out, "preprocessor_config.json"), JSON.stringify(preprocessor));
  await Deno.copyFile(join(from, "tokenizer.model"), join(out, "tokenizer.model"));

  using file = await Deno.open(join(out, "model.safetensors"), { write: true, create: true, truncate: true });
  const write = async (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
  };
  const count = (spec: TensorSpec) => spec.shape[0] * width(spec);
  const entries = table.map((it) => ({
    name: it.name,
    dtype: "BF16" as const,
    shape: it.shape,
    sizeBytes: 2 * count(it),
  }));
  await write(encodeHeader(entries, { format: "pt" }));
  const random = randomFrom(seed);
  // Box and Muller give two at a time; one of them is enough here.
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  for (const spec of table) {
    const k = width(spec);
    const value = kind(spec, normal);
    for (let done = 0, all = count(spec); done < all;) {
      const floats = new Float32Array(Math.min(BLOCK, all - done));
      for (let i = 0; i < floats.length; i++, done++) floats[i] = value(done % k);
      await write(bf16(floats));
    }
  }
}

/** What the values of a tensor are, by their column. */
function kind(spec: TensorSpec, normal: () => number): (column: number) => number {
  if (/norm\d?\.weight$/.test(spec.name)) {
    const offset = spec.part === "vision" ? 0 : 1; // Gemma's norms multiply by 1 + w
    return () => Math.exp(0.5 * normal()) - offset;
  }
  if (spec.shape.length === 1) return () => 0.02 * normal();
  const k = width(spec);
  const spread = spec.lowest === "f32" || spec.name === EMBEDDING ? 0 : 0.3;
  const columns = Float32Array.from({ length: k }, () => Math.exp(spread * normal()) / Math.sqrt(k));
  return (column) => columns[column] * normal();
}

/** The upper halves of the floats, rounded to nearest. */
function bf16(values: Float32Array): Uint8Array {
  const bits = new Uint32Array(values.buffer);
  return new Uint8Array(Uint16Array.from(bits, (it) => it + 0x8000 >>> 16).buffer);
}
