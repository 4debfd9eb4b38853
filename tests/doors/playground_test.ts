import assert from "node:assert/strict";
import { join } from "@std/path";
// The import map holds what serving needs; this is for tests only.
// deno-lint-ignore no-import-prefix
import { chromium } from "npm:playwright-core@1.64.1";
import { CHECKPOINT, startDoor } from "./door.ts";

const CHROMIUM = "/usr/bin/chromium";
const absent = await Deno.stat(CHROMIUM).then(() => false, () => true);
const PICTURE = join(import.meta.dirname!, "../../models/tiny/pictures/five_shapes.png");

/** Chromium without what it would do on the side. */
function launch() {
  return chromium.launch({
    executablePath: CHROMIUM,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}

/** The checkpoint of the tests, with a mask decoder. */
async function withMasks(): Promise<string> {
  const directory = await Deno.makeTempDir();
  for await (const { name } of Deno.readDir(CHECKPOINT)) {
    await Deno.copyFile(join(CHECKPOINT, name), join(directory, name));
  }
  const decoder = join(import.meta.dirname!, "../golden/tiny/vq_random_f16.safetensors");
  await Deno.copyFile(decoder, join(directory, "mask_decoder.safetensors"));
  return directory;
}

Deno.test({
  name: "the page draws masks as outlines on the picture, and the API's document as a page, in Chromium",
  ignore: absent,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    const MODEL = await withMasks();
    const door = await startDoor({ MODEL });
    const browser = await launch();
    try {
      // The checkpoint is random: what it segments is put into its mouth.
      const body = {
        image: (await Deno.readFile(PICTURE)).toBase64(),
        labels: "star",
        answerStart: `<loc0256><loc0128><loc0768><loc0896>${"<seg021>".repeat(16)} star`,
        tokens: "allow",
        maxTokens: 1,
        masks: "polygon",
      };
      const headers = { "content-type": "application/json" };
      const asked = await fetch(`${door.url}/v1/segment`, {
        method: "POST",
        headers,
        body: JSON.stringify(body),
      });
      const { items: [item] } = await asked.json();
      assert.ok(item.mask.polygons.length > 0);

      const page = await browser.newPage();
      const complaints: string[] = [];
      page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
      page.on("pageerror", (error) => complaints.push(String(error)));
      await page.goto(door.url);
      await page.setInputFiles("#file", PICTURE);
      await page.waitForSelector("#photo");
      const drawn = await page.evaluate((item) => {
        // deno-lint-ignore no-explicit-any -- a function of the page's own script
        (globalThis as any).showItem(item);
        const path = document.querySelector("#boxes .mask path")!;
        const [mask, photo, box] = [
          path,
          document.querySelector("#photo")!,
          document.querySelector("#boxes .box")!,
        ]
          .map((it) => it.getBoundingClientRect());
        return { mask, photo, box, fill: getComputedStyle(path).fill };
      }, item);
      const inside = (a: DOMRect, b: DOMRect) =>
        a.left >= b.left - 2 && a.top >= b.top - 2 && a.right <= b.right + 2 && a.bottom <= b.bottom + 2;
      assert.ok(drawn.mask.width > 5 && inside(drawn.mask, drawn.box) && inside(drawn.box, drawn.photo));
      assert.notEqual(drawn.fill, "none");

      await page.click("header a");
      await page.waitForSelector("#detect");
      await page.click("#detect summary");
      assert.match((await page.textContent("#detect"))!, /labels.*array of string/);
      assert.match(
        (await page.textContent("#detect pre"))!,
        /^curl http.*\/v1\/detect -F image=@picture\.jpg --form-string 'labels=/,
      );
      assert.deepEqual(complaints, []);
    } finally {
      await browser.close();
      door.kill("SIGTERM");
      await door.status;
      await Deno.remove(MODEL, { recursive: true });
    }
  },
});

Deno.test({
  name:
    "the page streams an answer and draws its boxes in Chromium (ignored where /usr/bin/chromium is absent)",
  ignore: absent,
  // The browser's process and sockets outlive single calls.
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    const door = await startDoor({});
    const browser = await launch();
    try {
      const page = await browser.newPage({ viewport: { width: 1240, height: 900 } });
      const complaints: string[] = [];
      page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
      page.on("pageerror", (error) => complaints.push(String(error)));
      const done = () => document.querySelector("#facts")!.textContent!.includes("finish reason");

      await page.goto(door.url);
      await page.waitForSelector("#model.ready");
      assert.match((await page.textContent("#model"))!, /tiny/);
      assert.ok(await page.isDisabled("#ask"), "nothing can be asked without a picture");

      await page.setInputFiles("#file", PICTURE);
      await page.press("#ask", "Enter");
      await page.waitForFunction(done);
      const expected = await (await fetch(`${door.url}/v1/generate`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ image: (await Deno.readFile(PICTURE)).toBase64(), prompt: "caption en" }),
      })).json();
      // What `<loc0001>` looks like on the page, it says without its brackets.
      assert.equal(await page.textContent("#text"), expected.text.replace(/<((?:loc|seg)\d+)>/g, "$1"));

      await page.check("[name=task][value=detect]", { force: true });
      await page.fill("#words", "star ; heart");
      assert.equal(await page.textContent("#prompt"), "detect star ; heart");
      await page.press("#words", "Enter");
      await page.waitForFunction(done);
      const boxes = await page.locator("#boxes .box").evaluateAll((all) =>
        all.map((it) => {
          const [box, photo] = [it, document.querySelector("#photo")!].map((one) =>
            one.getBoundingClientRect()
          );
          return {
            label: it.textContent!,
            inside: box.left >= photo.left - 1 && box.right <= photo.right + 1 && box.top >= photo.top - 1 &&
              box.bottom <= photo.bottom + 1 && box.width > 0 && box.height > 0,
          };
        })
      );
      assert.deepEqual(boxes.map((it) => it.label.split(" ")[0]), ["star", "heart"]);
      for (const { label, inside } of boxes) {
        assert.match(label, / \d+ %$/);
        assert.ok(inside, `${label} lies on the picture`);
      }
      assert.equal(await page.locator("#items li").count(), boxes.length);

      // What was expected of the answers and what they took, two from the page and one from above.
      await page.click("#plans summary");
      await page.waitForFunction(() => document.querySelectorAll("#plans circle").length === 3);
      assert.ok(await page.locator("#plans svg").isVisible());
      assert.match(
        (await page.locator("#plans svg").getAttribute("aria-label"))!,
        /^local.*: expected \d+ ms, took/,
      );
      assert.match((await page.textContent("#facts"))!, /local/);

      // The server's refusal is shown in its own words.
      await page.check("[name=task][value=free]", { force: true });
      await page.fill("#words", "long ".repeat(3000));
      await page.click("#ask");
      await page.waitForSelector("#error:not([hidden])");
      assert.match((await page.textContent("#error"))!, /^Cannot /);
      const refusals = complaints.splice(0);
      assert.ok(refusals.every((it) => /status of 400/.test(it)), refusals.join("\n"));

      const folder = await Deno.makeTempDir();
      await page.check("[name=task][value=caption]", { force: true });
      for (const width of [1240, 390]) {
        await page.setViewportSize({ width, height: 900 });
        await page.click("#ask");
        await page.waitForFunction(done);
        const beyond = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(beyond <= 0, `${beyond} pixels too wide at ${width}`);
        await page.screenshot({ path: join(folder, `page-${width}.png`), fullPage: true });
        assert.ok((await Deno.stat(join(folder, `page-${width}.png`))).size > 10_000);
      }
      assert.deepEqual(complaints, []);
    } finally {
      await browser.close();
      door.kill("SIGTERM");
      await door.status;
    }
  },
});
