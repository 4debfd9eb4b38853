/** A tab of a real browser as a worker of the pool: pictures asked at the server are answered in it, also when it closes. */

import assert from "node:assert/strict";
import { join } from "@std/path";
// The import map holds what serving needs; this is for tests only.
// deno-lint-ignore no-import-prefix
import { chromium, type Page } from "npm:playwright-core@1.64.1";
import { haveNats, startBroker } from "../pool/broker.ts";
import { until } from "../until.ts";
import { startDoor } from "./door.ts";

const CHROMIUM = "/usr/bin/chromium";
const absent = await Deno.stat(CHROMIUM).then(() => false, () => true);
const PICTURE = await Deno.readFile(join(import.meta.dirname!, "../../models/tiny/pictures/five_shapes.png"));
const headers = { "content-type": "application/json", authorization: "Bearer secret" };

async function ask(url: string, more: object = {}) {
  const body = JSON.stringify({ image: PICTURE.toBase64(), prompt: "caption en", ...more });
  const answer = await fetch(`${url}/v1/generate`, { method: "POST", body, headers });
  assert.equal(answer.status, 200, await answer.clone().text());
  const { timings: _, cached: __, route: ___, ...rest } = await answer.json();
  return rest;
}

async function metric(url: string, name: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`, { headers })).text();
  return Number(new RegExp(`^${RegExp.escape(name)} (\\S+)$`, "m").exec(text)?.[1] ?? 0);
}

const says = (page: Page, id: string, what: RegExp) =>
  page.waitForFunction(
    ([id, what]) => new RegExp(what).test(document.getElementById(id)!.textContent!),
    [id, what.source],
  );

Deno.test({
  name: `a tab joins, on the processor and on a GPU, answers, closes half way, and leaves${
    absent ? " (skipped: no Chromium)" : haveNats ? "" : " (skipped: there is no nats-server)"
  }`,
  ignore: absent || !haveNats,
  // The browser's process and sockets outlive single calls.
  sanitizeOps: false,
  sanitizeResources: false,
  async fn(t) {
    const broker = await startBroker();
    const env = {
      ...broker.env("server"),
      WORKER_PAGE: broker.webUrl,
      API_KEYS: "secret",
      LOG_LEVEL: "error",
    };
    const [door, alone] = await Promise.all([startDoor(env), startDoor({ API_KEYS: "secret" })]);
    const browser = await chromium.launch({
      executablePath: CHROMIUM,
      args: ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--no-first-run"],
      ignoreDefaultArgs: ["--disable-gpu"],
    });
    const nkey = await Deno.readTextFile(join(broker.keys, "worker.nkey"));
    const complaints: string[] = [];
    const joined = async (compute: string, seed = nkey) => {
      const page = await browser.newPage();
      page.setDefaultTimeout(120_000); // a GPU in software compiles its kernels for seconds
      page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
      page.on("pageerror", (error) => complaints.push(String(error)));
      await page.goto(`${door.url}/worker`);
      await page.fill("#nkey", seed);
      await page.fill("#key", "secret");
      await page.selectOption("#compute", compute);
      await page.click("#join");
      await says(page, "state", /takes work|failed/);
      assert.equal(await page.textContent("#state"), "takes work", (await page.textContent("#reason"))!);
      return page;
    };
    const fromPool = () => metric(door.url, 'paligemma_routes_total{route="pool"}');
    const askedOfTab = async (more: object) => {
      const before = await fromPool();
      await until(async () => (await ask(door.url, { maxTokens: 1 }), await fromPool()) > before, 60_000);
      return await ask(door.url, more);
    };
    try {
      await t.step("on the processor", async () => {
        const page = await joined("wasm");
        assert.equal(await page.textContent("#backend"), "wasm");
        const question = { prompt: "detect star ; heart" };
        assert.deepEqual(await askedOfTab(question), await ask(alone.url, question));
        await says(page, "answers", /^[2-9]$/);
        assert.ok(Number(await page.textContent("#tokens")) >= 12);
        assert.ok(Number(await page.textContent("#speed")) > 0);

        // Closed half way: the stream goes on from here, with every token once.
        const long = { maxTokens: 900, ignoreEos: true, temperature: 1, seed: 9 };
        const answer = ask(door.url, long);
        await says(page, "now", /^1 computed/);
        await page.close();
        assert.deepEqual(await answer, await ask(alone.url, long));
        assert.equal(await metric(door.url, 'paligemma_detours_total{route="pool",reason="gone"}'), 1);
      });

      await t.step("on a GPU, here one in software", async () => {
        const page = await joined("webgpu");
        assert.match((await page.textContent("#backend"))!, /^webgpu in software/);
        assert.deepEqual((await askedOfTab({})).tokenIds, (await ask(alone.url)).tokenIds);
        await page.close();
      });

      await t.step(
        "without a GPU that is one, on the processor; it leaves, and may come back; what cannot be is told",
        async () => {
          const page = await joined("auto");
          assert.equal(await page.textContent("#backend"), "wasm");
          await page.click("#leave");
          await says(page, "state", /^has left$/);
          const local = await metric(door.url, 'paligemma_routes_total{route="local"}');
          await ask(door.url);
          assert.equal(await metric(door.url, 'paligemma_routes_total{route="local"}'), local + 1);
          await page.click("#join"); // and may come back
          await says(page, "state", /^takes work$/);
          await page.close();
          assert.deepEqual(complaints, []);
          await assert.rejects(joined("wasm", "SU"), /seed|nkey|key/i);
        },
      );
    } finally {
      await browser.close();
      for (const it of [door, alone]) it.kill("SIGKILL");
      await Promise.all([door.status, alone.status]);
      await broker.stop();
    }
  },
});
