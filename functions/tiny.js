// @ts-self-types="./tiny.d.ts"
// JavaScript, because TypeScript knows no types of such files. wrangler gives each as an ArrayBuffer, by the rules of
// wrangler.jsonc; Deno would, with --unstable-raw-imports, as a Uint8Array.
import config from "../models/tiny/config.json" with { type: "bytes" };
import masks from "../models/tiny/mask_decoder.safetensors" with { type: "bytes" };
import preprocessor from "../models/tiny/preprocessor_config.json" with { type: "bytes" };
import tokenizer from "../models/tiny/tokenizer.model" with { type: "bytes" };
import weights from "../models/tiny/model.safetensors" with { type: "bytes" };

/** The bundled model's files by name. */
export default {
  "config.json": config,
  "mask_decoder.safetensors": masks,
  "model.safetensors": weights,
  "preprocessor_config.json": preprocessor,
  "tokenizer.model": tokenizer,
};
