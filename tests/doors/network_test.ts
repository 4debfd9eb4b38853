/** What `deno task start` denies the whole process, whatever our own checks let pass; and what it must not. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { until } from "../until.ts";
import { startDoor } from "./door.ts";

const ROOT = join(import.meta.dirname!, "../..");
const { tasks } = JSON.parse(Deno.readTextFileSync(join(ROOT, "deno.json")));
const DENY = /'(--deny-net=[^']+)'/.exec(tasks.start)![1];

const PRIVATE = ["10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1"]
  .concat("172.31.255.255", "192.168.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255");

/** Asks each URL by `fetch`, and each address by our own network under a public name; prints what came of it. */
const PROBE = `
  import { createNetwork } from ${JSON.stringify(join(ROOT, "functions/network.ts"))};
  const { urls, addresses } = JSON.parse(Deno.args[0]);
  const told = async (work) => {
    try { return String((await work(AbortSignal.timeout(3000))).status); }
    catch (error) { return [error.name, error.message, error.cause?.message].join(" "); }
  };
  const found = {};
  for (const url of urls) found[url] = await told((signal) => fetch(url, { signal }));
  const network = createNetwork();
  for (const [address, port] of addresses) {
    const url = new URL("http://example.com:" + port);
    found[address] = await told((signal) => network.fetch(url, { method: "GET", signal }, address));
  }
  console.log(JSON.stringify(found));
`;

async function probe(flags: string[], urls: string[], addresses: [string, number][]) {
  const file = await Deno.makeTempFile({ suffix: ".ts" });
  await Deno.writeTextFile(file, PROBE);
  try {
    const args = ["run", "-A", "--quiet", "--no-check", "--no-lock", ...flags, file];
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [...args, JSON.stringify({ urls, addresses })],
      cwd: ROOT,
    }).output();
    assert.equal(new TextDecoder().decode(stderr), "");
    return JSON.parse(new TextDecoder().decode(stdout)) as Record<string, string>;
  } finally {
    await Deno.remove(file);
  }
}

Deno.test("the start task lets nobody reach loopback and private networks, by any spelling, name or redirect", async () => {
  await using server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen() {} },
    () => new Response("secret"),
  );
  const { port } = server.addr;
  const local = [
    "127.0.0.1",
    "localhost",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "[::ffff:127.0.0.1]",
  ]
    .map((host) => `http://${host}:${port}/`);
  const others = [...PRIVATE.map((it) => `http://${it}/`), "http://[::1]/", "http://[::]/"];
  const addresses: [string, number][] = [...PRIVATE, "::1", "::ffff:127.0.0.1"].map((it) => [it, port]);
  // The same without the flag: what is refused below was there to be had.
  const open = await probe([], local, [["127.0.0.1", port]]);
  assert.deepEqual(Object.values(open), Array(local.length + 1).fill("200"));
  const found = await probe([DENY], [...local, ...others], addresses);
  for (const [what, result] of Object.entries(found)) {
    assert.match(result, /Requires net access|--deny-net forbids/, `${what}: ${result}`);
  }
});

Deno.test("URLs that lead inside are refused as pictures, as webhooks and in chats, however they are spelled", async () => {
  const hosts = [
    "127.0.0.1",
    "2130706433",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
  ]
    .concat(
      "[::ffff:7f00:1]",
      "[64:ff9b::7f00:1]",
      "[fd00::1]",
      "[fe80::1]",
      "0.0.0.0",
      "169.254.169.254",
      "10.0.0.1",
    )
    .concat("localhost", "127。0。0。1", "①②⑦.0.0.1");
  const urls = [...hosts.map((it) => `https://${it}/a.png`), "http://example.com/a.png"]
    .concat(
      "https://user:pass@example.com/",
      "https://example.com:8443/",
      "ftp://example.com/",
      "file:///etc/passwd",
    );
  const door = await startDoor({ WEBHOOK_SECRET: `whsec_${new Uint8Array(24).toBase64()}` });
  const post = async (path: string, body: unknown) => {
    const headers = { "content-type": "application/json" };
    const response = await fetch(door.url + path, { method: "POST", headers, body: JSON.stringify(body) });
    return { status: response.status, body: await response.json() };
  };
  const item = { image: "AAAA", prompt: "" };
  try {
    for (const url of urls) {
      const picture = await post("/v1/generate", { image: url, prompt: "" });
      const wanted = url.startsWith("https:") ? [400, "url_refused"] : [picture.status, picture.body.code];
      assert.deepEqual([picture.status, picture.body.code], wanted, url);
      assert.ok(picture.status >= 400 && picture.status < 500, url);
      const content = [{ type: "text", text: "" }, { type: "image_url", image_url: { url } }];
      const chat = await post("/v1/chat/completions", {
        model: "tiny",
        messages: [{ role: "user", content }],
      });
      assert.equal(chat.status, 400, url);
      const job = await post("/v1/jobs", { items: [item], webhook: { url } });
      // A name is looked up when its letter is sent.
      if (url.includes("localhost")) assert.equal(job.status, 202);
      else assert.equal(job.status, 400, url);
    }
    let attempts: { error: string }[] = [];
    await until(async () => {
      const { letters } = await (await fetch(`${door.url}/v1/letters`)).json();
      return (attempts = letters[0]?.attempts ?? []).length > 0;
    });
    assert.match(attempts[0].error, /public addresses/);
  } finally {
    door.kill("SIGTERM");
    await door.status;
  }
});

Deno.test("with it the server listens, loads, answers and tells its collector on loopback; what needs a private network is refused by name", async () => {
  const spans = Promise.withResolvers<void>();
  const collector = Deno.serve({ port: 0, onListen() {} }, async (request) => {
    await request.body?.cancel();
    spans.resolve();
    return Response.json({});
  });
  const flags = [DENY];
  const telemetry = {
    OTEL_DENO: "true",
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${collector.addr.port}`,
    OTEL_BSP_SCHEDULE_DELAY: "100",
  };
  const door = await startDoor({ THREADS: "2", ...telemetry }, { flags });
  try {
    const body = new FormData();
    const picture = await Deno.readFile(join(ROOT, "models/tiny/pictures/five_shapes.png"));
    body.append("image", new Blob([picture]), "a.png");
    body.append("prompt", "caption en");
    const answer = await (await fetch(`${door.url}/v1/generate`, { method: "POST", body })).json();
    assert.match(answer.text, /purple cross/);
    await spans.promise;
  } finally {
    door.kill("SIGTERM");
    await door.status;
    await collector.shutdown();
  }
});

Deno.test("a server that may reach private networks, or whose pool is in one, starts anew without it, and ends with it", async () => {
  const picture = await Deno.readFile(join(ROOT, "models/tiny/pictures/five_shapes.png"));
  await using near = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen() {} },
    () => new Response(picture),
  );
  const door = await startDoor({ ALLOW_PRIVATE_URLS: "1" }, { flags: [DENY] });
  try {
    const asked = { image: `http://127.0.0.1:${near.addr.port}/a.png`, prompt: "caption en" };
    const answer = await fetch(`${door.url}/v1/generate`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(asked),
    });
    assert.match((await answer.json()).text, /purple cross/);
  } finally {
    door.kill("SIGTERM");
  }
  assert.equal((await door.status).code, 0);
  assert.match(door.output().stdout, /Stopped\.\n$/);
  await assert.rejects(fetch(door.url));
  // The connection to the broker is denied no more: without a key it is not even tried.
  const pool = await startDoor({ POOL_URL: "nats://localhost:4222" }, { flags: [DENY] });
  assert.equal((await pool.status).code, 1);
  assert.match(pool.output().stderr, /^Cannot join a pool: expected POOL_SIGNING_KEY/);
});
