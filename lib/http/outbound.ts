/**
 * Requests to addresses that callers name (pictures, webhooks), without a way into the network this server stands in.
 *
 * The rules are OWASP's against server-side request forgery: https on its own port, no credentials, a name rather than
 * an address, every address of the name public, and the connection made to an address that was checked, so that a name
 * that changes between check and connection gains nothing. Redirects go through the same rules.
 */

import ipaddr from "ipaddr.js";
import { RequestError } from "../errors.ts";

/** What a platform does for it. */
export interface Network {
  /** All addresses of a name, IPv4 and IPv6; none, or an error, when there is no such name. */
  lookup(host: string): Promise<readonly string[]>;
  /**
   * One exchange with the host of `url`, which is reached at `address` where the platform lets one choose. Follows no
   * redirect.
   */
  fetch(url: URL, init: RequestInit, address: string): Promise<Response>;
}

/** One request. */
export interface OutboundRequest {
  readonly method?: "GET" | "POST";
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
  /** Longest body that is read; 0 reads none of it. */
  readonly maxBytes: number;
  /** From the look-up to the last byte. */
  readonly timeoutMs: number;
  /** How many redirects are followed; by default none, and the answer is the redirect itself. */
  readonly redirects?: number;
  readonly signal?: AbortSignal;
}

/** An answer, whatever its status. */
export interface OutboundResponse {
  readonly status: number;
  readonly headers: Headers;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** The way out. */
export interface Outbound {
  /**
   * Checks what a URL says by itself, before anything is looked up.
   *
   * @throws {RequestError} `url_refused`, naming what was expected.
   */
  check(url: string): URL;
  /**
   * @throws {RequestError} `url_refused` when the rules forbid the URL or where it leads, `url_failed` when there is no
   * whole answer within time and size, `cancelled` when the signal aborts.
   */
  fetch(url: string, request: OutboundRequest): Promise<OutboundResponse>;
}

/** @param allowPrivate lifts all rules but those on scheme and credentials: for tests and closed networks. */
export function createOutbound(network: Network, { allowPrivate = false } = {}): Outbound {
  function check(text: string): URL {
    let url: URL;
    try {
      url = new URL(text);
    } catch {
      throw refused("an absolute URL", "something else");
    }
    const { protocol, hostname } = url;
    if (protocol !== "https:" && !(allowPrivate && protocol === "http:")) {
      throw refused("https:", protocol);
    }
    if (url.username || url.password) throw refused("no user name and no password", "one");
    if (allowPrivate) return url;
    // The parser leaves out a port that is the scheme's own, and has written 0x7f.1 and 2130706433 as 127.0.0.1.
    if (url.port) throw refused("port 443", url.port);
    if (ipaddr.isValid(bare(hostname))) throw refused("a host name", "an address");
    return url;
  }

  async function addressOf(host: string): Promise<string> {
    if (ipaddr.isValid(bare(host))) return bare(host);
    const addresses = await network.lookup(host).catch((cause) => {
      throw failed(host, "its name to be found", "no address", cause);
    });
    if (!addresses.length) throw failed(host, "its name to be found", "no address");
    if (!allowPrivate && !addresses.every(isPublic)) {
      throw refused("a host with public addresses", `${host}, which has others`);
    }
    return addresses[0];
  }

  async function exchange(
    url: URL,
    request: OutboundRequest,
    signal: AbortSignal,
  ): Promise<OutboundResponse> {
    const { method = "GET", headers, body, maxBytes } = request;
    const address = await within(signal, addressOf(url.hostname));
    const init: RequestInit = { method, headers, body, redirect: "manual", signal };
    const response = await network.fetch(url, init, address);
    if (maxBytes === 0) {
      response.body?.cancel().catch(() => {});
      return { status: response.status, headers: response.headers, bytes: new Uint8Array() };
    }
    const bytes = await readAtMost(response, maxBytes, url.hostname);
    return { status: response.status, headers: response.headers, bytes };
  }

  return {
    check,
    async fetch(text, request) {
      let url = check(text);
      const control = new AbortController();
      const abort = () => control.abort();
      // Not AbortSignal.any: it would keep something of every request for as long as the caller's signal lives.
      const timer = setTimeout(abort, request.timeoutMs);
      request.signal?.addEventListener("abort", abort, { once: true });
      if (request.signal?.aborted) abort();
      try {
        for (let left = request.redirects ?? 0;; left--) {
          const response = await exchange(url, request, control.signal);
          const location = response.headers.get("location");
          if (left <= 0 || ![301, 302, 303, 307, 308].includes(response.status) || !location) return response;
          url = check(URL.parse(location, url)?.href ?? location);
        }
      } catch (error) {
        if (request.signal?.aborted) {
          throw new RequestError("cancelled", "Cannot fetch a URL: the caller went away");
        }
        if (control.signal.aborted) {
          throw failed(url.hostname, `an answer within ${request.timeoutMs} ms`, "none", error);
        }
        if (error instanceof RequestError) throw error;
        throw failed(url.hostname, "a whole answer", "a connection that failed", error);
      } finally {
        clearTimeout(timer);
        request.signal?.removeEventListener("abort", abort);
      }
    },
  };
}

/**
 * Whether an address is one that the whole internet can reach. Everything with a purpose of its own is not: loopback,
 * private and link-local networks, carrier NAT, multicast, documentation, and the IPv6 forms that carry an IPv4
 * address within them (mapped, 6to4, NAT64, Teredo).
 */
export function isPublic(address: string): boolean {
  if (!ipaddr.isValid(address)) return false;
  const parsed = ipaddr.process(address);
  if (parsed.range() !== "unicast") return false;
  // Of IPv6 only 2000::/3 has been given out; ::127.0.0.1 lies outside and has no name of its own.
  return parsed.kind() === "ipv4" || (parsed.toByteArray()[0] & 0xe0) === 0x20;
}

/** An IPv6 address stands in brackets in a URL. */
function bare(hostname: string): string {
  return hostname.replace(/^\[(.*)\]$/, "$1");
}

/** Look-ups cannot be called off; one may go on behind our back, but nobody waits for it. */
function within<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

async function readAtMost(
  response: Response,
  maxBytes: number,
  host: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  let size = 0;
  // Counted as it comes, whatever its length was said to be. Leaving the loop cancels the rest.
  for await (const chunk of response.body ?? []) {
    size += chunk.length;
    if (size > maxBytes) throw failed(host, `at most ${maxBytes} bytes`, "more");
    chunks.push(chunk as Uint8Array<ArrayBuffer>);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

function refused(expected: string, found: string): RequestError {
  return new RequestError("url_refused", `Cannot fetch a URL: expected ${expected}, found ${found}`);
}

function failed(host: string, expected: string, found: string, cause?: unknown): RequestError {
  return new RequestError("url_failed", `Cannot fetch from ${host}: expected ${expected}, found ${found}`, {
    cause,
  });
}
