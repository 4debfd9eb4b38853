/** Data sets, benchmarks and runs of `deno task eval`, with the bundled model and pictures. */

import assert from "node:assert/strict";
import { loadModel, TINY } from "../../functions/model.ts";
import { BENCHMARKS } from "../../models/evaluation/benchmarks.ts";
import { pictures, readRows } from "../../models/evaluation/data.ts";
import { evaluate, type Marked, progressLine, report } from "../../models/evaluation/evaluate.ts";
import { score } from "../../models/evaluation/score.ts";
import { encodePng, runLengths } from "../../lib/vision/mask_forms.ts";
import { writeHtml } from "../../models/evaluation/html.ts";
import { decodePicture } from "../../lib/preprocess/decode.ts";
import { until } from "../until.ts";

const PICTURES = `${TINY}/pictures`;
const pipeline = await loadModel(TINY);

async function withData(
  rows: readonly unknown[],
  test: (data: string, directory: string) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir();
  try {
    for (const name of ["hearts.png", "park.png", "five_shapes.png"]) {
      await Deno.copyFile(`${PICTURES}/${name}`, `${directory}/${name}`);
    }
    const lines = rows.map((it) => typeof it === "string" ? it : JSON.stringify(it));
    await Deno.writeTextFile(`${directory}/data.jsonl`, lines.join("\n") + "\n");
    await test(`${directory}/data.jsonl`, directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

const CAPTION = "a purple cross, a green star, a red heart, a blue square and a blue ring";
const OCR = { task: "ocr", image: "park.png", prompt: "ocr", answers: ["PARK"] };

Deno.test("a scene's task is matched exactly; JSON has task, n, metric and accuracy", () =>
  withData([OCR, { ...OCR, answers: ["BANK"] }, { ...OCR, task: "other" }], async (data) => {
    const { task, n, metric, accuracy } = await evaluate(pipeline, data, { task: "ocr" });
    assert.deepEqual({ task, n, metric, accuracy }, {
      task: "ocr",
      n: 2,
      metric: "exact match",
      accuracy: 0.5,
    });
    const all = await evaluate(pipeline, data);
    assert.deepEqual([all.task, all.n, all.accuracy], ["all", 3, 2 / 3]);
  }));

Deno.test("captions: CIDEr-D, with what was published for models of any size beside it", () =>
  withData([
    { image: "five_shapes.png", answers: [CAPTION] },
    { image: "park.png", answers: ["the word park on a sign"] },
  ], async (data) => {
    const found = await evaluate(pipeline, data, { task: "cococap" });
    assert.equal(found.metric, "CIDEr-D");
    assert.ok(found.accuracy >= 0.5 && found.accuracy < 1, `${found.accuracy}`);
    const lines = report(found);
    assert.match(lines, new RegExp(`cococap +2 +${(1000 * found.accuracy).toFixed(1)}  CIDEr-D`));
    assert.match(lines, /141\.9 {2}published: PaliGemma, 224 px \(COCO captions/);
  }));

Deno.test("questions become the benchmark's prompt, parts are scored apart and averaged", () =>
  withData([
    { image: "hearts.png", question: "how many circles are there?", answers: ["two"], split: "simple" },
    {
      image: "hearts.png",
      prompt: "answer en how many circles are there?",
      answers: ["9"],
      split: "complex",
    },
    { image: "hearts.png", question: "how many circles are there?", answers: ["2"], split: "simple" },
  ], async (data) => {
    const { rows } = await readRows(data, "tallyqa");
    assert.deepEqual(
      new Set(rows.map((it) => it.prompt)),
      new Set(["answer en how many circles are there?"]),
    );
    const { accuracy, tasks: [{ splits }] } = await evaluate(pipeline, data, { task: "tallyqa" });
    assert.deepEqual([accuracy, splits!.simple.accuracy, splits!.complex.accuracy], [0.5, 1, 0]);
    assert.equal(splits!.simple.n, 2);
  }));

Deno.test("a frames folder gives eight pictures 26 apart, and begins anew when it is shorter", () =>
  withData([{ frames: "video", question: "what is it?", answers: ["a cat"] }], async (data, directory) => {
    await Deno.mkdir(`${directory}/video`);
    for (let i = 0; i < 10; i++) await Deno.writeFile(`${directory}/video/${i}.png`, Uint8Array.of(i));
    const { rows: [row] } = await readRows(data, "msvdqa");
    assert.deepEqual((await pictures(row, data, 224)).map((it) => it[0]), [0, 6, 2, 8, 4, 0, 6, 2]);
    await Deno.remove(`${directory}/video`, { recursive: true });
    await assert.rejects(pictures(row, data, 224), {
      code: "image_missing",
      message: /data\.jsonl, line 1: /,
    });
  }));

Deno.test("WidgetCap's box is drawn in red, one pixel wide, on the model's square", () =>
  withData([{ image: "park.png", box: [0.25, 0, 0.75, 1], answers: ["a word"] }], async (data) => {
    const { rows: [row] } = await readRows(data, "widgetcap");
    const [png] = await pictures(row, data, 32);
    const drawn = await decodePicture(png, { maxPixels: 1e6 });
    assert.deepEqual([drawn.width, drawn.height], [32, 32]);
    const red = (y: number, x: number) =>
      [255, 0, 0].every((value, c) => drawn.data[3 * (32 * y + x) + c] === value);
    assert.ok(red(7, 0) && red(7, 31) && red(23, 15) && red(15, 0) && red(15, 31));
    assert.ok(!red(6, 15) && !red(8, 15) && !red(15, 15) && !red(24, 0));
  }));

Deno.test("bad lines are named with what was expected and found", async () => {
  const good = { image: "park.png", prompt: "ocr", answers: ["PARK"] };
  for (
    const [row, task, message] of [
      ["{", "gqa", /data\.jsonl, line 2: expected one JSON object, found "\{"/],
      ["[1]", "gqa", /line 2: expected one JSON object, found \[1\]/],
      [{ ...good, answers: "PARK" }, "gqa", /line 2: expected "answers" to be a list of texts, found "PARK"/],
      [{ ...good, answers: [] }, "gqa", /line 2: expected "answers", found \[\]/],
      [
        { ...good, image: undefined },
        "gqa",
        /line 2: expected one of "image", "images" and "frames", found \[\]/,
      ],
      [{ ...good, prompt: undefined }, "gqa", /line 2: expected "prompt" or "question", found none/],
      [{ ...good, box: [0, 0, 1, 2] }, "gqa", /line 2: expected "box" to be \[yMin, .*, found \[0,0,1,2\]/],
      [{ ...good, task: "detect" }, "gqa", /line 2: expected "boxes", found none/],
    ] as const
  ) {
    await withData(
      [good, row],
      (data) => assert.rejects(readRows(data, task), { code: "parameter_invalid", message }),
    );
  }
  await withData([good], async (data) => {
    await assert.rejects(readRows(data), {
      message: /line 1: expected "task", or --task with one of cococap, /,
    });
    await assert.rejects(readRows(data, "nothing"), { message: /line 1: .*, found "nothing"/ });
    await assert.rejects(readRows(`${data}.none`, "gqa"), {
      code: "parameter_invalid",
      message: /^Cannot read /,
    });
  });
  await withData(
    [OCR],
    (data) =>
      assert.rejects(readRows(data, "count"), { message: /expected rows of task "count", found ocr/ }),
  );
});

Deno.test("a run that was stopped goes on from what is done, and comes to the same", () =>
  withData([OCR, { ...OCR, image: "hearts.png" }, { ...OCR, answers: ["BANK"] }], async (data, directory) => {
    const log = `${directory}/answers`;
    const stop = new AbortController();
    const run = (options: Parameters<typeof evaluate>[2]) => evaluate(pipeline, data, { log, ...options });
    await assert.rejects(run({ signal: stop.signal, progress: (done) => done === 1 && stop.abort() }), {
      code: "cancelled",
      message: "Stopped after 1 of 3 questions; the same command goes on from there",
    });
    const kept = await Deno.readTextFile(log);
    assert.equal(kept.split("\n").length, 3);
    // Killed while it wrote: what has no end is not taken.
    await Deno.writeTextFile(log, kept + `{"line":2,"text":"PARK","items":[]}`);
    // What was answered is not asked again: an answer changed on disk counts.
    await Deno.writeTextFile(log, (await Deno.readTextFile(log)).replace('"PARK"', '"BANK"'));
    const { accuracy, n } = await run({});
    assert.deepEqual([accuracy, n], [0, 3]);
    await assert.rejects(run({ constrained: true }), {
      code: "parameter_invalid",
      message: /Cannot go on with .*answers: expected answers of .*; remove the file to begin anew/,
    });
    await Deno.remove(log);
    assert.equal((await run({})).accuracy, 1 / 3);
  }));

Deno.test("Ctrl-C ends with 130 and leaves no result; killed, then run again, the result is whole", () =>
  withData(Array.from({ length: 120 }, () => OCR), async (data, directory) => {
    const json = `${directory}/result.json`;
    const start = () =>
      new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "-A",
          new URL("../../functions/cli.ts", import.meta.url).pathname,
          "eval",
          "--data",
          data,
        ]
          .concat("--json", json),
        stdout: "null",
        stderr: "piped",
      }).spawn();
    const lines = () => Deno.readTextFile(`${json}.answers`).then((it) => it.split("\n").length, () => 0);
    for (const signal of ["SIGINT", "SIGKILL"] as const) {
      const before = await lines(), run = start();
      await until(async () => await lines() >= Math.max(before, 2) + 5, 60_000);
      run.kill(signal);
      const { code, stderr } = await run.output();
      if (signal === "SIGINT") {
        assert.equal(code, 130);
        assert.match(
          new TextDecoder().decode(stderr),
          /^Stopped after \d+ of 120 questions; the same command goes/,
        );
      }
      await assert.rejects(Deno.stat(json), Deno.errors.NotFound);
    }
    assert.ok(await lines() < 120, "stopped before the end");
    assert.equal((await start().output()).code, 0);
    const { task, n, metric, accuracy } = JSON.parse(await Deno.readTextFile(json));
    assert.deepEqual({ task, n, metric, accuracy }, {
      task: "ocr",
      n: 120,
      metric: "exact match",
      accuracy: 1,
    });
    await assert.rejects(Deno.stat(`${json}.answers`), Deno.errors.NotFound);
  }));

Deno.test("referring masks, yes or no, and pairs are scored by what their rows hold", () =>
  withData([], async (data, directory) => {
    const grey = Uint8Array.from("##..", (it) => it === "#" ? 255 : 0);
    await Deno.writeFile(`${directory}/mask.png`, await encodePng(grey, 2, 2));
    const row = { line: 1, task: "", prompt: "", image: "", answers: ["yes"], masks: ["mask.png"] };
    const inside = Uint8Array.from("#.#.", (it) => Number(it === "#"));
    const mask = runLengths({ top: 0, left: 0, height: 2, width: 2, inside }, [2, 2]);
    const box = { yMin: 0, xMin: 0, yMax: 1, xMax: 1 };
    const item = { box, label: "cat", confidence: 1, mask };
    const answers = [{ row, text: "", items: [item] }, { row, text: "", items: [] }];
    const iou = await score("mean IoU", answers, data);
    assert.deepEqual(iou, { accuracy: 1 / 6, details: { "cumulative IoU": 1 / 5 }, each: [1 / 3, 0] });
    const said = (text: string, group: string, answer = "yes") => ({
      row: { ...row, group, answers: [answer] },
      text,
      items: [],
    });
    const pairs = [said("yes", "1"), said("yes", "1", "no"), said("yes", "2"), said("no", "2", "no")];
    const paired = await score("paired accuracy", pairs, data);
    assert.deepEqual([paired.accuracy, paired.details], [0.5, { "each question": 0.75 }]);
    const pope = await score("POPE F1", pairs, data);
    assert.ok(Math.abs(pope.accuracy - 0.8) < 1e-12);
    assert.deepEqual(pope.each, [1, 0, 1, 1]);
  }));

Deno.test("the page shows scores, published ones, and what went wrong with its picture", () =>
  withData([
    { image: "park.png", prompt: "ocr", answers: ["BANK <b>"], split: "human" },
    { image: "hearts.png", prompt: "detect circle", answers: ["PARK"], split: "augmented" },
    { image: "park.png", prompt: "ocr", answers: ["PARK"], split: "augmented" },
  ], async (data, directory) => {
    const marked: Marked[] = [];
    const result = await evaluate(pipeline, data, {
      task: "chartqa",
      marked: (them) => marked.push(...them),
    });
    assert.deepEqual(marked.map((it) => it.mark), [0, 0, 1]);
    await writeHtml(`${directory}/page`, result, marked, data);
    const page = await Deno.readTextFile(`${directory}/page/index.html`);
    assert.match(page, /chartqa: 2 of 3 not wholly right/);
    assert.match(
      page,
      /<td>chartqa, human<td class=n>1<td>relaxed accuracy<td class=n>0\.00<td>42 \(PaliGemma 2 3B, 224 px/,
    );
    assert.match(page, /<td class=n>25\.00<td>57\.08 \(PaliGemma, 224 px/);
    assert.match(page, /<dt>Said<dd>PARK<dt>Wanted<dd>BANK &lt;b>/);
    const shown = [...page.matchAll(/src="pictures\/([^"]+)"/g)].map(([, name]) => name);
    assert.deepEqual(shown, ["1_0.png", "2_0.png"]);
    const [plain, drawn] = shown.map((it) => Deno.readFileSync(`${directory}/page/pictures/${it}`));
    assert.deepEqual(plain, Deno.readFileSync(`${directory}/park.png`));
    assert.notDeepEqual(drawn, Deno.readFileSync(`${directory}/hearts.png`));
  }));

Deno.test("progress: how much, how fast, how long still; what an earlier run did is no speed", () => {
  assert.equal(
    progressLine(60, 120, { done: 20, elapsedMs: 20_000 }),
    "[############............] 60 of 120  2.0 a second  30 s left",
  );
  assert.match(progressLine(1, 1000, { done: 0, elapsedMs: 10_000 }), /0\.10 a second {2}2 h 46 min left$/);
  assert.match(progressLine(10, 100, { done: 9, elapsedMs: 1000 }), /1\.0 a second {2}1 min 30 s left$/);
});

Deno.test("the benchmarks of the articles are there, with sizes and scores in range", () => {
  const named =
    "cococap textcaps widgetcap vqav2 gqa scienceqa textvqa docvqa chartqa tallyqa countbenchqa mmvp refcoco msvdqa";
  for (const name of named.split(" ")) {
    const { published, prompt, maxTokens } = BENCHMARKS[name];
    assert.ok(published?.length && prompt && maxTokens, name);
    assert.ok(
      published.every((it) => [224, 448, 896].includes(it.imageSize) && it.score > 30 && it.score < 160),
      name,
    );
  }
});
