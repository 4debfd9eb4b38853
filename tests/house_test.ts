/** The rules of the house, held against every file: imports go down, files stay short, the platform stays outside. */

import assert from "node:assert/strict";
import { dirname, join, relative } from "@std/path";

const ROOT = new URL("..", import.meta.url).pathname;
const STAGES = ["preprocess", "text", "vision", "schedule", "decode", "pool"];
const MAX_LINES = 500;
const PLATFORM = /\bDeno\.|\bprocess\.|\bcaches\.|cloudflare:|navigator\.gpu/;
const PLATFORM_FILES = [
  "lib/store/deno_kv.ts",
  "lib/store/files.ts",
  "lib/store/cloudflare.ts",
  "lib/backend/webgpu.ts",
  "lib/backend/threads.ts",
];

function* walk(directory: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(join(ROOT, directory))) {
    if (name.startsWith(".") || name === "node_modules") continue;
    const path = join(directory, name);
    if (isDirectory) yield* walk(path);
    else yield path;
  }
}

const files = [...walk("")];
const source = files.filter((it) => /\.(ts|js)$/.test(it) && !it.endsWith(".d.ts"));
const text = (path: string) => Deno.readTextFileSync(join(ROOT, path));

/** Floor and room of a file; undefined for what stands outside the house (tests, wasm). */
function place(path: string): { floor: number; room: string } | undefined {
  const [top, room] = path.split("/");
  if (top === "functions" || top === "models" || path === "lib/mod.ts") return { floor: 0, room: top };
  if (top !== "lib") return undefined;
  if (room === "http") return { floor: 1, room };
  if (room === "jobs") return { floor: 2, room };
  if (["pipeline.ts", "engine.ts", "dispatch.ts"].includes(room)) return { floor: 3, room: "pipeline" };
  if (STAGES.includes(room)) return { floor: 4, room };
  if (room === "weights" || room === "store") return { floor: 5, room };
  if (room === "backend") return { floor: 6, room };
  if (["types.ts", "errors.ts", "metrics.ts", "digest.ts"].includes(room)) {
    return { floor: 7, room: "ground" };
  }
  return undefined;
}

/** Whether one file may import another. */
export function allowed(from: string, to: string): boolean {
  const [a, b] = [place(from), place(to)];
  if (!a) return true;
  if (!b) return a.floor === 0 && to.startsWith("wasm/");
  return b.floor > a.floor || (b.floor === a.floor && b.room === a.room) || (a.floor === 0 && b.floor === 0);
}

function imports(path: string): string[] {
  const found = text(path).matchAll(/^(?:import|export)\b[^;"]*?"(\.[^"]+)"|\bimport\("(\.[^"]+)"\)/gm);
  return [...found].map(([, fixed, dynamic]) => relative(ROOT, join(ROOT, dirname(path), fixed ?? dynamic)));
}

Deno.test("the rule itself: down and within a room, never up, never between stages", () => {
  assert.ok(allowed("lib/http/app.ts", "lib/pipeline.ts"));
  assert.ok(allowed("lib/vision/siglip.ts", "lib/backend/backend.ts"));
  assert.ok(allowed("functions/deno.ts", "wasm/kernels.js"));
  assert.ok(!allowed("lib/backend/wasm.ts", "lib/weights/quantize.ts"));
  assert.ok(!allowed("lib/text/parse.ts", "lib/decode/decode.ts"));
  assert.ok(!allowed("lib/pipeline.ts", "lib/http/app.ts"));
  assert.ok(!allowed("lib/backend/wasm.ts", "wasm/kernels.js"));
});

Deno.test("imports only go to lower floors, and the stages are strangers", () => {
  const wrong = source.flatMap((from) =>
    imports(from).filter((to) => !allowed(from, to)).map((to) => `${from} -> ${to}`)
  );
  assert.deepEqual(wrong, []);
  assert.ok(imports("lib/pipeline.ts").includes("lib/types.ts"), "the scan finds imports");
});

Deno.test("every file of lib/ has its place", () => {
  assert.deepEqual(source.filter((it) => it.startsWith("lib/") && !place(it)), []);
});

Deno.test("no platform word in lib/ outside the files made for it", () => {
  const code = (path: string) => text(path).replaceAll(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "");
  const wrong = source.filter((it) =>
    it.startsWith("lib/") && !PLATFORM_FILES.includes(it) && PLATFORM.test(code(it))
  );
  assert.deepEqual(wrong, []);
});

Deno.test(`no source file over ${MAX_LINES} lines, no room named after nothing`, () => {
  const long = files.filter((it) => /\.(ts|js|py|c|h|wgsl)$/.test(it)).filter((it) =>
    text(it).split("\n").length > MAX_LINES
  );
  assert.deepEqual(long, []);
  const vague = files.filter((it) =>
    it.split(/[/.]/).some((word) => /^(utils|helpers|common|manager|service)$/.test(word))
  );
  assert.deepEqual(vague, []);
});

Deno.test("what serving downloads holds nothing that serving does not need", () => {
  // Tasks may name more: what a task names is downloaded when it runs. All that the lock names is when the server starts.
  const npm = Object.values<string>(JSON.parse(text("deno.json")).imports).filter((it) =>
    it.startsWith("npm:")
  );
  const locked = Object.keys(JSON.parse(text("deno.lock")).specifiers);
  assert.deepEqual(locked.sort(), npm.sort());
  assert.doesNotMatch(npm.join(" "), /onnxruntime|wrangler|playwright|puppeteer|webgpu/);
});
