/** What models/tiny/scenes.py draws is what its answers say: read from the pixels, with python3 where there is one. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { decodePicture } from "../../lib/preprocess/decode.ts";

const SCRIPT = new URL("../../models/tiny/scenes.py", import.meta.url).pathname;
const COLOURS: Record<string, [number, number, number]> = {
  red: [214, 36, 40],
  green: [44, 158, 62],
  blue: [44, 82, 214],
  yellow: [244, 216, 40],
  orange: [246, 132, 26],
  purple: [132, 52, 168],
  pink: [248, 150, 196],
  cyan: [70, 206, 220],
};

interface Row {
  readonly image: string;
  readonly task: string;
  readonly prompt: string;
  readonly answers: string[];
}

const python = await new Deno.Command("python3", { args: ["--version"] }).output().then(
  () => true,
  () => false,
);
const test = (name: string, fn: () => Promise<void>) =>
  Deno.test({ name: python ? name : `${name} (skipped: no python3)`, ignore: !python, fn });

/** Rows of `data.jsonl` and where they lie. */
async function drawn(task: string, count: number): Promise<{ directory: string; rows: Row[] }> {
  const directory = await Deno.makeTempDir();
  const args = [SCRIPT, "--seed", "800123", "--count", `${count}`, "--task", task, "--out", directory];
  const { code, stderr } = await new Deno.Command("python3", { args, env: { PYTHONDONTWRITEBYTECODE: "1" } })
    .output();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
  const text = await Deno.readTextFile(join(directory, "data.jsonl"));
  return { directory, rows: text.trim().split("\n").map((it) => JSON.parse(it)) };
}

/** For every row of the picture how many pixels have the colour, give or take what the generator varies it by. */
async function counts(path: string, colour: string): Promise<number[]> {
  const { data, width, height } = await decodePicture(await Deno.readFile(path), { maxPixels: 1e6 });
  const near = (i: number) => COLOURS[colour].every((v, c) => Math.abs(data[3 * i + c] - v) <= 10);
  return Array.from(
    { length: height },
    (_, y) => Array.from({ length: width }, (_, x) => near(y * width + x)).filter(Boolean).length,
  );
}

test("a bar is eighteen pixels high for each unit of its value", async () => {
  const { directory, rows } = await drawn("chart", 40);
  const asked = rows.flatMap((row) => {
    const colour = row.prompt.match(/value of the (\w+) bar/)?.[1];
    return colour ? [{ ...row, colour }] : [];
  });
  assert.ok(asked.length > 10);
  for (const { image, colour, answers } of asked) {
    const rows = await counts(join(directory, image), colour);
    assert.equal(rows.filter((it) => it > 0).length, 18 * Number(answers[0]), image);
  }
  await Deno.remove(directory, { recursive: true });
});

test("a picture is described alike in English, German and French", async () => {
  const nouns = {
    en: "circle square triangle diamond star cross ring heart".split(" "),
    de: "Kreis Quadrat Dreieck Raute Stern Kreuz Ring Herz".split(" "),
    fr: "cercle carré triangle losange étoile croix anneau cœur".split(" "),
  };
  const { directory, rows } = await drawn("all", 20);
  for (const english of rows.filter((it) => it.task === "caption")) {
    const told = (language: keyof typeof nouns, task: string) => {
      const [text] = rows.find((it) => it.task === task && it.image === english.image)!.answers;
      return text.split(/[ ,]+/).map((it) => nouns[language].indexOf(it)).filter((it) => it >= 0);
    };
    assert.deepEqual(told("de", "caption_de"), told("en", "caption"), english.answers[0]);
    assert.deepEqual(told("fr", "caption_fr"), told("en", "caption"), english.answers[0]);
  }
  await Deno.remove(directory, { recursive: true });
});
