/** What tabs that become workers are given, byte for byte; that one works is shown in tests/doors/worker_page_test.ts. */

import assert from "node:assert/strict";
import { type AppParts, createApp } from "../../lib/http/app.ts";
import { workerRoutes } from "../../lib/http/worker.ts";
import { directoryFiles } from "../../functions/model.ts";
import { memoryFiles } from "../memory_files.ts";
import { twoTokens } from "./doubles.ts";

/** Longer than what is read at once. */
const WEIGHTS = Uint8Array.from({ length: 2_500_000 }, (_, i) => i % 251);
const trusted = [{ kty: "OKP", crv: "Ed25519", x: "AAAA", kid: "server" }];

function app(
  parts: Partial<AppParts> = {},
  files = memoryFiles({ "model.safetensors": WEIGHTS, "LICENSE": "x" }),
) {
  const page = workerRoutes({
    broker: "wss://broker.example:8443/path",
    trusted,
    files,
    script: () => Promise.resolve(new TextEncoder().encode("tab")),
    kernels: (build) => Promise.resolve(new TextEncoder().encode(build)),
  });
  return createApp({ pipeline: twoTokens, rooms: [page], ...parts });
}

Deno.test("a model's files are given whole or by ranges, and nothing else is", async () => {
  const list = await (await app().request("/worker/files")).json();
  assert.deepEqual(list, [{ name: "model.safetensors", size: WEIGHTS.length }]);
  const read = async (range?: string) => {
    const response = await app().request("/worker/files/model.safetensors", {
      headers: range === undefined ? {} : { range },
    });
    const { status, headers } = response;
    return [status, headers.get("content-range"), await response.bytes()] as const;
  };
  assert.deepEqual(await read(), [200, null, WEIGHTS]);
  const size = WEIGHTS.length;
  for (
    const [range, start, end] of [["bytes=0-0", 0, 1], ["bytes=5-1999999", 5, 2e6], [
      "bytes=2400000-",
      24e5,
      size,
    ], [
      "bytes=9-99999999",
      9,
      size,
    ]] as const
  ) {
    assert.deepEqual(await read(range), [
      206,
      `bytes ${start}-${end - 1}/${size}`,
      WEIGHTS.slice(start, end),
    ]);
  }
  for (const range of ["bytes=2500000-", "bytes=5-4", "bytes=-5", "bytes=0-1,3-4", "lines=1-2"]) {
    assert.deepEqual(await read(range), [416, `bytes */${size}`, new Uint8Array()], range);
  }
  for (
    const name of ["LICENSE", "absent.json", "..%2fmodel.safetensors", "%2e%2e%2f%2e%2e%2fdeno.json", ""]
  ) {
    assert.equal((await app().request(`/worker/files/${name}`)).status, 404, name);
  }
  const tiny = app({}, directoryFiles(new URL("../../models/tiny", import.meta.url).pathname));
  assert.equal((await tiny.request("/worker/files/..%2f..%2fdeno.json")).status, 404);
  const names = (await (await tiny.request("/worker/files")).json()).map((it: { name: string }) => it.name);
  assert.deepEqual(names, [
    "config.json",
    "mask_decoder.safetensors",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.model",
  ]);
});

Deno.test("page and script may reach this server and the broker; where there are keys, the model wants one", async () => {
  const page = await app().request("/worker");
  assert.match(page.headers.get("content-security-policy")!, /script-src 'nonce-.*; worker-src 'self'$/);
  assert.match(await page.text(), /A worker of the pool/);
  const script = await app().request("/worker/tab.js");
  assert.equal(await script.text(), "tab");
  assert.match(
    script.headers.get("content-security-policy")!,
    /^default-src 'none';.* connect-src 'self' wss:\/\/broker\.example:8443$/,
  );
  assert.deepEqual(await (await app().request("/worker/start")).json(), {
    broker: "wss://broker.example:8443/path",
    trusted,
  });
  assert.equal(await (await app().request("/worker/kernels/relaxed")).text(), "relaxed");
  assert.equal((await app().request("/worker/kernels/other")).status, 404);
  const guarded = app({ apiKeys: ["secret"] });
  for (const path of ["start", "files", "files/model.safetensors"]) {
    assert.equal((await guarded.request(`/worker/${path}`)).status, 401, path);
    const headers = { authorization: "Bearer secret" };
    assert.equal((await guarded.request(`/worker/${path}`, { headers })).status, 200, path);
  }
  assert.equal((await app({ rooms: [] }).request("/worker")).status, 404);
});
