/** The routes of jobs and hooks, in an app as doors make it. The model is scripted; the doors' tests run the real one. */

import assert from "node:assert/strict";
import { createNetwork } from "../../functions/network.ts";
import { createApp } from "../../lib/http/app.ts";
import { RequestError } from "../../lib/errors.ts";
import { hookRoutes } from "../../lib/http/hooks.ts";
import { HOOK_VIEW, JOB_OPERATIONS, JOB_VIEW, LETTER } from "../../lib/http/job_schemas.ts";
import { itemWork, jobRoutes } from "../../lib/http/jobs.ts";
import { createOutbound } from "../../lib/http/outbound.ts";
import { Hooks } from "../../lib/jobs/hooks.ts";
import { sign } from "../../lib/jobs/signature.ts";
import { createMemoryStore } from "../../lib/store/memory.ts";
import { harness, SECRET } from "../jobs/harness.ts";
import { until } from "../until.ts";
import { parseEvents, PICTURE, twoTokens } from "./doubles.ts";

const ITEM = { image: PICTURE.toBase64(), prompt: "caption en" };

function service({ apiKeys, allowPrivate = false }: { apiKeys?: string[]; allowPrivate?: boolean } = {}) {
  const outbound = createOutbound(createNetwork(), { allowPrivate });
  const store = createMemoryStore();
  const pipeline = twoTokens();
  const parts = harness(store, itemWork(() => pipeline, outbound));
  const hooks = new Hooks(store.records, parts.jobs, [SECRET]);
  const app = createApp({
    pipeline: () => pipeline,
    apiKeys,
    outbound,
    operations: JOB_OPERATIONS,
    rooms: [jobRoutes({ ...parts, outbound, heartbeatMs: 50 }), hookRoutes({ hooks, outbound })],
  });
  const ask = async (method: string, path: string, body?: unknown, headers: Record<string, string> = {}) => {
    const type = { "content-type": "application/json" };
    const raw = typeof body === "string" ? body : body && JSON.stringify(body);
    const response = await app.request(path, {
      method,
      body: raw as string,
      headers: { ...type, ...headers },
    });
    const text = await response.text();
    return {
      status: response.status,
      headers: response.headers,
      text,
      json: text.startsWith("{") ? JSON.parse(text) : {},
    };
  };
  return { ...parts, ask, app, hooks, store };
}

Deno.test("a job over HTTP: accepted, asked for, its events, resumed, ended", async () => {
  const { ask, working, ended } = service();
  const { status, headers, json } = await ask("POST", "/v1/jobs", {
    items: [ITEM, { ...ITEM, maxTokens: 3 }],
  });
  assert.deepEqual([status, headers.get("location"), json.status], [202, `/v1/jobs/${json.id}`, "queued"]);
  assert.deepEqual(json.items[1], { index: 1, status: "queued", attempts: 0 });
  const events = await working(async () => {
    await ended(json.id);
    return await ask("GET", `/v1/jobs/${json.id}/events`);
  });
  assert.match(events.headers.get("content-type")!, /^text\/event-stream/);
  assert.match(events.text, /^retry: 1000\n\n/);
  const all = parseEvents(events.text);
  assert.deepEqual(all.map((it) => it.event), ["item", "item", "job"]);
  assert.equal((all[0].data as { result: { text: string } }).result.text, "red\né");
  const rest = await ask("GET", `/v1/jobs/${json.id}/events`, undefined, { "last-event-id": all[0].id });
  assert.deepEqual(parseEvents(rest.text), all.slice(1));
  const none = await ask("GET", `/v1/jobs/${json.id}/events`, undefined, { "last-event-id": all[2].id });
  assert.equal(none.status, 204);
  const done = await ask("GET", `/v1/jobs/${json.id}`);
  JOB_VIEW.parse(done.json);
  assert.deepEqual([done.json.status, done.json.items[0].result.model], ["done", "scripted"]);
  assert.equal((await ask("DELETE", `/v1/jobs/${json.id}`)).json.status, "done");
});

Deno.test("events of a job that waits: heartbeats, the cancellation, the end; a client that leaves ends its stream", async () => {
  const { ask, app } = service();
  const { json: { id } } = await ask("POST", "/v1/jobs", { items: [ITEM] });
  const reader = (await app.request(`/v1/jobs/${id}/events`)).body!.getReader();
  let text = "";
  while (!text.includes(": heartbeat")) text += new TextDecoder().decode((await reader.read()).value);
  assert.equal((await ask("DELETE", `/v1/jobs/${id}`)).json.status, "cancelled");
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += new TextDecoder().decode(part.value);
  }
  assert.deepEqual(parseEvents(text).at(-1)!.data, { id, status: "cancelled" });
  const { json: other } = await ask("POST", "/v1/jobs", { items: [ITEM] });
  const leaving = await app.request(`/v1/jobs/${other.id}/events`);
  await leaving.body!.cancel();
});

Deno.test("a client that has all of a waiting job so far misses no change, however long the first takes", async () => {
  const { ask, app } = service();
  const { json: { id } } = await ask("POST", "/v1/jobs", { items: [ITEM] });
  const before = (await app.request(`/v1/jobs/${id}/events`)).body!.getReader();
  let seen = "";
  while (!seen.includes(": heartbeat")) seen += new TextDecoder().decode((await before.read()).value);
  await before.cancel();
  const headers = { "last-event-id": parseEvents(seen).at(-1)!.id! };
  // Answered after a silence of one heartbeat; what comes then is still the first change.
  const after = await app.request(`/v1/jobs/${id}/events`, { headers });
  await ask("DELETE", `/v1/jobs/${id}`);
  const changes = parseEvents(await after.text());
  assert.deepEqual(changes.at(-1)!.data, { id, status: "cancelled" });
  assert.equal(changes[0].id, String(Number(headers["last-event-id"]) + 1));
});

Deno.test("one Idempotency-Key is one job", async () => {
  const { ask } = service();
  const post = (items: unknown[], key: string) =>
    ask("POST", "/v1/jobs", { items }, { "idempotency-key": key });
  const [first, second] = [await post([ITEM], "one"), await post([ITEM], "one")];
  assert.deepEqual([second.status, second.json.id], [202, first.json.id]);
  assert.notEqual((await post([ITEM], "two")).json.id, first.json.id);
  const other = await post([ITEM, ITEM], "one");
  assert.deepEqual([other.status, other.json.code], [422, "idempotency_mismatch"]);
  assert.equal((await post([ITEM], "x".repeat(256))).status, 400);
  assert.equal((await post([ITEM], "")).status, 400);
});

Deno.test("what is wrong with a job is told with its place, and nothing of it is kept", async () => {
  const { ask, jobs } = service();
  const cases: [unknown, number, RegExp][] = [
    [{}, 400, /items: expected an array of bodies/],
    [{ items: [] }, 400, /items: expected at least one item/],
    [{ items: Array(101).fill(ITEM) }, 400, /items: expected at most 100 items/],
    [{ items: [1] }, 400, /items\[0\]: expected an object/],
    [{ items: [ITEM, { prompt: "" }] }, 400, /items\[1\]: Cannot read the request: expected image or images/],
    [{ items: [{ ...ITEM, maxTokens: 0 }] }, 400, /items\[0\]: .*maxTokens/],
    [{ items: [{ ...ITEM, stream: true }] }, 400, /items\[0\]: expected no stream/],
    [{ items: [ITEM], more: 1 }, 400, /more/],
    [{ items: [ITEM], webhook: { url: "https://127.0.0.1/" } }, 400, /expected a host name/],
    [{ items: [ITEM], webhook: { url: "http://example.com/" } }, 400, /expected https:/],
    [
      { items: [ITEM], webhook: { url: `https://example.com/${"x".repeat(2000)}` } },
      400,
      /at most 2000 characters/,
    ],
    [{ items: [ITEM], webhook: { url: "https://example.com/", secret: "short" } }, 400, /webhook.secret/],
    ["[", 400, /expected JSON/],
    ["[".repeat(100_000), 400, /./],
  ];
  for (const [body, status, message] of cases) {
    const answer = await ask("POST", "/v1/jobs", body);
    assert.equal(answer.status, status, answer.text);
    assert.match(answer.json.detail, message);
  }
  for (const [method, path] of [["GET", ""], ["DELETE", ""], ["GET", "/events"]]) {
    for (const id of ["job_1", "..%2f..", `job_${"0".repeat(32)}`]) {
      assert.equal((await ask(method, `/v1/jobs/${id}${path}`)).status, 404);
    }
  }
  const { id } = await jobs.create({ items: [ITEM] });
  const odd = await ask("GET", `/v1/jobs/${id}/events`, undefined, { "last-event-id": "x" });
  assert.equal(odd.status, 400);
  assert.equal((await ask("PUT", "/v1/jobs", {})).status, 405);
});

Deno.test("dead letters are listed and sent again", async () => {
  const { ask, working, webhooks } = service();
  const { json } = await ask("POST", "/v1/jobs", { items: [ITEM], webhook: { url: "https://example.com/" } });
  const letter = json.id.replace("job", "msg");
  await working(() => until(async () => (await webhooks.get(letter))?.status === "dead"));
  const listed = await ask("GET", "/v1/letters?status=dead");
  assert.deepEqual(listed.json.letters.map((it: { id: string; job: string }) => [it.id, it.job]), [[
    letter,
    json.id,
  ]]);
  LETTER.parse(listed.json.letters[0]);
  assert.equal(listed.json.letters[0].attempts[0].error, "nobody listens");
  assert.deepEqual((await ask("GET", "/v1/letters?status=delivered")).json, { letters: [] });
  assert.equal((await ask("GET", "/v1/letters?status=lost")).status, 400);
  const again = await ask("POST", `/v1/letters/${letter}/send`);
  assert.deepEqual([again.status, again.json.status], [202, "pending"]);
  for (const id of ["msg_0", "..%2f..", "msg_%00", "msg_A", `msg_${"0".repeat(300)}`]) {
    assert.equal((await ask("POST", `/v1/letters/${id}/send`)).status, 404);
  }
  assert.ok(!listed.text.includes("whsec_"));
});

Deno.test("a hook: defined with a key, called with a signature, one job for one message", async () => {
  const { ask, working } = service({ apiKeys: ["the-key"] });
  const key = { authorization: "Bearer the-key" };
  const hook = { item: { image: "/photo/data", prompt: "caption {/lang}", maxTokens: 5 } };
  assert.equal((await ask("PUT", "/v1/hooks/chat", hook)).status, 401);
  const put = await ask("PUT", "/v1/hooks/chat", hook, key);
  assert.deepEqual([put.status, put.json], [200, { name: "chat", signature: "standard", ...hook }]);
  HOOK_VIEW.parse(put.json);
  const event = JSON.stringify({ photo: { data: ITEM.image }, lang: "en" });
  const signed = (id = "msg_1", body = event) => sign([SECRET], id, new Date(), body);
  const first = await ask("POST", "/v1/hooks/chat", event, signed());
  assert.equal(first.status, 202, first.text);
  assert.equal((await ask("POST", "/v1/hooks/chat", event, signed())).json.id, first.json.id);
  assert.notEqual((await ask("POST", "/v1/hooks/chat", event, signed("msg_2"))).json.id, first.json.id);
  const made = () => ask("GET", first.headers.get("location")!, undefined, key);
  await working(() => until(async () => (await made()).json.status === "done"));
  const refused: [string, string, Record<string, string>, number, string][] = [
    ["chat", event, {}, 401, "signature_invalid"],
    ["chat", event, key, 401, "signature_invalid"],
    ["chat", event.replace("en", "de"), signed(), 401, "signature_invalid"],
    ["other", event, signed(), 404, "not_found"],
    ["Chat", event, signed(), 404, "not_found"],
    ["chat", "{}", signed("msg_3", "{}"), 400, "parameter_invalid"],
    ["chat", "no json", signed("msg_4", "no json"), 400, "body_invalid"],
  ];
  for (const [name, body, headers, status, code] of refused) {
    const answer = await ask("POST", `/v1/hooks/${name}`, body, headers);
    assert.deepEqual([answer.status, answer.json.code], [status, code], answer.text);
  }
  assert.equal((await ask("GET", "/v1/hooks", undefined, key)).json.hooks.length, 1);
  assert.equal((await ask("GET", "/v1/hooks")).status, 401);
  assert.equal((await ask("DELETE", "/v1/hooks/chat", undefined, key)).status, 204);
  assert.equal((await ask("POST", "/v1/hooks/chat", event, signed())).status, 404);
});

Deno.test("jobs, letters, hooks and idempotency keys are those of the API key that made them; to others there are none", async () => {
  const { ask, working, webhooks, hooks, jobs, store } = service({ apiKeys: ["mine", "other"] });
  const [mine, other] = ["mine", "other"].map((it) => ({ authorization: `Bearer ${it}` }));
  const once = { "idempotency-key": "one" };
  const webhook = { url: "https://example.com/" };
  const { json: job } = await ask("POST", "/v1/jobs", { items: [ITEM], webhook }, { ...mine, ...once });
  const { json: theirs } = await ask("POST", "/v1/jobs", { items: [ITEM, ITEM] }, { ...other, ...once });
  assert.notEqual(theirs.id, job.id);
  const hook = { item: { image: "/image", prompt: "caption en" }, webhook };
  assert.equal((await ask("PUT", "/v1/hooks/chat", hook, mine)).status, 200);
  const event = JSON.stringify({ image: ITEM.image });
  const signed = sign([SECRET], "msg_1", new Date(), event);
  const { json: come } = await ask("POST", "/v1/hooks/chat", event, signed);
  const letters = [job.id, come.id].map((it) => it.replace("job", "msg"));
  const everyLetter = async () => (await Array.fromAsync(store.records.keys("letters/"))).length === 2;
  await working(() => until(everyLetter));

  const routes = (letter: string): [string, string, unknown?][] => [
    ["GET", `/v1/jobs/${job.id}`],
    ["GET", `/v1/jobs/${come.id}`],
    ["GET", `/v1/jobs/${job.id}/events`],
    ["DELETE", `/v1/jobs/${come.id}`],
    ["POST", `/v1/letters/${letter}/send`],
    ["GET", "/v1/hooks/chat"],
    ["PUT", "/v1/hooks/chat", hook],
    ["DELETE", "/v1/hooks/chat"],
  ];
  for (const letter of letters) {
    for (const [method, path, body] of routes(letter)) {
      const refused = await ask(method, path, body, other);
      assert.deepEqual([refused.status, refused.json.code], [404, "not_found"], `${method} ${path}`);
    }
  }
  const listed = async (headers: Record<string, string>) => {
    const { json: { letters } } = await ask("GET", "/v1/letters", undefined, headers);
    const { json: { hooks } } = await ask("GET", "/v1/hooks", undefined, headers);
    return [letters.map((it: { id: string }) => it.id).sort(), hooks.map((it: { name: string }) => it.name)];
  };
  assert.deepEqual(await listed(other), [[], []]);
  assert.deepEqual(await listed(mine), [[...letters].sort(), ["chat"]]);
  for (const [method, path, body] of routes(letters[0])) {
    const own = await ask(method, path, body, mine);
    assert.ok(own.status < 300, `${method} ${path}: ${own.text}`);
    assert.doesNotMatch(own.text, /owner/);
  }
  assert.equal((await ask("DELETE", "/v1/hooks/chat", undefined, mine)).status, 404);
  assert.equal((await ask("PUT", "/v1/hooks/chat", hook, other)).status, 200, "a name given up is free");

  // What was written before there were keys.
  const old = await jobs.create({ items: [ITEM] });
  await hooks.set({ name: "old", signature: "standard", item: hook.item });
  await webhooks.send({ id: "msg_old", job: old.id, url: webhook.url, type: "job.done", body: "{}" });
  for (const headers of [mine, other]) {
    assert.equal((await ask("GET", `/v1/jobs/${old.id}`, undefined, headers)).status, 200);
    assert.equal((await ask("GET", "/v1/hooks/old", undefined, headers)).status, 200);
    assert.ok((await listed(headers))[0].includes("msg_old"));
  }
  assert.equal((await ask("PUT", "/v1/hooks/old", hook, mine)).status, 200);
  assert.equal((await ask("GET", "/v1/hooks/old", undefined, other)).status, 404, "it was made anew");
});

Deno.test("a hook that cannot be read can be deleted", async () => {
  const { ask, store } = service();
  const hook = { item: { image: "/image", prompt: "caption en" } };
  await ask("PUT", "/v1/hooks/chat", hook);
  const { get } = store.records;
  store.records.get = function (key) {
    if (key !== "hooks/chat") return get.call(this, key);
    return Promise.reject(new RequestError("record_corrupt", "Cannot read the record hooks/chat"));
  };
  assert.equal((await ask("GET", "/v1/hooks/chat")).status, 500);
  assert.equal((await ask("DELETE", "/v1/hooks/chat")).status, 204);
  store.records.get = get;
  assert.equal((await ask("GET", "/v1/hooks/chat")).status, 404);
});

Deno.test("a form and a plain HMAC start a job too; a hook that nobody could call is refused", async () => {
  const { ask } = service();
  const secret = "a secret of a form";
  const signature = { header: "x-form-signature", prefix: "sha256=", id: "x-form-id" };
  const put = await ask("PUT", "/v1/hooks/form", {
    item: { image: "/url", prompt: "ocr" },
    signature,
    secret,
  });
  assert.equal(put.status, 200, put.text);
  assert.ok(!put.text.includes(secret));
  const body = new URLSearchParams({ url: "https://example.com/a.png", more: "x y" }).toString();
  const hmac = { name: "HMAC", hash: "SHA-256" };
  const raw = await crypto.subtle.importKey("raw", new TextEncoder().encode(secret), hmac, false, ["sign"]);
  const mac = new Uint8Array(await crypto.subtle.sign("HMAC", raw, new TextEncoder().encode(body))).toHex();
  const headers = {
    "content-type": "application/x-www-form-urlencoded",
    "x-form-signature": `sha256=${mac}`,
    "x-form-id": "1",
  };
  const job = await ask("POST", "/v1/hooks/form", body, headers);
  assert.equal(job.status, 202, job.text);
  assert.equal((await ask("POST", "/v1/hooks/form", `${body}&a=b`, headers)).status, 401);
  for (
    const wrong of [{}, { item: 1 }, { item: {}, secret: "short" }, { item: {}, secret: "not a whsec" }, {
      item: {},
      signature: "md5",
    }]
  ) {
    assert.equal((await ask("PUT", "/v1/hooks/form", wrong)).status, 400, JSON.stringify(wrong));
  }
});

Deno.test("the document names the routes of jobs, each operation by a name of its own", async () => {
  const { ask, app } = service();
  const { paths } = (await ask("GET", "/openapi.json")).json as {
    paths: Record<string, Record<string, { operationId: string }>>;
  };
  const told = Object.entries(paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((it) => `${it.toUpperCase()} ${path}`)
  );
  const served = app.routes.filter((it) => it.method !== "ALL" && /^\/v1\/(jobs|letters|hooks)/.test(it.path))
    .map((it) => `${it.method} ${it.path.replace(/:(\w+)/g, "{$1}")}`);
  assert.deepEqual(told.filter((it) => / \/v1\/(jobs|letters|hooks)/.test(it)).sort(), served.sort());
  const names = Object.values(paths).flatMap((methods) => Object.values(methods).map((it) => it.operationId));
  assert.equal(new Set(names).size, names.length);
});
