/**
 * Who asks for work: a JSON Web Token (RFC 7519), EdDSA, good for one message, one model and a minute. Workers know the
 * public keys of the servers they work for, and take work of nobody else.
 */

import { importJWK, type JWK, jwtVerify, SignJWT } from "jose";
import { PoolError } from "./pool.ts";

const ALGORITHM = "EdDSA";
const LIFE_SECONDS = 60;
/** Clocks may differ by this much. */
const TOLERANCE_SECONDS = 5;

/** A public key in JWK form, Ed25519, with its `kid`. */
export interface TrustedKey extends JWK {
  readonly kid: string;
  /** Whether work signed with it may bring features or image tokens instead of pixels. */
  readonly features?: boolean;
}

const audience = (revision: string) => `pool:${revision}`;

/** Signs a message with this sha256 for workers of a model. */
export type Sign = (revision: string, sum: Uint8Array) => Promise<string>;

/** @param key a private key in JWK form, Ed25519, with its `kid`. */
export async function createSign(key: JWK): Promise<Sign> {
  const imported = await importJWK(key, ALGORITHM);
  return (revision, sum) =>
    new SignJWT({ sum: sum.toHex() })
      .setProtectedHeader({ alg: ALGORITHM, kid: key.kid })
      .setAudience(audience(revision))
      .setIssuedAt()
      .setExpirationTime(`${LIFE_SECONDS}s`)
      .setJti(crypto.randomUUID())
      .sign(imported);
}

/** Checks a message's signature and gives the key it was signed with. */
export type Verify = (token: string | undefined, revision: string, sum: Uint8Array) => Promise<TrustedKey>;

/**
 * @param keys those to trust.
 * @returns a function that throws {@link PoolError} `unsigned` for a token that is missing, forged, out of date, for another
 * model or message, or was used before.
 */
export async function createVerify(keys: readonly TrustedKey[]): Promise<Verify> {
  const known = new Map<string, { key: TrustedKey; imported: Awaited<ReturnType<typeof importJWK>> }>();
  for (const key of keys) known.set(key.kid, { key, imported: await importJWK(key, ALGORITHM) });
  /** Tokens used, with the time, in seconds, when nobody could use them any more anyway. */
  const used = new Map<string, number>();

  return async (token, revision, sum) => {
    const refuse = (why: string, cause?: unknown) =>
      new PoolError("unsigned", `Cannot take work: ${why}`, undefined, { cause });
    if (!token) throw refuse("expected a signature, found none");
    let key: TrustedKey | undefined;
    const payload = await jwtVerify(
      token,
      ({ kid = "" }) => {
        const found = known.get(kid);
        if (!found) throw refuse("signed with a key that this worker does not know");
        key = found.key;
        return found.imported;
      },
      {
        algorithms: [ALGORITHM],
        audience: audience(revision),
        clockTolerance: TOLERANCE_SECONDS,
        maxTokenAge: LIFE_SECONDS,
        requiredClaims: ["exp", "iat", "jti", "sum"],
      },
    ).then((it) => it.payload, (error) => {
      throw error instanceof PoolError ? error : refuse(`its signature is not good: ${error.message}`, error);
    });
    if (payload.sum !== sum.toHex()) throw refuse("signed for another message");
    const now = Date.now() / 1000;
    for (const [id, until] of used) if (until < now) used.delete(id);
    if (used.has(payload.jti!)) throw refuse("its signature was used before");
    used.set(payload.jti!, payload.exp! + TOLERANCE_SECONDS);
    return key!;
  };
}
