/** One request and its response: id, trace, and what is counted and logged when the last byte has gone. */

import type { Context, MiddlewareHandler } from "hono";
import type { Metrics } from "../../metrics.ts";
import type { Log } from "./log.ts";

/** What is known of a request besides its content. */
export interface Exchange {
  /** The caller's `X-Request-Id` where it is one, otherwise a new one. */
  readonly id: string;
  /** When it came, milliseconds since 1970. */
  readonly arrivedAt: number;
  /** W3C trace context as it came in, to be passed on to whoever is asked for a part of the answer. */
  readonly traceparent?: string;
  /** The first digits of the API key's digest; `anonymous` where no key is asked for. */
  caller: string;
  /** Whose the jobs and hooks of this request are: the key's digest, 32 hexadecimal digits; none where no key is asked for. */
  owner?: string;
  /** Header fields that the response gets, whoever makes it. */
  readonly headers: Record<string, string>;
  /** Whether the response goes on after its handler: whoever streams it calls `end`. */
  streaming: boolean;
  /** Told once when the response is over. */
  readonly atEnd: (() => void)[];
  /** To be called when the last byte has gone or nobody reads it any more. */
  end(): void;
}

/** What the routes find in their context. */
export interface Env {
  /** What a platform says about a request. */
  Bindings: {
    /**
     * Has work go on until the promise settles. Only on a platform where work belongs to the request that began it: it
     * ends with its connection, and no other request may go on with it.
     */
    waitUntil?(work: Promise<unknown>): void;
  } | undefined;
  Variables: { exchange: Exchange };
}

/** Gives every request its exchange, counts it, and logs a line about it without anything of its content. */
export function exchanges({ metrics, log }: { metrics: Metrics; log: Log }): MiddlewareHandler<Env> {
  return async (c, next) => {
    const since = performance.now();
    const given = c.req.header("x-request-id");
    const traceparent = readTraceparent(c.req.header("traceparent"));
    const id = given !== undefined && /^[\w-]{1,128}$/.test(given) ? given : crypto.randomUUID();
    let [open, status] = [true, 0];
    const exchange: Exchange = {
      id,
      arrivedAt: Date.now(),
      ...traceparent && { traceparent },
      caller: "anonymous",
      headers: { "x-request-id": id },
      streaming: false,
      atEnd: [],
      end() {
        if (!open) return;
        open = false;
        metrics.inFlight.add(-1);
        for (const told of exchange.atEnd) told();
        log("info", "request", {
          id,
          ...traceparent && { traceId: traceparent.slice(3, 35) },
          caller: exchange.caller,
          method: c.req.method,
          route: routeOf(c),
          status,
          durationMs: Math.round(performance.now() - since),
        });
      },
    };
    c.set("exchange", exchange);
    metrics.inFlight.add(1);
    await next();
    status = c.res.status;
    metrics.requests.add(1, routeOf(c), String(status));
    for (const [name, value] of Object.entries(exchange.headers)) c.header(name, value);
    if (!exchange.streaming) exchange.end();
  };
}

/** The pattern that matched, such as `/v1/jobs/:id`: a path itself may hold anything. */
function routeOf(c: Context<Env>): string {
  return c.req.matchedRoutes.findLast((it) => !it.path.includes("*"))?.path ?? "none";
}

/** A `traceparent` of W3C Trace Context, level 1, or undefined where it is none. */
export function readTraceparent(value: string | undefined): string | undefined {
  const [, trace, parent] = /^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$/.exec(value ?? "") ?? [];
  return trace && !/^0+$/.test(trace) && !/^0+$/.test(parent) ? value : undefined;
}
