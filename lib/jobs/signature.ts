/** Who sent a webhook: Standard Webhooks 1.0.0, and the plain HMAC that many services had before it. */

import { Webhook } from "standardwebhooks";
import { RequestError } from "../errors.ts";

/** How a sender signs. */
export type SignatureScheme =
  /** `webhook-id`, `webhook-timestamp` and `webhook-signature`. */
  | "standard"
  /** HMAC-SHA256 of the body alone, in a header of the sender's choice; a secret that is no `whsec_` is text. */
  | {
    /** Such as `x-hub-signature-256`. */
    readonly header: string;
    /** What stands before the signature, such as `sha256=`. */
    readonly prefix?: string;
    /** `hex` by default. */
    readonly encoding?: "hex" | "base64";
    /** Header that tells one message from another, where there is one: a repeated one does nothing. */
    readonly id?: string;
  };

/**
 * Splits a list of secrets: all of them sign, any of them verifies, so that a new one can be put beside an old one
 * before the old one goes.
 *
 * @throws {RequestError} `parameter_invalid` for one that is no `whsec_` and base64 of 24 to 64 bytes; it is not shown.
 */
export function readSecrets(text: string, name = "secret"): string[] {
  const secrets = text.split(/[\s,]+/).filter(Boolean);
  const wrong = secrets.findIndex((it) => {
    const bytes = bytesOf(it)?.length ?? 0;
    return bytes < 24 || bytes > 64;
  });
  if (!secrets.length || wrong >= 0) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot read ${name}: expected whsec_ and base64 of 24 to 64 bytes, found ` +
        (secrets.length ? `something else in secret ${wrong + 1}` : "none"),
    );
  }
  return secrets;
}

function bytesOf(secret: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.fromBase64(secret.replace(/^whsec_/, ""));
  } catch {
    return undefined;
  }
}

/** The headers of a webhook, signed with every secret. The timestamp is that of this attempt, not of the event. */
export function sign(secrets: readonly string[], id: string, at: Date, body: string): Record<string, string> {
  if (!secrets.length) throw new TypeError("Cannot sign: expected a secret, found none");
  return {
    "webhook-id": id,
    "webhook-timestamp": String(Math.floor(at.getTime() / 1000)),
    "webhook-signature": secrets.map((it) => new Webhook(it).sign(id, at, body)).join(" "),
  };
}

/**
 * Checks who sent a body, and within the last five minutes where the scheme tells when.
 *
 * @returns what tells this message from others, where the scheme says.
 * @throws {RequestError} `signature_invalid`.
 */
export async function verify(
  scheme: SignatureScheme,
  secrets: readonly string[],
  headers: Headers,
  body: string,
): Promise<string | undefined> {
  if (scheme === "standard") {
    const given = Object.fromEntries(headers);
    let why = "";
    for (const secret of secrets) {
      try {
        new Webhook(secret).verify(body, given, { jsonParse: false });
        return given["webhook-id"];
      } catch (error) {
        why = (error as Error).message;
      }
    }
    throw invalid(`the headers of Standard Webhooks, signed with this hook's secret (${why})`);
  }
  const { header, prefix = "", encoding = "hex" } = scheme;
  const given = headers.get(header) ?? "";
  const signature = given.startsWith(prefix) ? decoded(given.slice(prefix.length), encoding) : undefined;
  for (const secret of secrets) {
    const hmac = { name: "HMAC", hash: "SHA-256" };
    const key = await crypto.subtle.importKey("raw", keyOf(secret), hmac, false, ["verify"]);
    if (signature && await crypto.subtle.verify("HMAC", key, signature, new TextEncoder().encode(body))) {
      return (scheme.id && headers.get(scheme.id)) ?? undefined;
    }
  }
  throw invalid(`${header}: ${prefix}HMAC-SHA256 of the body with this hook's secret, in ${encoding}`);
}

function keyOf(secret: string): Uint8Array<ArrayBuffer> {
  return secret.startsWith("whsec_") ? bytesOf(secret)! : new TextEncoder().encode(secret);
}

function decoded(text: string, encoding: "hex" | "base64"): Uint8Array<ArrayBuffer> | undefined {
  try {
    return encoding === "hex" ? Uint8Array.fromHex(text) : Uint8Array.fromBase64(text);
  } catch {
    return undefined;
  }
}

function invalid(expected: string): RequestError {
  return new RequestError("signature_invalid", `Cannot take the webhook: expected ${expected}`);
}
