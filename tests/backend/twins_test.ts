/**
 * Twins in an engine that makes one vector of two. Other tests have them in this process, where they are two; here in one that
 * was told to (`functions/engine_flags.ts`), until it has compiled everything as it does for speed.
 */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { instantiate, probeZero } from "../../lib/backend/wasm_kernels.ts";
import { relaxed } from "../../wasm/kernels.js";

const ROOT = join(import.meta.dirname!, "../..");
const FLAGS = { DENO_V8_FLAGS: "--experimental-wasm-revectorize" };
const dots = probeZero(instantiate(relaxed, new WebAssembly.Memory({ initial: 4, maximum: 65_535 })));

async function run(args: string[], more: Record<string, string> = {}): Promise<string> {
  const { DENO_V8_FLAGS: _, ...env } = { ...Deno.env.toObject() };
  const options = { args, clearEnv: true, env: { ...env, ...more }, cwd: ROOT, stderr: "inherit" } as const;
  const command = new Deno.Command(Deno.execPath(), options);
  const { code, stdout } = await command.output();
  assert.equal(code, 0);
  return new TextDecoder().decode(stdout).trim();
}

Deno.test("the tasks tell V8 what it knows, beside what it was told already, and not what it was told not to do", async () => {
  const flags = async (more?: Record<string, string>) =>
    await run(["run", "-A", "-q", join(ROOT, "functions/engine_flags.ts")], more);
  const flag = await flags();
  assert.match(flag, /^--[a-z-]+$/);
  assert.equal(await flags({ DENO_V8_FLAGS: "--no-flush-bytecode" }), `--no-flush-bytecode,${flag}`);
  const not = "--no-experimental-wasm-revectorize";
  if (Deno.build.arch === "x86_64") assert.equal(await flags({ DENO_V8_FLAGS: not }), not);
  assert.equal(await run(["eval", "console.log(1)"], { DENO_V8_FLAGS: flag }), "1");
});

Deno.test({
  name: "whether an engine makes one vector of two is found at each start, and found right",
  ignore: Deno.build.arch !== "x86_64",
  async fn() {
    const script = join(ROOT, "tests/backend/probed.ts");
    for (const build of ["relaxed", "plain", "relaxed", "plain", "relaxed"]) {
      for (const flags of [FLAGS, {}]) {
        const found = await run(["run", "-A", "-q", "--no-check", "--no-lock", script, build], flags);
        assert.equal(found, String(flags === FLAGS), `${build}, ${JSON.stringify(flags)}`);
      }
    }
  },
});

for (const way of ["dot", "words", "plain"]) {
  Deno.test({
    name: `twins that are one vector give every bit of two, in less time, and the probe finds them: ${way}`,
    ignore: Deno.build.arch !== "x86_64" || way === "dot" && dots === undefined,
    async fn() {
      const script = join(ROOT, "tests/backend/joined.ts");
      const { probed, compared, differing, ratio } = JSON.parse(
        await run(["run", "-A", "-q", "--no-check", "--no-lock", script, way], FLAGS),
      );
      assert.ok(compared > 4_000_000, `${compared}`);
      assert.equal(differing, 0);
      assert.equal(probed, true);
      assert.ok(ratio > 1.2, `${ratio} times as fast`);
    },
  });
}
