import assert from "node:assert/strict";
import { RequestError } from "../../lib/errors.ts";
import { Ledger } from "../../lib/schedule/ledger.ts";

const refused = (code: string, message: RegExp) => (error: unknown) =>
  error instanceof RequestError && error.code === code && message.test(error.message);

Deno.test("bytes are set aside until they are given back, and the most is remembered", () => {
  let held = 60e6;
  const ledger = new Ledger(100e6, () => held);
  {
    using _ = ledger.take(30e6, "decode");
    assert.equal(ledger.bytes, 90e6);
    held = 65e6;
    assert.equal(ledger.bytes, 95e6);
    held = 60e6;
  }
  assert.deepEqual([ledger.bytes, ledger.mostBytes], [60e6, 95e6]);
});

Deno.test("what others have now is not what there never was", () => {
  const ledger = new Ledger(100e6, () => 60e6);
  const first = ledger.take(30e6, "decode a picture");
  const now = /^Cannot decode a picture now: it takes 20\.0 MB, of 100\.0 MB there are 10\.0 MB left$/;
  assert.throws(() => ledger.take(20e6, "decode a picture"), refused("overloaded", now));
  assert.throws(
    () => ledger.take(41e6, "embed"),
    refused("memory_exceeded", /^Cannot embed: it takes 41\.0 MB/),
  );
  assert.equal(ledger.bytes, 90e6, "what was refused is not counted");
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  assert.equal(ledger.bytes, 60e6, "given back once");
  using _ = ledger.take(40e6, "decode a picture");
});
