/** The download path against a real server that behaves like the hub, on its good days and its bad ones. */

import assert from "node:assert/strict";
import { directoryFiles, loadModel } from "../../functions/model.ts";
import { collect, type RequestError } from "../../lib/mod.ts";
import { pull, type PullOptions, readRecord, verifyRecord } from "../../models/pull.ts";
import { directoryBytes } from "../memory_files.ts";
import { type HubSettings, REPO, sha256, startHub, type TestHub, TOKEN } from "./hub.ts";

const { "golden.json": _, ...CHECKPOINT } = directoryBytes(
  new URL("../golden/checkpoints/pg1", import.meta.url).pathname,
);
const SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const SOURCE = { repo: REPO, revision: "main" };
const PICTURE = Deno.readFileSync(new URL("../fixtures/scene.png", import.meta.url));

/** A hub with the checkpoint and an empty directory; `from` pulls with short pauses. */
async function withHub(
  settings: HubSettings,
  test: (
    hub: TestHub,
    out: string,
    from: (options?: Partial<PullOptions>) => Promise<unknown>,
  ) => Promise<void>,
  files: Record<string, Uint8Array> = CHECKPOINT,
): Promise<void> {
  const out = await Deno.makeTempDir();
  await using hub = startHub(files, settings);
  try {
    await test(hub, out, (more) => pull(SOURCE, out, { endpoint: hub.endpoint, retryMs: 1, ...more }));
  } finally {
    await Deno.remove(out, { recursive: true });
  }
}

const namesIn = (out: string) => [...Deno.readDirSync(out)].map((it) => it.name).sort();
const partsIn = (out: string) => namesIn(out).filter((it) => it.endsWith(".part"));
const bodies = (hub: TestHub) => hub.seen.filter((it) => it.origin === "cdn");

/** The directory holds exactly the checkpoint, the record and the lock. */
function assertWhole(out: string, files = CHECKPOINT): void {
  assert.deepEqual(namesIn(out), [...Object.keys(files), "pull.json", ".pull.lock"].sort());
  for (const [name, bytes] of Object.entries(files)) {
    assert.equal(sha256(Deno.readFileSync(`${out}/${name}`)), sha256(bytes), name);
  }
}

/** No shard has its name. */
function assertNoShard(out: string): void {
  for (const name of SHARDS) assert.ok(!namesIn(out).includes(name), name);
}

Deno.test("a repository becomes a directory that answers; the token stays with the hub; shards come in parallel", () =>
  withHub({ gate: "token", trouble: () => "slow" }, async (hub, out, from) => {
    const seen: [number, number][] = [];
    await from({ token: TOKEN, progress: (done, total) => seen.push([done, total]) });
    assertWhole(out);
    const total = Object.values(CHECKPOINT).reduce((sum, it) => sum + it.length, 0);
    assert.deepEqual(seen.at(-1), [total, total]);
    assert.ok(seen.every(([done], i) => i === 0 || done >= seen[i - 1][0]));

    assert.ok(hub.seen.some((it) => it.authorization === `Bearer ${TOKEN}`));
    assert.deepEqual(new Set(bodies(hub).map((it) => it.authorization)), new Set([null]));
    assert.ok(hub.mostAtOnce >= 2, `${hub.mostAtOnce} at once`);

    const record = (await readRecord(out))!;
    assert.match(record.commit!, /^[0-9a-f]{40}$/);
    assert.equal(
      record.files.find((it) => it.name === SHARDS[0])!.checksum,
      `sha256:${sha256(CHECKPOINT[SHARDS[0]])}`,
    );
    assert.match(record.files.find((it) => it.name === "config.json")!.checksum!, /^git-sha1:/);

    const pipeline = await loadModel(out);
    const answer = await collect(
      pipeline.answer({ images: [PICTURE], prompt: "caption en", maxTokens: 2, ignoreEos: true }),
    );
    assert.equal(answer.tokenIds.length, 2);

    const before = bodies(hub).length;
    await from({ token: TOKEN });
    assert.equal(bodies(hub).length, before, "a second pull downloads nothing");
  }));

Deno.test("a connection cut half way is resumed by range, and no byte comes twice", () =>
  withHub({ trouble: (_, n) => n <= 9 ? "cut" : undefined }, async (hub, out, from) => {
    await from();
    assertWhole(out);
    const large = bodies(hub).filter((it) => it.path.endsWith(SHARDS[0]));
    assert.equal(large.length, 10); // more than six: every one came further
    assert.equal(large[0].range, null);
    for (const { range, ifRange } of large.slice(1)) {
      assert.match(range!, /^bytes=[1-9]\d*-$/);
      assert.match(ifRange!, /^"[0-9a-f]{64}-stored"$/);
    }
  }));

Deno.test("after a pull that gave up, nothing is taken for whole, and a second run resumes where it stopped", () =>
  withHub(
    { trouble: (file, n) => file === SHARDS[0] ? n === 1 ? "cut" : 503 : undefined },
    async (hub, out, from) => {
      await assert.rejects(from(), {
        code: "download_failed",
        message: /answered 503; gave up after 6 attempts/,
      });
      assert.ok(!namesIn(out).includes(SHARDS[0]));
      await assert.rejects(loadModel(out), { code: "model_invalid" });
      await assert.rejects(verifyRecord(directoryFiles(out), (await readRecord(out))!), /no such file/);
      const [part] = partsIn(out).filter((it) => it.startsWith(SHARDS[0]));
      const there = Deno.statSync(`${out}/${part}`).size;
      assert.ok(there > 0 && there < CHECKPOINT[SHARDS[0]].length, `${there}`);

      hub.settings = {};
      hub.seen.length = 0;
      await from();
      assertWhole(out);
      assert.equal(bodies(hub).find((it) => it.path.endsWith(SHARDS[0]))!.range, `bytes=${there}-`);
    },
  ));

Deno.test("what an earlier run left damaged is found by its checksum and downloaded again", () =>
  withHub({ trouble: (_, n) => n === 1 ? "cut" : 503 }, async (hub, out, from) => {
    await assert.rejects(from());
    const part = `${out}/${partsIn(out)[0]}`;
    const bytes = Deno.readFileSync(part);
    bytes[7] ^= 1;
    Deno.writeFileSync(part, bytes);
    hub.settings = {};
    await from();
    assertWhole(out);
  }));

Deno.test("a server that knows no ranges sends the whole again", () =>
  withHub({ trouble: (_, n) => n === 1 ? "cut" : "no-range" }, async (hub, out, from) => {
    await from();
    assertWhole(out);
    assert.ok(bodies(hub).some((it) => it.range !== null));
  }));

Deno.test("one that knows none and always breaks off is given up", () =>
  withHub({ trouble: () => "no-range, cut" }, async (hub, out, from) => {
    await assert.rejects(from(), {
      code: "download_failed",
      message: /gave up after 6 attempts without progress/,
    });
    assertNoShard(out);
    assert.ok(bodies(hub).filter((it) => it.path.endsWith(SHARDS[0])).length <= 7);
  }));

for (
  const [trouble, message] of [["wrong", /expected sha256:\w+, found sha256:/], [
    "longer",
    /expected \d+ bytes, found more/,
  ]] as const
) {
  Deno.test(`a download that is ${trouble} is refused by name and nothing of it stays`, () =>
    withHub({ trouble: (file) => file === SHARDS[1] ? trouble : undefined }, async (_, out, from) => {
      await assert.rejects(from(), { code: "download_failed", message });
      assert.ok(!namesIn(out).includes(SHARDS[1]));
      const part = partsIn(out).find((it) => it.startsWith(SHARDS[1]));
      if (trouble === "wrong") assert.equal(Deno.statSync(`${out}/${part}`).size, 0);
    }));
}

const refusals: [string, HubSettings, Partial<PullOptions>, { repo?: string; revision?: string }, RegExp][] =
  [
    [
      "401 without a token",
      { gate: "token" },
      {},
      {},
      /^Cannot download somebody\/pali: it is gated: accept its licence at http\S+\/somebody\/pali .*no token/,
    ],
    [
      "403 before the licence is accepted",
      { gate: "licence" },
      { token: TOKEN },
      {},
      /gated.*the token in HF_TOKEN \(403\)/,
    ],
    [
      "an unknown repository, without a token",
      {},
      {},
      { repo: "somebody/else" },
      /not there, or not without a token/,
    ],
    ["an unknown repository", {}, { token: TOKEN }, { repo: "somebody/else" }, /no such repository/],
    ["an unknown revision", {}, {}, { revision: "v9" }, /no revision "v9" of it/],
  ];
for (const [name, settings, options, source, message] of refusals) {
  Deno.test(`${name}: one sentence that says what to do, and no file`, () =>
    withHub(settings, async (hub, out) => {
      const attempt = pull({ ...SOURCE, ...source }, out, { endpoint: hub.endpoint, retryMs: 1, ...options });
      await assert.rejects(attempt, { code: "download_failed", message });
      assert.deepEqual(namesIn(out), [".pull.lock"]);
    }));
}

Deno.test("429 is waited out as long as Retry-After says, 500 and 503 as long as patience lasts", () => {
  const trouble = (_: string, n: number) => n === 1 ? 503 : n === 2 ? 500 : undefined;
  const hubTrouble = (path: string, n: number) =>
    path.startsWith("/api/models/") && n === 1 ? 429 : undefined;
  return withHub({ trouble, hubTrouble }, async (_, out, from) => {
    const start = performance.now();
    await from();
    assert.ok(performance.now() - start >= 990);
    assertWhole(out);
  });
});

Deno.test("a connection that falls silent is given up and resumed", () =>
  withHub({ trouble: (_, n) => n === 1 ? "stall" : undefined }, async (hub, out, from) => {
    await from({ stallMs: 300 });
    assertWhole(out);
    assert.ok(bodies(hub).some((it) => it.range !== null));
  }));

Deno.test("nobody at the address: a sentence after six attempts", async () => {
  const out = await Deno.makeTempDir();
  const listener = Deno.listen({ port: 0 });
  const endpoint = `http://localhost:${listener.addr.port}`;
  listener.close();
  try {
    const failure = await pull(SOURCE, out, { endpoint, retryMs: 1 }).catch((it) => it as RequestError);
    assert.match((failure as RequestError).message, /gave up after 6 attempts/);
    await assert.rejects(pull(SOURCE, out, { endpoint: "hub" }), { code: "parameter_invalid" });
  } finally {
    await Deno.remove(out, { recursive: true });
  }
});

Deno.test("stopped half way: the error says so, nothing is whole, the next run goes on", () =>
  withHub({ trouble: () => "slow" }, async (hub, out, from) => {
    const stop = new AbortController();
    const progress = (done: number, total: number) => done > total / 2 && stop.abort();
    await assert.rejects(from({ signal: stop.signal, progress }), {
      code: "cancelled",
      message: /goes on from here/,
    });
    assert.ok(!namesIn(out).includes(SHARDS[0]));
    hub.settings = {};
    await from();
    assertWhole(out);
    assert.ok(bodies(hub).some((it) => it.range !== null));
  }));

Deno.test("a second pull of the same directory is refused while the first one runs", () =>
  withHub({ trouble: () => "slow" }, async (_, out, from) => {
    const { promise: started, resolve } = Promise.withResolvers<void>();
    const first = from({ progress: () => resolve() });
    await started;
    await assert.rejects(from(), { code: "storage_failed", message: /another process is pulling into it/ });
    await first;
    assertWhole(out);
  }));

Deno.test("a resumed pull stays at the commit it began with; another revision is refused", () =>
  withHub({ trouble: (_, n) => n === 1 ? "cut" : 503 }, async (hub, out, from) => {
    await assert.rejects(from());
    hub.push({ ...CHECKPOINT, [SHARDS[0]]: new Uint8Array(5000) });
    hub.settings = {};
    await from();
    assertWhole(out);
    const other = pull({ repo: REPO, revision: "v2" }, out, { endpoint: hub.endpoint });
    await assert.rejects(other, { code: "parameter_invalid", message: /it holds somebody\/pali at main/ });
  }));

Deno.test("a directory that holds another model is not written over", () =>
  withHub({}, async (_, out, from) => {
    await Deno.writeTextFile(`${out}/config.json`, "mine");
    await assert.rejects(from(), { code: "parameter_invalid", message: /found config.json/ });
    assert.equal(Deno.readTextFileSync(`${out}/config.json`), "mine");
  }));

Deno.test("a hub without lists is asked file by file", () =>
  withHub({ lists: false }, async (_, out, from) => {
    await from();
    assertWhole(out);
    assert.match((await readRecord(out))!.commit!, /^[0-9a-f]{40}$/);
  }));

Deno.test("of a repository only what is read is taken", async () => {
  const { "tokenizer.model": words, "config.json": config } = CHECKPOINT;
  const one = { "config.json": config, "tokenizer.model": words, "model.safetensors": new Uint8Array(3000) };
  const more = { ...one, "tokenizer.json": words, "model.fp16.safetensors": words, "README.md": words };
  await withHub({}, async (_, out, from) => {
    await from();
    assertWhole(out, one);
  }, more);
  const adapter = { "adapter_config.json": config, "adapter_model.safetensors": words };
  await withHub({}, async (_, out, from) => {
    await from();
    assertWhole(out, adapter);
  }, { ...adapter, "README.md": words });
  await withHub({}, async (_, out, from) => {
    await from();
    assertWhole(out, { "pali.npz": words });
  }, { "pali.npz": words, "README.md": words });
  await withHub({}, async (_, out, from) => {
    await assert.rejects(from(), {
      code: "download_failed",
      message: /expected safetensors.*found README.md/,
    });
    assert.ok(!namesIn(out).includes("pull.json"));
  }, { "README.md": words });
});

Deno.test("an index that names a file elsewhere, or one that is not there, is refused", async () => {
  for (const name of ["../evil.safetensors", "/etc/passwd", ".safetensors", "lost.safetensors", 7]) {
    const index = new TextEncoder().encode(JSON.stringify({ weight_map: { a: name } }));
    await withHub({}, async (_, out, from) => {
      await assert.rejects(from(), { code: "download_failed", message: /weight_map|which it does not have/ });
      assert.deepEqual(namesIn(out), [".pull.lock", "model.safetensors.index.json"]);
    }, { ...CHECKPOINT, "model.safetensors.index.json": index });
  }
});

Deno.test("a disk too small is told before anything is downloaded; a full one is a sentence", async () => {
  await withHub({ claim: () => 1e15 }, async (hub, out, from) => {
    await assert.rejects(from(), {
      code: "storage_failed",
      message: /3000000.00 GB are still to come, \d+\.\d+ GB are free/,
    });
    assert.deepEqual(bodies(hub), []);
    assertNoShard(out);
  });
  await withHub({}, async (_, out, from) => {
    const part = `${SHARDS[1]}.${sha256(CHECKPOINT[SHARDS[1]]).slice(0, 16)}.part`;
    await Deno.symlink("/dev/full", `${out}/${part}`); // every write fails with ENOSPC
    await assert.rejects(from(), { code: "storage_failed", message: /No space left on device/ });
    assert.ok(!namesIn(out).includes(SHARDS[1]));
  });
});

Deno.test("verify finds a file that changed after it was pulled", () =>
  withHub({}, async (_, out, from) => {
    await from();
    const record = (await readRecord(out))!;
    await verifyRecord(directoryFiles(out), record);
    const path = `${out}/${SHARDS[0]}`;
    const bytes = Deno.readFileSync(path);
    bytes[bytes.length - 1] ^= 1;
    Deno.writeFileSync(path, bytes);
    await assert.rejects(verifyRecord(directoryFiles(out), record), {
      code: "model_invalid",
      message: /00001.*sha256/,
    });
    await from();
    assertWhole(out);
  }));
