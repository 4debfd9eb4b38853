/**
 * Errors a caller can cause, as one closed list.
 *
 * A broken contract between our own functions is a `TypeError` or `RangeError`; everything here is somebody
 * else's mistake and carries a code that the HTTP layer maps to a status.
 */

/** Every mistake a caller or an operator can make. `lib/http/problem.ts` maps each to a status, exhaustively. */
export type ErrorCode =
  | "body_invalid" // the request body is not what its content type says, or a field has the wrong type
  | "body_too_large"
  | "image_missing"
  | "image_unsupported" // not JPEG, PNG or WebP
  | "image_corrupt" // starts like a picture but cannot be decoded
  | "image_too_large" // more pixels than the platform allows
  | "parameter_invalid" // a number or a name out of its range
  | "prompt_too_long" // the prompt does not fit the model's context
  | "model_invalid" // a model directory whose files do not fit together
  | "model_too_large" // its weights do not fit the backend's memory
  | "url_refused" // a URL that this server does not reach out to
  | "url_failed" // what a URL leads to gave no whole answer
  | "download_failed" // a model hub does not give what was asked of it
  | "upload_failed" // a Worker does not take the model that is sent to it
  | "signature_invalid" // a webhook that its sender did not sign
  | "idempotency_mismatch" // a key that was used for another request
  | "storage_failed" // the disk is full, a file cannot be written, or the database not be reached
  | "record_corrupt" // what was stored is not what is read
  | "memory_exceeded" // more memory than the platform has, whoever else asks
  | "pool_needed" // the model's decoder has no room here, and there is no pool that decodes
  | "budget_hopeless" // no allowed way to answer would be in time
  | "overloaded" // more requests waiting than the queue holds
  | "cancelled"; // the caller went away

/** A caller's mistake: the action that failed, what was expected, what was found. */
export class RequestError extends Error {
  override readonly name = "RequestError";

  constructor(readonly code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/**
 * Refuses a parameter, unless it `holds`.
 *
 * @throws {RequestError} `parameter_invalid`: expected `name` `range`, found `found`.
 */
export function checkThat(holds: boolean, name: string, range: string, found: unknown): void {
  if (holds) return;
  const what = typeof found === "string" ? JSON.stringify(found) : found;
  throw new RequestError("parameter_invalid", `Cannot answer: expected ${name} ${range}, found ${what}`);
}

/** Refuses what is not a whole number from `low` to `high`, as {@link checkThat} does. */
export function checkWhole(name: string, value: number, low: number, high: number): void {
  const range = high === Number.MAX_SAFE_INTEGER ? `${low} or more` : `from ${low} to ${high}`;
  const holds = Number.isInteger(value) && value >= low && value <= high;
  checkThat(holds, name, `to be a whole number ${range}`, value);
}
