/**
 * PEFT LoRA adapters, merged into the rows of a checkpoint while they are converted: W + scaling · B A, where scaling
 * is alpha / r, or alpha / √r for rank-stabilised LoRA (peft, `LoraLayer.update_layer` and `get_delta_weight`).
 */

import { type ModelFiles, RequestError } from "../lib/mod.ts";
import { width } from "../lib/weights/load.ts";
import { openTensors, parseJson, type TensorInfo } from "../lib/weights/safetensors.ts";
import { canonicalName, type TensorSpec, tensorTable } from "../lib/weights/table.ts";
import type { Checkpoint, RowReader } from "./checkpoint.ts";

/** What an adapter does to one tensor. */
type Change =
  /** rows of B [N, r] times A [r, K]; for an embedding B and A are given transposed, so that it reads the same */
  | {
    readonly kind: "lora";
    readonly a: Float32Array;
    readonly b: Float32Array;
    readonly rank: number;
    readonly scaling: number;
  }
  | { readonly kind: "full"; readonly values: Float32Array };

/**
 * The checkpoint with the adapter in a directory (`adapter_config.json`, `adapter_model.safetensors`) merged.
 *
 * @throws {RequestError} `model_invalid`, naming what is not supported (DoRA and the like) or which tensor the base
 * does not have in that shape.
 */
export async function withAdapter(base: Checkpoint, files: ModelFiles): Promise<Checkpoint> {
  const changes = await readAdapter(base, files);
  return {
    ...base,
    reader(spec) {
      const reader = base.reader(spec);
      const change = changes.get(spec.name);
      return change ? merged(reader, change, width(spec)) : reader;
    },
  };
}

function merged(reader: RowReader, change: Change, k: number): RowReader {
  return {
    ...reader,
    scheme: "f32",
    packed: () => Promise.reject(new TypeError("merged rows are not packed")),
    async rows(start, end) {
      if (change.kind === "full") return change.values.subarray(start * k, end * k);
      const out = (await reader.rows(start, end)).slice();
      const { a, b, rank, scaling } = change;
      const delta = new Float64Array(k);
      for (let row = start; row < end; row++) {
        delta.fill(0);
        for (let r = 0; r < rank; r++) {
          const factor = b[row * rank + r] * scaling;
          if (factor) { for (let i = 0; i < k; i++) delta[i] += factor * a[r * k + i]; }
        }
        const at = (row - start) * k;
        for (let i = 0; i < k; i++) out[at + i] += delta[i];
      }
      return out;
    },
  };
}

async function readAdapter(base: Checkpoint, files: ModelFiles): Promise<Map<string, Change>> {
  const fail = (detail: string): never => {
    throw new RequestError("model_invalid", `Cannot merge the adapter in ${files.place}: ${detail}`);
  };
  for (const name of ["adapter_config.json", "adapter_model.safetensors"]) {
    if (await files.size(name) === undefined) {
      fail(`expected ${name}, found ${(await files.list()).join(", ") || "nothing"}`);
    }
  }
  const config = parseJson(files, "adapter_config.json", await files.read("adapter_config.json"));
  if (config.peft_type !== "LORA") fail(`expected peft_type LORA, found ${JSON.stringify(config.peft_type)}`);
  if (config.use_dora) {
    fail("it is DoRA (use_dora), which is not a sum of base and update; only LoRA can be merged");
  }
  if (config.bias && config.bias !== "none") fail(`expected bias "none", found "${config.bias}"`);
  for (const name of ["use_qalora", "layer_replication", "alora_invocation_tokens"]) {
    if (config[name]) fail(`${name} is not supported`);
  }
  const start = String(config.init_lora_weights ?? "");
  if (/pissa|olora|corda|loftq/i.test(start)) {
    fail(`init_lora_weights "${start}" changes the base weights; save it converted to plain LoRA`);
  }
  const { tensors, f32 } = await adapterTensors(files);
  const specs = new Map(tensorTable(base.config).map((it) => [it.name, it]));
  const changes = new Map<string, Change>();
  const spec = (name: string, module: string): TensorSpec => {
    const tied = /(^|\.)lm_head$/.test(module);
    const found = specs.get(canonicalName(`${module}.weight`) ?? "");
    return found ?? fail(
      tied
        ? `"${name}": the head is tied to the embedding, so it cannot be changed alone`
        : `"${name}" changes "${module}", which the base model in ${base.place} does not have`,
    );
  };
  const expect = (name: string, shape: readonly number[]) => {
    const found = tensors.get(name)!.shape;
    if (found.length !== shape.length || found.some((it, i) => it !== shape[i])) {
      fail(`tensor "${name}": the base model in ${base.place} needs shape [${shape}], found [${found}]`);
    }
  };
  for (const name of tensors.keys()) {
    const inner = name.replace(/^base_model\.model\./, "");
    const lora = inner.match(/^(.*)\.lora_(embedding_)?([AB])(?:\.[^.]+)??(?:\.weight)?$/);
    if (lora) {
      const [, module, embedding, side] = lora;
      const target = spec(name, module);
      const twin = name.replace(
        `lora_${embedding ?? ""}${side}`,
        `lora_${embedding ?? ""}${side === "A" ? "B" : "A"}`,
      );
      if (!tensors.has(twin)) fail(`expected "${twin}" beside "${name}", found none`);
      if (side === "B") continue;
      const rank = tensors.get(name)!.shape[0];
      const [n, k] = [target.shape[0], width(target)];
      expect(name, [rank, embedding ? n : k]);
      expect(twin, [embedding ? k : n, rank]);
      const alpha = pattern(config.alpha_pattern, module) ?? config.lora_alpha;
      const stated = pattern(config.rank_pattern, module) ?? config.r;
      if (typeof alpha !== "number") {
        fail(`expected lora_alpha to be a number, found ${JSON.stringify(alpha)}`);
      }
      if (stated !== rank) fail(`tensor "${name}": its rank is ${rank}, the configuration says ${stated}`);
      const [a, b] = [await f32(name), await f32(twin)];
      changes.set(target.name, {
        kind: "lora",
        a: embedding ? transpose(b, k, rank) : a,
        b: embedding ? transpose(a, rank, n) : b,
        rank,
        scaling: alpha as number / (config.use_rslora ? Math.sqrt(rank) : rank),
      });
      continue;
    }
    if (/lora_magnitude_vector/.test(name)) fail(`"${name}" belongs to DoRA; only LoRA can be merged`);
    const full = inner.match(/^(.*?)(?:\.modules_to_save(?:\.default)?|\.base_layer)?\.(weight|bias)$/);
    if (!full) fail(`"${name}" is not a part of a LoRA adapter`);
    const [, module, leaf] = full!;
    const published = canonicalName(`${module}.${leaf}`);
    const target = leaf === "weight" ? spec(name, module) : specs.get(published ?? "");
    if (!target) fail(`"${name}" changes a tensor that the base model in ${base.place} does not have`);
    expect(name, target!.shape);
    changes.set(target!.name, { kind: "full", values: await f32(name) });
  }
  if (!changes.size) fail("it changes nothing");
  return changes;
}

/** The tensors of `adapter_model.safetensors`, which is read like a model of one file. */
async function adapterTensors(files: ModelFiles): Promise<{
  tensors: ReadonlyMap<string, TensorInfo>;
  f32: (name: string) => Promise<Float32Array>;
}> {
  const real = (name: string) => name === "model.safetensors" ? "adapter_model.safetensors" : name;
  const tensors = await openTensors({
    place: files.place,
    list: () => files.list(),
    size: (name) => files.size(real(name)),
    read: (name, start, end) => files.read(real(name), start, end),
  });
  return { tensors: tensors.tensors, f32: (name) => tensors.f32(name) };
}

/** The entry of `rank_pattern` or `alpha_pattern` for a module: a key is the end of its path, as a pattern. */
function pattern(map: unknown, module: string): unknown {
  for (const [key, value] of Object.entries(map ?? {})) {
    if (new RegExp(`^(?:.*\\.)?(?:${key})$`).test(module)) return value;
  }
  return undefined;
}

function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) out[j * rows + i] = values[i * columns + j];
  }
  return out;
}
