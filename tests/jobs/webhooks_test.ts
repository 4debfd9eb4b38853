/** Letters to receivers on real ports, good and bad; the clock is the test's. */

import assert from "node:assert/strict";
import { createNetwork } from "../../functions/network.ts";
import { createOutbound } from "../../lib/http/outbound.ts";
import { verify } from "../../lib/jobs/signature.ts";
import { type Letter, SCHEDULE, Webhooks } from "../../lib/jobs/webhooks.ts";
import { createMemoryStore } from "../../lib/store/memory.ts";
import { Clock } from "../store/suite.ts";
import { until } from "../until.ts";

const SECRET = `whsec_${btoa("0123456789abcdef0123456789abcdef")}`;
const MINUTE = 60_000;

/** A receiver that answers as told, and keeps what came. */
function receiver(answer: (count: number) => Response | Promise<Response>) {
  const got: { headers: Headers; body: string }[] = [];
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
    got.push({ headers: request.headers, body: await request.text() });
    return await answer(got.length);
  });
  return {
    got,
    url: `http://127.0.0.1:${(server.addr as Deno.NetAddr).port}/`,
    close: () => server.shutdown(),
  };
}

/** A receiver that writes bytes of its own and hangs up. */
function rawReceiver(bytes: string) {
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  (async () => {
    for await (const connection of listener) {
      await connection.read(new Uint8Array(10_000));
      await connection.write(new TextEncoder().encode(bytes)).catch(() => {});
      connection.close();
    }
  })();
  return { url: `http://127.0.0.1:${(listener.addr as Deno.NetAddr).port}/`, close: () => listener.close() };
}

/** A sender with a clock of its own; `tick` lets time pass and delivers what is due then. */
function sender({ secrets = [SECRET], allowPrivate = true, timeoutMs = 300 } = {}) {
  const clock = new Clock();
  clock.ms = Date.now();
  const store = createMemoryStore({ now: clock.now });
  const outbound = createOutbound(createNetwork(), { allowPrivate });
  const queue = store.queue("webhooks");
  const webhooks = new Webhooks({
    records: store.records,
    queue,
    post: (url, request) => outbound.fetch(url, { method: "POST", maxBytes: 0, timeoutMs, ...request }),
    secrets,
    now: clock.now,
    schedule: SCHEDULE,
  });
  const never = new AbortController().signal;
  return {
    clock,
    store,
    webhooks,
    send: (url: string, id = "msg_1", traceparent?: string) =>
      webhooks.send({ id, job: "job_1", url, type: "job.done", body: '{"type":"job.done"}', traceparent }),
    async tick(ms = 0, signal = never): Promise<Letter> {
      clock.ms += ms;
      for (const it of await queue.receive({ limit: 10, leaseMs: 1000 })) await webhooks.handle(it, signal);
      return (await webhooks.get("msg_1"))!;
    },
  };
}

Deno.test("a letter is delivered once, signed with every secret, and is known as delivered", async () => {
  const old = `whsec_${btoa("the old secret, still accepted..")}`;
  const { got, url, close } = receiver(() => new Response(null, { status: 204 }));
  const { send, tick } = sender({ secrets: [SECRET, old] });
  await send(url);
  await send(url);
  const letter = await tick();
  assert.deepEqual([letter.status, letter.attempts.map((it) => it.status)], ["delivered", [204]]);
  for (const minutes of [0, 10, 10_000]) await tick(minutes * MINUTE);
  await send(url);
  await tick();
  assert.equal(got.length, 1);
  const { headers, body } = got[0];
  for (const secret of [SECRET, old]) {
    assert.equal(await verify("standard", [secret], headers, body), "msg_1");
  }
  assert.equal(headers.get("webhook-signature")!.split(" ").length, 2);
  assert.deepEqual([body, headers.get("content-type")], ['{"type":"job.done"}', "application/json"]);
  assert.ok(!JSON.stringify(letter).includes("whsec_"));
  await close();
});

Deno.test("the traceparent of the request that made the job goes with its letter; without one there is none", async () => {
  const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  const { got, url, close } = receiver(() => new Response(null, { status: 204 }));
  const { send, tick } = sender();
  await send(url, "msg_1", traceparent);
  await tick();
  await send(url, "msg_2");
  await tick();
  assert.deepEqual(got.map((it) => it.headers.get("traceparent")), [traceparent, null]);
  await close();
});

Deno.test("500 after 500: the schedule with its jitter, a new timestamp every time, then a dead letter, sent again on request", async () => {
  let status = 500;
  const { got, url, close } = receiver(() => new Response("no", { status }));
  const { clock, webhooks, send, tick } = sender();
  await send(url);
  const sentAt = [clock.ms];
  let letter = await tick();
  while (letter.status === "pending") {
    const before = got.length;
    // In steps of a hundredth, to see when it comes.
    const pause = SCHEDULE[before - 1];
    for (let i = 0; i < 200 && got.length === before; i++) letter = await tick(pause / 100);
    assert.equal(got.length, before + 1, `after ${pause} ms`);
    const waited = clock.ms - sentAt.at(-1)!;
    assert.ok(waited >= pause && waited <= pause * 1.22, `${waited} for ${pause}`);
    sentAt.push(clock.ms);
  }
  assert.equal(got.length, SCHEDULE.length + 1);
  assert.deepEqual(
    got.map((it) => Number(it.headers.get("webhook-timestamp"))),
    sentAt.map((it) => Math.floor(it / 1000)),
  );
  assert.equal(new Set(got.map((it) => it.headers.get("webhook-id"))).size, 1);
  assert.equal(letter.reason, "none of 10 attempts was answered with success");
  assert.deepEqual((await Array.fromAsync(webhooks.list("dead"))).map((it) => it.id), ["msg_1"]);
  await tick(1_000_000_000);
  assert.equal(got.length, 10);
  status = 200;
  assert.equal((await webhooks.sendAgain("msg_1"))!.status, "pending");
  assert.equal((await tick()).status, "delivered");
  assert.equal(got.length, 11);
  assert.equal(await webhooks.sendAgain("msg_2"), undefined);
  assert.deepEqual(await Array.fromAsync(webhooks.list("dead")), []);
  await close();
});

Deno.test("Retry-After is waited for, in seconds or as a time by the receiver's clock, up to a day", async () => {
  const cases: [Record<string, string>, number][] = [
    [{ "retry-after": "90" }, 90_000],
    // Its clock is an hour behind ours: two minutes are two minutes.
    [{ "retry-after": "Tue, 14 Nov 2023 21:15:20 GMT", date: "Tue, 14 Nov 2023 21:13:20 GMT" }, 120_000],
    [{ "retry-after": "soon" }, 5000],
    [{ "retry-after": "999999999" }, 24 * 60 * MINUTE],
  ];
  for (const [headers, pause] of cases) {
    const { got, url, close } = receiver((count) =>
      count > 1 ? new Response() : new Response("", { status: 429, headers })
    );
    const { send, tick } = sender();
    await send(url);
    await tick();
    await tick(pause - 1000);
    assert.equal(got.length, 1, JSON.stringify(headers));
    assert.equal((await tick(pause * 0.25 + 1000)).status, "delivered", JSON.stringify(headers));
    await close();
  }
});

Deno.test("410 ends it, and nothing more is sent there until somebody asks for it", async () => {
  let status = 410;
  const { got, url, close } = receiver(() => new Response("", { status }));
  const { webhooks, send, tick } = sender();
  await send(url);
  assert.deepEqual([(await tick()).status, got.length], ["dead", 1]);
  await send(url, "msg_2");
  await tick();
  const other = await webhooks.get("msg_2");
  assert.deepEqual([other!.status, other!.reason], ["dead", "its receiver answered 410 (Gone) before"]);
  assert.equal(got.length, 1);
  status = 200;
  await webhooks.sendAgain("msg_2");
  await tick();
  assert.equal((await webhooks.get("msg_2"))!.status, "delivered");
  await send(url, "msg_3");
  await tick();
  assert.equal(got.length, 3);
  await close();
});

Deno.test("redirects are not followed, a slow receiver is given up, a cut answer is none, all are tried again", async () => {
  const inner = receiver(() => new Response());
  const redirecting = receiver(() => new Response(null, { status: 307, headers: { location: inner.url } }));
  const waiting: (() => void)[] = [];
  const slow = receiver(() => new Promise((resolve) => waiting.push(() => resolve(new Response()))));
  const cut = rawReceiver("HTTP/1.1 200 OK\r\ncontent-le");
  const silent = rawReceiver("");
  const closed = rawReceiver("");
  closed.close();
  const cases: [string, { status?: number; error?: RegExp }][] = [
    [redirecting.url, { status: 307 }],
    [slow.url, { error: /within 300 ms/ }],
    [cut.url, { error: /a whole answer/ }],
    [silent.url, { error: /a whole answer/ }],
    [closed.url, { error: /a whole answer/ }],
    ["http://nowhere.invalid/", { error: /its name to be found/ }],
  ];
  for (const [url, { status, error }] of cases) {
    const { send, tick } = sender();
    await send(url);
    const letter = await tick();
    assert.deepEqual([letter.status, letter.attempts.length], ["pending", 1], url);
    assert.equal(letter.attempts[0].status, status, url);
    if (error) assert.match(letter.attempts[0].error!, error);
    assert.equal((await tick(7000)).attempts.length, 2, url);
  }
  assert.equal(inner.got.length, 0);
  for (const answer of waiting) answer();
  for (const it of [inner, redirecting, slow, cut, silent]) await it.close();
});

Deno.test("a receiver that lies about its length has said what it had to: the status", async () => {
  const liars: [string, Letter["status"]][] = [
    ["HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nshort", "delivered"],
    ["HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello", "delivered"],
    [`HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n${"x".repeat(5_000)}`, "delivered"],
    ["HTTP/1.1 500 No\r\ncontent-length: 100000\r\n\r\nshort", "pending"],
    ["HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", "pending"],
    ["HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", "pending"],
  ];
  for (const [bytes, status] of liars) {
    const liar = rawReceiver(bytes);
    const { send, tick } = sender();
    await send(liar.url);
    assert.equal((await tick()).status, status, bytes.slice(0, 60));
    liar.close();
  }
});

Deno.test("a private address, nothing to sign with: nothing is sent, and the letter says why", async () => {
  const { got, url, close } = receiver(() => new Response());
  const guarded = sender({ allowPrivate: false });
  await guarded.send(url);
  assert.match((await guarded.tick()).attempts[0].error!, /expected https:/);
  const unsigned = sender({ secrets: [] });
  await unsigned.send(url);
  assert.match((await unsigned.tick()).attempts[0].error!, /expected a secret, found none/);
  assert.equal(got.length, 0);
  await close();
});

Deno.test("a server that stops in the middle has made no attempt; a clock turned back holds a letter for a day at most", async () => {
  let answer: (response: Response) => void;
  const { got, url, close } = receiver((count) =>
    count === 1 ? new Promise((resolve) => answer = resolve) : new Response("", { status: 500 })
  );
  const { clock, send, tick } = sender({ timeoutMs: 5000 });
  await send(url);
  const stop = new AbortController();
  const attempt = tick(0, stop.signal);
  await until(() => got.length > 0);
  stop.abort();
  assert.deepEqual((await attempt).attempts, []);
  assert.equal((await tick()).attempts.length, 1);
  clock.ms -= 30 * 24 * 60 * MINUTE;
  for (let day = 0; day < 32 && got.length < 3; day++) await tick(24 * 60 * MINUTE + 1);
  assert.equal(got.length, 3);
  answer!(new Response());
  await close();
});
