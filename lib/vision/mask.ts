/** Mask tokens to masks on the picture. */

import type { Backend } from "../backend/backend.ts";
import type { Box, Mask, ModelFiles } from "../types.ts";
import { loadMaskDecoder } from "./mask_decoder.ts";
import { formed } from "./mask_forms.ts";
import { paste } from "./mask_paste.ts";

/** Draws masks. */
export interface Masks {
  /** The mask of 16 codebook indices within its box, on a picture of this size in pixels. */
  draw(
    codes: readonly number[],
    box: Box,
    picture: { readonly width: number; readonly height: number },
    form: "rle" | "polygon" | "png",
  ): Promise<Mask>;
}

/**
 * Loads `mask_decoder.safetensors` of a model directory; undefined where there is none.
 *
 * @throws {RequestError} `model_invalid` for a tensor that is missing or of another shape.
 */
export async function loadMasks(backend: Backend, files: ModelFiles): Promise<Masks | undefined> {
  const decoder = await loadMaskDecoder(backend, files);
  return decoder && {
    async draw(codes, box, picture, form) {
      const patch = paste(await decoder.decode(codes), box, picture);
      return await formed(patch, [picture.height, picture.width], form);
    },
  };
}
