/** Pages of this server's own: nothing from elsewhere, no script but the one in them. */

import type { Context } from "hono";
import head from "./head.html" with { type: "text" };

/**
 * Serves a page in which `{head}` stands where what all pages begin with goes, and `{nonce}` where its script and style
 * say who they are.
 *
 * @param more what it may beyond {@link policy}, as a directive of a content security policy.
 */
export function servePage(c: Context, page: string, more?: string): Response | Promise<Response> {
  const nonce = crypto.randomUUID();
  c.header("content-security-policy", [policy(nonce), ...more ? [more] : []].join("; "));
  c.header("cache-control", "no-cache");
  return c.html(page.replace("{head}", head).replaceAll("{nonce}", nonce));
}

/** Only what a page itself needs: its own script and style, pictures it made or was given, its own server. */
function policy(nonce: string): string {
  return `default-src 'none'; script-src 'nonce-${nonce}'; style-src 'nonce-${nonce}'; img-src 'self' blob: data:; ` +
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
}
