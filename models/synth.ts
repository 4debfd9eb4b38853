/**
 * A checkpoint of true shape with random numbers in it, written straight in the quantised format: for benchmarks and
 * memory tests, where what the model says does not matter.
 *
 * Weights come out with about the variance that keeps activations alive through the layers, 1/K.
 */

import { join } from "@std/path";
import { parseConfig } from "../lib/weights/config.ts";
import { packedBytes } from "../lib/weights/quantize.ts";
import { fileEntries, schemeFor, width } from "../lib/weights/load.ts";
import { encodeHeader } from "../lib/weights/safetensors.ts";
import { type TensorSpec, tensorTable } from "../lib/weights/table.ts";
import { publishedConfig } from "./published.ts";

/** Bytes of random numbers made once and written over and over, from another place for every tensor. */
const BLOCK = 144 * 8 * 16384;

/** What to write. */
export interface SynthOptions {
  readonly decoder: "int8" | "int4";
  /** Layers of each tower, to write less than the whole; all by default. */
  readonly layers?: { readonly vision: number; readonly decoder: number };
  /** Rows of the embedding, to write less where only the vision tower counts; all by default. */
  readonly vocabulary?: number;
  /** Called with bytes written and bytes in all. */
  readonly progress?: (done: number, total: number) => void;
}

/** Writes `config.json`, `preprocessor_config.json`, a byte tokenizer and `model.safetensors`; returns its bytes. */
export async function synth(shape: string, out: string, options: SynthOptions): Promise<number> {
  const { config: json, preprocessor } = publishedConfig(shape);
  if (options.layers) {
    Object.assign(json.vision_config as object, { num_hidden_layers: options.layers.vision });
    Object.assign(json.text_config as object, { num_hidden_layers: options.layers.decoder });
  }
  if (options.vocabulary) Object.assign(json.text_config as object, { vocab_size: options.vocabulary });
  const table = tensorTable(parseConfig(json, preprocessor));
  const scheme = (spec: TensorSpec) => schemeFor(spec, spec.part === "vision" ? "int8" : options.decoder);
  const { entries, metadata } = fileEntries(table, scheme);

  await Deno.mkdir(out, { recursive: true });
  await Deno.writeTextFile(join(out, "config.json"), JSON.stringify(json));
  await Deno.writeTextFile(join(out, "preprocessor_config.json"), JSON.stringify(preprocessor));
  await Deno.writeTextFile(join(out, "tokenizer.json"), JSON.stringify(byteTokenizer()));
  const blocks = { "int8-p8-s4": int8Block(), "int4-g32-p8": int4Block() };
  using file = await Deno.open(join(out, "model.safetensors"), { write: true, create: true, truncate: true });
  const header = encodeHeader(entries, metadata);
  const total = entries.reduce((sum, it) => sum + it.sizeBytes, header.length);
  let written = 0;
  const write = async (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
    options.progress?.(written += bytes.length, total);
  };
  await write(header);
  for (const [i, spec] of table.entries()) {
    const to = scheme(spec);
    const [n, k] = [spec.shape[0], width(spec)];
    if (to === "f32") {
      const values = plain(spec, n * k);
      await write(new Uint8Array(values.buffer));
    } else {
      const bytes = packedBytes(to, n, k);
      for (let at = 0, from = (i * 7 % 13) * 144 * 8; at < bytes; from = 0) {
        const part = blocks[to].subarray(from, Math.min(BLOCK, from + bytes - at));
        await write(part);
        at += part.length;
      }
      // standard deviation of the integers below: 18.5 for int8, 4.6 · 13 for int4
      const scale = new Float32Array(n).fill(1 / ((to === "int8-p8-s4" ? 18.5 : 60) * Math.sqrt(k)));
      await write(new Uint8Array(scale.buffer));
    }
  }
  return total;
}

/** Integers from -32 to 31: no eight of one sign sum beyond 258, the bound of `int8-p8-s4`. */
function int8Block(): Uint8Array {
  return random(BLOCK).map((it) => (it & 63) - 32);
}

/** Groups of 144 bytes: eight scales of 13, of those that quantizeInt4 gives, then 128 bytes of nibbles. */
function int4Block(): Uint8Array {
  const bytes = random(BLOCK);
  for (let at = 0; at < BLOCK; at += 144) {
    for (let column = 0; column < 8; column++) {
      bytes[at + 2 * column] = 13;
      bytes[at + 2 * column + 1] = 0;
    }
  }
  return bytes;
}

function random(size: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, Math.min(size, at + 65536)));
  }
  return bytes;
}

/** Norms that change nothing; biases, positions and patch weights small. */
function plain({ name }: TensorSpec, count: number): Float32Array<ArrayBuffer> {
  if (/layer_?norm\d?\.weight$|model\.norm\.weight$/.test(name)) {
    return new Float32Array(count).fill(name.startsWith("vision") ? 1 : 0);
  }
  const bytes = random(count);
  return Float32Array.from(bytes, (it) => (it - 127.5) / 2560);
}

/** A tokenizer of control pieces, newline and bytes: enough to ask anything. */
function byteTokenizer(): unknown {
  const pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\n"];
  for (let byte = 0; byte < 256; byte++) {
    pieces.push(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  }
  const special = (content: string, id: number) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: id < 4,
  });
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: pieces.slice(0, 5).map(special),
    normalizer: { type: "Replace", pattern: { String: " " }, content: "▁" },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: "<unk>",
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: [],
    },
  };
}
