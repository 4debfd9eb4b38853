import assert from "node:assert/strict";
import { exportJWK, generateKeyPair, importJWK, SignJWT } from "jose";
import { createSign, createVerify } from "../../lib/pool/signature.ts";

const SUM = new Uint8Array(32).fill(7);

async function pair(kid: string) {
  const { privateKey, publicKey } = await generateKeyPair("EdDSA", { extractable: true });
  return { key: { ...await exportJWK(privateKey), kid }, trusted: { ...await exportJWK(publicKey), kid } };
}

Deno.test("a signature is good once, for its message and its model", async () => {
  const { key, trusted } = await pair("a");
  const [sign, verify] = [await createSign(key), await createVerify([trusted])];
  const token = await sign("r", SUM);
  assert.equal((await verify(token, "r", SUM)).kid, "a");
  const refused = (promise: Promise<unknown>, message: RegExp) =>
    assert.rejects(promise, { name: "PoolError", code: "unsigned", message });
  await refused(verify(token, "r", SUM), /used before/);
  await refused(verify(await sign("r", SUM), "other", SUM), /not good.*"aud"/);
  await refused(verify(await sign("r", SUM), "r", new Uint8Array(32)), /another message/);
  await refused(verify(undefined, "r", SUM), /none/);
  await refused(verify("a.b.c", "r", SUM), /not good/);
});

Deno.test("signatures of strangers, of another algorithm, and out of date are refused", async () => {
  const [known, stranger] = [await pair("a"), await pair("a")];
  const verify = await createVerify([known.trusted]);
  const refused = (token: string) => assert.rejects(verify(token, "r", SUM), { code: "unsigned" });
  await refused(await (await createSign(stranger.key))("r", SUM));
  await refused(await (await createSign({ ...known.key, kid: "b" }))("r", SUM));
  const make = (alg: string, issued: number, expires: number) =>
    new SignJWT({ sum: SUM.toHex() }).setProtectedHeader({ alg, kid: "a" }).setAudience("pool:r").setJti("x")
      .setIssuedAt(issued).setExpirationTime(expires);
  const now = Math.floor(Date.now() / 1000);
  const key = await importJWK(known.key, "EdDSA");
  await refused(await make("EdDSA", now - 120, now - 60).sign(key));
  await refused(await make("EdDSA", now - 120, now + 3600).sign(key));
  await refused(await make("HS256", now, now + 60).sign(new TextEncoder().encode(known.trusted.x!)));
  assert.equal((await verify(await make("EdDSA", now, now + 60).sign(key), "r", SUM)).kid, "a");
});
