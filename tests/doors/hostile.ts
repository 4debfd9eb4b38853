/**
 * Requests as nobody would send them by mistake, at a server: bodies, pictures, headers, paths and whole connections
 * damaged at random, the same for the same seed. `deno task hostile` sends 10,000, and looks at the server's memory.
 */

import { randomFrom } from "../../lib/decode/sampler.ts";

const PICTURE = await Deno.readFile(new URL("../fixtures/scene.png", import.meta.url));

const PATHS = [
  "/v1/generate",
  "/v1/chat/completions",
  "/v1/jobs",
  "/v1/detect",
  "/v1/segment",
  "/v1/caption",
  "/v1/answer",
  "/v1/ocr",
  "/v1/classify",
  "/v1/embeddings/image",
  "/v1/hooks/none",
];

const JUNK: unknown[] = [
  null,
  true,
  -1,
  0.5,
  1e308,
  2 ** 63,
  "",
  "x".repeat(5000),
  "\0",
  "\ud800",
  "＜loc0001＞‮🏳️‍🌈",
  [],
  {},
  [[[[]]]],
  { a: { b: [] } },
  { toString: null, __proto__: null },
  "<image><eos><loc0001>",
  "http://0x7f000001/",
  "https://[::ffff:127.0.0.1]/",
  "https://user:pass@example.com/",
  "data:image/png;base64,!!!",
  "data:,",
  "file:///etc/passwd",
  Array(3000).fill("x"),
];

const HEADERS: [string, string][] = [
  ["last-event-id", "7"],
  ["last-event-id", "-1 OR 1=1"],
  ["x-request-id", "<script>"],
  ["traceparent", "00-0-0-0"],
  ["accept", "text/event-stream"],
  ["accept", "*/*;q=".repeat(500)],
  ["authorization", "Bearer " + "a".repeat(4000)],
  ["idempotency-key", "k".repeat(300)],
  ["content-encoding", "gzip"],
  ["x-forwarded-for", "127.0.0.1"],
  ["origin", "null"],
  ["range", "bytes=0-"],
  ["expect", "100-continue"],
];

const TYPES = [
  "application/json; charset=utf-7",
  "text/plain",
  "multipart/form-data; boundary=x",
  "multipart/form-data",
  "",
];

/** What came of them. */
export interface Outcome {
  /** Answers by status. */
  readonly statuses: Readonly<Record<string, number>>;
  /** Requests that were answered wrongly: a 5xx, no message, nothing in time. */
  readonly wrong: readonly string[];
}

/** Sends `count` requests, `lanes` at a time. */
export async function attack(url: string, { count, seed = 1, lanes = 16, timeoutMs = 20_000 }: {
  readonly count: number;
  readonly seed?: number;
  readonly lanes?: number;
  readonly timeoutMs?: number;
}): Promise<Outcome> {
  const statuses: Record<string, number> = {};
  const wrong: string[] = [];
  let sent = 0;
  async function lane() {
    while (sent < count) {
      const number = sent++;
      const draw = new Draw(randomFrom(seed * 1_000_003 + number));
      const status = draw.chance(0.03)
        ? await raw(url, draw, timeoutMs)
        : await fetched(url, draw, timeoutMs).catch((error) => `${error}`.slice(0, 80));
      const key = String(status);
      statuses[key] = (statuses[key] ?? 0) + 1;
      if (typeof status !== "number") wrong.push(`request ${number}: ${status}`);
    }
  }
  await Promise.all(Array.from({ length: lanes }, lane));
  return { statuses, wrong };
}

/** A status that is right for a wrong request, or what is wrong with the answer. */
async function fetched(url: string, draw: Draw, timeoutMs: number): Promise<number | string> {
  const path = draw.of(PATHS);
  const headers = new Headers({ "content-type": "application/json" });
  let body: BodyInit = damagedJson(path, draw);
  if (draw.chance(0.15)) {
    const form = new FormData();
    for (const name of ["image", "prompt", "labels", "question", "maxTokens", "images"]) {
      if (draw.chance(0.4)) {
        form.append(name, draw.chance(0.5) ? new Blob([picture(draw)]) : JSON.stringify(draw.of(JUNK)));
      }
    }
    headers.delete("content-type");
    body = form;
  } else if (draw.chance(0.1)) headers.set("content-type", draw.of(TYPES));
  for (let i = 0; i < 2; i++) if (draw.chance(0.2)) headers.set(...draw.of(HEADERS));
  const method = draw.chance(0.03) ? draw.of(["PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"]) : "POST";
  const signal = AbortSignal.timeout(timeoutMs);
  const response = await fetch(url + path + draw.of(["", "", "", "", "", "?x=%00", "/%2e%2e/x"]), {
    method,
    headers,
    body,
    signal,
  });
  const text = await response.text();
  const { status } = response;
  if (status >= 500 && !(status === 503 && response.headers.has("retry-after"))) {
    return `${method} ${path}: ${status} ${text.slice(0, 200)}`;
  }
  if (status >= 400) {
    try {
      const { detail, error } = JSON.parse(text);
      if (/^(items\[\d+\]: )?Cannot /.test(detail ?? error.message)) return status;
    } catch {
      // told below
    }
    return `${method} ${path}: ${status} without a message: ${text.slice(0, 200)}`;
  }
  return status;
}

/** A connection that does not hold to HTTP. Only that it ends is asked of it. */
async function raw(url: string, draw: Draw, timeoutMs: number): Promise<number | string> {
  const { hostname, port } = new URL(url);
  const connection = await Deno.connect({ hostname, port: Number(port) });
  const timer = setTimeout(() => connection.close(), timeoutMs);
  try {
    const start = "POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    const sent = draw.of([
      `${start}content-length: 100\r\n\r\n{`,
      `${start}content-length: -5\r\n\r\n{}`,
      `${start}content-length: 2\r\ncontent-length: 3\r\n\r\n{}`,
      `${start}transfer-encoding: chunked\r\n\r\nzz\r\n{}`,
      `${start}${"a: b\r\n".repeat(500)}\r\n`,
      "GET / HTTP/9.9\r\n\r\n",
      "\0\0\0\0",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]);
    await connection.write(new TextEncoder().encode(sent));
    await connection.closeWrite().catch(() => {});
    const answer = new Uint8Array(1024);
    const length = await connection.read(answer);
    const status = /^HTTP\/1\.1 (\d+)/.exec(new TextDecoder().decode(answer.subarray(0, length ?? 0)))?.[1];
    return Number(status ?? 0) >= 500
      ? `raw ${JSON.stringify(sent.slice(0, 60))}: ${status}`
      : Number(status ?? 0);
  } catch (error) {
    // The server may close on us; a read after our own timeout is a hang.
    return error instanceof Deno.errors.BadResource ? `raw: no end after ${timeoutMs} ms` : 0;
  } finally {
    clearTimeout(timer);
    try {
      connection.close();
    } catch {
      // closed by the timer
    }
  }
}

/** A good body with something wrong in it. */
function damagedJson(path: string, draw: Draw): Uint8Array<ArrayBuffer> {
  if (draw.chance(0.03)) return bytes(draw.of(["[", '{"a":', '"']).repeat(100_000));
  if (draw.chance(0.02)) return bytes("[".repeat(50_000) + "]".repeat(50_000));
  const image = draw.chance(0.6) ? PICTURE.toBase64() : picture(draw).toBase64();
  const native: Record<string, unknown> = { image, prompt: "caption en", maxTokens: 3 };
  if (/detect|segment|classify/.test(path)) [native.labels, native.prompt] = ["cat ; dog", undefined];
  if (/answer/.test(path)) [native.question, native.prompt] = ["what?", undefined];
  let body: unknown = native;
  if (path.includes("chat")) {
    const url = `data:image/png;base64,${image}`;
    const content = [{ type: "text", text: "caption en" }, { type: "image_url", image_url: { url } }];
    body = { model: "pg1", max_tokens: 3, messages: [{ role: "user", content }] };
  } else if (path.includes("jobs")) body = { items: [native], webhook: { url: "https://example.com/" } };
  for (let i = draw.below(3); i > 0; i--) damage(body, draw);
  const text = JSON.stringify(body).replace(
    /"(prompt|text)":/,
    (it) => draw.chance(0.02) ? `"__proto__":{"x":1},${it}` : it,
  );
  const whole = bytes(text);
  if (draw.chance(0.1)) return whole.slice(0, draw.below(whole.length));
  if (draw.chance(0.1)) { for (let i = 0; i < 5; i++) whole[draw.below(whole.length)] = draw.below(256); }
  return whole;
}

/** Puts junk somewhere into a body. */
function damage(body: unknown, draw: Draw): void {
  let place = body as Record<string, unknown>;
  while (draw.chance(0.6)) {
    const next = place[draw.of(Object.keys(place))];
    if (typeof next !== "object" || next === null || !Object.keys(next).length) break;
    place = next as Record<string, unknown>;
  }
  const more = ["stream", "seed", "temperature", "topK", "stop", "n", "budget", "masks", "box", "logprobs"];
  place[draw.of([...Object.keys(place), ...more])] = structuredClone(draw.of(JUNK));
}

/** A picture that is none any more, or is one by chance. */
function picture(draw: Draw): Uint8Array<ArrayBuffer> {
  const copy = PICTURE.slice();
  const kind = draw.below(4);
  if (kind === 0) return copy.slice(0, draw.below(copy.length));
  if (kind === 1) return Uint8Array.from({ length: draw.below(2000) }, () => draw.below(256));
  const [from, length] = kind === 2 ? [16, 8] : [0, copy.length]; // the size in the header of a PNG, or anything
  for (let i = 0; i < 8; i++) copy[from + draw.below(length)] = draw.below(256);
  return copy;
}

function bytes(text: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(text);
}

class Draw {
  constructor(private readonly random: () => number) {}

  chance(share: number): boolean {
    return this.random() < share;
  }

  below(count: number): number {
    return Math.floor(this.random() * count);
  }

  of<T>(all: readonly T[]): T {
    return all[this.below(all.length)];
  }
}

if (import.meta.main) {
  const { CHECKPOINT, startDoor } = await import("./door.ts");
  const { residentMb } = await import("./load.ts");
  const door = await startDoor({ MODEL: CHECKPOINT });
  const seed = Number(Deno.args[0] ?? 1);
  // By then it has all it needs.
  const first = await attack(door.url, { count: 2000, seed });
  const settledMb = await residentMb(door.pid);
  const second = await attack(door.url, { count: 8000, seed: seed + 1 });
  const grownMb = Math.round(await residentMb(door.pid) - settledMb);
  door.kill("SIGTERM");
  await door.status;
  const wrong = [...first.wrong, ...second.wrong];
  if (grownMb > 150) wrong.push(`${grownMb} MB more after 8000 requests`);
  const statuses = { ...first.statuses };
  for (const [status, count] of Object.entries(second.statuses)) {
    statuses[status] = (statuses[status] ?? 0) + count;
  }
  const outcome = { statuses, grownMb, wrong };
  Deno.stdout.writeSync(bytes(JSON.stringify(outcome, null, 1) + "\n" + door.output().stderr));
  Deno.exitCode = wrong.length ? 1 : 0;
}
