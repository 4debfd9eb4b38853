/** How much one caller may ask for: requests a minute, and requests at once. */

import type { MiddlewareHandler } from "hono";
import { HttpError } from "../problem.ts";
import type { Env } from "./exchange.ts";

/** Per caller, each 1 or more; Infinity for no limit. */
export interface CallerLimits {
  readonly requestsPerMinute: number;
  /** Requests being answered, streams included. */
  readonly concurrent: number;
}

const WINDOW_MS = 60_000;

/**
 * Refuses with `rate_limited` what is beyond the limits, and tells of them in the `RateLimit` fields of
 * draft-ietf-httpapi-ratelimit-headers-11. A caller's minute begins with its first request.
 */
export function callerLimits({ requestsPerMinute, concurrent }: CallerLimits): MiddlewareHandler<Env> {
  // Callers are as many as there are keys: neither map can grow beyond that.
  const windows = new Map<string, { start: number; taken: number }>();
  const running = new Map<string, number>();

  return async (c, next) => {
    const { caller, headers, atEnd } = c.get("exchange");
    const now = performance.now();
    let window = windows.get(caller);
    if (!window || now - window.start >= WINDOW_MS) windows.set(caller, window = { start: now, taken: 0 });
    const secondsLeft = Math.ceil((window.start + WINDOW_MS - now) / 1000);
    const others = running.get(caller) ?? 0;
    const inMinute = window.taken < requestsPerMinute;
    const admitted = inMinute && others < concurrent;
    if (admitted) window.taken++;
    if (requestsPerMinute !== Infinity) {
      headers["ratelimit-policy"] = `"minute";q=${requestsPerMinute};w=60`;
      headers["ratelimit"] = `"minute";r=${requestsPerMinute - window.taken};t=${secondsLeft}`;
    }
    if (!inMinute) throw limited(`${requestsPerMinute} requests a minute`, "more", secondsLeft);
    if (!admitted) throw limited(`${concurrent} requests at once`, `${others} others`, 1);
    running.set(caller, others + 1);
    atEnd.push(() => running.set(caller, running.get(caller)! - 1));
    await next();
  };
}

function limited(allowed: string, found: string, retryAfterSeconds: number): HttpError {
  const message = `Cannot answer now: expected at most ${allowed} with one key, found ${found}`;
  return new HttpError({ code: "rate_limited", message, retryAfterSeconds });
}
