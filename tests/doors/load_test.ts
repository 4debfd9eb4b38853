import assert from "node:assert/strict";
import { startDoor } from "./door.ts";
import { load } from "./load.ts";

Deno.test("two hundred clients at once lose no event, get none twice, and the answers of a single one", async () => {
  const door = await startDoor({});
  try {
    const { answers, events, shed, wrong } = await load(door.url, { clients: 200, seconds: 2 });
    assert.deepEqual(wrong, []);
    assert.equal(shed, 0);
    assert.ok(answers >= 200 && events > answers * 4, `${answers} answers, ${events} events`);
    const text = await (await fetch(`${door.url}/metrics`)).text();
    assert.match(text, /^paligemma_queue_depth 0$/m);
    assert.match(text, /^paligemma_http_requests_in_flight 1$/m);
    assert.equal(door.output().stderr, "");
  } finally {
    door.kill("SIGTERM");
    await door.status;
  }
});

Deno.test("beyond what may wait there is a 503 that says when to come back, and nothing hangs", async () => {
  const door = await startDoor({});
  try {
    const { answers, shed, wrong } = await load(door.url, { clients: 400, seconds: 1 });
    assert.deepEqual(wrong, []);
    assert.ok(answers > 100 && shed > 50, `${answers} answers, ${shed} refused for now`);
  } finally {
    door.kill("SIGTERM");
    await door.status;
  }
});
