/** What every adapter of a contract must do. A new adapter is held to it by one call from a test of its own. */

import assert from "node:assert/strict";
import type { RequestError } from "../../lib/errors.ts";
import { type Blobs, MAX_RECORD_BYTES, type PullQueue, type Records, update } from "../../lib/store/store.ts";

/** A clock that a test turns. */
export class Clock {
  ms = 1_700_000_000_000;
  readonly now = () => this.ms;
}

/** Opens what is to be tested, empty, and closes it after `use`. */
export type Opened<T> = (use: (it: T) => Promise<void>) => Promise<void>;

const BAD_KEYS = [
  "",
  "/",
  "a/",
  "/a",
  "a//b",
  "..",
  "a/../b",
  ".",
  "A",
  "a b",
  "ä",
  "a\0",
  "a\\b",
  "a".repeat(201),
];

export function testRecords(name: string, opened: Opened<Records>): void {
  const test = (what: string, use: (records: Records) => Promise<void>) =>
    Deno.test(`${name} records: ${what}`, () => opened(use));

  test("what is written is read, with a new version every time", async (records) => {
    assert.equal(await records.get("a"), undefined);
    const value = { text: "é\u0000\n", list: [1, null, true], deep: { a: {} } };
    const first = await records.set("a", value, undefined);
    assert.deepEqual(await records.get("a"), { value, version: first });
    const second = await records.set("a", [], first);
    assert.notEqual(second, first);
    assert.deepEqual(await records.get("a"), { value: [], version: second });
    await records.delete("a");
    await records.delete("a");
    assert.equal(await records.get("a"), undefined);
    const again = await records.set("a", 0, undefined);
    assert.ok(again !== undefined && again !== first && again !== second);
  });

  test("a change on another version than the record's writes nothing", async (records) => {
    const version = await records.set("a", 1, undefined);
    assert.equal(await records.set("a", 2, undefined), undefined);
    const next = await records.set("a", 3, version);
    assert.equal(await records.set("a", 4, version), undefined);
    assert.equal(await records.set("b", 5, next), undefined);
    assert.deepEqual([await records.get("a"), await records.get("b")], [
      { value: 3, version: next },
      undefined,
    ]);
  });

  test("of thirty that count at once, none is lost", async (records) => {
    await records.set("count", 0, undefined);
    await Promise.all(Array.from({ length: 30 }, () => update<number>(records, "count", (it) => it + 1)));
    assert.equal((await records.get("count"))!.value, 30);
    assert.equal(await update<number>(records, "count", () => undefined), 30);
    assert.equal(await update<number>(records, "none", (it) => it + 1), undefined);
  });

  test("keys are listed by prefix, in order", async (records) => {
    for (const key of ["b/2", "a", "b/1", "b/10", "bc", "b", "c/b/1"]) await records.set(key, key, undefined);
    assert.deepEqual(await Array.fromAsync(records.keys("b/")), ["b/1", "b/10", "b/2"]);
    assert.deepEqual(await Array.fromAsync(records.keys("b")), ["b", "b/1", "b/10", "b/2", "bc"]);
    assert.deepEqual(await Array.fromAsync(records.keys("x")), []);
  });

  test("a record at its limit fits, one byte more does not, and no other key than words", async (records) => {
    const text = "x".repeat(MAX_RECORD_BYTES - 2);
    assert.ok(await records.set("long", text, undefined));
    assert.equal((await records.get("long"))!.value, text);
    await assert.rejects(
      records.set("longer", `${text}x`, undefined),
      /expected at most 60000 bytes .* found 60001/,
    );
    await assert.rejects(records.set("longer", "é".repeat(30_000), undefined), RangeError);
    for (const key of BAD_KEYS) {
      await assert.rejects(async () => await records.get(key), RangeError, key);
      await assert.rejects(async () => await records.set(key, 1, undefined), RangeError, key);
    }
  });
}

export function testBlobs(name: string, opened: Opened<Blobs>): void {
  const test = (what: string, use: (blobs: Blobs) => Promise<void>) =>
    Deno.test(`${name} blobs: ${what}`, () => opened(use));

  test("what is put is got, and is a copy", async (blobs) => {
    assert.equal(await blobs.get("a"), undefined);
    const bytes = crypto.getRandomValues(new Uint8Array(65_536));
    const whole = bytes.slice();
    await blobs.put("a", bytes);
    bytes.fill(0);
    const got = await blobs.get("a");
    assert.deepEqual(got, whole);
    got!.fill(0);
    assert.deepEqual(await blobs.get("a"), whole);
    await blobs.put("a", new Uint8Array(0));
    assert.deepEqual(await blobs.get("a"), new Uint8Array(0));
    await blobs.put("a", whole.subarray(5, 9));
    assert.deepEqual(await blobs.get("a"), whole.slice(5, 9));
    await blobs.delete("a");
    await blobs.delete("a");
    assert.equal(await blobs.get("a"), undefined);
  });

  test("a key may be another's beginning; listings tell sizes and times", async (blobs) => {
    const since = Date.now();
    for (const [i, key] of ["a", "a/b", "a/b/c", "ab", "a.d/b", "b"].entries()) {
      await blobs.put(key, new Uint8Array(i));
    }
    const list = async (prefix: string) =>
      (await Array.fromAsync(blobs.list(prefix))).map((it) => it.key).sort();
    assert.deepEqual(await list("a"), ["a", "a.d/b", "a/b", "a/b/c", "ab"]);
    assert.deepEqual(await list("a/"), ["a/b", "a/b/c"]);
    assert.deepEqual(await list("a/b"), ["a/b", "a/b/c"]);
    assert.deepEqual(await list("x/"), []);
    const [info] = await Array.fromAsync(blobs.list("ab"));
    assert.equal(info.sizeBytes, 3);
    assert.ok(info.writtenAt >= since - 5000 && info.writtenAt <= Date.now() + 5000, String(info.writtenAt));
    for (const key of BAD_KEYS) {
      await assert.rejects(async () => await blobs.put(key, new Uint8Array(1)), RangeError);
    }
  });

  test("whoever reads while others write finds one of them, whole", async (blobs) => {
    const blob = (value: number) => new Uint8Array(200_000 + value).fill(value);
    await blobs.put("a", blob(0));
    const writing = (async () => {
      for (let i = 1; i <= 10; i++) await blobs.put("a", blob(i));
    })();
    for (let i = 0; i < 20; i++) {
      const found = (await blobs.get("a"))!;
      assert.deepEqual(found, blob(found[0]));
    }
    await writing;
    assert.deepEqual(await blobs.get("a"), blob(10));
  });
}

export function testQueue(name: string, opened: Opened<{ queue: PullQueue; clock: Clock }>): void {
  const test = (what: string, use: (queue: PullQueue, clock: Clock) => Promise<void>) =>
    Deno.test(`${name} queue: ${what}`, () => opened(({ queue, clock }) => use(queue, clock)));
  const lease = { limit: 10, leaseMs: 1000 };
  const ids = async (queue: PullQueue) => (await queue.receive(lease)).map((it) => it.id).sort();

  test(
    "a message comes once, until its lease ends; what is acknowledged comes no more",
    async (queue, clock) => {
      await queue.send({ id: "a/1", body: { x: "é" } });
      const [first] = await queue.receive(lease);
      assert.deepEqual([first.id, first.body, first.attempts], ["a/1", { x: "é" }, 1]);
      clock.ms += 999;
      assert.deepEqual(await queue.receive(lease), []);
      clock.ms += 1;
      const [second] = await queue.receive(lease);
      assert.equal(second.attempts, 2);
      // The first holder's time is over.
      assert.deepEqual([await first.ack(), await first.retry(0), await first.extend(9)], [
        false,
        false,
        false,
      ]);
      assert.equal(await second.ack(), true);
      clock.ms += 5000;
      assert.deepEqual(await queue.receive(lease), []);
      assert.equal(await second.ack(), false);
    },
  );

  test("not before its time, however far that is", async (queue, clock) => {
    await queue.send({ id: "late", body: 1 }, 30 * 86_400_000);
    await queue.send({ id: "now", body: 1 });
    assert.deepEqual(await ids(queue), ["now"]);
    clock.ms += 30 * 86_400_000;
    assert.deepEqual(await ids(queue), ["late", "now"]);
  });

  test("a message given back comes after its delay, a lease extended lasts longer", async (queue, clock) => {
    await queue.send({ id: "a", body: 1 });
    const [first] = await queue.receive(lease);
    assert.equal(await first.retry(500), true);
    assert.equal(await first.ack(), false);
    assert.deepEqual(await ids(queue), []);
    clock.ms += 500;
    const [second] = await queue.receive(lease);
    assert.equal(second.attempts, 2);
    clock.ms += 900;
    assert.equal(await second.extend(1000), true);
    clock.ms += 900;
    assert.deepEqual(await ids(queue), []);
    assert.equal(await second.extend(1000), true);
    assert.equal(await second.ack(), true);
  });

  test("one id is one message until it is acknowledged", async (queue) => {
    await queue.send({ id: "a", body: 1 });
    await queue.send({ id: "a", body: 2 });
    const all = await queue.receive(lease);
    assert.deepEqual(all.map((it) => it.body), [1]);
    await queue.send({ id: "a", body: 3 });
    assert.deepEqual(await ids(queue), []);
    await all[0].ack();
    await queue.send({ id: "a", body: 4 });
    assert.deepEqual((await queue.receive(lease)).map((it) => [it.body, it.attempts]), [[4, 1]]);
  });

  test("its depth is what waits and what is leased, by the beginning of the id", async (queue) => {
    const depths = async () => [await queue.depth("a/"), await queue.depth("b/"), await queue.depth("")];
    assert.deepEqual(await depths(), [0, 0, 0]);
    await queue.send({ id: "a/1", body: 1 });
    await queue.send({ id: "a/2", body: 1 }, 1000);
    await queue.send({ id: "b/1", body: 1 }, 1000);
    assert.deepEqual(await depths(), [2, 1, 3]);
    const [held] = await queue.receive(lease);
    assert.deepEqual(await depths(), [2, 1, 3]);
    await held.ack();
    assert.deepEqual(await depths(), [1, 1, 2]);
  });

  test("of twenty who ask at once, each message has one holder", async (queue) => {
    for (let i = 0; i < 30; i++) await queue.send({ id: `m${i}`, body: i });
    const got =
      (await Promise.all(Array.from({ length: 20 }, () => queue.receive({ limit: 3, leaseMs: 1000 }))))
        .flat();
    while (got.length < 30) {
      const more = await queue.receive({ limit: 3, leaseMs: 1000 });
      if (!more.length) break;
      got.push(...more);
    }
    assert.equal(got.length, 30);
    assert.equal(new Set(got.map((it) => it.id)).size, 30);
    assert.ok((await Promise.all(got.map((it) => it.ack()))).every((it) => it));
  });

  test("whoever waits hears of a message at once, and leaves when told to", async (queue) => {
    const since = performance.now();
    const waiting = queue.wait(10_000);
    await queue.send({ id: "a", body: 1 });
    await waiting;
    const stop = new AbortController();
    const stopped = queue.wait(10_000, stop.signal);
    stop.abort();
    await stopped;
    await queue.wait(10_000, stop.signal);
    assert.ok(performance.now() - since < 5000);
    await queue.wait(10);
  });
}

/** Whether an error is the one expected. */
export function withCode(code: string): (error: unknown) => boolean {
  return (error) => {
    assert.equal((error as RequestError).code, code, String(error));
    return true;
  };
}
