import assert from "node:assert/strict";
import { HeardLoad, LOAD_HEADER, readLoad, writeLoad } from "../../lib/pool/orca.ts";

Deno.test("ORCA's header is read in both forms, and nonsense is none", () => {
  assert.deepEqual(
    readLoad("TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0"),
    {
      waiting: 3,
    },
  );
  assert.deepEqual(
    readLoad('JSON {"named_metrics": {"num_requests_waiting": 0, "num_requests_running": 2}}'),
    {
      waiting: 0,
      running: 2,
    },
  );
  for (
    const it of [
      "",
      "JSON {",
      "JSON null",
      "TEXT",
      "TEXT a",
      'JSON {"named_metrics": {"num_requests_waiting": -1}}',
    ]
  ) {
    assert.equal(readLoad(it), undefined, it);
  }
});

Deno.test("what is written is read, and believed for five seconds", () => {
  let now = 0;
  const heard = new HeardLoad(() => now);
  assert.equal(heard.worker("w"), undefined);
  const load = { waiting: 2, running: 4, slots: 4, serviceMs: 250 };
  heard.take(new Headers({ [LOAD_HEADER]: writeLoad(load) }));
  assert.deepEqual(heard.worker("w"), { worker: "w", ...load });
  now = 5000;
  heard.take(new Headers()); // who says nothing takes nothing back
  assert.deepEqual(heard.worker("w"), { worker: "w", ...load });
  now = 5001;
  assert.equal(heard.worker("w"), undefined);
  // Who tells no slots has one more than are taken, unless some wait.
  const vllm = (waiting: number) =>
    heard.take(
      new Headers({ [LOAD_HEADER]: `JSON {"named_metrics":{"num_requests_waiting":${waiting}}}` }),
      { running: 3 },
    );
  vllm(0);
  assert.deepEqual([heard.worker("w")!.slots, heard.worker("w")!.running], [4, 3]);
  vllm(5);
  assert.deepEqual([heard.worker("w")!.slots, heard.worker("w")!.waiting], [3, 5]);
});
