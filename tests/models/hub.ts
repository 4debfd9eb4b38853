/**
 * A model hub on two real ports, as Hugging Face's behaves: small files come from the hub itself with the id of their
 * git blob as ETag, large ones by redirect from another origin, which knows ranges. And the ways it can go wrong.
 */

import { createHash } from "node:crypto";

export const REPO = "somebody/pali";
export const TOKEN = "hf_of_a_test";

/** What happens to one request of a file's bytes: nothing special, or one of these. */
export type Trouble =
  | "cut" // the connection breaks half way through what was asked for
  | "stall" // half of it, then silence
  | "slow" // all of it, a little at a time
  | "no-range" // 200 with the whole file, whatever was asked for
  | "no-range, cut" // the same, and it breaks half way
  | "wrong" // one bit differs
  | "longer" // a byte more than the file has, without a length
  | number // this status, with Retry-After: 1 where it is 429
  | undefined;

/** How a hub is to behave. */
export interface HubSettings {
  /** The one repository there is; `REPO` by default. */
  readonly repo?: string;
  /** Who may read: everybody, who has a token, or nobody before the licence is accepted. */
  readonly gate?: "open" | "token" | "licence";
  /** Whether it has lists of files; true by default. */
  readonly lists?: boolean;
  /** Trouble with the nth request for the bytes of a large file, from 1. */
  trouble?: (file: string, request: number) => Trouble;
  /** Trouble with requests to the hub's own port, the nth from 1. */
  hubTrouble?: (path: string, request: number) => Trouble;
  /** Size that the hub claims of a file. */
  readonly claim?: (file: string) => number | undefined;
}

/** A request that was seen. */
export interface Seen {
  readonly origin: "hub" | "cdn";
  readonly method: string;
  readonly path: string;
  readonly authorization: string | null;
  readonly range: string | null;
  readonly ifRange: string | null;
}

/** A running hub. */
export interface TestHub extends AsyncDisposable {
  readonly endpoint: string;
  readonly seen: Seen[];
  /** Bytes of large files that left the other origin. */
  readonly sentBytes: number;
  /** The most requests that were under way there at once. */
  readonly mostAtOnce: number;
  settings: HubSettings;
  /** Files by commit; `main` stands for the last. */
  push(files: Record<string, Uint8Array>): string;
}

/** Serves a repository of these files. */
export function startHub(files: Record<string, Uint8Array>, settings: HubSettings = {}): TestHub {
  const commits = new Map<string, Record<string, Uint8Array>>();
  const seen: Seen[] = [];
  const counts = new Map<string, number>();
  let [sentBytes, under, mostAtOnce] = [0, 0, 0];

  const see = (origin: Seen["origin"], request: Request) => {
    const url = new URL(request.url);
    const header = (name: string) => request.headers.get(name);
    seen.push({
      origin,
      method: request.method,
      path: url.pathname,
      authorization: header("authorization"),
      range: header("range"),
      ifRange: header("if-range"),
    });
    const key = `${origin} ${url.pathname}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
    return { url, count: counts.get(key)! };
  };
  const filesAt = (revision: string) =>
    revision === "main" ? [...commits.entries()].at(-1)! : [revision, commits.get(revision)] as const;
  const error = (status: number, code: string) =>
    new Response(null, { status, headers: { "x-error-code": code, "x-error-message": code } });
  const failing = (status: number) =>
    new Response(null, { status, headers: status === 429 ? { "retry-after": "1" } : {} });

  const stop = new AbortController(); // a shutdown would wait for connections that stall
  const cdn = Deno.serve({ port: 0, signal: stop.signal, onListen() {} }, (request) => {
    const { url, count } = see("cdn", request);
    const [, commit, file] = url.pathname.split("/");
    if (!url.search.includes("signature=good")) return new Response(null, { status: 403 });
    const bytes = commits.get(commit)?.[file];
    if (!bytes) return new Response(null, { status: 404 });
    const trouble = hub.settings.trouble?.(file, count);
    if (typeof trouble === "number") return failing(trouble);
    const etag = `"${sha256(bytes)}-stored"`; // not the hub's: storage has its own
    const headers = new Headers({ etag, "accept-ranges": "bytes" });
    let [start, status] = [0, 200];
    const asked = /^bytes=(\d+)-$/.exec(request.headers.get("range") ?? "");
    const condition = request.headers.get("if-range");
    if (asked && !trouble?.startsWith("no-range") && (condition === null || condition === etag)) {
      [start, status] = [Number(asked[1]), 206];
      if (start >= bytes.length) return new Response(null, { status: 416 });
      headers.set("content-range", `bytes ${start}-${bytes.length - 1}/${bytes.length}`);
    }
    if (trouble !== "longer") headers.set("content-length", String(bytes.length - start));
    return new Response(body(bytes.slice(start), trouble), { status, headers });
  });

  function body(bytes: Uint8Array, trouble: Exclude<Trouble, number>): ReadableStream<Uint8Array> {
    const half = bytes.length >> 1;
    if (trouble === "wrong") bytes[half] ^= 1;
    const piece = trouble === "slow" ? Math.ceil(bytes.length / 50) : 16384;
    const until = trouble === "stall" || trouble?.endsWith("cut") ? half : bytes.length;
    let at = 0;
    mostAtOnce = Math.max(mostAtOnce, ++under);
    return new ReadableStream({
      async pull(controller) {
        if (at < until) {
          if (trouble === "slow" || at === 0) await new Promise((done) => setTimeout(done, 10));
          const next = bytes.subarray(at, Math.min(until, at + piece));
          controller.enqueue(next);
          [at, sentBytes] = [at + next.length, sentBytes + next.length];
        } else if (trouble === "stall") await new Promise(() => {});
        else {
          // Where a length was promised, an early end breaks the connection.
          if (trouble === "longer") controller.enqueue(new Uint8Array(1));
          under--;
          controller.close();
        }
      },
      cancel: () => void under--,
    });
  }

  const server = Deno.serve({ port: 0, signal: stop.signal, onListen() {} }, (request) => {
    const { url, count } = see("hub", request);
    const trouble = hub.settings.hubTrouble?.(url.pathname, count);
    if (typeof trouble === "number") return failing(trouble);
    const { repo: only = REPO, gate = "open", lists = true } = hub.settings;
    const known = request.headers.get("authorization") === `Bearer ${TOKEN}`;
    const path = decodeURIComponent(url.pathname);
    const listed = /^\/api\/models\/([^/]+\/[^/]+)\/revision\/([^/]+)$/.exec(path);
    if (listed) {
      if (!lists) return new Response(null, { status: 404 });
      if (listed[1] !== only) return known ? error(404, "RepoNotFound") : error(401, "RepoNotFound");
      const [commit, there] = filesAt(listed[2]);
      if (!there) return error(404, "RevisionNotFound");
      return Response.json({
        id: REPO,
        sha: commit,
        siblings: Object.keys(there).map((rfilename) => ({ rfilename })),
      });
    }
    const [, repo, , revision, file] =
      /^\/(?:api\/resolve-cache\/)?(.+?)(\/resolve)?\/([^/]+)\/([^/]+)$/.exec(path) ?? [];
    if (repo !== only) return error(known ? 404 : 401, "RepoNotFound");
    if (gate === "licence" || gate === "token" && !known) return error(known ? 403 : 401, "GatedRepo");
    const [commit, there] = filesAt(revision);
    if (!there) return error(404, "RevisionNotFound");
    const bytes = there[file];
    if (!bytes) return error(404, "EntryNotFound");
    const about = { "x-repo-commit": commit };
    if (/\.(safetensors|npz|model)$/.test(file)) {
      const location = `http://127.0.0.1:${cdn.addr.port}/${commit}/${file}?signature=good`;
      const linked = {
        "x-linked-size": String(hub.settings.claim?.(file) ?? bytes.length),
        "x-linked-etag": `"${sha256(bytes)}"`,
      };
      return new Response(null, { status: 302, headers: { ...about, ...linked, location } });
    }
    if (path.includes("/resolve/")) {
      const location = `/api/resolve-cache/${only}/${commit}/${file}`;
      return new Response(null, { status: 307, headers: { ...about, location } });
    }
    const blob = createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
    const headers = { ...about, etag: `"${blob}"`, "content-length": String(bytes.length) };
    return new Response(request.method === "HEAD" ? null : bytes as Uint8Array<ArrayBuffer>, { headers });
  });

  const hub: TestHub = {
    endpoint: `http://localhost:${server.addr.port}`,
    seen,
    settings,
    get sentBytes() {
      return sentBytes;
    },
    get mostAtOnce() {
      return mostAtOnce;
    },
    push(next) {
      const commit = createHash("sha1").update(String(commits.size)).digest("hex");
      commits.set(commit, next);
      return commit;
    },
    async [Symbol.asyncDispose]() {
      stop.abort();
      await Promise.all([server.finished, cdn.finished]);
    },
  };
  hub.push(files);
  return hub;
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
