/**
 * Exports in the layout of transformers.js that this project did not write, made here by writing ours as others do:
 * raw embeddings and divided image features, inputs of other names, no metadata. And those that must be refused.
 */

import assert from "node:assert/strict";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createOrtDecoder } from "../../lib/decode/ort.ts";
import { createOrtVision } from "../../lib/vision/ort.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights, type Weights } from "../../lib/weights/load.ts";
import { embeddingScale, findOnnx, type OnnxModel, readGraph, readOnnx } from "../../lib/weights/onnx.ts";
import { exportOnnx, exportPart } from "../../models/export_onnx.ts";
import { writeDecoder, writeEmbedding } from "../../models/onnx_decoder.ts";
import { OnnxOps } from "../../models/onnx_ops.ts";
import { writeVision } from "../../models/onnx_vision.ts";
import { type Attribute, DataType, type Dimension, OnnxWriter } from "../../models/onnx_writer.ts";
import { directoryFiles } from "../../functions/model.ts";
import { memoryFiles } from "../memory_files.ts";
import { loadOrt } from "../../functions/ort.ts";
import { type Golden, goldenConfig, relative, run, worst } from "../decode/walk.ts";

const TINY = new URL("../golden/tiny/", import.meta.url);
const golden: Golden = JSON.parse(Deno.readTextFileSync(new URL("pg1_2img.json", TINY)));
const config = parseConfig(goldenConfig(golden));
const root = Math.sqrt(config.decoder.width);

function open(): Promise<Weights> {
  const bytes = Deno.readFileSync(new URL("pg1.safetensors", TINY));
  return openWeights(memoryFiles({ "model.safetensors": bytes }), config);
}

/** How an export differs from ours. */
interface Ways {
  /** Scale inside the decoder, as in the exports of transformers.js' PaliGemma 2. */
  readonly inside?: boolean;
  /** The mask knows no prefix. */
  readonly causal?: boolean;
  readonly format?: "int8";
  /** Everything that enters or leaves is f16. */
  readonly half?: boolean;
  /** More inputs, by name. */
  readonly inputs?: Record<string, [type: number, dims: Dimension[]]>;
}

/** `TensorProto.DataType.FLOAT16`. */
const F16 = 10;

/** Writes the same graphs as others do. */
class ForeignWriter extends OnnxWriter {
  constructor(directory: string, name: string, readonly ways: Ways) {
    super(directory, name);
  }

  override input(name: string, type: number, dims: readonly Dimension[]): string {
    const half = this.ways.half && type === DataType.f32;
    let named = super.input(name, half ? F16 : type, dims);
    if (half) named = super.node("Cast", [named], { to: DataType.f32 });
    if (name !== "inputs_embeds" || !this.ways.inside) return named;
    return super.node("Mul", [named, this.scalar(root)]);
  }

  override output(name: string, type: number, dims: readonly Dimension[]): void {
    super.output(name, this.ways.half ? F16 : type, dims);
  }

  override node(
    op: string,
    inputs: string[],
    attributes: Record<string, Attribute> = {},
    name?: string,
  ): string {
    if (this.ways.causal && op === "Or") return inputs[0];
    if (this.ways.inside && name === "inputs_embeds") op = "Identity", inputs = [inputs[0]];
    if (this.ways.inside && name === "image_features") op = "Div", inputs = [inputs[0], this.scalar(root)];
    if (!this.ways.half || !name) return super.node(op, inputs, attributes, name);
    const exact = super.node(op, inputs, attributes);
    super.node("Cast", [exact], { to: F16 }, name);
    return exact;
  }

  override close(): Promise<void> {
    return super.close();
  }
}

async function foreign(ways: Ways): Promise<Record<"vision" | "embed" | "decoder", OnnxModel>> {
  const weights = await open();
  const directory = await Deno.makeTempDir();
  try {
    const write = async (name: string, build: (ops: OnnxOps) => Promise<void>) => {
      const file = new ForeignWriter(directory, name, ways);
      await build(new OnnxOps(file, weights));
      if (name.startsWith("decoder")) {
        for (const [input, [type, dims]] of Object.entries(ways.inputs ?? {})) file.input(input, type, dims);
      }
      await file.close();
      return await readOnnx(directoryFiles(directory), name);
    };
    return {
      vision: await write("vision_encoder.onnx", (ops) => writeVision(ops, "f32")),
      embed: await write("embed_tokens.onnx", (ops) => writeEmbedding(ops, "f32")),
      decoder: await write(
        "decoder_model_merged.onnx",
        (ops) => writeDecoder(ops, ways.format ?? "f32", ways.format ?? "f32", "off"),
      ),
    };
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function answer(models: Awaited<ReturnType<typeof foreign>>) {
  const [ort, backend] = [await loadOrt(), createReferenceBackend()];
  const model = {
    vision: await createOrtVision(ort, backend, config, models.vision),
    decoder: await createOrtDecoder(ort, backend, config, models),
  };
  return await run(backend, model, config, golden);
}

const accepted: Record<string, Ways> = {
  "scale inside the decoder": { inside: true },
  "embeddings scaled, no metadata": {},
  "attention mask, cache branch and logits to keep": {
    inputs: {
      attention_mask: [DataType.i64, [1, "total_sequence_length"]],
      use_cache_branch: [DataType.bool, [1]],
      num_logits_to_keep: [DataType.i64, []],
    },
  },
  "additive mask in four dimensions": {
    inputs: { attention_mask: [DataType.f32, [1, 1, "sequence_length", "total_sequence_length"]] },
  },
};
for (const [name, ways] of Object.entries(accepted)) {
  Deno.test(`accepted: ${name}, with the golden logits`, async () => {
    const models = await foreign(ways);
    assert.equal(embeddingScale(models.decoder.graph), ways.inside ? "inside" : "applied");
    const { features, logits } = await answer(models);
    assert.ok(worst(features, golden.image_features_first_row) < 2e-4, "features");
    logits.forEach((it, i) => assert.ok(worst(it, golden.step_logits[i]) < 2e-4, `step ${i}`));
  });
}

Deno.test("accepted: int8 without metadata, as its rows see one another", async () => {
  const { logits } = await answer(await foreign({ format: "int8" }));
  logits.forEach((it, i) => assert.ok(relative(it, golden.step_logits[i]) < 0.1, `step ${i}`));
});

Deno.test("accepted: f16 at all ends, scale inside the decoder, within f16's rounding", async () => {
  const models = await foreign({ half: true, inside: true });
  assert.equal(embeddingScale(models.decoder.graph), "inside");
  const { features, logits } = await answer(models);
  assert.ok(worst(features, golden.image_features_first_row) < 1e-3, "features");
  logits.forEach((it, i) => assert.ok(worst(it, golden.step_logits[i]) < 5e-3, `step ${i}`));
});

const refused: [string, Ways, RegExp][] = [
  ["causal attention", { causal: true }, /decoder_model_merged\.onnx.*see one another in full.*causal/],
  ["causal attention in int8", { causal: true, format: "int8" }, /its attention is causal/],
  [
    "an input that is not known",
    { inputs: { encoder_hidden_states: [DataType.f32, [1, "n", 4]] } },
    /found an input encoder_hidden_states that is not known/,
  ],
  [
    "a mask of three dimensions",
    { inputs: { attention_mask: [DataType.i64, [1, "t", "s"]] } },
    /attention_mask in two or four dimensions, found int64 \[1,t,s\]/,
  ],
  [
    "a cache of more layers",
    { inputs: { "past_key_values.7.key": [DataType.f32, [1, 1, "s", 16]] } },
    /a cache of 3 layers, found an input past_key_values\.7\.key/,
  ],
];
for (const [name, ways, message] of refused) {
  Deno.test(`refused: ${name}`, async () => {
    await assert.rejects(foreign(ways).then(answer), (error: Error & { code?: string }) => {
      assert.equal(error.code, "model_invalid", error.stack);
      assert.match(error.message, message);
      return true;
    });
  });
}

Deno.test("refused: graphs in the wrong place, and a model of another size", async () => {
  const [ort, backend] = [await loadOrt(), createReferenceBackend()];
  const { vision, embed, decoder } = await foreign({});
  const refuses = (made: Promise<unknown>, message: RegExp) =>
    assert.rejects(made, { code: "model_invalid", message });
  await refuses(createOrtVision(ort, backend, config, embed), /one input pixel_values, found input_ids/);
  await refuses(
    createOrtDecoder(ort, backend, config, { embed: vision, decoder }),
    /one input input_ids, found pixel_values/,
  );
  await refuses(
    createOrtDecoder(ort, backend, config, { embed, decoder: embed }),
    /input input_ids that is not/,
  );
  const larger = { ...config, vision: { ...config.vision, imageSize: 42 } };
  await refuses(createOrtVision(ort, backend, larger, vision), /pixel_values \[1,3,42,42\], found/);
  const deeper = { ...config, decoder: { ...config.decoder, layers: 4 } };
  await refuses(
    createOrtDecoder(ort, backend, deeper, { embed, decoder }),
    /an input past_key_values\.3\.key, found inputs_embeds/,
  );
  const wider = { ...config, decoder: { ...config.decoder, headDim: 32 } };
  await refuses(
    createOrtDecoder(ort, backend, wider, { embed, decoder }),
    /past_key_values\.0\.key \[1,1,any,32\], found \[1,1,past_sequence_length,16\]/,
  );
});

Deno.test("exportOnnx writes a directory in the layout of transformers.js; a missing data file is named", async () => {
  const directory = await Deno.makeTempDir();
  try {
    const checkpoint = new URL("../golden/checkpoints/pg2", import.meta.url).pathname;
    await exportOnnx(directoryFiles(checkpoint), directory, { vision: "int8", decoder: "int4" });
    const names = [...Deno.readDirSync(`${directory}/onnx`)].map((it) => it.name).sort();
    assert.deepEqual(names, [
      "decoder_model_merged_q4.onnx",
      "decoder_model_merged_q4.onnx_data",
      "embed_tokens_q4.onnx",
      "embed_tokens_q4.onnx_data",
      "vision_encoder_quantized.onnx",
      "vision_encoder_quantized.onnx_data",
    ]);
    const files = directoryFiles(directory);
    assert.ok(await files.size("config.json"));
    const model = await findOnnx(files, "vision_encoder");
    assert.equal(model.name, "vision_encoder_quantized.onnx");
    assert.equal((await findOnnx(files, "embed_tokens")).name, "embed_tokens_q4.onnx");
    assert.equal((await findOnnx(files, "vision_encoder", "int4")).name, "vision_encoder_quantized.onnx");
    await assert.rejects(findOnnx(files, "vision_encoder", "f32"), {
      code: "model_invalid",
      message: /expected onnx\/vision_encoder\.onnx, found no such file/,
    });
    await assert.rejects(findOnnx(files, "embed_tokens", "int8"), {
      code: "model_invalid",
      message:
        /expected onnx\/embed_tokens_int8\.onnx or onnx\/embed_tokens_quantized\.onnx, found no such file/,
    });
    assert.deepEqual(model.externalData.map((it) => it.path), ["vision_encoder_quantized.onnx_data"]);
    await Deno.remove(`${directory}/onnx/vision_encoder_quantized.onnx_data`);
    await assert.rejects(readOnnx(files, "vision_encoder_quantized.onnx"), {
      code: "model_invalid",
      message: /keeps weights in vision_encoder_quantized\.onnx_data, found no such file/,
    });
    await assert.rejects(readOnnx(files, "vision_encoder.onnx"), {
      code: "model_invalid",
      message: /expected onnx\/vision_encoder\.onnx/,
    });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("bytes that are no ONNX file are refused, whole or cut anywhere", async () => {
  const directory = await Deno.makeTempDir();
  try {
    const name = await exportPart(await open(), directory, "embed_tokens", { vision: "f32", decoder: "f32" });
    const bytes = Deno.readFileSync(`${directory}/${name}`);
    assert.equal(readGraph(bytes, name).inputs[0].name, "input_ids");
    for (
      const wrong of [new TextEncoder().encode("hello, this is text"), new Uint8Array(40), new Uint8Array()]
    ) {
      assert.throws(() => readGraph(wrong, name), { code: "model_invalid" });
    }
    for (let length = 0; length < bytes.length; length++) {
      try {
        readGraph(bytes.subarray(0, length), name);
      } catch (error) {
        assert.equal(
          (error as { code?: string }).code,
          "model_invalid",
          `${length}: ${(error as Error).stack}`,
        );
      }
    }
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});
