/** The command line as a person meets it: real processes, real files. */

import assert from "node:assert/strict";
import { decodePicture } from "../../lib/preprocess/decode.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const PG1 = `${ROOT}tests/golden/checkpoints/pg1`;
const PICTURE = `${ROOT}tests/fixtures/scene.png`;

async function cli(...args: string[]) {
  const command = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", `${ROOT}functions/cli.ts`, ...args],
    env: { NO_COLOR: "1" },
  });
  const { code, stdout, stderr } = await command.output();
  return { code, out: new TextDecoder().decode(stdout), err: new TextDecoder().decode(stderr) };
}

Deno.test("run --json prints one object with ids, text, reason, timings and the logits asked for", async () => {
  const args = [
    "run",
    "--model",
    PG1,
    "--image",
    PICTURE,
    "--prompt",
    "caption en",
    "--max-tokens",
    "3",
    "--ignore-eos",
  ];
  const [wasm, reference] = await Promise.all([
    cli(...args, "--json", "--logits", "2"),
    cli(...args, "--json", "--logits", "2", "--backend", "reference"),
  ]);
  assert.equal(wasm.code, 0, wasm.err);
  const [answer, plain] = [JSON.parse(wasm.out), JSON.parse(reference.out)];
  assert.equal(answer.tokenIds.length, 3);
  assert.deepEqual(answer.tokenIds, plain.tokenIds);
  assert.equal(answer.imageTokens, 16);
  assert.equal(answer.finishReason, "length");
  assert.deepEqual(Object.keys(answer.timings), ["preprocess", "vision", "prefill", "perToken"]);
  assert.deepEqual(answer.logits.map((it: unknown[]) => it.length), [2, 2, 2]);
  answer.logits.flat().forEach(({ logit }: { logit: number }, i: number) =>
    assert.ok(Math.abs(logit - plain.logits.flat()[i].logit) < 2e-4)
  );
});

Deno.test("several pictures go in, in order", async () => {
  const { out, code } = await cli(
    ...[
      "run",
      "--model",
      PG1,
      "--image",
      PICTURE,
      "--image",
      PICTURE,
      "--prompt",
      "",
      "--max-tokens",
      "1",
      "--json",
    ],
  );
  assert.equal(code, 0);
  assert.equal(JSON.parse(out).imageTokens, 32);
});

Deno.test("detect --out draws on the picture and prints its items, constrained ones with labels asked for", async () => {
  const out = await Deno.makeTempFile({ suffix: ".png" });
  try {
    const args = ["--model", PG1, "--constrained", "--max-tokens", "40", "--out", out];
    const result = await cli("detect", PICTURE, "cat ; dog", ...args);
    assert.equal(result.code, 0, result.err);
    const { items, plainText } = JSON.parse(result.out);
    assert.ok(items.length > 0);
    for (const { label, box, boxPixels, confidence } of items) {
      assert.ok(["cat", "dog", "ca", "do", ""].includes(label), label);
      assert.ok(box.yMax > box.yMin && Number.isInteger(boxPixels.xMax) && confidence > 0);
    }
    assert.equal(plainText, "");
    const [before, after] = await Promise.all(
      [PICTURE, out].map(async (it) => await decodePicture(await Deno.readFile(it), { maxPixels: 1e6 })),
    );
    assert.deepEqual([after.width, after.height], [before.width, before.height]);
    assert.notDeepEqual(after.data, before.data);
  } finally {
    await Deno.remove(out);
  }
});

Deno.test("classify tells probabilities of labels from a list or a file", async () => {
  const file = await Deno.makeTempFile();
  try {
    await Deno.writeTextFile(file, "cat\nred car\n\ndog\n");
    const args = ["--model", PG1, "--template", "answer en what?", "--json"];
    const [list, lines] = await Promise.all([
      cli("classify", PICTURE, "--labels", "cat, red car,dog", ...args),
      cli("classify", PICTURE, "--labels", file, ...args),
    ]);
    assert.equal(list.code, 0, list.err);
    const { labels } = JSON.parse(list.out);
    assert.deepEqual(labels.map((it: { label: string }) => it.label).sort(), ["cat", "dog", "red car"]);
    const sum = labels.reduce((all: number, it: { probability: number }) => all + it.probability, 0);
    assert.ok(Math.abs(sum - 1) < 1e-9);
    assert.deepEqual(JSON.parse(lines.out).labels, labels);
  } finally {
    await Deno.remove(file);
  }
});

const wrong: [string, string[], number, RegExp][] = [
  ["an unknown command", ["dance"], 2, /expected one of the commands below, found "dance"/],
  ["an unknown option", ["run", "--speed", "9"], 2, /--speed/],
  [
    "a word where a number belongs",
    ["run", "--model", PG1, "--image", PICTURE, "--prompt", "", "--max-tokens", "many"],
    2,
    /--max-tokens: expected a number, found "many"/,
  ],
  [
    "an unknown backend",
    ["run", "--image", PICTURE, "--prompt", "", "--backend", "gpu"],
    2,
    /expected wasm or webgpu or reference or ort, found "gpu"/,
  ],
  ["no prompt", ["run", "--image", PICTURE], 2, /expected --prompt TEXT/],
  ["no picture", ["detect"], 2, /detect: expected a picture/],
  ["nothing to detect", ["detect", PICTURE], 1, /expected labels to be text/],
  ["no labels", ["classify", PICTURE], 2, /classify: expected IMAGE --labels/],
  ["a picture that is not there", ["ocr", "nowhere.png"], 1, /Cannot read the picture nowhere.png/],
  [
    "a model that is not there",
    ["run", "--model", "nowhere", "--image", PICTURE, "--prompt", ""],
    1,
    /model in nowhere: expected config.json, found nothing/,
  ],
  [
    "onnxruntime on a directory without ONNX files",
    ["run", "--model", PG1, "--image", PICTURE, "--prompt", "", "--backend", "ort"],
    1,
    /^Cannot load the model in .*pg1: expected onnx\/vision_encoder_q4\.onnx or .*, found no such file; models export-onnx/,
  ],
  [
    "a window that ONNX files cannot be given",
    ["run", "--model", PG1, "--image", PICTURE, "--prompt", "", "--backend", "ort", "--sliding-window", "hf"],
    1,
    /^Cannot load ONNX files with --sliding-window hf: they keep/,
  ],
  [
    "a picture that is none",
    ["run", "--model", PG1, "--image", `${ROOT}deno.json`, "--prompt", ""],
    1,
    /JPEG, PNG/,
  ],
];
for (const [name, args, code, message] of wrong) {
  Deno.test(`${name}: exit ${code} and one clear line, no stack`, async () => {
    const result = await cli(...args);
    assert.equal(result.code, code, result.err);
    assert.match(result.err, message);
    assert.doesNotMatch(result.err, /\n\s+at /);
    assert.equal(result.out, "");
  });
}

Deno.test("help names every command", async () => {
  const { out, code } = await cli("help");
  assert.equal(code, 0);
  for (
    const command of ["run", "caption", "answer", "detect", "segment", "ocr", "classify", "eval", "demo"]
  ) {
    assert.match(out, new RegExp(`^  ${command}\\b`, "m"));
  }
});
