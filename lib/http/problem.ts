/** What went wrong, as HTTP says it: one table from code to status, and the two shapes an error is told in. */

import { type ErrorCode, RequestError } from "../errors.ts";

/** The caller's mistakes, and what only HTTP can say. */
export type ProblemCode =
  | ErrorCode
  | "unauthorized" // no API key, or one that is not known
  | "rate_limited" // more requests than the key may make
  | "model_unknown" // another model than the one that is loaded
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
  url_refused: 400,
  url_failed: 422,
  model_invalid: 500,
  model_too_large: 500,
  download_failed: 502,
  upload_failed: 502,
  signature_invalid: 401,
  idempotency_mismatch: 422,
  storage_failed: 507,
  record_corrupt: 500,
  memory_exceeded: 413,
  pool_needed: 503,
  budget_hopeless: 504,
  overloaded: 503,
  cancelled: 499, // nginx's number; nobody is left to read it
  unauthorized: 401,
  rate_limited: 429,
  model_unknown: 404,
  not_found: 404,
  method_not_allowed: 405,
  unavailable: 503,
  internal: 500,
};

const TITLES: { readonly [status: number]: string } = {
  400: "Bad Request",
  401: "Unauthorized",
  404: "Not Found",
  405: "Method Not Allowed",
  413: "Content Too Large",
  415: "Unsupported Media Type",
  422: "Unprocessable Content",
  429: "Too Many Requests",
  499: "Client Closed Request",
  500: "Internal Server Error",
  502: "Bad Gateway",
  503: "Service Unavailable",
  504: "Gateway Timeout",
  507: "Insufficient Storage",
};

/** An error as a client may see it. */
export interface Problem {
  readonly code: ProblemCode;
  readonly message: string;
  /** The field that is wrong, such as `messages[0].content`, where it is one. */
  readonly field?: string;
  /** After how many seconds to try again; 1 for a 503 that passes by itself. */
  readonly retryAfterSeconds?: number;
}

/** A caller's mistake that only HTTP knows, or in one field of a body. */
export class HttpError extends Error {
  override readonly name = "HttpError";

  constructor(readonly problem: Problem) {
    super(problem.message);
  }
}

/** The status a code is answered with. */
export function statusOf(code: ProblemCode): number {
  return STATUS[code];
}

/** Caller's mistakes keep their message; anything else becomes `internal`, and nothing of it is told. */
export function problemOf(error: unknown): Problem {
  if (error instanceof HttpError) return error.problem;
  if (error instanceof RequestError) return { code: error.code, message: error.message };
  return { code: "internal", message: "Cannot answer: the server failed; its log tells why" };
}

/** Where an error is told, and to whom. */
export interface Telling {
  /** Path of the request: OpenAI's routes have OpenAI's shape, the others RFC 9457's. */
  readonly path: string;
  readonly requestId?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

/** The answer to a request that cannot be answered. */
export function problemResponse(problem: Problem, { path, requestId, headers }: Telling): Response {
  const openai = isOpenAi(path);
  const status = openai ? openAiStatus(problem.code) : STATUS[problem.code];
  const passes = status === 503 && problem.code !== "pool_needed";
  const retryAfter = problem.retryAfterSeconds ?? (passes ? 1 : undefined);
  return new Response(JSON.stringify(openai ? openAiError(problem) : details(problem, requestId)), {
    status,
    headers: {
      "content-type": openai ? "application/json" : "application/problem+json",
      "cache-control": "no-store",
      ...retryAfter !== undefined && { "retry-after": String(retryAfter) },
      ...status === 401 && { "www-authenticate": "Bearer" },
      ...headers,
    },
  });
}

/** Routes that OpenAI's clients call. */
export function isOpenAi(path: string): boolean {
  return /^\/v1\/(chat\/completions|models)(\/|$)/.test(path);
}

/** RFC 9457. Without a `type` of its own, `code` tells one problem from another. */
export function details({ code, message, field }: Problem, requestId?: string) {
  const status = STATUS[code];
  return {
    type: "about:blank",
    title: TITLES[status],
    status,
    detail: message,
    code,
    ...field !== undefined && { field },
    ...requestId !== undefined && { instance: `urn:request:${requestId}` },
  };
}

/** OpenAI's error object, in the body and in a stream. */
export function openAiError({ code, message, field }: Problem) {
  const status = openAiStatus(code);
  const type = status === 401
    ? "authentication_error"
    : status === 429
    ? "rate_limit_error"
    : status >= 500
    ? "server_error"
    : "invalid_request_error";
  const theirs: Partial<Record<ProblemCode, string>> = {
    unauthorized: "invalid_api_key",
    rate_limited: "rate_limit_exceeded",
    model_unknown: "model_not_found",
    prompt_too_long: "context_length_exceeded",
  };
  return { error: { message, type, param: field ?? null, code: theirs[code] ?? code } };
}

/** OpenAI's clients know 400 for whatever is wrong with a picture. */
function openAiStatus(code: ProblemCode): number {
  const status = STATUS[code];
  return status === 415 || status === 422 || code === "image_too_large" ? 400 : status;
}
