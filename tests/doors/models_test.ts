/** `models …` as a person meets it: real processes, a hub on a real port. */

import assert from "node:assert/strict";
import { meterLines } from "../../functions/meter.ts";
import { directoryBytes } from "../memory_files.ts";
import { type HubSettings, REPO, startHub, type TestHub, TOKEN } from "../models/hub.ts";
import { until } from "../until.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const { "golden.json": _, ...CHECKPOINT } = directoryBytes(`${ROOT}tests/golden/checkpoints/pg1`);

function start(args: readonly string[], env: Record<string, string> = {}) {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", `${ROOT}functions/cli.ts`, "models", ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1", ...env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

async function models(args: readonly string[], env?: Record<string, string>) {
  const { code, stdout, stderr } = await start(args, env).output();
  return { code, out: new TextDecoder().decode(stdout), err: new TextDecoder().decode(stderr) };
}

async function withHub(
  settings: HubSettings,
  test: (hub: TestHub, out: string, env: Record<string, string>) => Promise<void>,
) {
  const out = await Deno.makeTempDir();
  await using hub = startHub(CHECKPOINT, settings);
  try {
    await test(hub, out, { HF_ENDPOINT: hub.endpoint, HF_TOKEN: TOKEN });
  } finally {
    await Deno.remove(out, { recursive: true });
  }
}

Deno.test("pull, verify, info, and the command that comes next", () =>
  withHub({ gate: "token" }, async (hub, out, env) => {
    const pulled = await models(["pull", REPO, "--out", `${out}/pali`], env);
    assert.equal(pulled.code, 0, pulled.err);
    assert.match(
      pulled.out,
      /6 files, 2\.5 MB, of somebody\/pali at [0-9a-f]{40}; every checksum is right\n/,
    );
    const next = /^next: deno task models (convert \S+ --out \S+)$/m.exec(pulled.out)![1];
    const [verified, described, listed, converted] = await Promise.all([
      models(["verify", `${out}/pali`]),
      models(["info", `${out}/pali`, "--json"]),
      models(["list", out]),
      models(next.split(" ")),
    ]);
    assert.equal(verified.code, 0, verified.err);
    assert.match(
      verified.out,
      /^ok {2}6 files are those of somebody\/pali at [0-9a-f]{40}\nok .*\nok .*\nok .*\n$/,
    );
    assert.equal(JSON.parse(described.out).source.repo, REPO);
    assert.match(listed.out, new RegExp(`In ${out}\\n  ${out}/pali\\n`));
    assert.equal(converted.code, 0, converted.err);
    const good = await models(["verify", `${out}/pali-int4`]);
    assert.match(good.out, /^ok .*\nok {2}\d{2} quantised matrices are within their bounds.*\nok .*\n$/);
    assert.ok(hub.seen.length > 0);
  }));

Deno.test("a known id goes to its repository; licence, and that it will not fit, are said", () =>
  withHub({ repo: "google/paligemma2-10b-pt-224" }, async (hub, out, env) => {
    const pulled = await models(["pull", "paligemma2-10b-pt-224@main", "--out", out], env);
    assert.equal(pulled.code, 0, pulled.err);
    assert.match(pulled.out, /of google\/paligemma2-10b-pt-224 at/);
    assert.match(pulled.out, /^licence: Gemma Terms of Use, https:/m);
    assert.match(pulled.out, /^note: at 6\.\d+ GB even int4 does not fit/m);
    assert.ok(hub.seen.length > 0);
  }));

const SHARD = "model-00001-of-00002.safetensors";
for (
  const [signal, how] of [["SIGINT", "exit 130 and a sentence"], ["SIGKILL", "no time for a word"]] as const
) {
  Deno.test(`${signal} in the middle of a pull: ${how}, no shard, and the same command goes on`, () =>
    withHub({ trouble: (file) => file === SHARD ? "stall" : undefined }, async (hub, out, env) => {
      const child = start(["pull", REPO, "--out", out], env);
      const half = CHECKPOINT[SHARD].length >> 1;
      const partBytes = () => {
        const part = [...Deno.readDirSync(out)].find((it) => it.name.startsWith(SHARD));
        return part ? Deno.statSync(`${out}/${part.name}`).size : 0;
      };
      await until(() => partBytes() >= half, 30_000);
      child.kill(signal);
      const { code, stderr } = await child.output();
      if (signal === "SIGINT") {
        assert.equal(code, 130);
        const said = new TextDecoder().decode(stderr);
        assert.equal(said, "Download stopped: the same command goes on from here\n");
      }
      assert.ok(![...Deno.readDirSync(out)].some((it) => it.name === SHARD));

      hub.settings = {};
      const again = await models(["pull", REPO, "--out", out], env);
      assert.equal(again.code, 0, again.err);
      assert.ok(hub.seen.some((it) => it.range === `bytes=${half}-`));
      assert.deepEqual(Deno.readFileSync(`${out}/${SHARD}`), CHECKPOINT[SHARD]);
    }));
}

Deno.test("info ID --json is the manifest; list names the bundled and the known", async () => {
  const [info, list] = await Promise.all([
    models(["info", "paligemma2-3b-mix-448", "--json"]),
    models(["list"]),
  ]);
  assert.equal(JSON.parse(info.out).source.repo, "google/paligemma2-3b-mix-448");
  assert.match(list.out, /^Bundled\n {2}models\/tiny\n\nKnown/);
  assert.match(list.out, /^ {2}paligemma-3b-pt-224$/m);
});

const wrong: [string, string[], number, RegExp][] = [
  ["no such command", ["fetch"], 2, /expected list, info, pull, convert, verify, .*found "fetch"/],
  [
    "an id that is none",
    ["pull", "paligemma-7b", "--out", "x"],
    2,
    /expected owner\/repo.*paligemma-3b-pt-224/,
  ],
  ["a path for a repository", ["pull", "../x", "--out", "x"], 2, /found "..\/x"/],
  ["an empty revision", ["pull", "a/b@", "--out", "x"], 2, /found "a\/b@"/],
  ["no --out", ["pull", "a/b"], 2, /expected --out DIR/],
  ["info on nothing", ["info", "nowhere"], 2, /expected a directory, or one of paligemma-3b-pt-224/],
  ["verify on nothing", ["verify", "nowhere"], 1, /model in nowhere: expected config.json, found nothing/],
  ["a word too many", ["verify", "a", "b"], 2, /expected nothing after a, found b/],
];
for (const [name, args, code, message] of wrong) {
  Deno.test(`models, ${name}: exit ${code} and a clear line`, async () => {
    const result = await models(args);
    assert.equal(result.code, code, result.err);
    assert.match(result.err, message);
    assert.equal(result.out, "");
  });
}

Deno.test("the meter tells share, speed of the last seconds and what is left; resumed bytes are no speed", () => {
  const lines = meterLines();
  assert.equal(lines(5e9, 10e9, 0), `${"█".repeat(12)}${"░".repeat(12)} 50 % · of 10.00 GB`);
  assert.match(lines(5.2e9, 10e9, 2000), / 52 % · of 10\.00 GB · 100 MB\/s · 48 s left$/);
  lines(5.2e9, 10e9, 60_000); // nothing for a minute
  lines(5.3e9, 10e9, 61_000);
  assert.match(lines(5.9e9, 10e9, 67_000), / 100 MB\/s · 41 s left$/);
  assert.match(lines(0, 10e9, 68_000), / 0 % · of 10\.00 GB$/);
  assert.match(lines(1e6, 10e9, 69_000), / 1\.0 MB\/s · 2\.8 h left$/);
});
