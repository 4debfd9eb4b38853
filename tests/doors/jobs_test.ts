/** Jobs on the real server: killed again and again, with a full disk, with a damaged database. */
/// <reference lib="deno.unstable" />

import assert from "node:assert/strict";
import { join } from "@std/path";
import { verify } from "../../lib/jobs/signature.ts";
import { until } from "../until.ts";
import { CHECKPOINT, startDoor } from "./door.ts";

const PICTURE = Deno.readFileSync(new URL("../fixtures/pictures/rgb.jpg", import.meta.url)).toBase64();
const SECRET = `whsec_${btoa("0123456789abcdef0123456789abcdef")}`;
const ITEM = { image: PICTURE, prompt: "caption en", maxTokens: 12, ignoreEos: true };

async function directory(use: (path: string) => Promise<void>): Promise<void> {
  const path = await Deno.makeTempDir();
  try {
    await use(path);
  } finally {
    await Deno.remove(path, { recursive: true });
  }
}

async function post(url: string, body: unknown, headers: Record<string, string> = {}) {
  const type = { "content-type": "application/json" };
  const response = await fetch(url, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { ...type, ...headers },
  });
  return { status: response.status, json: await response.json() };
}

interface Job {
  id: string;
  status: string;
  items: { status: string; result?: { tokenIds: number[] }; error?: { code: string }; attempts: number }[];
}

const jobOf = async (url: string, id: string): Promise<Job> =>
  await (await fetch(`${url}/v1/jobs/${id}`)).json();

Deno.test("killed twenty times at random moments, a job loses nothing and repeats nothing that was finished", () =>
  directory(async (data) => {
    const got: { headers: Headers; body: string }[] = [];
    const receiver = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
      got.push({ headers: request.headers, body: await request.text() });
      return new Response(null, { status: 204 });
    });
    const env = { MODEL: CHECKPOINT, DATA_DIR: data, ALLOW_PRIVATE_URLS: "1", WEBHOOK_SECRET: SECRET };
    const webhook = { url: `http://127.0.0.1:${(receiver.addr as Deno.NetAddr).port}/` };
    const items = Array.from({ length: 100 }, (_, seed) => ({ ...ITEM, temperature: 1, seed }));
    const body = { items, webhook };
    const finished = new Map<number, Deno.FileInfo>();
    let id = "";
    for (let kill = 0; kill < 20; kill++) {
      const door = await startDoor(env);
      const { status, json } = await post(`${door.url}/v1/jobs`, body, { "idempotency-key": "one" });
      assert.equal(status, 202);
      if (kill > 0) assert.equal(json.id, id);
      id = json.id;
      // Results lie as they were first written: computed again, they would be new files.
      for (const [i, item] of (json as Job).items.entries()) {
        if (item.status !== "done") {
          assert.ok(!finished.has(i), `item ${i} was done and is ${item.status}`);
          continue;
        }
        const info = await Deno.stat(join(data, `blobs/jobs.d/${id}.d/results.d/${i}.blob`));
        assert.equal(info.ino, (finished.get(i) ?? info).ino);
        finished.set(i, info);
      }
      const doneNow = async () =>
        (await jobOf(door.url, id)).items.filter((it) => it.status === "done").length;
      // Where the machine is slow, an item that never gets its time would be taken for one that kills its workers.
      if (kill % 3 === 2) await until(async () => await doneNow() > finished.size, 30_000);
      await new Promise((wake) => setTimeout(wake, Math.random() * 120));
      door.kill("SIGKILL");
      await door.status;
    }
    assert.ok(finished.size < 100, "there was something left to kill");
    const door = await startDoor(env);
    await until(async () => (await jobOf(door.url, id)).status === "done", 30_000);
    await until(() => got.length > 0);
    const job = await jobOf(door.url, id);
    assert.deepEqual(job.items.filter((it) => it.status !== "done"), []);
    // And the answers are those of a server that nobody killed.
    const { json } = await post(`${door.url}/v1/generate`, items[7]);
    assert.deepEqual(job.items[7].result!.tokenIds, json.tokenIds);
    for (const { headers, body } of got) await verify("standard", [SECRET], headers, body);
    assert.equal(new Set(got.map((it) => it.headers.get("webhook-id"))).size, 1);
    door.kill("SIGTERM");
    assert.equal((await door.status).code, 0);
    assert.equal(door.output().stderr, "");
    await receiver.shutdown();
  }));

Deno.test("a server told to stop puts its job down, and the next one goes on", () =>
  directory(async (data) => {
    const env = { MODEL: CHECKPOINT, DATA_DIR: data };
    const first = await startDoor(env);
    const items = Array.from({ length: 3 }, () => ({ ...ITEM, maxTokens: 900, prompt: "" }));
    const { json: { id } } = await post(`${first.url}/v1/jobs`, { items });
    await until(async () => (await jobOf(first.url, id)).status === "running");
    first.kill("SIGTERM");
    assert.equal((await first.status).code, 0);
    const second = await startDoor(env);
    await until(async () => (await jobOf(second.url, id)).status === "done", 30_000);
    assert.deepEqual((await jobOf(second.url, id)).items.map((it) => it.attempts), [1, 1, 1]);
    second.kill("SIGTERM");
    await second.status;
  }));

Deno.test("a full disk and a damaged database: told to whoever asks and in the log, and all else is served", () =>
  directory(async (data) => {
    const env = { MODEL: CHECKPOINT, DATA_DIR: data };
    const first = await startDoor(env);
    const { json: bad } = await post(`${first.url}/v1/jobs`, { items: [ITEM] });
    await until(async () => (await jobOf(first.url, bad.id)).status === "done");
    first.kill("SIGKILL");
    await first.status;
    {
      using kv = await Deno.openKv(join(data, "kv.sqlite"));
      const { value } = await kv.get<string>(["records", `jobs/${bad.id}`]);
      await kv.set(["records", `jobs/${bad.id}`], value!.slice(0, -10));
    }
    // No file may grow beyond 1 MB: as good as a disk that is full.
    const second = await startDoor(env, { maxFileBytes: 1 << 20 });
    const broken = await fetch(`${second.url}/v1/jobs/${bad.id}`);
    assert.deepEqual([broken.status, (await broken.json()).code], [500, "record_corrupt"]);
    const full = await post(`${second.url}/v1/jobs`, { items: [{ ...ITEM, image: "A".repeat(2 << 20) }] });
    assert.deepEqual([full.status, full.json.code], [507, "storage_failed"]);
    const fits = await post(`${second.url}/v1/jobs`, { items: [ITEM] });
    assert.equal(fits.status, 202);
    await until(async () => (await jobOf(second.url, fits.json.id)).status === "done");
    assert.match(second.output().stderr, new RegExp(`Cannot read the record jobs/${bad.id}`));
    second.kill("SIGTERM");
    await second.status;
    assert.deepEqual(
      [...Deno.readDirSync(join(data, "blobs/jobs.d"))].map((it) => it.name.slice(0, 36)).sort(),
      [bad.id, fits.json.id].sort(),
    );
  }));

Deno.test("keys given to a server that had none: what was there stays readable, what is new is its key's; the backlog is told", () =>
  directory(async (data) => {
    const receiver = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, async (request) => {
      await request.body?.cancel();
      return new Response(null, { status: 500 });
    });
    const webhook = { url: `http://127.0.0.1:${(receiver.addr as Deno.NetAddr).port}/` };
    const env = { MODEL: CHECKPOINT, DATA_DIR: data, ALLOW_PRIVATE_URLS: "1", WEBHOOK_SECRET: SECRET };
    const first = await startDoor(env);
    const { json: old } = await post(`${first.url}/v1/jobs`, { items: [ITEM] }, { "idempotency-key": "one" });
    await until(async () => (await jobOf(first.url, old.id)).status === "done");
    first.kill("SIGTERM");
    await first.status;

    const { url, kill, status } = await startDoor({ ...env, API_KEYS: "mine,other" });
    const [mine, other] = ["mine", "other"].map((it) => ({ authorization: `Bearer ${it}` }));
    const statusOf = async (path: string, headers: Record<string, string>) => {
      const response = await fetch(url + path, { headers });
      await response.body?.cancel();
      return response.status;
    };
    const long = { items: Array(20).fill({ ...ITEM, maxTokens: 900, prompt: "" }), webhook };
    const { json: job } = await post(`${url}/v1/jobs`, long, { ...mine, "idempotency-key": "one" });
    assert.notEqual(job.id, old.id);
    assert.deepEqual([
      await statusOf(`/v1/jobs/${old.id}`, mine),
      await statusOf(`/v1/jobs/${old.id}`, other),
    ], [
      200,
      200,
    ]);
    for (const path of [`/v1/jobs/${job.id}`, `/v1/jobs/${job.id}/events`]) {
      assert.equal(await statusOf(path, other), 404);
    }
    const backlog = async () => {
      const text = await (await fetch(`${url}/metrics`, { headers: mine })).text();
      return [...text.matchAll(/^paligemma_backlog\{kind="(?:jobs|webhooks)"\} (\d+)$/gm)].map(([, it]) =>
        +it
      );
    };
    assert.deepEqual(await backlog(), [1, 0]);
    const cancel = (headers: Record<string, string>) =>
      fetch(`${url}/v1/jobs/${job.id}`, { method: "DELETE", headers }).then((it) => it.json());
    assert.equal((await cancel(other)).code, "not_found");
    assert.equal((await cancel(mine)).status, "cancelled");
    // Its end was not taken by the receiver, and will be told again.
    await until(async () => (await backlog()).join() === "0,1");
    const letters = async (headers: Record<string, string>) =>
      (await (await fetch(`${url}/v1/letters`, { headers })).json()).letters.map((it: { job: string }) =>
        it.job
      );
    assert.deepEqual([await letters(mine), await letters(other)], [[job.id], []]);
    kill("SIGTERM");
    await status;
    await receiver.shutdown();
  }));

Deno.test("a DATA_DIR that cannot be, and a secret that is none, end in one line", async () => {
  const cases: [Record<string, string>, RegExp][] = [
    [{ DATA_DIR: "/proc/nowhere" }, /^Cannot serve with DATA_DIR=\/proc\/nowhere: Cannot make .*\n$/],
    [
      { WEBHOOK_SECRET: "hunter2" },
      /^Cannot read WEBHOOK_SECRET: expected whsec_ and base64 of 24 to 64 bytes, found something else in secret 1\n$/,
    ],
  ];
  for (const [env, message] of cases) {
    const door = await startDoor({ MODEL: CHECKPOINT, ...env });
    assert.equal((await door.status).code, 1);
    assert.match(door.output().stderr, message);
  }
});
