import assert from "node:assert/strict";
import { join } from "@std/path";
import { RequestError } from "../../lib/errors.ts";
import type { Job } from "../../lib/jobs/job.ts";
import { JobStore } from "../../lib/jobs/job_store.ts";
import { openKvStore } from "../../lib/store/deno_kv.ts";
import { createFileBlobs } from "../../lib/store/files.ts";
import { createMemoryStore } from "../../lib/store/memory.ts";
import type { PullQueue, Store } from "../../lib/store/store.ts";
import { Clock } from "../store/suite.ts";
import { harness, SECRET } from "./harness.ts";
import { until } from "../until.ts";

const TARGET = { url: "https://receiver.example/" };

/** Both stores that one machine may have. */
const stores: Record<
  string,
  (use: (store: Store<PullQueue>, directory: string) => Promise<void>) => Promise<void>
> = {
  memory: (use) => use(createMemoryStore(), ""),
  async "Deno KV and files"(use) {
    const directory = await Deno.makeTempDir();
    const kv = await openKvStore({ path: join(directory, "kv.sqlite") });
    try {
      await use(
        { records: kv.records, queue: kv.queue, blobs: createFileBlobs(join(directory, "blobs")) },
        directory,
      );
    } finally {
      kv.close();
      await Deno.remove(directory, { recursive: true });
    }
  },
};

for (const [name, open] of Object.entries(stores)) {
  Deno.test(`${name}: a job is done item by item, its events come in order, its webhook tells of it`, () =>
    open(async (store) => {
      const sent: { type: string; data: { items: { result?: number }[] } }[] = [];
      const { jobs, working, ended, webhooks, errors } = harness(
        store,
        (item) =>
          item === "bad"
            ? Promise.reject(new RequestError("image_corrupt", "not a picture"))
            : Promise.resolve({ item }),
        {
          post: (_, { body }) => {
            sent.push(JSON.parse(body));
            return Promise.resolve(new Response(null, { status: 204 }));
          },
        },
      );
      const job = await jobs.create({ items: ["a", "bad", { b: "é" }], webhook: TARGET });
      assert.deepEqual([job.status, job.items.map((it) => it.status)], ["queued", [
        "queued",
        "queued",
        "queued",
      ]]);
      const seen: [number, string][] = [];
      await working(async () => {
        for await (const { revision, event, data } of jobs.watch(job.id, -1, AbortSignal.timeout(9000))) {
          seen.push([revision, `${event} ${data.status}`]);
        }
        await until(async () => (await webhooks.get(job.id.replace("job", "msg")))?.status === "delivered");
      });
      const done = await ended(job.id);
      assert.deepEqual(done.items, [
        { index: 0, status: "done", result: { item: "a" }, attempts: 1 },
        {
          index: 1,
          status: "failed",
          error: { code: "image_corrupt", message: "not a picture" },
          attempts: 1,
        },
        { index: 2, status: "done", result: { item: { b: "é" } }, attempts: 1 },
      ]);
      assert.equal(done.status, "done");
      const revisions = seen.map(([revision]) => revision);
      assert.deepEqual(revisions, [...revisions].sort((a, b) => a - b));
      assert.equal(seen.at(-1)![1], "job done");
      // Whoever comes back after an event gets what came after it, and no more.
      for (const [i, [revision]] of seen.entries()) {
        const rest = await Array.fromAsync(jobs.watch(job.id, revision, AbortSignal.timeout(9000)));
        assert.ok(rest.length <= seen.length - i - 1 && rest.every((it) => it.revision > revision));
      }
      assert.equal(sent.length, 1);
      assert.deepEqual([sent[0].type, sent[0].data.items[0].result], ["job.done", { item: "a" }]);
      assert.deepEqual(errors, []);
    }));

  Deno.test(`${name}: one key is one job, another body with it is refused, a day later it is free`, () =>
    open(async (store) => {
      const clock = new Clock();
      const { jobs } = harness(store, () => Promise.resolve(1), { now: clock.now });
      const idempotency = { key: "k", digest: "d" };
      const all = await Promise.all(
        Array.from({ length: 8 }, () => jobs.create({ items: [1, 2], idempotency })),
      );
      assert.equal(new Set(all.map((it) => it.id)).size, 1);
      const other = { items: [1], idempotency: { key: "k", digest: "e" } };
      await assert.rejects(jobs.create(other), { code: "idempotency_mismatch" });
      assert.notEqual((await jobs.create({ items: [1, 2] })).id, all[0].id);
      clock.ms += 24 * 3_600_000;
      assert.notEqual((await jobs.create(other)).id, all[0].id);
    }));

  Deno.test(`${name}: cancelled, the item under way is stopped at once and the others never begin`, () =>
    open(async (store) => {
      let [began, stopped] = [0, 0];
      const { jobs, working, ended } = harness(store, (_, signal) => {
        began++;
        return new Promise((_, reject) => {
          signal.addEventListener(
            "abort",
            () => reject(new RequestError("cancelled", `stopped ${stopped++}`)),
          );
        });
      });
      const job = await jobs.create({ items: [1, 2, 3] });
      await working(async () => {
        await until(() => began === 1);
        const since = performance.now();
        const cancelled = await jobs.cancel(job.id);
        assert.deepEqual(cancelled!.items.map((it) => it.status), ["cancelled", "cancelled", "cancelled"]);
        await until(() => stopped === 1);
        assert.ok(performance.now() - since < 1000);
      });
      assert.deepEqual([began, (await ended(job.id)).status, (await jobs.cancel(job.id))!.status], [
        1,
        "cancelled",
        "cancelled",
      ]);
      assert.equal(await jobs.cancel("job_none"), undefined);
    }));

  Deno.test(`${name}: a result that was stored before its worker died is not computed again`, () =>
    open(async (store) => {
      const computed: unknown[] = [];
      const { jobs, working, ended } = harness(store, (item) => Promise.resolve(computed.push(item)));
      const job = await jobs.create({ items: ["a", "b"] });
      await store.blobs.put(`jobs/${job.id}/results/0`, new TextEncoder().encode('"from before"'));
      const done = await working(() => ended(job.id));
      assert.deepEqual(done.items.map((it) => it.result), ["from before", 1]);
      assert.deepEqual(computed, ["b"]);
    }));

  Deno.test(`${name}: what was lost on the way from acceptance to the queue is found when a server starts`, () =>
    open(async (store) => {
      const { jobs, runner, working, ended, webhooks } = harness(store, () => Promise.resolve(1));
      const lost = await jobs.create({ items: [1] });
      for (const it of await store.queue("jobs").receive({ limit: 9, leaseMs: 1 })) await it.ack();
      await webhooks.send({ id: "msg_lost", job: "", url: TARGET.url, type: "job.done", body: "{}" });
      for (const it of await store.queue("webhooks").receive({ limit: 9, leaseMs: 1 })) await it.ack();
      await runner.recover();
      await runner.recover();
      const done = await working(async () => {
        await until(async () => (await webhooks.get("msg_lost"))!.attempts.length > 0);
        return await ended(lost.id);
      });
      assert.equal(done.status, "done");
    }));
}

Deno.test("what may pass is tried again: overload and a full disk as often as it takes, our own failures three times", async () => {
  const calls: Record<string, number> = {};
  const { jobs, runner, ended, errors } = harness(createMemoryStore(), (item) => {
    const [what, times] = item as [string, number];
    calls[what] = (calls[what] ?? 0) + 1;
    if (calls[what] > times) return Promise.resolve("ok");
    return Promise.reject(
      what === "internal" ? new TypeError("our secret") : new RequestError(what as "overloaded", what),
    );
  });
  const cases: [string, number, unknown][] = [
    ["overloaded", 5, ["done", 1]],
    ["storage_failed", 5, ["done", 1]],
    ["internal", 2, ["done", 3]],
    ["url_failed", 9, ["failed", 3]],
    ["prompt_too_long", 9, ["failed", 1]],
  ];
  for (const [what, times, [status, attempts]] of cases as [string, number, [string, number]][]) {
    const job = await jobs.create({ items: [[what, times]] });
    // A queue without delays: the pauses are not what is looked at here.
    const pauses: number[] = [];
    for (let open = true; open;) {
      await runner.handle({
        id: "m",
        body: { job: job.id },
        attempts: 1,
        ack: () => Promise.resolve(!(open = false)),
        retry: (ms) => Promise.resolve(pauses.push(ms) > 0),
        extend: () => Promise.resolve(true),
      }, new AbortController().signal);
    }
    const { items: [item] } = await ended(job.id);
    assert.deepEqual([item.status, item.attempts], [status, attempts], what);
    assert.ok(pauses.every((it) => it >= 1000), `${what} ${pauses}`);
  }
  assert.ok(errors.some((it) => it instanceof TypeError));
  calls.internal = -9;
  const job = await jobs.create({ items: [["internal", 9]] });
  const ack = () => Promise.resolve(true);
  for (let i = 0; i < 3; i++) {
    await runner.handle(
      { id: "m", body: { job: job.id }, attempts: 1, ack, retry: ack, extend: ack },
      new AbortController().signal,
    );
  }
  const failed = (await jobs.get(job.id))!.items[0];
  assert.deepEqual([failed.status, failed.attempts], ["failed", 3]);
  assert.ok(!failed.error!.message.includes("secret"));
});

Deno.test("an item that kills every worker is given up", async () => {
  const store = createMemoryStore();
  const dying = harness(store, () => new Promise(() => {}));
  const job = await dying.jobs.create({ items: ["poison", "good"] });
  const never = () => Promise.resolve(true);
  for (let i = 0; i < 10; i++) {
    // Nothing of this worker is ever heard again.
    dying.runner.handle({
      id: "m",
      body: { job: job.id },
      attempts: 1,
      ack: never,
      retry: never,
      extend: never,
    }, new AbortController().signal);
    await until(async () => (await dying.jobs.get(job.id))!.items[0].attempts === i + 1);
  }
  const { working, ended, jobs } = harness(store, (item) => Promise.resolve(item));
  const done = await working(() => ended(job.id));
  assert.deepEqual(done.items.map((it) => it.error?.code ?? it.result), ["worker_died", "good"]);
  await jobs.cancel(job.id);
});

Deno.test("a server that stops puts an item back uncounted, and the next one does it", async () => {
  const store = createMemoryStore();
  let began = 0;
  const first = harness(store, (_, signal) => {
    began++;
    return new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("stopped"))));
  });
  const job = await first.jobs.create({ items: [1] });
  await first.working(() => until(() => began === 1));
  assert.deepEqual((await first.jobs.get(job.id))!.items[0], { index: 0, status: "queued", attempts: 0 });
  const second = harness(store, () => Promise.resolve("done"));
  assert.deepEqual((await second.working(() => second.ended(job.id))).items[0].attempts, 1);
  assert.deepEqual(first.errors, []);
});

Deno.test("a full disk: the job is not accepted and leaves nothing; one that runs waits, and loses nothing", async () => {
  const store = createMemoryStore();
  let room = 2;
  const { put } = store.blobs;
  store.blobs.put = function (key, bytes) {
    if (room-- > 0) return put.call(this, key, bytes);
    return Promise.reject(new RequestError("storage_failed", "Cannot store: No space left on device"));
  };
  const { jobs, working, ended, errors, runner } = harness(store, (item) => Promise.resolve(item));
  const idempotency = { key: "k", digest: "d" };
  await assert.rejects(jobs.create({ items: [1, 2, 3], idempotency }), { code: "storage_failed" });
  assert.deepEqual(await Array.fromAsync(store.blobs.list("")), []);
  assert.deepEqual(await Array.fromAsync(store.records.keys("")), []);
  room = 3;
  const job = await jobs.create({ items: [1, 2, 3], idempotency });
  const give = () => Promise.resolve(true);
  const pauses: number[] = [];
  const retry = (ms: number) => Promise.resolve(pauses.push(ms) > 0);
  await runner.handle(
    { id: "m", body: { job: job.id }, attempts: 1, ack: give, retry, extend: give },
    new AbortController().signal,
  );
  assert.deepEqual([(await jobs.get(job.id))!.items[0], pauses.length], [{
    index: 0,
    status: "queued",
    attempts: 0,
  }, 1]);
  assert.equal(errors.length, 1);
  room = 100;
  assert.deepEqual((await working(() => ended(job.id))).items.map((it) => it.result), [1, 2, 3]);
});

Deno.test("a damaged record or item: told to the operator and to whoever asks; the other jobs go on", () =>
  stores["Deno KV and files"](async (store, directory) => {
    const { jobs, runner, working, ended, errors, webhooks } = harness(
      store,
      (item) => Promise.resolve(item),
    );
    const [record, item, good] = [
      await jobs.create({ items: [1], webhook: TARGET }),
      await jobs.create({ items: [1, 2] }),
      await jobs.create({ items: [1] }),
    ];
    await webhooks.send({ id: "msg_bad", job: "", url: TARGET.url, type: "job.done", body: "{}" });
    {
      using kv = await Deno.openKv(join(directory, "kv.sqlite"));
      for (const key of [`jobs/${record.id}`, "letters/msg_bad"]) {
        const { value } = await kv.get<string>(["records", key]);
        await kv.set(["records", key], value!.replace('"status":"', '"status":"x'));
      }
    }
    await store.blobs.put(`jobs/${item.id}/items/0`, Uint8Array.of(0xff));
    await runner.recover();
    await working(async () => {
      assert.equal((await ended(good.id)).status, "done");
      const { items } = await ended(item.id);
      assert.deepEqual(items.map((it) => it.error?.code ?? it.result), ["record_corrupt", 2]);
    });
    await assert.rejects(jobs.get(record.id), { code: "record_corrupt" });
    assert.ok(errors.some((it) => String(it).includes(record.id)));
    const dead = await Array.fromAsync(webhooks.list("dead"));
    assert.deepEqual(dead.map((it) => it.id), ["msg_bad"]);
    assert.match(dead[0].reason!, /bytes are not those/);
  }));

Deno.test("long results leave the webhook, not the job; after its time a job is gone with all that belongs to it", async () => {
  const clock = new Clock();
  const store = createMemoryStore({ now: clock.now });
  const bodies: string[] = [];
  const { jobs, working, ended, webhooks } = harness(store, () => Promise.resolve("x".repeat(5000)), {
    now: clock.now,
    keepMs: 5000,
    post: (_, { body }) => {
      bodies.push(body);
      return Promise.resolve(new Response());
    },
  });
  const webhook = { ...TARGET, secret: SECRET };
  const job = await jobs.create({
    items: Array(100).fill(1),
    webhook,
    idempotency: { key: "k", digest: "d" },
  });
  await working(async () => {
    assert.equal((await ended(job.id)).items[99].result, "x".repeat(5000));
    await until(() => bodies.length === 1);
    assert.ok(bodies[0].length < 20_000);
    assert.equal(JSON.parse(bodies[0]).data.items.length, 100);
    await until(async () => (await webhooks.get(job.id.replace("job", "msg")))?.status === "delivered");
    clock.ms += 6000;
    await until(async () => await jobs.get(job.id) === undefined);
    await until(async () => (await Array.fromAsync(store.records.keys(""))).length === 0);
    assert.deepEqual(await Array.fromAsync(store.blobs.list("")), []);
  });
});

Deno.test("a job that is removed while it is read is gone, not broken", async () => {
  const store = createMemoryStore();
  const { jobs, working, ended } = harness(store, (item) => Promise.resolve(item));
  const readers: Record<string, (id: string) => Promise<unknown>> = {
    get: (id) => jobs.get(id),
    cancel: (id) => jobs.cancel(id),
    watch: async (id) => (await Array.fromAsync(jobs.watch(id, -1, AbortSignal.timeout(5000)))).at(0),
  };
  const { blobs } = store;
  const inner = blobs.get.bind(blobs);
  for (const [name, read] of Object.entries(readers)) {
    const { id } = await jobs.create({ items: [1] });
    await working(() => ended(id));
    const result = `jobs/${id}/results/0`;
    blobs.get = async (key) => {
      if (key === result) await drop();
      return inner(key);
    };
    const drop = async () => {
      const stored = await store.records.get(`jobs/${id}`);
      if (stored) await new JobStore(store).drop(stored.value as Job);
    };
    assert.equal(await read(id), undefined, name);
    blobs.get = inner;
  }
  // What is broken without being removed is still told.
  const { id } = await jobs.create({ items: [1] });
  await working(() => ended(id));
  await blobs.delete(`jobs/${id}/results/0`);
  for (const [name, read] of Object.entries(readers)) {
    await assert.rejects(read(id), { code: "record_corrupt" }, name);
  }
});
