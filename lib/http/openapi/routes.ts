/** `GET /openapi.json`, and `GET /docs`: the same to read. */

import { Hono } from "hono";
import type { Env } from "../guard/exchange.ts";
import { openApiDocument, type Operation } from "./document.ts";
import { servePage } from "../page.ts";
import page from "./reference.html" with { type: "text" };

/** Both routes; the document has `more` operations of other rooms. */
export function openApiRoutes(more: readonly Operation[] = []): Hono<Env> {
  let document: string | undefined; // made when it is first asked for: starting is to be quick
  return new Hono<Env>()
    .get("/openapi.json", (c) => {
      document ??= JSON.stringify(openApiDocument(more));
      return c.body(document, 200, { "content-type": "application/json", "cache-control": "no-cache" });
    })
    .get("/docs", (c) => servePage(c, page));
}
