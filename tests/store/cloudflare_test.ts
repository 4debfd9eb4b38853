import assert from "node:assert/strict";
import { join } from "@std/path";
import { RequestError } from "../../lib/errors.ts";
import { createCloudflareStore, type QueueMessage, type R2Bucket } from "../../lib/store/cloudflare.ts";
import { createObjectJournals, type Wish } from "../../lib/store/journals.ts";
import type { Blobs, Message, Records } from "../../lib/store/store.ts";
import { haveWrangler, startWorkerd, type Workerd } from "../doors/workerd.ts";
import type { Brought, Plan } from "./cloudflare_worker.ts";
import { testBlobs, testRecords } from "./suite.ts";

const CONFIG = {
  name: "store",
  main: join(import.meta.dirname!, "cloudflare_worker.ts"),
  compatibility_date: "2026-10-01",
  r2_buckets: [{ binding: "BLOBS", bucket_name: "blobs" }],
  durable_objects: {
    bindings: [
      { name: "RECORDS", class_name: "RecordsObject" },
      { name: "JOURNALS", class_name: "JournalObject" },
    ],
  },
  migrations: [{ tag: "v1", new_sqlite_classes: ["RecordsObject", "JournalObject"] }],
  queues: {
    producers: [{ binding: "JOBS", queue: "jobs" }],
    consumers: [{ queue: "jobs", max_batch_size: 1, max_batch_timeout: 0, max_retries: 100, retry_delay: 0 }],
  },
};

let worker: Workerd;

async function call(path: string, args: readonly unknown[], body?: BodyInit): Promise<Response> {
  const response = await fetch(`${worker.url}/${path}`, {
    method: "POST",
    headers: { arguments: encodeURIComponent(JSON.stringify(args)) },
    body,
  });
  if (response.ok) return response;
  const { name, message, code } = await response.json();
  throw name === "RangeError"
    ? new RangeError(message)
    : code
    ? new RequestError(code, message)
    : new Error(message);
}

const told = async (path: string, ...args: unknown[]) => await (await call(path, args)).json() ?? undefined;

/** The store in workerd, as if it were here. */
const records = (name: string): Records => ({
  get: (key) => told(`records/get?name=${name}`, key),
  set: (...args) => told(`records/set?name=${name}`, ...args),
  delete: (key) => told(`records/delete?name=${name}`, key),
  keys: async function* (prefix) {
    yield* await told(`records/keys?name=${name}`, prefix);
  },
});
const blobs: Blobs = {
  async get(key) {
    const response = await call("blobs/get", [key]);
    if (response.headers.get("content-type")) return await response.json() ?? undefined;
    return new Uint8Array(await response.arrayBuffer());
  },
  put: async (key, bytes) => await (await call("blobs/put", [key], bytes.slice())).json(),
  delete: (key) => told("blobs/delete", key),
  list: async function* (prefix) {
    yield* await told("blobs/list", prefix);
  },
};

if (await haveWrangler()) {
  // One workerd for all of them, from the first test to the last.
  Deno.test("Cloudflare: workerd starts", { sanitizeResources: false, sanitizeOps: false }, async () => {
    const config = await Deno.makeTempFile({ suffix: ".json", dir: import.meta.dirname });
    await Deno.writeTextFile(config, JSON.stringify(CONFIG));
    try {
      worker = await startWorkerd(config);
    } finally {
      await Deno.remove(config);
    }
  });

  testRecords("Cloudflare", (use) => use(records(crypto.randomUUID())));
  testBlobs("Cloudflare", async (use) => {
    for await (const { key } of blobs.list("")) await blobs.delete(key);
    await use(blobs);
  });

  Deno.test("Cloudflare records: more keys than one answer holds are all listed", async () => {
    const many = records("many");
    const keys = Array.from({ length: 250 }, (_, i) => `k/${String(i).padStart(4, "0")}`);
    for (let at = 0; at < keys.length; at += 50) {
      await Promise.all(keys.slice(at, at + 50).map((key) => many.set(key, 1, undefined)));
    }
    assert.deepEqual(await Array.fromAsync(many.keys("k/")), keys);
  });

  Deno.test("Cloudflare queue: what is sent comes when it is due, again when asked for or when its holder died", async () => {
    const send = (id: string, plan: Plan, delayMs?: number) =>
      told("queue/send", { id, body: plan } satisfies Message, delayMs);
    const sent = Date.now();
    await send("plain", {});
    await send("late", {}, 2000);
    await send("again", { retries: 2, retryMs: 1000 });
    await send("died", { deaths: 1 });
    const depth = (prefix: string) => told("queue/depth", prefix);
    assert.ok(await depth("") >= 1 && await depth("late") === 1);
    await assert.rejects(send("Not a key", {}), RangeError);
    let brought: Brought[] = [];
    const of = (id: string) => brought.filter((it) => it.id === id);
    while (!(of("again").length === 3 && of("late").length && of("died").length === 2)) {
      assert.ok(Date.now() - sent < 20_000, JSON.stringify(brought));
      await new Promise((resolve) => setTimeout(resolve, 100));
      brought = await told("brought");
    }
    assert.deepEqual(of("again").map((it) => it.attempts), [1, 2, 3]);
    assert.deepEqual(of("died").map((it) => [it.attempts, it.settled]), [[1, undefined], [2, true]]);
    assert.deepEqual([of("plain"), of("late")].map((it) => it.length), [1, 1]);
    assert.ok(of("late")[0].at - sent >= 2000);
    assert.ok(of("again")[2].at - of("again")[0].at >= 2000);
    assert.ok(brought.every((it) => it.settled !== false));
    assert.deepEqual(await Array.fromAsync(records("records").keys("leases/")), [], "no lease is left");
    assert.equal(await depth(""), 0);
  });

  Deno.test("Cloudflare queue: of two messages with one id one is handled; a holder that died may come again", async () => {
    const sent: unknown[] = [];
    const send = (it: unknown) => Promise.resolve(sent.push(it));
    const { queue, take } = createCloudflareStore({
      records: {
        idFromName: () => 0,
        get: () => ({ fetch: (_, init) => fetch(`${worker.url}/object`, init) }),
      },
      blobs: {} as R2Bucket,
      queues: { jobs: { send }, webhooks: { send } },
    });
    await queue("jobs").send({ id: "twin", body: 1 });
    let settled: string[] = [];
    const message = (id: string, attempts = 1): QueueMessage => ({
      id,
      body: sent[0],
      attempts,
      ack: () => settled.push(`${id} acknowledged`),
      retry: () => settled.push(`${id} given back`),
    });
    const both = await Promise.all(["a", "b"].map((id) => take("jobs", message(id), 1000)));
    const [holder, other] = both[0] ? ["a", "b"] : ["b", "a"];
    assert.equal(both.filter((it) => it).length, 1);
    assert.deepEqual(settled.map((it) => it[0]), [other]);
    settled = [];
    // Its own message, brought again after it died: at once. Another's: when the lease is over.
    const again = (await take("jobs", message(holder, 2), 1000))!;
    assert.equal(again.attempts, 2);
    assert.equal(await (both[0] ?? both[1])!.extend(1000), false);
    assert.equal(await again.extend(1000), true);
    assert.equal(await take("jobs", message("c"), 1000), undefined);
    await new Promise((resolve) => setTimeout(resolve, 1050));
    const late = (await take("jobs", message("d"), 1000))!;
    assert.equal(await again.ack(), false);
    assert.equal(await late.retry(30 * 86_400_000), true);
    assert.deepEqual(settled, ["c acknowledged", `${holder} acknowledged`, "d acknowledged"]);
    // Longer than a queue can wait: not due when it comes, and sent on.
    assert.equal(sent.length, 2);
    assert.equal(await take("jobs", { ...message("e"), body: sent[1] }, 1000), undefined);
    assert.deepEqual(sent[2], sent[1]);
  });

  Deno.test("Cloudflare journal: what one writes others read, as it comes; a writer that is silent is dead; old ones are forgotten", async () => {
    const journals = createObjectJournals({
      idFromName: (name) => name,
      get: (name) => ({ fetch: (_, init) => fetch(`${worker.url}/journal/${name}`, init) }),
    });
    const key = crypto.randomUUID();
    const times = { leaseMs: 1000, keepMs: 60_000 };
    const add = (writer: string, at: number, lines: string[], more = {}) =>
      journals.append(key, { writer, at, lines, ...times, ...more });
    const read = (from: number, wish: Partial<Wish> = {}) =>
      journals.read(key, { from, reader: "r", waitMs: 0, ...wish });
    assert.equal(await read(0), undefined);
    assert.equal(await add("a", 0, ["zero", "é\n\n"]), false, "nobody reads yet");
    assert.deepEqual(await read(1), { lines: ["é\n\n"], state: "live" });
    const since = performance.now();
    const [next, known] = await Promise.all([read(2, { waitMs: 5000 }), add("a", 2, ["two"])]);
    assert.deepEqual(next, { lines: ["two"], state: "live" });
    assert.equal(known, true);
    assert.ok(performance.now() - since < 900, "a reader is told at once");
    assert.equal(await add("a", 2, ["again"]), undefined, "a gap or an overlap is not written");
    await journals.leave(key, "r");
    assert.equal(await add("a", 3, []), false);
    // Nothing for its lease: dead, also to one who waits.
    assert.deepEqual(await read(3, { waitMs: 20_000 }), { lines: [], state: "broken" });
    assert.ok(performance.now() - since < 5000);
    await journals.leave(key, "r");
    // Another begins anew, and the first may not go on.
    assert.equal(await add("b", 0, ["other"], { end: "whole" }), false);
    assert.equal(await add("a", 3, ["three"]), undefined);
    assert.deepEqual(await read(0), { lines: ["other"], state: "whole" });
    assert.deepEqual(await read(1, { waitMs: 20_000 }), { lines: [], state: "whole" });
    await add("c", 0, ["x".repeat(500_000)], { end: "whole", leaseMs: 0, keepMs: 300 });
    assert.equal((await read(0))!.lines[0].length, 500_000);
    while (await read(0)) assert.ok(performance.now() - since < 8000, "still kept");
  });

  Deno.test(
    "Cloudflare: workerd ends",
    { sanitizeResources: false, sanitizeOps: false },
    () => worker.stop(),
  );
} else {
  Deno.test({ name: "Cloudflare: wrangler is not there and cannot be downloaded", ignore: true, fn() {} });
}
