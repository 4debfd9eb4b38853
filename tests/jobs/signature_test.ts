import assert from "node:assert/strict";
import { readSecrets, sign, type SignatureScheme, verify } from "../../lib/jobs/signature.ts";

const SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER = `whsec_${btoa("another secret of 32 bytes, yes..")}`;
const invalid = { code: "signature_invalid" };

Deno.test("signatures are those of the specification's example", () => {
  const headers = sign(
    [SECRET],
    "msg_p5jXN8AQM9LWM0D4loKWxJek",
    new Date(1614265330_000),
    '{"test": 2432232314}',
  );
  assert.deepEqual(headers, {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
  });
  assert.throws(() => sign([], "msg_1", new Date(), "{}"), /expected a secret, found none/);
});

Deno.test("what is signed is let in, nothing that was changed, and no other clock's time", async () => {
  const body = '{"a":"é"}';
  const check = (headers: Record<string, string>, text = body, secrets = [SECRET]) =>
    verify("standard", secrets, new Headers(headers), text);
  const good = sign([SECRET], "msg_1", new Date(), body);
  assert.equal(await check(good), "msg_1");
  const changed: Record<string, string>[] = [
    { ...good, "webhook-id": "msg_2" },
    { ...good, "webhook-timestamp": String(Number(good["webhook-timestamp"]) + 1) },
    {
      ...good,
      "webhook-signature": good["webhook-signature"].replace(/,(.)/, (_, it) => it === "A" ? ",B" : ",A"),
    },
    { ...good, "webhook-signature": "v1," },
    { ...good, "webhook-signature": good["webhook-signature"].replace("v1,", "v2,") },
    { "webhook-id": "msg_1" },
    {},
  ];
  for (const headers of changed) await assert.rejects(check(headers), invalid);
  await assert.rejects(check(good, `${body} `), invalid);
  await assert.rejects(check(good, body, [OTHER]), invalid);
  await assert.rejects(check(good, body, []), invalid);
  for (const minutes of [-6, 6]) {
    const skewed = sign([SECRET], "msg_1", new Date(Date.now() + minutes * 60_000), body);
    await assert.rejects(check(skewed), { ...invalid, message: /too (old|new)/ });
  }
  for (const minutes of [-4, 4]) {
    await check(sign([SECRET], "m", new Date(Date.now() + minutes * 60_000), body));
  }
});

Deno.test("while secrets are changed, either side may be first", async () => {
  const both = readSecrets(`${OTHER}  ${SECRET}`);
  const body = "{}";
  const check = (secrets: string[], signed: string[]) =>
    verify("standard", secrets, new Headers(sign(signed, "msg_1", new Date(), body)), body);
  await check([SECRET], both);
  await check([OTHER], both);
  await check(both, [SECRET]);
  await check(both, [OTHER]);
  await assert.rejects(check([`whsec_${btoa("x".repeat(24))}`], both), invalid);
});

Deno.test("HMAC of the body in a header: GitHub's own example, base64, another message's id", async () => {
  const secret = "It's a Secret to Everybody";
  const digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
  const hex: SignatureScheme = { header: "x-hub-signature-256", prefix: "sha256=", id: "x-github-delivery" };
  const check = (scheme: SignatureScheme, headers: Record<string, string>, body = "Hello, World!") =>
    verify(scheme, [secret], new Headers(headers), body);
  const good = { "x-hub-signature-256": `sha256=${digest}`, "x-github-delivery": "17" };
  assert.equal(await check(hex, good), "17");
  assert.equal(await check({ ...hex, id: undefined }, good), undefined);
  const base64 = Uint8Array.fromHex(digest).toBase64();
  assert.equal(await check({ header: "x-sign", encoding: "base64" }, { "x-sign": base64 }), undefined);
  await assert.rejects(check(hex, good, "Hello, World"), invalid);
  for (
    const value of [
      digest,
      `sha256=${digest.slice(2)}`,
      `sha256=${"0".repeat(64)}`,
      "sha256=",
      "sha256=zz",
      "",
    ]
  ) {
    await assert.rejects(check(hex, { "x-hub-signature-256": value }), invalid, value);
  }
  await assert.rejects(check(hex, {}), invalid);
});

Deno.test("a secret that is none is refused, and not shown", () => {
  for (
    const text of [
      "",
      "  ",
      "whsec_",
      "whsec_short",
      `${SECRET} hunter2`,
      `whsec_${btoa("x".repeat(65))}`,
      "päss",
    ]
  ) {
    assert.throws(() => readSecrets(text, "WEBHOOK_SECRET"), (error: Error) => {
      assert.match(
        error.message,
        /^Cannot read WEBHOOK_SECRET: expected whsec_ and base64 of 24 to 64 bytes, found/,
      );
      assert.ok(!/hunter2|short|päss/.test(error.message));
      return true;
    });
  }
  assert.deepEqual(readSecrets(` ${SECRET},${OTHER} `), [SECRET, OTHER]);
});
