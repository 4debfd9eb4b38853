/**
 * Models on their way into R2, file by file and part by part, at `/uploads/MODEL/FILE`. Who was interrupted goes on with
 * the parts that are missing. A file is there when its last step says so, with the SHA-256 that its sender computed.
 */

import { type Context, Hono } from "hono";
import * as z from "zod/mini";
import { RequestError } from "../errors.ts";
import type { ModelBucket, ModelUpload } from "../store/r2_models.ts";
import { readJson } from "./body.ts";
import type { Env } from "./guard/exchange.ts";
import { apiKeys } from "./guard/keys.ts";
import { HttpError } from "./problem.ts";
import { read, text, whole } from "./schema.ts";

/** Where the routes are. They need no model, and there may be none yet. */
export const UPLOADS = "/uploads/";

/** Largest part; R2 wants at least 5 MiB of all but the last, and all of one size. */
const MAX_PART_BYTES = 64 * 2 ** 20;
/** Ten thousand parts, listed. */
const MAX_LIST_BYTES = 4 * 2 ** 20;

/** Names of models and of their files. */
const NAME = /^[a-zA-Z0-9_-][\w.-]{0,99}$/;

const BEGIN = z.strictObject({
  sha256: z.string({ error: "64 hexadecimal digits" }).check(
    z.regex(/^[0-9a-f]{64}$/, { error: "64 hexadecimal digits" }),
  ),
});
const END = z.strictObject({
  parts: z.array(
    z.strictObject({ partNumber: whole(1, 10_000), etag: text("the tag that the part got") }),
    { error: "a list of parts" },
  ),
});

/**
 * The routes, for whoever has the key: they decide what the server runs.
 *
 * @param key as {@link apiKeys} takes it; without one nobody may pass.
 */
export function uploadRoutes(bucket: ModelBucket, key: string | undefined): Hono<Env> {
  const routes = new Hono<Env>();
  const path = `${UPLOADS}:model/:file`;
  const guard = key ? apiKeys([key]) : () => {
    throw new HttpError({
      code: "unauthorized",
      message: "Cannot take models: expected UPLOAD_KEY among the Worker's secrets, found none",
    });
  };
  routes.use(path, guard);

  // What is there: size in bytes, and the sum it was sent with.
  routes.get(path, async (c) => {
    const found = await bucket.head(keyOf(c));
    if (!found) return c.notFound();
    return c.json({ sizeBytes: found.size, sha256: found.customMetadata?.sha256 });
  });

  routes.delete(path, async (c) => {
    await bucket.delete(keyOf(c));
    return c.body(null, 204);
  });

  // Without `upload`, the beginning; with it, the end.
  routes.post(path, async (c) => {
    const body = await readJson(c.req.raw, MAX_LIST_BYTES);
    if (c.req.query("upload") === undefined) {
      const { uploadId } = await bucket.createMultipartUpload(keyOf(c), {
        customMetadata: read(BEGIN, body),
      });
      return c.json({ upload: uploadId }, 201);
    }
    const { parts } = read(END, body);
    const { size } = await under(c, (it) => it.complete(parts));
    return c.json({ sizeBytes: size });
  });

  routes.put(path, async (c) => {
    const part = read(PART, Number(c.req.query("part")), "part");
    const size = Number(c.req.header("content-length"));
    const { body } = c.req.raw;
    if (!body || !(size > 0 && size <= MAX_PART_BYTES)) {
      const message =
        `Cannot take the part: expected 1 to ${MAX_PART_BYTES} bytes with a content-length, found ${size}`;
      throw new HttpError({ code: "body_too_large", message });
    }
    // Handed on as it comes: an isolate has no room for it.
    const { etag } = await under(c, (it) => it.uploadPart(part, body));
    return c.json({ etag });
  });

  /** R2 forgets an upload after a week: then, as where a part is missing, there is nothing to go on with. */
  async function under<T>(c: Context<Env>, work: (upload: ModelUpload) => Promise<T>): Promise<T> {
    try {
      return await work(bucket.resumeMultipartUpload(keyOf(c), c.req.query("upload") ?? ""));
    } catch (cause) {
      const message = `Cannot go on with the upload: ${(cause as Error).message}`;
      if (GONE.test(message)) throw new HttpError({ code: "not_found", message });
      throw new RequestError("storage_failed", message, { cause });
    }
  }

  return routes;
}

const PART = whole(1, 10_000);

/** R2's numbers for an upload and for parts that there are not. */
const GONE = /\((10024|10025)\)/;

function keyOf(c: Context<Env>): string {
  const { model = "", file = "" } = c.req.param() as Record<string, string>;
  if (NAME.test(model) && NAME.test(file)) return `${model}/${file}`;
  const found = JSON.stringify(`${model}/${file}`);
  const message = `Cannot upload: expected names of letters, digits, ".", "_" and "-", found ${found}`;
  throw new HttpError({ code: "parameter_invalid", message });
}
