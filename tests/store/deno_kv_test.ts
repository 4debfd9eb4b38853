import assert from "node:assert/strict";
import { join } from "@std/path";
import { type KvOptions, type KvStore, openKvStore } from "../../lib/store/deno_kv.ts";
import { onFullDisk } from "./full_disk.ts";
import { Clock, testBlobs, testQueue, testRecords, withCode } from "./suite.ts";

/** A database in a file of its own. */
async function database(use: (path: string) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir();
  try {
    await use(join(directory, "kv.sqlite"));
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function opened(options: KvOptions, use: (store: KvStore) => Promise<void>): Promise<void> {
  const store = await openKvStore(options);
  try {
    await use(store);
  } finally {
    store.close();
  }
}

testRecords("Deno KV", (use) => database((path) => opened({ path }, ({ records }) => use(records))));
testBlobs("Deno KV", (use) => database((path) => opened({ path }, ({ blobs }) => use(blobs))));
testQueue("Deno KV", (use) =>
  database((path) => {
    const clock = new Clock();
    return opened({ path, now: clock.now }, (store) => use({ queue: store.queue("jobs"), clock }));
  }));

Deno.test("Deno KV: what was written is there after closing, and who comes alone takes over leases, but no delays", () =>
  database(async (path) => {
    const lease = { limit: 10, leaseMs: 1_000_000 };
    await opened({ path }, async ({ records, queue }) => {
      await records.set("a", "kept", undefined);
      for (const id of ["held", "given-back", "waiting"]) await queue("jobs").send({ id, body: 1 });
      for (const it of await queue("jobs").receive(lease)) {
        if (it.id === "given-back") await it.retry(1_000_000);
      }
      // Somebody else with the same file takes nothing over.
      await opened({ path }, async (other) => assert.deepEqual(await other.queue("jobs").receive(lease), []));
    });
    await opened({ path }, async ({ records, queue }) => {
      assert.equal((await records.get("a"))!.value, "kept");
      const got = await queue("jobs").receive(lease);
      assert.deepEqual(got.map((it) => [it.id, it.attempts]).sort(), [["held", 2], ["waiting", 2]]);
    });
  }));

Deno.test("Deno KV: two processes' worth of handles on one file never hold one message both", () =>
  database((path) =>
    opened({ path }, (one) =>
      opened({ path }, async (two) => {
        for (let i = 0; i < 20; i++) await one.queue("jobs").send({ id: `m${i}`, body: i });
        const ask = (it: KvStore) => it.queue("jobs").receive({ limit: 2, leaseMs: 60_000 });
        const got: string[] = [];
        for (let round = 0; round < 40 && got.length < 20; round++) {
          const answers = await Promise.all([ask(one), ask(two), ask(one), ask(two)]);
          got.push(...answers.flat().map((it) => it.id));
        }
        assert.equal(got.length, 20);
        assert.equal(new Set(got).size, 20);
      }))
  ));

Deno.test("Deno KV: a record, a message or a blob that somebody damaged is told, and stops nothing else", () =>
  database(async (path) => {
    const told: string[] = [];
    await opened({ path, onCorrupt: (it) => told.push(it.message) }, async ({ records, blobs, queue }) => {
      const good = await records.set("good", 1, undefined);
      await records.set("bad", { a: 1 }, undefined);
      await blobs.put("blob", new Uint8Array(100_000));
      for (const id of ["a", "b", "c", "d"]) await queue("jobs").send({ id, body: id });
      {
        using kv = await Deno.openKv(path);
        const { value } = await kv.get<string>(["records", "bad"]);
        const message = async (id: string) =>
          (await kv.get(["queues", "jobs", "messages", id])).value as object;
        const damage: [string, unknown][] = [["bad", value!.replace("1}", "2}")], [
          "worse",
          new Uint8Array(3),
        ]];
        for (const [key, bytes] of damage) await kv.set(["records", key], bytes);
        await kv.set(["queues", "jobs", "messages", "a"], new Uint8Array(3));
        await kv.set(["queues", "jobs", "messages", "b"], {
          ...await message("b"),
          text: "0123456789abcdef {}",
        });
        await kv.delete(["queues", "jobs", "messages", "c"]);
        for await (const { key } of kv.list({ prefix: ["pieces"] })) if (key[2] !== 0) await kv.delete(key);
      }
      for (const key of ["bad", "worse"]) await assert.rejects(records.get(key), withCode("record_corrupt"));
      assert.deepEqual(await records.get("good"), { value: 1, version: good });
      await assert.rejects(blobs.get("blob"), withCode("record_corrupt"));
      const lease = { limit: 10, leaseMs: 1000 };
      assert.deepEqual((await queue("jobs").receive(lease)).map((it) => it.id), ["d"]);
      assert.deepEqual(told.length, 2);
      assert.deepEqual(await queue("jobs").receive(lease), []);
      assert.deepEqual(told.length, 2);
      // The way is free for another.
      await queue("jobs").send({ id: "a", body: 1 });
      assert.deepEqual((await queue("jobs").receive(lease)).map((it) => it.id), ["a"]);
    });
  }));

Deno.test("Deno KV: a file that is no database cannot be opened, and says so", () =>
  database(async (path) => {
    await Deno.writeTextFile(path, "not a database, but text that goes on for a while ".repeat(100));
    await assert.rejects(openKvStore({ path }), withCode("storage_failed"));
    await assert.rejects(openKvStore({ path: join(path, "below/a/file") }), withCode("storage_failed"));
  }));

Deno.test("Deno KV: a disk that takes no more is told, what was there stays, and room makes it go on", () =>
  database(async (path) => {
    const [code, written, first] = await onFullDisk(`
      import { openKvStore } from "${import.meta.resolve("../../lib/store/deno_kv.ts")}";
      const { records, close } = await openKvStore({ path: ${JSON.stringify(path)} });
      const text = "x".repeat(50_000);
      let [code, written] = ["", 0];
      while (!code && written < 100) {
        await records.set("a/" + written, text, undefined).then(() => written++, (error) => code = error.code);
      }
      const first = (await records.get("a/0")).value === text;
      close();
      console.log(JSON.stringify([code, written, first]));`);
    assert.deepEqual([code, first], ["storage_failed", true]);
    assert.ok(written > 5 && written < 100, String(written));
    await opened({ path }, async ({ records }) => {
      assert.equal((await Array.fromAsync(records.keys("a/"))).length, written);
      assert.equal((await records.get(`a/${written - 1}`))!.value, "x".repeat(50_000));
      assert.ok(await records.set(`a/${written}`, "there is room again", undefined));
    });
  }));
