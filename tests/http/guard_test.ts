/** What stands before the routes: keys, limits, origins, ids, logs and numbers. */

import assert from "node:assert/strict";
import { type AppParts, createApp } from "../../lib/http/app.ts";
import { RequestError } from "../../lib/errors.ts";
import { readTraceparent } from "../../lib/http/guard/exchange.ts";
import { createLog } from "../../lib/http/guard/log.ts";
import { createMetrics, exposition, observed } from "../../lib/metrics.ts";
import { readSettings } from "../../functions/settings.ts";
import { Ledger } from "../../lib/schedule/ledger.ts";
import { ending, PICTURE, scripted, token, twoTokens } from "./doubles.ts";

const image = PICTURE.toBase64();

function app(parts: Partial<AppParts> = {}) {
  return createApp({ pipeline: twoTokens, ...parts });
}

function asking(headers: Record<string, string> = {}, more: Record<string, unknown> = {}): RequestInit {
  return {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ image, prompt: "a secret prompt", ...more }),
  };
}

async function digest(text: string) {
  const bytes = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return `sha256:${new Uint8Array(bytes).toHex()}`;
}

Deno.test("a key opens /v1 and /metrics, from either header, also where only its digest is known", async () => {
  const guarded = app({ apiKeys: ["key-one", await digest("key-two")] });
  const status = async (headers: Record<string, string>, path = "/v1/models") =>
    (await guarded.request(path, { headers })).status;
  assert.equal(await status({ authorization: "Bearer key-one" }), 200);
  assert.equal(await status({ authorization: "bearer  key-two" }), 200);
  assert.equal(await status({ "x-api-key": "key-two" }), 200);
  const refused = [
    {},
    { authorization: "Bearer key-on" },
    { authorization: "key-one" },
    { "x-api-key": "" },
    {
      authorization: `Bearer ${await digest("key-two")}`,
    },
  ];
  for (const headers of refused as Record<string, string>[]) {
    assert.equal(await status(headers), 401, JSON.stringify(headers));
    assert.equal(await status(headers, "/metrics"), 401);
    assert.equal(await status(headers, "/v1/anything"), 401);
  }
  for (const open of ["/health", "/", "/openapi.json", "/docs"]) {
    assert.equal(await status({}, open), 200, open);
  }

  const response = await guarded.request("/v1/generate", asking());
  assert.equal(response.headers.get("www-authenticate"), "Bearer");
  assert.equal((await response.json()).code, "unauthorized");
  assert.equal((await (await guarded.request("/v1/models")).json()).error.code, "invalid_api_key");
  assert.throws(() => app({ apiKeys: [] }), RangeError);
  assert.throws(() => app({ apiKeys: ["sha256:12"] }), RangeError);
});

Deno.test("each key has its requests a minute, told in the RateLimit fields", async () => {
  const guarded = app({ apiKeys: ["a", "b"], limits: { requestsPerMinute: 3 } });
  const ask = (key: string) => guarded.request("/v1/models", { headers: { authorization: `Bearer ${key}` } });
  for (const left of [2, 1, 0]) {
    const response = await ask("a");
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("ratelimit-policy"), '"minute";q=3;w=60');
    assert.match(response.headers.get("ratelimit")!, new RegExp(`^"minute";r=${left};t=(60|59)$`));
  }
  const beyond = await ask("a");
  assert.equal(beyond.status, 429);
  assert.ok(Number(beyond.headers.get("retry-after")) >= 59);
  assert.match(beyond.headers.get("ratelimit")!, /r=0/);
  assert.equal((await beyond.json()).error.code, "rate_limit_exceeded");
  assert.equal((await ask("b")).status, 200);
  assert.equal((await app().request("/v1/models")).headers.get("ratelimit"), null);
});

Deno.test("requests at once are counted until the last byte of a stream, or until its reader goes", async () => {
  const metrics = createMetrics();
  const endless = scripted(async function* () {
    for (let i = 0;; i++) {
      await new Promise((resolve) => setTimeout(resolve, 1));
      yield token(i, "x");
    }
  });
  let pipeline = endless;
  const guarded = app({ pipeline: () => pipeline, limits: { concurrent: 2 }, metrics });
  const open = async () => {
    const response = await guarded.request("/v1/generate", asking({}, { stream: true }));
    assert.equal(response.status, 200);
    return response.body!.getReader();
  };
  const readers = [await open(), await open()];
  assert.equal(metrics.inFlight.value(), 2);
  const third = await guarded.request("/v1/generate", asking());
  assert.deepEqual([third.status, third.headers.get("retry-after")], [429, "1"]);
  await readers[0].cancel();
  pipeline = twoTokens();
  assert.equal((await guarded.request("/v1/generate", asking())).status, 200);
  const whole = await guarded.request("/v1/generate", asking({}, { stream: true }));
  assert.equal((await guarded.request("/v1/generate", asking())).status, 429);
  await whole.text();
  assert.equal((await guarded.request("/v1/generate", asking())).status, 200);
  await readers[1].cancel();
  assert.equal(metrics.inFlight.value(), 0);
});

Deno.test("pages of the origins named may call, others may not", async () => {
  const preflight = (origin: string) => ({
    method: "OPTIONS",
    headers: {
      origin,
      "access-control-request-method": "POST",
      "access-control-request-headers": "authorization",
    },
  });
  const guarded = app({ origins: ["https://a.example"], apiKeys: ["a"] });
  const allowed = await guarded.request("/v1/generate", preflight("https://a.example"));
  assert.deepEqual([allowed.status, allowed.headers.get("access-control-allow-origin")], [
    204,
    "https://a.example",
  ]);
  assert.match(allowed.headers.get("access-control-allow-headers")!, /authorization/);
  const other = await guarded.request("/v1/generate", preflight("https://b.example"));
  assert.equal(other.headers.get("access-control-allow-origin"), null);
  const answer = await guarded.request(
    "/v1/generate",
    asking({ origin: "https://a.example", "x-api-key": "a" }),
  );
  assert.equal(answer.headers.get("access-control-allow-origin"), "https://a.example");
  assert.match(answer.headers.get("access-control-expose-headers")!, /x-request-id/);
  const closed = await app().request("/v1/generate", asking({ origin: "https://a.example" }));
  assert.equal(closed.headers.get("access-control-allow-origin"), null);
});

Deno.test("a request has an id and a line in the log, which holds nothing of picture, prompt or answer", async () => {
  const lines: string[] = [];
  const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const logged = app({ log: createLog("info", (line) => lines.push(line)), apiKeys: ["key-one"] });
  const headers = { "x-request-id": "mine-1", traceparent, authorization: "Bearer key-one" };
  const response = await logged.request("/v1/generate", asking(headers, { stream: true }));
  assert.equal(response.headers.get("x-request-id"), "mine-1");
  assert.equal(lines.length, 0, "a stream is logged when it is over");
  await response.text();
  const { time, durationMs, caller, ...line } = JSON.parse(lines[0]);
  assert.deepEqual(line, {
    level: "info",
    event: "request",
    id: "mine-1",
    traceId: traceparent.slice(3, 35),
    method: "POST",
    route: "/v1/generate",
    status: 200,
  });
  assert.match(time, /^\d{4}-/);
  assert.match(caller, /^[0-9a-f]{8}$/);
  assert.ok(durationMs >= 0);

  const evil = await logged.request("/v1/x%0a" + "y".repeat(500), { headers: { "x-request-id": "a\tb" } });
  assert.match(evil.headers.get("x-request-id")!, /^[0-9a-f-]{36}$/);
  assert.equal(JSON.parse(lines[1]).route, "none");
  assert.equal(lines.length, 2);
  for (const word of ["secret", "key-one", image, "red"]) assert.ok(!lines.join().includes(word), word);

  const quiet: string[] = [];
  await app({ log: createLog("warn", (it) => quiet.push(it)) }).request("/v1/models");
  assert.deepEqual(quiet, []);
});

Deno.test("traceparent is read where it is one", () => {
  const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  assert.equal(readTraceparent(good), good);
  const bad = [
    undefined,
    "",
    good.toUpperCase(),
    good.replace("00-", "ff-"),
    good + "-x",
    good.replace(/4bf\w+/, "0".repeat(32)),
  ];
  for (const it of bad) assert.equal(readTraceparent(it), undefined, it);
});

Deno.test("the numbers count what was answered, in a form that Prometheus reads", async () => {
  const metrics = createMetrics();
  const answer = async function* () {
    for (let i = 0; i < 3; i++) {
      await new Promise((resolve) => setTimeout(resolve, 12));
      yield token(i, "x");
    }
    yield* ending("xxx", 3);
  };
  const pipeline = scripted(() => observed(answer(), pipeline.model, metrics));
  const counted = app({ pipeline: () => pipeline, metrics });
  await (await counted.request("/v1/generate", asking())).text();
  await (await counted.request("/v1/generate", asking({}, { stream: true }))).text();
  await counted.request("/v1/generate", asking({}, { maxTokens: "x" }));
  const text = await (await counted.request("/metrics")).text();
  const value = (line: string) => Number(new RegExp(`^${RegExp.escape(line)} (\\S+)$`, "m").exec(text)?.[1]);
  assert.equal(value('paligemma_http_requests_total{route="/v1/generate",status="200"}'), 2);
  assert.equal(value('paligemma_http_requests_total{route="/v1/generate",status="400"}'), 1);
  assert.equal(value('paligemma_tokens_total{kind="completion"}'), 6);
  assert.equal(value('paligemma_tokens_total{kind="image"}'), 32);
  assert.equal(value("paligemma_time_to_first_token_seconds_count"), 2);
  assert.equal(value("paligemma_inter_token_seconds_count"), 4);
  assert.equal(value('paligemma_inter_token_seconds_bucket{le="0.01"}'), 0);
  assert.equal(value('paligemma_inter_token_seconds_bucket{le="+Inf"}'), 4);
  assert.ok(value("paligemma_inter_token_seconds_sum") >= 0.04);
  assert.equal(value("paligemma_answer_seconds_count"), 2);
  assert.equal(value("paligemma_http_requests_in_flight"), 1);
  for (const line of text.trimEnd().split("\n")) {
    assert.match(line, /^(# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"\n]*"(,\w+="[^"\n]*")*\})? -?[\d.e+-]+)$/);
  }
  // However many routes and models somebody makes up, the numbers stay few.
  for (let i = 0; i < 1000; i++) metrics.routes.add(1, `route "${i}"\n`);
  assert.ok(exposition(metrics).split("\n").length < 400);
});

Deno.test("numbers are looked up when they are read; what cannot be is told to the operator, and all else is read", async () => {
  const lines: string[] = [];
  let jobs = 0;
  const counted = app({
    log: createLog("error", (it) => lines.push(it)),
    measure({ backlog }) {
      if (jobs === 2) return Promise.reject(new RequestError("storage_failed", "the database is gone"));
      return Promise.resolve(backlog.set(++jobs, "jobs"));
    },
  });
  for (const expected of [1, 2, 2]) {
    const text = await (await counted.request("/metrics")).text();
    assert.match(text, new RegExp(`^paligemma_backlog\\{kind="jobs"\\} ${expected}$`, "m"));
  }
  assert.equal(lines.length, 1);
  assert.match(lines[0], /the database is gone/);
});

Deno.test("the environment is read with all its mistakes named", () => {
  const read = (env: Record<string, string>) => readSettings((name) => env[name]);
  const { dataDirectory: _, webhookSecrets: __, worker: ___, ...plain } = read({});
  assert.deepEqual(plain, {
    port: 8000,
    model: undefined,
    smaller: undefined,
    uploadKey: undefined,
    backend: "wasm",
    threads: undefined,
    limits: { requestsPerMinute: Infinity, concurrent: Infinity },
    origins: [],
    logLevel: "warn",
    allowPrivateUrls: false,
  });
  const { apiKeys, limits, origins } = read({ API_KEYS: "a, b", RATE_LIMIT: "5", CORS_ORIGINS: "*" });
  assert.deepEqual([apiKeys, limits, origins], [["a", "b"], { requestsPerMinute: 5, concurrent: 32 }, ["*"]]);
  for (
    const [name, value] of [["PORT", "x"], ["PORT", "70000"], ["RATE_LIMIT", "0"], ["LOG_LEVEL", "loud"], [
      "BACKEND",
      "gpu",
    ]]
  ) {
    assert.throws(() => read({ [name]: value }), {
      name: "RangeError",
      message: new RegExp(`${name} to be .*"${value}"`),
    });
  }
});

Deno.test("where memory is limited, a body without room for its copies is not even read, and gives its room back", async () => {
  const ledger = new Ledger(10_000, () => 4000);
  const limited = app({ memory: ledger });
  const status = async (bytes: number) => {
    const init = asking({ "content-length": `${bytes}` });
    const response = await limited.request("/v1/generate", init);
    return [response.status, (await response.json()).code];
  };
  assert.deepEqual(await status(2000), [200, undefined]);
  assert.deepEqual(await status(2001), [413, "memory_exceeded"]);
  using _ = ledger.take(3000, "stay");
  assert.deepEqual(await status(2000), [503, "overloaded"]);
  assert.equal(ledger.bytes, 7000);
  assert.equal(ledger.mostBytes, 10_000);
});
