/** Incoming webhooks over HTTP: `/v1/hooks`. A sender has no API key; its signature lets it in. */

import { type Context, Hono } from "hono";
import type { Hooks } from "../jobs/hooks.ts";
import { readBytes, readJson } from "./body.ts";
import type { Env } from "./guard/exchange.ts";
import { HOOK } from "./job_schemas.ts";
import { checkItem } from "./jobs.ts";
import type { Outbound } from "./outbound.ts";
import { HttpError } from "./problem.ts";
import { read } from "./schema.ts";

/** The longest webhook that is taken: it names things, and carries at most a small picture. */
const MAX_HOOK_BYTES = 4 * 1024 * 1024;

/** What the routes are made with. */
export interface HookRouteParts {
  readonly hooks: Hooks;
  readonly outbound: Outbound;
}

/** Whether a request is one that its signature lets in, and no API key. */
export function isSigned(method: string, path: string): boolean {
  return method === "POST" && /^\/v1\/hooks\/[^/]+$/.test(path);
}

/** The routes. */
export function hookRoutes({ hooks, outbound }: HookRouteParts): Hono<Env> {
  const routes = new Hono<Env>();

  routes.post("/v1/hooks/:name", async (c) => {
    const body = new TextDecoder().decode(await readBytes(c.req.raw, MAX_HOOK_BYTES));
    const { traceparent } = c.get("exchange");
    const incoming = { headers: c.req.raw.headers, body, traceparent };
    const job = await hooks.take(nameOf(c), incoming, (item) => checkItem(item, "the hook's item"));
    if (!job) return unknown(c);
    return c.json(job, 202, { location: `/v1/jobs/${job.id}`, ...UNCACHED });
  });

  routes.get("/v1/hooks", async (c) => {
    return c.json({ hooks: await hooks.list(c.get("exchange").owner) }, 200, UNCACHED);
  });

  routes.get("/v1/hooks/:name", async (c) => {
    return c.json(await hooks.get(nameOf(c), c.get("exchange").owner) ?? unknown(c), 200, UNCACHED);
  });

  routes.put("/v1/hooks/:name", async (c) => {
    const { signature = "standard", ...rest } = read(HOOK, await readJson(c.req.raw, MAX_HOOK_BYTES));
    if (rest.webhook) outbound.check(rest.webhook.url);
    const { owner } = c.get("exchange");
    const hook = await hooks.set({ name: nameOf(c), owner, signature, ...rest });
    return c.json(hook ?? unknown(c, "it is another key's hook"), 200, UNCACHED);
  });

  routes.delete("/v1/hooks/:name", async (c) => {
    return await hooks.delete(nameOf(c), c.get("exchange").owner) ? c.body(null, 204) : unknown(c);
  });

  return routes;
}

const UNCACHED = { "cache-control": "no-store" };

function nameOf(c: Context): string {
  const name = c.req.param("name") ?? "";
  return /^[a-z0-9][a-z0-9_-]{0,63}$/.test(name) ? name : unknown(c);
}

function unknown(
  c: Context,
  why = "there is no such hook (names are a-z, 0-9, _ and -, 64 at most)",
): never {
  throw new HttpError({ code: "not_found", message: `Cannot ${c.req.method} ${c.req.path}: ${why}` });
}
