import assert from "node:assert/strict";
import { createPause } from "../../lib/schedule/line.ts";

Deno.test("a computation pauses where the clock stands still while it computes, as on Cloudflare", async () => {
  const { now } = performance;
  try {
    let time = 0;
    performance.now = () => time;
    const control = new AbortController();
    const pause = createPause(control.signal);
    // What else there is to do, such as hearing that the client went away.
    setTimeout(() => control.abort());
    let calls = 0;
    await assert.rejects(async () => {
      for (; calls < 1000; calls++) await pause();
    }, { name: "AbortError" });
    assert.ok(calls < 50, `${calls} layers before anything else was heard`);

    // A clock that runs decides alone.
    let others = 0;
    const timer = setInterval(() => others++);
    const quick = createPause();
    for (let i = 0; i < 1000; i++) {
      time += 0.015;
      await quick();
    }
    clearInterval(timer);
    assert.equal(others, 0);
  } finally {
    performance.now = now;
  }
});

Deno.test("a request that comes while something is computed is answered within a few pauses", async () => {
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, () => new Response("heard"));
  let answer = "";
  const asked = fetch(`http://127.0.0.1:${server.addr.port}/`).then(async (it) => answer = await it.text());
  const pause = createPause();
  let pauses = 0;
  for (; !answer && pauses < 100; pauses++) {
    for (const since = performance.now(); performance.now() - since < 25;);
    await pause();
  }
  await asked;
  await server.shutdown();
  assert.ok(pauses < 20, `${pauses} pauses`);
});
