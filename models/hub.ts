/**
 * A model hub over HTTP, as Hugging Face's client speaks to it: what a repository holds, what a file is, and its bytes
 * from anywhere on. Trouble that passes is waited out.
 *
 * The layout: `/api/models/{repo}/revision/{rev}` lists a repository, `/{repo}/resolve/{rev}/{file}` is a file. Large
 * files are answered with a redirect to another origin; the hub's own answer carries `X-Linked-Size` and
 * `X-Linked-Etag`, the sha256. Small files have the id of their git blob as ETag. `X-Error-Code` tells one 401 or 404
 * from another. Source: huggingface_hub 1.33 (`file_download.py`, `utils/_http.py`).
 */

import { RequestError } from "../lib/mod.ts";

/** Where a hub is and how to speak to it. */
export interface HubOptions {
  /** Origin, and path where there is one: `https://huggingface.co`. */
  readonly endpoint: string;
  /** Sent to the endpoint's origin only, never to where it redirects. */
  readonly token?: string;
  readonly signal?: AbortSignal;
  /** Milliseconds before a request is tried again, doubled each time; 500 by default. The hub's Retry-After rules. */
  readonly retryMs?: number;
  /** Milliseconds without a byte after which a connection counts as broken; 60,000 by default. */
  readonly stallMs?: number;
}

/** A repository at a branch, tag or commit. */
export interface Source {
  /** `owner/name` */
  readonly repo: string;
  readonly revision: string;
}

/** What the hub says of a file. */
export interface RemoteFile {
  readonly name: string;
  readonly sizeBytes: number;
  /** `sha256:…` or `git-sha1:…`, 64 or 40 hexadecimal digits; absent where the hub names neither. */
  readonly checksum?: string;
  /** The commit that the revision stands for. */
  readonly commit?: string;
}

/** Bytes of a file from `start` on: what was asked for, or 0 where the server does not know ranges. */
export interface Body {
  readonly start: number;
  readonly bytes: AsyncIterable<Uint8Array<ArrayBuffer>>;
  /** A strong ETag, with which the next range is asked for. */
  readonly etag?: string;
}

/** Requests that fail one after another without a byte of progress; after the last there is no hope. */
const ATTEMPTS = 6;
const MAX_REDIRECTS = 5;
const MAX_WAIT_MS = 300_000;
/** Statuses of trouble that may pass. */
const PASSING = [408, 425, 429, 500, 502, 503, 504];

/** Trouble that may pass. */
class Passing extends Error {
  constructor(message: string, readonly retryAfterMs = 0) {
    super(message);
  }
}

/** One hub. */
export class Hub {
  readonly #endpoint: URL;

  /** @throws {RequestError} `parameter_invalid` for an endpoint that is no http address. */
  constructor(readonly options: HubOptions) {
    const { endpoint } = options;
    const url = URL.parse(endpoint.replace(/\/*$/, "/"));
    if (!url || !/^https?:$/.test(url.protocol)) {
      throw new RequestError(
        "parameter_invalid",
        `Cannot use the hub: expected an http address, found "${endpoint}"`,
      );
    }
    this.#endpoint = url;
  }

  /**
   * Names of a repository's files and the commit that the revision stands for; undefined where the hub has no lists.
   *
   * @throws {RequestError} `download_failed`, as all methods here: the status, and what to do about it.
   */
  async list(source: Source): Promise<{ commit?: string; names: string[] } | undefined> {
    const url = this.#url(`api/models/${source.repo}/revision/${encodeURIComponent(source.revision)}`);
    return await this.patiently(async () => {
      const { response } = await this.#request(url, source);
      if (response.status === 404 && !response.headers.has("x-error-code")) {
        await response.body?.cancel();
        return undefined;
      }
      await this.#check(response, source);
      const text = await new Response(ReadableStream.from(this.#bytes(response))).text();
      const { sha, siblings } = parseObject(text);
      const names = Array.isArray(siblings) ? siblings.map((it) => it?.rfilename) : [undefined];
      if (!names.every((it) => typeof it === "string")) {
        throw failed(source, `expected a list of files at ${url}, found none`);
      }
      return { commit: typeof sha === "string" ? sha : undefined, names };
    });
  }

  /** What the hub says of a file; undefined where the repository has none of that name. */
  async look(source: Source, name: string): Promise<RemoteFile | undefined> {
    return await this.patiently(async () => {
      const { response, linked } = await this.#request(this.#file(source, name), source, "HEAD");
      if (response.status === 404 && [null, "EntryNotFound"].includes(response.headers.get("x-error-code"))) {
        return undefined;
      }
      if (!isRedirect(response)) await this.#check(response, source);
      const size = linked.get("x-linked-size") ?? response.headers.get("content-length");
      if (size === null || !/^\d+$/.test(size)) {
        throw failed(source, `expected the size of ${name}, found "${size ?? "none"}"`);
      }
      return {
        name,
        sizeBytes: Number(size),
        checksum: checksumOf(linked.get("x-linked-etag") ?? linked.get("etag")),
        commit: linked.get("x-repo-commit") ?? undefined,
      };
    });
  }

  /** One request for the bytes of a file from `start` on, not tried again: the caller knows how far it came. */
  async open(source: Source, file: RemoteFile, start: number, etag?: string): Promise<Body> {
    const headers: Record<string, string> = start ? { range: `bytes=${start}-` } : {};
    if (start && etag) headers["if-range"] = etag;
    const { response } = await this.#request(this.#file(source, file.name), source, "GET", headers);
    if (response.status !== 206) await this.#check(response, source);
    const found = response.headers.get("etag");
    const body = {
      start: response.status === 206 ? start : 0,
      bytes: this.#bytes(response),
      etag: found?.startsWith('"') ? found : undefined,
    };
    const wrong = misfit(response, file, body.start);
    if (!wrong) return body;
    await response.body?.cancel();
    throw failed(source, wrong);
  }

  /**
   * Does something until it works, with longer and longer pauses; what `progress` returns tells whether it came further.
   *
   * @throws {RequestError} the action's own, `cancelled`, or `download_failed` after six attempts without progress.
   */
  async patiently<T>(action: () => Promise<T>, progress: () => number = () => 0): Promise<T> {
    const { signal, retryMs = 500 } = this.options;
    for (let attempt = 1, before = progress();; attempt++) {
      if (signal?.aborted) throw cancelled();
      try {
        return await action();
      } catch (error) {
        if (signal?.aborted) throw cancelled();
        if (!(error instanceof Passing)) throw error;
        if (progress() !== before) [attempt, before] = [1, progress()];
        if (attempt >= ATTEMPTS) {
          throw new RequestError(
            "download_failed",
            `Cannot download: ${error.message}; gave up after ${ATTEMPTS} attempts without progress`,
          );
        }
        const wait = Math.min(MAX_WAIT_MS, Math.max(error.retryAfterMs, retryMs * 2 ** (attempt - 1)));
        await pause(wait, signal);
      }
    }
  }

  #url(path: string): URL {
    return new URL(path, this.#endpoint);
  }

  #file({ repo, revision }: Source, name: string): URL {
    return this.#url(`${repo}/resolve/${encodeURIComponent(revision)}/${encodeURIComponent(name)}`);
  }

  /**
   * A request that follows redirects itself, since the token must not leave the endpoint's origin. `linked` are the
   * headers of the last answer of that origin: the only one whose word on checksums counts. A HEAD stops where the hub
   * has told the size.
   */
  async #request(
    url: URL,
    source: Source,
    method: "GET" | "HEAD" = "GET",
    headers: Record<string, string> = {},
  ): Promise<{ response: Response; linked: Headers }> {
    const { token, signal, stallMs = 60_000 } = this.options;
    const watch = new AbortController();
    const timer = setTimeout(() => watch.abort(), stallMs);
    let linked = new Headers();
    try {
      for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
        const own = url.origin === this.#endpoint.origin;
        const response = await fetch(url, {
          method,
          redirect: "manual",
          signal: AbortSignal.any([watch.signal, ...signal ? [signal] : []]),
          headers: {
            "accept-encoding": "identity", // sizes and ranges count the file's own bytes
            ...headers,
            ...own && token && { authorization: `Bearer ${token}` },
          },
        });
        if (own) linked = response.headers;
        if (PASSING.includes(response.status)) {
          await response.body?.cancel();
          const wait = retryAfterMs(response.headers);
          throw new Passing(`${url.origin} answered ${response.status}`, wait);
        }
        if (!isRedirect(response) || (method === "HEAD" && linked.has("x-linked-size"))) {
          return { response, linked };
        }
        await response.body?.cancel();
        const next = URL.parse(response.headers.get("location") ?? "", url);
        if (
          !next || !/^https?:$/.test(next.protocol) ||
          (url.protocol === "https:" && next.protocol === "http:")
        ) {
          throw failed(source, `${url.origin} redirects to "${response.headers.get("location")}"`);
        }
        url = next;
      }
      throw failed(source, `more than ${MAX_REDIRECTS} redirects`);
    } catch (error) {
      if (error instanceof RequestError || error instanceof Passing || signal?.aborted) throw error;
      throw new Passing(
        watch.signal.aborted
          ? `${url.origin} did not answer within ${stallMs} ms`
          : `${url.origin}: ${(error as Error).message}`,
      );
    } finally {
      clearTimeout(timer);
    }
  }

  /** The body, given up when it is silent for too long. */
  async *#bytes(response: Response): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const { signal, stallMs = 60_000 } = this.options;
    const reader = response.body!.getReader();
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      while (true) {
        const { promise: silence, reject } = Promise.withResolvers<never>();
        timer = setTimeout(() => reject(new Error(`nothing for ${stallMs} ms`)), stallMs);
        const { done, value } = await Promise.race([reader.read(), silence]);
        clearTimeout(timer);
        if (done) return;
        yield value;
      }
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Passing(`the connection broke: ${(error as Error).message}`);
    } finally {
      clearTimeout(timer);
      await reader.cancel().catch(() => {});
    }
  }

  /** Turns a refusal into a sentence that says what to do. */
  async #check(response: Response, source: Source): Promise<void> {
    const { status, headers } = response;
    if (status === 200) return;
    await response.body?.cancel();
    const code = headers.get("x-error-code");
    const { origin, pathname } = new URL(response.url); // what follows may be a signature
    if (origin === this.#endpoint.origin) {
      const carried = `the request carried ${this.options.token ? "the token in HF_TOKEN" : "no token"}`;
      if (code === "GatedRepo" || status === 403) {
        const page = this.#url(source.repo).href;
        throw failed(
          source,
          `it is gated: accept its licence at ${page} and set HF_TOKEN; ${carried} (${status})`,
        );
      }
      if (status === 401) throw failed(source, `it is not there, or not without a token; ${carried} (401)`);
      if (code === "RepoNotFound") throw failed(source, "the hub has no such repository (404)");
      if (code === "RevisionNotFound") {
        throw failed(source, `the hub has no revision "${source.revision}" of it (404)`);
      }
    }
    throw failed(source, `expected status 200, found ${status} at ${origin}${pathname}`);
  }
}

/** Ends a body that is shorter than the file: the rest can be asked for. */
export function cutShort(name: string, at: number, sizeBytes: number): Error {
  return new Passing(`${name} ended after ${at} of ${sizeBytes} bytes`);
}

/** What the caller's own abort becomes. */
export function cancelled(): RequestError {
  return new RequestError("cancelled", "Download stopped: the same command goes on from here");
}

/** What the hub does not give, as a sentence. */
export function failed({ repo }: Source, detail: string): RequestError {
  return new RequestError("download_failed", `Cannot download ${repo}: ${detail}`);
}

function isRedirect({ status, headers }: Response): boolean {
  return status >= 300 && status < 400 && headers.has("location");
}

function checksumOf(etag: string | null): string | undefined {
  const hex = etag?.replace(/^W\//, "").replaceAll('"', "").toLowerCase() ?? "";
  if (/^[0-9a-f]{64}$/.test(hex)) return `sha256:${hex}`;
  return /^[0-9a-f]{40}$/.test(hex) ? `git-sha1:${hex}` : undefined;
}

/** What is wrong with an answer that should hold a file from `start` on; undefined where nothing is. */
function misfit(
  { status, headers }: Response,
  { name, sizeBytes }: RemoteFile,
  start: number,
): string | undefined {
  if (status === 206) {
    const found = headers.get("content-range");
    const [, from, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(found ?? "") ?? [];
    if (Number(from) !== start || total !== "*" && Number(total) !== sizeBytes) {
      return `expected bytes ${start} onwards of the ${sizeBytes} of ${name}, found "${found}"`;
    }
  }
  const length = headers.get("content-length");
  if (length === null || Number(length) === sizeBytes - start) return undefined;
  return `expected ${sizeBytes - start} bytes of ${name}, found ${length}`;
}

function parseObject(text: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}

/** Retry-After in seconds or as a date; without one, the seconds until the window of a `RateLimit` header ends. */
function retryAfterMs(headers: Headers): number {
  const window = /;\s*t=(\d+)/.exec(headers.get("ratelimit") ?? "")?.[1];
  const value = headers.get("retry-after") ?? window ?? "0";
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : 0;
}

async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const stop = () => reject(cancelled());
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", stop, { once: true });
  try {
    await promise;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
  }
}
