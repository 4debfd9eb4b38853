/** Budgets of requests: in the body, in headers, or some of each. */

import type { Context } from "hono";
import * as z from "zod/mini";
import type { Budget, Question } from "../types.ts";
import type { Env } from "./guard/exchange.ts";
import { HttpError } from "./problem.ts";
import { between, oneOf, optional, read } from "./schema.ts";

/** A day: whoever can wait longer needs no budget. */
const MAX_MS = 24 * 60 * 60_000;

const FIELDS = {
  ttftMs: optional(between(1, MAX_MS), "Milliseconds from the request's arrival to the first token."),
  totalMs: optional(between(1, MAX_MS), "Milliseconds from the request's arrival to the end of its answer."),
  maxCost: optional(
    between(0, 1e6),
    "What computing elsewhere may cost, in the unit of this server's prices.",
  ),
  privacy: optional(oneOf("pixels-stay", "any"), "Whether pictures may be sent to a pool; any by default."),
  quality: optional(
    oneOf("exact", "degrade"),
    "Whether a late answer or a worse one is preferred; exact by default.",
  ),
};

/** The field `budget` of bodies. */
export const BUDGET = z.strictObject(FIELDS, {
  error: "an object with ttftMs, totalMs, maxCost, privacy or quality",
}).check(
  z.refine(({ ttftMs = 0, totalMs = Infinity }) => ttftMs <= totalMs, {
    error: "ttftMs of at most totalMs",
  }),
);

const HEADERS: { readonly [name in keyof typeof FIELDS]: string } = {
  ttftMs: "x-ttft-budget-ms",
  totalMs: "x-latency-budget-ms",
  maxCost: "x-max-cost",
  privacy: "x-privacy",
  quality: "x-quality",
};

/**
 * The budget of a request and when its time began.
 *
 * @param inBody what its body says, already read.
 * @throws {HttpError} 400 for a header out of its range, or that contradicts the body or another header.
 */
export function budgetOf(c: Context<Env>, inBody?: Budget): Pick<Question, "budget" | "arrivedAt"> {
  const budget: Record<string, unknown> = { ...inBody };
  for (const name of Object.keys(FIELDS) as (keyof typeof FIELDS)[]) {
    const header = HEADERS[name];
    const text = c.req.header(header);
    if (text === undefined) continue;
    const number = /^-?\d+(\.\d+)?$/.test(text) ? Number(text) : text;
    const schema: z.ZodMiniType = FIELDS[name];
    const found = read(schema, number, header);
    if (budget[name] !== undefined && budget[name] !== found) {
      throw new HttpError({
        code: "parameter_invalid",
        message: `Cannot read ${header}: expected ${budget[name]} as in budget.${name}, found ${found}`,
        field: header,
      });
    }
    budget[name] = found;
  }
  if (!Object.keys(budget).length) return {};
  return { budget: read(BUDGET, budget, "the budget"), arrivedAt: c.get("exchange").arrivedAt };
}

/**
 * Refuses the headers of a budget where there is only one way to answer; in a body the field is unknown.
 *
 * @throws {HttpError} 400 naming the header.
 */
export function refuseBudget(c: Context<Env>): void {
  const header = Object.values(HEADERS).find((it) => c.req.header(it) !== undefined);
  if (header === undefined) return;
  throw new HttpError({
    code: "parameter_invalid",
    message: `Cannot read ${header}: expected no budget on ${c.req.path}, which has only one way to answer`,
    field: header,
  });
}
