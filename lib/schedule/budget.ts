/** Budgets on the clock. */

import type { Question } from "../types.ts";
import type { Remaining } from "./cost_model.ts";

/**
 * What remains of a question's budget: the times until which it is wanted are fixed when it comes, whoever it is passed on
 * to gets the milliseconds that are left. Negative where it is too late.
 *
 * @param now milliseconds since 1970.
 */
export function remaining(
  { budget, arrivedAt }: Pick<Question, "budget" | "arrivedAt">,
  now: number,
): Remaining {
  const { ttftMs, totalMs } = budget ?? {};
  const gone = now - (arrivedAt ?? now);
  return {
    ...ttftMs !== undefined && { firstMs: ttftMs - gone },
    ...totalMs !== undefined && { totalMs: totalMs - gone },
  };
}
