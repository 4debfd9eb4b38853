/** API keys: only their digests are kept, and compared in a time that does not tell where they differ. */

import type { MiddlewareHandler } from "hono";
import { sha256 } from "../../digest.ts";
import { HttpError } from "../problem.ts";
import type { Env } from "./exchange.ts";

/** SHA-256. */
type Digest = Uint8Array;

/**
 * Lets only callers with a key pass: `Authorization: Bearer KEY` or `X-Api-Key: KEY`.
 *
 * @param keys each the key itself, or `sha256:` and its digest in hexadecimal: then nobody has a key for having read
 * the configuration.
 * @throws {RangeError} for an empty list or a digest that is none.
 */
export function apiKeys(keys: readonly string[]): MiddlewareHandler<Env> {
  if (!keys.length) throw new RangeError("API keys: expected at least one, found none");
  const wrong = keys.findIndex((it) => it.startsWith("sha256:") && !/^sha256:[0-9a-f]{64}$/i.test(it));
  if (wrong >= 0) {
    throw new RangeError(
      `API keys: expected 64 hexadecimal digits after sha256:, found others in key ${wrong + 1}`,
    );
  }
  const known = Promise.all(keys.map((it) => {
    return it.startsWith("sha256:") ? Uint8Array.fromHex(it.slice("sha256:".length)) : sha256(it);
  }));
  return async (c, next) => {
    const bearer = /^Bearer +(\S+) *$/i.exec(c.req.header("authorization") ?? "")?.[1];
    const given = bearer ?? c.req.header("x-api-key");
    const digest = await sha256(given ?? "");
    // Every key is compared, also after one was found.
    const found = (await known).filter((it) => equal(it, digest)).length > 0;
    if (given === undefined || !found) {
      const what = given === undefined ? "none" : "one that is not known";
      throw new HttpError({
        code: "unauthorized",
        message: `Cannot answer: expected an API key (Authorization: Bearer …), found ${what}`,
      });
    }
    const exchange = c.get("exchange");
    exchange.caller = digest.subarray(0, 4).toHex();
    exchange.owner = digest.subarray(0, 16).toHex();
    await next();
  };
}

/** Whether two digests are the same. */
export function equal(a: Digest, b: Digest): boolean {
  let difference = a.length ^ b.length;
  for (let i = 0; i < a.length; i++) difference |= a[i] ^ b[i];
  return difference === 0;
}
