import assert from "node:assert/strict";
import { remaining } from "../../lib/schedule/budget.ts";

Deno.test("what remains of a budget shrinks from when the question came, below nothing", () => {
  const budget = { ttftMs: 500, totalMs: 2000 };
  assert.deepEqual(remaining({ budget, arrivedAt: 1000 }, 1200), { firstMs: 300, totalMs: 1800 });
  assert.deepEqual(remaining({ budget, arrivedAt: 1000 }, 4000), { firstMs: -2500, totalMs: -1000 });
  assert.deepEqual(remaining({ budget }, 4000), { firstMs: 500, totalMs: 2000 });
  assert.deepEqual(remaining({ budget: { privacy: "pixels-stay" }, arrivedAt: 0 }, 9), {});
  assert.deepEqual(remaining({}, 9), {});
});
