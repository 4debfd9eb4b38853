/** A server with OpenAI's API as the pool of a door, whichever it is. */

import type { Engine } from "../lib/engine.ts";
import { RequestError } from "../lib/mod.ts";
import { OpenAiPool } from "../lib/pool/openai.ts";
import type { Pool } from "../lib/pool/pool.ts";
import type { ModelShape } from "../lib/pool/work.ts";
import { nearby } from "../lib/text/locations.ts";
import { encodePng } from "../lib/vision/mask_forms.ts";
import type { PoolSettings } from "./settings.ts";

/**
 * @param reach in place of `fetch`.
 * @returns undefined where the address is none of such a server: `openai+https:`, `vllm+http:` and so on.
 * @throws {RequestError} `parameter_invalid` for image tokens in a form that such a server does not take.
 */
export function openAiPool(
  { url, images, apiKey, model: name }: PoolSettings,
  reach?: typeof fetch,
): ((model: ModelShape, engine: Engine) => Pool) | undefined {
  const [, dialect, server] = /^(openai|vllm)\+(.*)$/s.exec(url) ?? [];
  if (!server) return undefined;
  if (images && (images.stage !== "projected" || images.dtype !== "f16")) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot join a pool: expected POOL_IMAGES of an OpenAI server to be pixels or projected-f16, found ${images.stage}-${images.dtype}`,
    );
  }
  return (model, { tokenizer, locations, config }) =>
    new OpenAiPool(server, {
      model,
      dialect: dialect as "openai" | "vllm",
      name,
      apiKey,
      words: tokenizer,
      eosIds: config.eosIds,
      near: (id) => nearby(locations, id),
      png: (samples, side) => encodePng(samples, side, side),
      fetch: reach,
    });
}
