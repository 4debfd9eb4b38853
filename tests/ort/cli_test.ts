/** ONNX files written and run from the command line and by the server: the picture goes in, the golden tokens come out. */

import assert from "node:assert/strict";
import { directoryFiles, loadModel } from "../../functions/model.ts";
import { collect } from "../../lib/mod.ts";
import { exportOnnx } from "../../models/export_onnx.ts";
import { startDoor } from "../doors/door.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const PHOTOS = `${ROOT}../shared/reference/images/`;
const photos = await Deno.stat(PHOTOS).then((it) => it.isDirectory, () => false);
const PICTURE = `${ROOT}tests/fixtures/scene.png`;

async function cli(...args: string[]) {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-lock", "--no-check", "--quiet", `${ROOT}functions/cli.ts`, ...args],
    env: { NO_COLOR: "1" },
  }).output();
  return { code, out: new TextDecoder().decode(stdout), err: new TextDecoder().decode(stderr) };
}

async function answer(model: string, ...more: string[]) {
  const { code, out, err } = await cli(
    ...["run", "--model", model, "--image", PICTURE, "--prompt", "caption en", "--max-tokens", "12"],
    ...["--ignore-eos", "--json", "--logits", "5", ...more],
  );
  assert.equal(code, 0, err);
  return JSON.parse(out);
}

for (const family of ["pg1", "pg2"]) {
  Deno.test(`${family}: export-onnx, then --backend ort gives the tokens of our kernels, logits within 2e-4`, async () => {
    const checkpoint = `${ROOT}tests/golden/checkpoints/${family}`;
    const out = await Deno.makeTempDir();
    try {
      const formats = ["--vision", "f32", "--decoder", "f32", "--sliding-window", "hf"];
      const written = await cli("models", "export-onnx", checkpoint, "--out", `${out}/m`, ...formats);
      assert.equal(written.code, 0, written.err);
      assert.match(written.out, /onnx: \d+\.\d MB\nnext: deno task cli run --backend ort --model /);
      assert.deepEqual([...Deno.readDirSync(`${out}/m`)].map((it) => it.name).sort(), [
        "config.json",
        "onnx",
        "preprocessor_config.json",
        "tokenizer.model",
      ]);
      const [ours, ort, threads] = await Promise.all([
        answer(checkpoint, "--sliding-window", "hf"),
        answer(`${out}/m`, "--backend", "ort"),
        answer(`${out}/m`, "--backend", "ort", "--threads", "2", "--weights", "f32"),
      ]);
      assert.equal(ours.tokenIds.length, 12);
      const door = await startDoor({ MODEL: `${out}/m`, BACKEND: "ort" }, { flags: ["--no-lock"] });
      const body = new FormData();
      body.append("image", new Blob([await Deno.readFile(PICTURE)]), "scene.png");
      const asked = { prompt: "caption en", maxTokens: "12", ignoreEos: "true" };
      for (const [name, value] of Object.entries(asked)) body.append(name, value);
      const served = await (await fetch(`${door.url}/v1/generate`, { method: "POST", body })).json();
      door.kill("SIGTERM");
      await door.status;
      assert.deepEqual([served.tokenIds, served.text], [ours.tokenIds, ours.text]);
      for (const { tokenIds, text, logits } of [ort, threads]) {
        assert.deepEqual(tokenIds, ours.tokenIds);
        assert.equal(text, ours.text);
        logits.flat().forEach(({ logit }: { logit: number }, i: number) =>
          assert.ok(Math.abs(logit - ours.logits.flat()[i].logit) < 2e-4)
        );
      }
    } finally {
      await Deno.remove(out, { recursive: true });
    }
  });

  Deno.test({
    name: `${family}: photos through --backend ort give transformers' tokens` +
      (photos ? "" : " (skipped: the photos are not here)"),
    ignore: !photos,
    async fn() {
      const checkpoint = `${ROOT}tests/golden/checkpoints/${family}`;
      const { cases } = JSON.parse(await Deno.readTextFile(`${checkpoint}/golden.json`));
      const out = await Deno.makeTempDir();
      try {
        const formats = { vision: "f32", decoder: "f32", slidingWindow: "hf" } as const;
        await exportOnnx(directoryFiles(checkpoint), out, formats);
        const pipeline = await loadModel(out, { backend: "ort" });
        for (const { images, prompt, greedy_ids, prefix_ids } of cases) {
          if (images.some((it: string) => it.endsWith(".ppm"))) continue; // no format of ours
          const pictures = images.map((it: string) => Deno.readFileSync(PHOTOS + it));
          const answer = await collect(pipeline.answer({
            images: pictures,
            prompt,
            maxTokens: greedy_ids.length,
            ignoreEos: true,
          }));
          assert.deepEqual(answer.promptTokenIds, prefix_ids);
          assert.deepEqual(answer.tokenIds, greedy_ids, prompt);
        }
      } finally {
        await Deno.remove(out, { recursive: true });
      }
    },
  });
}
