import assert from "node:assert/strict";
import { PoolError, type PoolEvent } from "../../lib/pool/pool.ts";

/** Asserts that it ends in a PoolError of this code. */
export async function refused(events: AsyncIterable<PoolEvent>, code: string): Promise<PoolError> {
  try {
    await Array.fromAsync(events);
  } catch (error) {
    assert.ok(error instanceof PoolError, String((error as Error).stack));
    assert.equal(error.code, code, error.message);
    return error;
  }
  assert.fail(`expected ${code}, found an answer`);
}
