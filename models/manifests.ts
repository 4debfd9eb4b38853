/**
 * The published checkpoints, as data: what to download, under which licence, what each takes at run and where that
 * fits. One table of shapes (`published.ts`) makes them all; `models info ID --json` prints one.
 */

import { parseConfig } from "../lib/weights/config.ts";
import { schemeFor, width } from "../lib/weights/load.ts";
import { tensorTable } from "../lib/weights/table.ts";
import { type Memory, memoryOf, streamedVisionBytes } from "./memory.ts";
import { publishedConfig, SHAPES } from "./published.ts";

/** Formats that memory is told for: all in f32, all in int8, int8 vision with an int4 decoder. */
export const FORMATS = ["f32", "int8", "int4"] as const;
type RunFormat = typeof FORMATS[number];

/** A place that a model, or a part of it, may run in. */
export interface DoorFit {
  readonly door: string;
  readonly part: string;
  readonly limitBytes: number;
  /** Formats in which it fits; none means not at all. */
  readonly formats: readonly string[];
}

/** One published checkpoint. */
export interface Manifest {
  readonly id: string;
  /** `pt` is pre-trained, to be fine-tuned; `mix` was fine-tuned on a mixture of tasks and answers as it is. */
  readonly kind: "pt" | "mix";
  readonly source: {
    readonly repo: string;
    readonly revision: string;
    /** Other revisions that the model cards name. */
    readonly others: readonly string[];
    /** `*` stands for the shards that the index names. */
    readonly files: readonly string[];
    readonly dtype: "F32" | "BF16";
    /** Bytes of the weights, from the shapes and the dtype. */
    readonly weightsBytes: number;
    readonly checksums: string;
    readonly note?: string;
  };
  readonly licence: { readonly name: string; readonly url: string; readonly gate: string };
  /** WASM memory by format, of one picture, 64 tokens of question and 256 of answer, on one thread. */
  readonly memory: Readonly<Record<RunFormat, Memory>>;
  /** SigLIP and the projector in int8, streamed layer by layer: WASM memory and the layer that arrives. */
  readonly streamedVisionBytes: number;
  readonly doors: readonly DoorFit[];
  readonly config: Readonly<Record<string, unknown>>;
  readonly preprocessor: Readonly<Record<string, unknown>>;
}

/** Memory of a WASM instance with 32-bit addresses, less the page that keeps ends from wrapping. */
const WASM_BYTES = 2 ** 32 - 2 ** 16;
/** An isolate of a Worker, and what the engine and the program take of it (10 MB measured at 224 pixels). */
const [ISOLATE_BYTES, ISOLATE_OWN_BYTES] = [128e6, 16e6];

const KINDS = ["pt", "mix"] as const;

/** `paligemma-3b-pt-224` … `paligemma2-10b-mix-896`. */
export const IDS: readonly string[] = SHAPES.flatMap((shape) => KINDS.map((kind) => idOf(shape, kind)));

/**
 * The manifest of a published checkpoint.
 *
 * @throws {RangeError} for an id that is not in `IDS`.
 */
export async function manifestOf(id: string): Promise<Manifest> {
  const kind = id.includes("-mix-") ? "mix" : "pt";
  const shape = id.replace(`-${kind}-`, "-");
  if (!IDS.includes(id)) throw new RangeError(`Unknown model "${id}": expected one of ${IDS.join(", ")}`);
  const { config, preprocessor } = publishedConfig(shape);
  const parsed = parseConfig(config, preprocessor);
  const parameters = tensorTable(parsed).reduce((sum, it) => sum + it.shape[0] * width(it), 0);
  // The model cards: PaliGemma's main branch is float32, PaliGemma 2's bfloat16.
  const first = shape.startsWith("paligemma-");
  const memory = {} as Record<RunFormat, Memory>;
  for (const format of FORMATS) memory[format] = await memoryOf(parsed, (it) => schemeFor(it, format));
  const streamed = await streamedVisionBytes(parsed, (it) => schemeFor(it, "int8"));
  return {
    id,
    kind,
    source: {
      repo: `google/${id}`,
      revision: "main",
      others: first ? ["bfloat16", "float16"] : [],
      files: [
        "config.json",
        "preprocessor_config.json",
        "generation_config.json",
        "tokenizer.model",
        "model.safetensors.index.json",
        "model-*.safetensors",
      ],
      dtype: first ? "F32" : "BF16",
      weightsBytes: parameters * (first ? 4 : 2),
      checksums: "of each file from the hub's headers when it is downloaded; none are known here",
      ...id.endsWith("-mix-896") && {
        note:
          "the papers release mix checkpoints at 224 and 448 pixels only; the hub may have none of this name",
      },
    },
    licence: {
      name: "Gemma Terms of Use",
      url: "https://ai.google.dev/gemma/terms",
      gate:
        `accept the licence at https://huggingface.co/google/${id}, then set HF_TOKEN to a token of that account`,
    },
    memory,
    streamedVisionBytes: streamed,
    doors: doorsFor(memory, { int8: streamed }),
    config,
    preprocessor,
  };
}

/** Where a model fits, given its memory by format, and that of its streamed image encoder. */
export function doorsFor(
  memory: Readonly<Record<string, Memory>>,
  streamedBytes: Readonly<Record<string, number>>,
): DoorFit[] {
  const whole = Object.keys(memory).filter((it) => memory[it].peakBytes <= WASM_BYTES);
  const streamed = Object.keys(streamedBytes)
    .filter((it) => streamedBytes[it] + ISOLATE_OWN_BYTES <= ISOLATE_BYTES);
  const part = "SigLIP and the projector, streamed";
  return [
    { door: "Deno process", part: "the whole model", limitBytes: WASM_BYTES, formats: whole },
    { door: "isolate of 128 MB", part, limitBytes: ISOLATE_BYTES, formats: streamed },
  ];
}

function idOf(shape: string, kind: string): string {
  return shape.replace(/-(\d+)$/, `-${kind}-$1`);
}
