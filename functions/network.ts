/**
 * How Deno reaches other machines: the system's own look-up, and connections to an address of our choice. `fetch`
 * cannot choose one for https (its TCP proxy leaves TLS out); `node:https` can.
 */

import { lookup } from "node:dns/promises";
import { type IncomingMessage, request as plain } from "node:http";
import { request as secure } from "node:https";
import { isIP } from "node:net";
import { Readable } from "node:stream";
import type { Network } from "../lib/http/outbound.ts";

/** Whether Deno was told to let nobody here reach an address, as `deno task start` does for private ones. */
export function isDenied(address: string): boolean {
  const host = isIP(address) === 6 ? `[${address}]` : address;
  return Deno.permissions.querySync({ name: "net", host }).state === "denied";
}

/** The network of this machine. @param ca certificates to trust instead of the well-known ones, PEM. */
export function createNetwork({ ca }: { ca?: string } = {}): Network {
  return {
    async lookup(host) {
      return (await lookup(host, { all: true })).map((it) => it.address);
    },
    async fetch(url, { method, headers, body, signal }, address) {
      // `node:http` would throw it where nobody can catch it.
      if (isDenied(address)) throw new Deno.errors.NotCapable(`--deny-net forbids ${address}`);
      const request = (url.protocol === "https:" ? secure : plain)(url, {
        method,
        headers: headers as Record<string, string>,
        signal: signal ?? undefined,
        agent: false, // a kept connection would lead to an address that another look-up gave
        ca,
        // The name stays in the URL: it is what the certificate and the Host header are about.
        lookup: (_host, _options, found) => found(null, [{ address, family: isIP(address) }]),
      });
      const message = await new Promise<IncomingMessage>((resolve, reject) => {
        request.on("response", resolve).on("error", reject).end(body);
      });
      const empty = [204, 205, 304].includes(message.statusCode!);
      if (empty) message.resume();
      return new Response(empty ? null : Readable.toWeb(message) as ReadableStream<Uint8Array>, {
        status: message.statusCode,
        headers: Object.entries(message.headers).map((
          [name, value],
        ): [string, string] => [name, String(value)]),
      });
    },
  };
}
