import assert from "node:assert/strict";
// The import map holds what serving needs; this is for tests only.
// deno-lint-ignore no-import-prefix
import { chromium } from "npm:playwright-core@1.64.1";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { directoryBytes } from "../memory_files.ts";
import { greedy } from "./browser_page.ts";

const CHROMIUM = "/usr/bin/chromium";
const absent = await Deno.stat(CHROMIUM).then(() => false, () => true);
const CHECKPOINT = new URL("../golden/checkpoints/pg2/", import.meta.url).pathname;

interface Found {
  readonly ids: number[];
  readonly software: boolean;
}

/** A script and everything it imports, as a browser takes it. */
async function bundle(script: string): Promise<string> {
  const { stdout, stderr, success } = await new Deno.Command(Deno.execPath(), {
    args: [
      "bundle",
      "--quiet",
      "--no-lock",
      "--platform",
      "browser",
      new URL(script, import.meta.url).pathname,
    ],
  }).output();
  assert.ok(success, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}

Deno.test({
  name: "webgpu: in Chromium, on its own software adapter, the tokens of pg2 are WASM's",
  ignore: absent,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    const script = await bundle("./browser_page.ts");
    const files = directoryBytes(CHECKPOINT);
    const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, ({ url }) => {
      const { pathname } = new URL(url);
      const html = { headers: { "content-type": "text/html" } };
      if (pathname === "/") return new Response(`<script type="module">${script}</script>`, html);
      if (pathname === "/files/") return Response.json(Object.keys(files));
      return new Response(files[pathname.slice("/files/".length)] as BodyInit);
    });
    const args = [
      "--no-sandbox",
      "--enable-unsafe-webgpu",
      "--use-webgpu-adapter=swiftshader",
      "--no-first-run",
    ];
    const browser = await chromium.launch({
      executablePath: CHROMIUM,
      args,
      ignoreDefaultArgs: ["--disable-gpu"],
    });
    try {
      const page = await browser.newPage();
      await page.goto(`http://127.0.0.1:${server.addr.port}/`);
      for (const weights of ["f32", "int4"] as const) {
        const found = await page.evaluate(
          (it) => (globalThis as unknown as { inPage(it: string): Promise<Found> }).inPage(it),
          weights,
        );
        const ids = await greedy(createWasmBackend({ simd, relaxed }), files, weights);
        // Rounded activations may part ways later, where two ids are about as likely.
        const sure = weights === "f32" ? ids : ids.slice(0, 1);
        assert.equal(found.software, true);
        assert.deepEqual(found.ids.slice(0, sure.length), sure, weights);
      }
    } finally {
      await browser.close();
      await server.shutdown();
    }
  },
});
