/** What went wrong, as HTTP says it: one table from code to status, one body for every error. */

import { type ErrorCode, RequestError } from "../errors.ts";

/** The caller's mistakes, and what only HTTP can say. */
export type ProblemCode =
  | ErrorCode
  | "not_found"
  | "method_not_allowed"
  | "unavailable" // no model is loaded yet, or the server is stopping
  | "internal"; // our own mistake

/** A code without a line here does not compile. */
const STATUS: { readonly [code in ProblemCode]: number } = {
  body_invalid: 400,
  body_too_large: 413,
  image_missing: 400,
  image_unsupported: 415,
  image_corrupt: 422,
  image_too_large: 413,
  parameter_invalid: 400,
  prompt_too_long: 400,
  model_invalid: 500,
  model_too_large: 500,
  url_refused: 400,
  url_failed: 422,
  download_failed: 502,
  storage_failed: 507,
  record_corrupt: 500,
  overloaded: 503,
  cancelled: 499, // nginx's number; nobody is left to read it
  not_found: 404,
  method_not_allowed: 405,
  unavailable: 503,
  internal: 500,
};

/** An error as a client may see it. */
export interface Problem {
  readonly code: ProblemCode;
  readonly message: string;
}

/** The status a code is answered with. */
export function statusOf(code: ProblemCode): number {
  return STATUS[code];
}

/** Caller's mistakes keep their message; anything else becomes `internal`, and nothing of it is told. */
export function problemOf(error: unknown): Problem {
  if (error instanceof RequestError) return { code: error.code, message: error.message };
  return { code: "internal", message: "Cannot answer: the server failed; its log tells why" };
}

/** The answer `{ error: { code, message } }`. A 503 asks to be tried again in a second. */
export function problemResponse({ code, message }: Problem, headers: Record<string, string> = {}): Response {
  const status = STATUS[code];
  return Response.json({ error: { code, message } }, {
    status,
    headers: { "cache-control": "no-store", ...status === 503 && { "retry-after": "1" }, ...headers },
  });
}
