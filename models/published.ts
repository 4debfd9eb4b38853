/**
 * The shapes of the published checkpoints, as `config.json` has them. Figures: the model cards' config files, PaliGemma
 * (arXiv 2407.07726, table 1 and appendix) and PaliGemma 2 (arXiv 2412.03555, table 1).
 */

/** Gemma's part of a config. */
interface TextShape {
  readonly model_type: "gemma" | "gemma2";
  readonly hidden_size: number;
  readonly num_hidden_layers: number;
  readonly intermediate_size: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly query_pre_attn_scalar?: number;
}

const TEXT: Readonly<Record<string, TextShape>> = {
  "paligemma-3b": {
    model_type: "gemma",
    hidden_size: 2048,
    num_hidden_layers: 18,
    intermediate_size: 16384,
    num_attention_heads: 8,
    num_key_value_heads: 1,
    head_dim: 256,
  },
  "paligemma2-3b": {
    model_type: "gemma2",
    hidden_size: 2304,
    num_hidden_layers: 26,
    intermediate_size: 9216,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    head_dim: 256,
    query_pre_attn_scalar: 256,
  },
  "paligemma2-10b": {
    model_type: "gemma2",
    hidden_size: 3584,
    num_hidden_layers: 42,
    intermediate_size: 14336,
    num_attention_heads: 16,
    num_key_value_heads: 8,
    head_dim: 256,
    query_pre_attn_scalar: 256,
  },
};

/** Sides of the square input, pixels. */
const SIZES = [224, 448, 896] as const;

/** Names of the shapes: `paligemma-3b-224` … `paligemma2-10b-896`. */
export const SHAPES: readonly string[] = Object.keys(TEXT).flatMap((it) =>
  SIZES.map((size) => `${it}-${size}`)
);

/**
 * `config.json` and `preprocessor_config.json` of a shape.
 *
 * @throws {RangeError} for a name that is not in `SHAPES`.
 */
export function publishedConfig(
  shape: string,
): { config: Record<string, unknown>; preprocessor: Record<string, unknown> } {
  if (!SHAPES.includes(shape)) {
    throw new RangeError(`Unknown shape "${shape}": expected ${SHAPES.join(", ")}`);
  }
  const at = shape.lastIndexOf("-");
  const [text, size] = [TEXT[shape.slice(0, at)], Number(shape.slice(at + 1))];
  const imageTokens = (size / 14) ** 2;
  return {
    config: {
      architectures: ["PaliGemmaForConditionalGeneration"],
      model_type: "paligemma",
      bos_token_id: 2,
      eos_token_id: 1,
      pad_token_id: 0,
      hidden_size: 2048,
      image_token_index: 257152,
      projection_dim: text.hidden_size,
      text_config: { ...text, vocab_size: 257216, num_image_tokens: imageTokens },
      vision_config: {
        model_type: "siglip_vision_model",
        hidden_size: 1152,
        intermediate_size: 4304,
        num_hidden_layers: 27,
        num_attention_heads: 16,
        patch_size: 14,
        image_size: size,
        projection_dim: text.hidden_size,
      },
    },
    preprocessor: {
      size: { height: size, width: size },
      image_mean: [0.5, 0.5, 0.5],
      image_std: [0.5, 0.5, 0.5],
      image_seq_length: imageTokens,
      resample: 3,
    },
  };
}
