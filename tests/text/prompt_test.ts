import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { frameIndices, prefixIds, promptOf } from "../../lib/text/prompt.ts";
import { fromModel } from "../../lib/text/tokenizer.ts";
import type { Task } from "../../lib/types.ts";

const prefixes: [Task, string][] = [
  [{ task: "cap", language: "en" }, "cap en"],
  [{ task: "caption" }, "caption en"],
  [{ task: "caption", language: "fil" }, "caption fil"],
  [{ task: "describe", language: "de" }, "describe de"],
  [{ task: "ocr" }, "ocr"],
  [{ task: "answer", question: "Where is the cow standing?" }, "answer en Where is the cow standing?"],
  [{ task: "answer", question: "¿Qué es?", language: "es" }, "answer es ¿Qué es?"],
  [
    { task: "answer", question: "what colour?", choices: ["red", "dark blue"] },
    "answer en what colour? choose from: red \t dark blue",
  ],
  [{ task: "question", answer: "beach" }, "question en beach"],
  [{ task: "detect", labels: ["cat"] }, "detect cat"],
  [{ task: "detect", labels: ["cat", " red car "] }, "detect cat ; red car"],
  [{ task: "segment", labels: ["cat", "dog"] }, "segment cat ; dog"],
  [{ task: "detect", labels: ["all classes"] }, "detect all classes"],
  [{ task: "text", prompt: "What is on the flower?" }, "What is on the flower?"],
  [{ task: "text", prompt: "" }, ""],
];
for (const [task, prompt] of prefixes) {
  Deno.test(`prefix "${prompt}"`, () => assert.deepEqual(promptOf(task), { prompt, tokens: "plain" }));
}

Deno.test("the caption of a box has its locations as tokens, in training's bins", async () => {
  const { prompt, tokens } = promptOf({ task: "caption", box: { yMin: 0, xMin: 0.5, yMax: 0.25, xMax: 1 } });
  assert.equal(prompt, "caption <loc0000><loc0512><loc0256><loc1023>");
  const tokenizer = fromModel(
    await readFile(new URL("../golden/checkpoints/pg1/tokenizer.model", import.meta.url)),
  );
  const pieces = prefixIds(tokenizer, prompt, { bosId: 2, tokens }).map((id) => tokenizer.piece(id));
  assert.deepEqual(pieces.filter((it) => it.startsWith("<loc")), [
    "<loc0000>",
    "<loc0512>",
    "<loc0256>",
    "<loc1023>",
  ]);
});

Deno.test("what would be read as another part of the prefix is refused", () => {
  const wrong: Task[] = [
    { task: "detect", labels: [] },
    { task: "detect", labels: ["cat ; dog"] },
    { task: "segment", labels: ["cat", " "] },
    { task: "detect", labels: ["cat\ndog"] },
    { task: "answer", question: "" },
    { task: "answer", question: "which?", choices: [] },
    { task: "answer", question: "which?", choices: ["a\tb"] },
    { task: "question", answer: " \n" },
    { task: "caption", language: "EN" },
    { task: "caption", language: "en <loc0001>" },
    { task: "caption", box: { yMin: 0, xMin: 0, yMax: 1.5, xMax: 1 } },
    { task: "caption", box: { yMin: NaN, xMin: 0, yMax: 1, xMax: 1 } },
  ];
  for (const task of wrong) {
    assert.throws(() => promptOf(task), { code: "parameter_invalid" }, JSON.stringify(task));
  }
});

Deno.test("frames of a video: with a stride, and short clips begin anew", () => {
  assert.deepEqual(frameIndices(1000, 9).slice(0, 4), [0, 9, 18, 27]);
  assert.equal(frameIndices(1000, 9).length, 16);
  assert.deepEqual(frameIndices(30, 10, 7), [0, 10, 20, 0, 10, 20, 0]);
  assert.deepEqual(frameIndices(1, 26, 3), [0, 0, 0]);
  assert.throws(() => frameIndices(0, 1), { code: "parameter_invalid" });
});
