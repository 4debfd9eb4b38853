import assert from "node:assert/strict";
import { parseConfig, readConfig } from "../../lib/weights/config.ts";
import { memoryFiles } from "../memory_files.ts";

const PUBLISHED = {
  hidden_size: 2048,
  image_token_index: 257152,
  text_config: {
    model_type: "gemma",
    hidden_size: 2048,
    intermediate_size: 16384,
    num_attention_heads: 8,
    num_hidden_layers: 18,
    num_image_tokens: 256,
    num_key_value_heads: 1,
    vocab_size: 257216,
  },
  vision_config: {
    hidden_size: 1152,
    intermediate_size: 4304,
    num_attention_heads: 16,
    num_hidden_layers: 27,
    patch_size: 14,
  },
};

Deno.test("paligemma-3b as published: what the file leaves out is the class default", () => {
  const { vision, decoder, imageTokenId, eosIds } = parseConfig(PUBLISHED);
  assert.deepEqual(vision, {
    imageSize: 224,
    patch: 14,
    width: 1152,
    layers: 27,
    heads: 16,
    mlp: 4304,
    eps: 1e-6,
  });
  assert.equal(decoder.headDim, 256);
  assert.equal(decoder.attentionScale, 1 / 16);
  assert.equal(decoder.softcap, undefined);
  assert.equal(imageTokenId, 257152);
  assert.deepEqual(eosIds, [1]);
});

Deno.test("paligemma2: the decoder's width is text_config's, not the top level's 2048", () => {
  const { decoder } = parseConfig({
    ...PUBLISHED,
    text_config: {
      model_type: "gemma2",
      hidden_size: 4608,
      num_hidden_layers: 46,
      intermediate_size: 36864,
      num_attention_heads: 32,
      num_key_value_heads: 16,
      head_dim: 128,
      query_pre_attn_scalar: 144,
    },
  });
  assert.equal(decoder.width, 4608);
  assert.equal(decoder.attentionScale, 1 / 12);
  assert.equal(decoder.softcap, 50);
  assert.equal(decoder.window, 4096);
});

Deno.test("generation_config.json adds end tokens; the processor's size must be the encoder's", () => {
  assert.equal(parseConfig(PUBLISHED, { size: { height: 448, width: 448 } }).vision.imageSize, 448);
  assert.deepEqual(parseConfig(PUBLISHED, {}, { eos_token_id: [1, 107] }).eosIds, [1, 107]);
  const sized = { ...PUBLISHED, vision_config: { ...PUBLISHED.vision_config, image_size: 224 } };
  assert.throws(
    () => parseConfig(sized, { size: { height: 448, width: 448 } }),
    /size to be 224 × 224, found "448 × 448"/,
  );
});

const broken: [string, object, RegExp][] = [
  [
    "another family",
    { ...PUBLISHED, text_config: { model_type: "llama" } },
    /text_config.model_type.*"llama"/,
  ],
  ["no vision_config", { ...PUBLISHED, vision_config: undefined }, /vision_config to be an object/],
  [
    "heads that do not divide the width",
    { ...PUBLISHED, vision_config: { ...PUBLISHED.vision_config, num_attention_heads: 7 } },
    /divisor of 1152, found 7/,
  ],
  [
    "a text where a number belongs",
    { ...PUBLISHED, text_config: { ...PUBLISHED.text_config, hidden_size: "2048" } },
    /text_config.hidden_size to be a whole number, found "2048"/,
  ],
];
for (const [name, json, message] of broken) {
  Deno.test(`refused, naming the field: ${name}`, () => {
    assert.throws(() => parseConfig(json as Record<string, unknown>), message);
  });
}

Deno.test("a directory without config.json says what it found instead", async () => {
  const files = memoryFiles({ "weights.bin": "", "notes.txt": "" }, "here");
  await assert.rejects(
    readConfig(files),
    /model in here: expected config.json, found weights.bin, notes.txt/,
  );
  await assert.rejects(readConfig(memoryFiles({ "config.json": "{" })), /Cannot read config.json/);
});
