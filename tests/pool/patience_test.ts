/** An exchange ends when what is awaited does not come, and not because this side computes. */

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { Patience } from "../../lib/pool/patience.ts";

Deno.test("what does not come in time ends an exchange, but for the time that this side computes", async () => {
  const patience = new Patience();
  patience.within("word", 30);
  patience.within("token", 60_000);
  await patience.pausing(sleep(150));
  assert.equal(patience.signal.aborted, false);
  patience.within("word", 30);
  await new Promise((ended) => patience.signal.addEventListener("abort", ended));
  assert.deepEqual([patience.lost?.code, patience.lost?.message], [
    "silent",
    "The worker said nothing for 30 ms",
  ]);
  patience.end();
});

Deno.test("a caller who goes away ends it too, and nothing is waited for after its end", () => {
  const caller = new AbortController();
  const patience = new Patience(caller.signal);
  patience.within("answer", 60_000);
  caller.abort();
  assert.ok(patience.signal.aborted);
  patience.end();
  patience.within("word", 60_000); // a timer that is left fails the test
  assert.equal(patience.lost, undefined);
});
