import assert from "node:assert/strict";
import { Recent } from "../../lib/store/recent.ts";

const rows = (n: number) => Float32Array.of(n, n, n, n);

Deno.test("values stay until others need their room, the least recently used goes first", () => {
  const recent = new Recent<Float32Array>(3 * 16, (it) => it.byteLength);
  for (const n of [1, 2, 3]) recent.set(`${n}`, rows(n));
  assert.deepEqual(recent.get("1"), rows(1));
  recent.set("4", rows(4));
  assert.deepEqual(["1", "2", "3", "4"].map((it) => recent.get(it)?.[0]), [1, undefined, 3, 4]);
  recent.set("3", rows(9));
  assert.equal(recent.get("3")?.[0], 9);
  assert.equal(recent.sizeBytes, 48);
  recent.set("large", new Float32Array(100));
  assert.equal(recent.get("large"), undefined);
  assert.equal(recent.sizeBytes, 48);
});
