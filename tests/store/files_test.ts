import assert from "node:assert/strict";
import { join } from "@std/path";
import { createFileBlobs } from "../../lib/store/files.ts";
import { onFullDisk } from "./full_disk.ts";
import { testBlobs, withCode } from "./suite.ts";

async function directory(use: (path: string) => Promise<void>): Promise<void> {
  const path = await Deno.makeTempDir();
  try {
    await use(path);
  } finally {
    await Deno.remove(path, { recursive: true });
  }
}

testBlobs("file", (use) => directory((path) => use(createFileBlobs(join(path, "made/when/needed")))));

Deno.test("file blobs: what a killed process was writing is no blob, and is swept when it is old", () =>
  directory(async (path) => {
    const blobs = createFileBlobs(path);
    await blobs.put("a", Uint8Array.of(1));
    for (const [name, age] of [["old", 2 * 3_600_000], ["new", 0]] as const) {
      await Deno.writeFile(join(path, `b.blob.${name}~`), Uint8Array.of(1, 2));
      const time = new Date(Date.now() - age);
      await Deno.utime(join(path, `b.blob.${name}~`), time, time);
    }
    assert.equal(await blobs.get("b"), undefined);
    assert.deepEqual((await Array.fromAsync(blobs.list(""))).map((it) => it.key), ["a"]);
    assert.deepEqual([...Deno.readDirSync(path)].map((it) => it.name).sort(), ["a.blob", "b.blob.new~"]);
  }));

Deno.test("file blobs: directories go with their last blob, also while others are put there", () =>
  directory(async (path) => {
    const blobs = createFileBlobs(path);
    for (let round = 0; round < 30; round++) {
      await blobs.put("a/b/c", Uint8Array.of(1));
      await Promise.all([blobs.delete("a/b/c"), blobs.put("a/b/d", Uint8Array.of(2)), blobs.delete("a/b/e")]);
      assert.deepEqual(await blobs.get("a/b/d"), Uint8Array.of(2));
      await blobs.delete("a/b/d");
      assert.deepEqual([...Deno.readDirSync(path)], []);
    }
  }));

Deno.test("file blobs: a disk that takes no more is told, and what was there stays", () =>
  directory(async (path) => {
    const [code, message, length] = await onFullDisk(`
      import { createFileBlobs } from "${import.meta.resolve("../../lib/store/files.ts")}";
      const blobs = createFileBlobs(${JSON.stringify(path)});
      await blobs.put("a", new Uint8Array(50_000).fill(1));
      const error = await blobs.put("a", new Uint8Array(2_000_000)).then(() => ({}), (error) => error);
      console.log(JSON.stringify([error.code, error.message, (await blobs.get("a")).length]));`);
    assert.deepEqual([code, length], ["storage_failed", 50_000]);
    assert.match(message, /^Cannot store 2000000 bytes in .*: .*too large/i);
    assert.deepEqual([...Deno.readDirSync(path)].map((it) => it.name).sort(), ["a.blob"]);
    await assert.rejects(
      createFileBlobs("/proc/nowhere").put("a", new Uint8Array(1)),
      withCode("storage_failed"),
    );
  }));
