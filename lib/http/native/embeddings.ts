/** `POST /v1/embeddings/image`: the numbers of pictures, before any prompt. */

import { Hono } from "hono";
import * as z from "zod/mini";
import { encodeRows, toInt8 } from "../../pool/rows.ts";
import type { Embedding } from "../../types.ts";
import { readFields } from "../body.ts";
import { refuseBudget } from "../budget.ts";
import type { Env } from "../guard/exchange.ts";
import { loadPictures } from "../pictures.ts";
import { PICTURES, picturesOf } from "../question.ts";
import { oneOf, optional, read, valuesOf } from "../schema.ts";
import type { RouteParts } from "./routes.ts";

/** The body. */
export const EMBEDDINGS = z.strictObject({
  ...PICTURES,
  stage: optional(
    oneOf("projected", "features"),
    "projected, the default: image tokens in the decoder's width. features: SigLIP's, before the projector.",
  ),
  dtype: optional(oneOf("f16", "int8"), "f16, the default, or int8 with a scale for each row."),
  resize: optional(oneOf("hf-bicubic", "bv-bilinear-aa"), "As for an answer."),
  alpha: optional(oneOf("drop", "white"), "As for an answer."),
});

/** The route. */
export function embeddingRoutes({ answering, maxBodyBytes, outbound }: RouteParts): Hono<Env> {
  return new Hono<Env>().post("/v1/embeddings/image", async (c) => {
    const { model } = answering.pipeline();
    refuseBudget(c);
    const fields = await readFields(c.req.raw, maxBodyBytes);
    const body = read(EMBEDDINGS, valuesOf(fields, EMBEDDINGS));
    const { stage = "projected", dtype = "f16", resize, alpha } = body;
    const images = await loadPictures(picturesOf(fields, body), outbound, { signal: c.req.raw.signal });
    const found = await answering.run(
      c,
      (pipeline, signal) => pipeline.embed({ images, stage, resize, alpha }, signal),
    );
    return c.json(
      {
        object: "image_embeddings",
        model: model.name,
        revision: model.revision,
        stage,
        // Some decoders want image tokens divided by the root of their width; these are as the projector gives them.
        scale: "unscaled",
        shape: found.shape,
        dtype,
        ...dtype === "f16" ? { data: encodeF16(found) } : encodeInt8(found),
      },
      200,
      { "cache-control": "no-store" },
    );
  });
}

/** Half floats, little-endian, row-major, in base64. */
function encodeF16({ values, shape: [, , width] }: Embedding): string {
  return encodeRows("f16", values, width).toBase64();
}

/** Bytes and scales [N, P] as f32, both in base64. */
function encodeInt8({ values, shape: [, , width] }: Embedding) {
  const { data, scales } = toInt8(values, width);
  return { data: new Uint8Array(data.buffer).toBase64(), scales: new Uint8Array(scales.buffer).toBase64() };
}
