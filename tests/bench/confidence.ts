/**
 * How far a location's window of bins should reach for confidences to be right: the bundled model finds things on drawn
 * scenes once, and its boxes are given the confidences that each width would give them.
 *
 *     deno run -A tests/bench/confidence.ts --data FILE [--model DIR]
 *
 * prints a table in Markdown. FILE is of `models/tiny/scenes.py`; only its questions of `detect` are asked.
 */

import { dirname, join } from "@std/path";
import { parseArgs } from "node:util";
import { createWasmBackend } from "../../lib/mod.ts";
import { argmax } from "../../lib/decode/sampler.ts";
import { findLocations } from "../../lib/text/locations.ts";
import { type BoxEvent, createBoxParser } from "../../lib/text/parse.ts";
import { directoryFiles, TINY } from "../../functions/model.ts";
import { readRows, type Row } from "../../models/evaluation/data.ts";
import { ece, matches, type Scene } from "../../models/metrics/boxes.ts";
import { openStages, run } from "../../models/stages.ts";
import { relaxed, simd } from "../../wasm/kernels.js";

/** Bins on either side that count with the one chosen. */
const WIDTHS = [0, 16, 24, 32, 40, 48];
const TOKENS = 256;

/** A way to make a box's confidence of its tokens' probabilities, with the scenes that it was given. */
interface Way {
  readonly name: string;
  /** What the parser is told of a location, of the logarithms of its windows' probabilities. */
  readonly told: (near: readonly number[]) => number;
  readonly scenes: Scene[];
}

/** Geometric means and products of the locations for each width, and the label alone. */
function ways(): Way[] {
  const mean = WIDTHS.map((width, i): Way => ({
    name: `mean ${width}`,
    told: (near) => near[i],
    scenes: [],
  }));
  // The parser takes the mean of four logarithms: four times each is their sum.
  const product = WIDTHS.map((width, i): Way => (
    { name: `product ${width}`, told: (near) => 4 * near[i], scenes: [] }
  ));
  return [...mean, ...product, { name: "label", told: () => 0, scenes: [] }];
}

/** Logarithms of the probabilities of the bins within each width of this one, and of the token alone. */
function windows(logits: Float32Array, ids: readonly (number | undefined)[], bin: number): number[] {
  const total = logSum(logits);
  return WIDTHS.map((width) => {
    const near = ids.slice(Math.max(0, bin - width), bin + width + 1).filter((it) => it !== undefined);
    return logSum(near.map((id) => logits[id])) - total;
  });
}

function logSum(values: ArrayLike<number>): number {
  let [most, sum] = [-Infinity, 0];
  for (let i = 0; i < values.length; i++) most = Math.max(most, values[i]);
  for (let i = 0; i < values.length; i++) sum += Math.exp(values[i] - most);
  return most + Math.log(sum);
}

/** Confidences of the right boxes and of the wrong ones. */
function parted(scenes: readonly Scene[]): { right: number[]; wrong: number[] } {
  const parts = { right: [] as number[], wrong: [] as number[] };
  for (const { want, found } of scenes) {
    matches(want, found).forEach((it, i) => parts[it ? "right" : "wrong"].push(found[i].confidence));
  }
  return parts;
}

/** Area under the ROC curve: how often a right box is surer than a wrong one, where equally sure counts half. */
function roc(scenes: readonly Scene[]): number {
  const { right, wrong } = parted(scenes);
  let sum = 0;
  for (const a of right) {
    for (const b of wrong) sum += (Math.sign(a - b) + 1) / 2;
  }
  return sum / (right.length * wrong.length);
}

/** How many, and their mean. */
function summary(confidences: readonly number[]): string {
  const mean = confidences.reduce((sum, it) => sum + it, 0) / confidences.length;
  return `${confidences.length} (${mean.toFixed(2)})`;
}

if (import.meta.main) await main();

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: { data: { type: "string" }, model: { type: "string", default: TINY } },
  });
  if (!flags.data) throw new RangeError("expected --data FILE, as models/tiny/scenes.py writes it");
  const { rows } = await readRows(flags.data, "detect");
  const stages = await openStages(
    createWasmBackend({ simd, relaxed }),
    directoryFiles(flags.model!),
    "as-stored",
  );
  const locations = findLocations(stages.tokenizer), all = ways();
  for (const row of rows) {
    const image = await Deno.readFile(join(dirname(flags.data), row.image!));
    const parsers = all.map(() => createBoxParser(stages.tokenizer, { locations }));
    const found = all.map((): BoxEvent[] => []);
    await run(stages, { image, prompt: row.prompt }, TOKENS, (logits) => {
      const id = argmax(logits);
      if (stages.config.eosIds.includes(id)) return undefined;
      const bin = locations.bins.get(id);
      const near = bin === undefined ? undefined : windows(logits, locations.ids, bin);
      const alone = logits[id] - logSum(logits);
      all.forEach(({ told }, i) => found[i].push(...whole(parsers[i].push(id, near ? told(near) : alone))));
      return id;
    }, () => Promise.resolve());
    all.forEach(({ scenes }, i) => {
      found[i].push(...whole(parsers[i].end()));
      scenes.push({ want: wanted(row), found: found[i] });
    });
  }
  const { right, wrong } = parted(all[0].scenes);
  const lines = [
    `${rows.length} questions; boxes, and mean confidence of the bins alone: right ${summary(right)}, wrong ${
      summary(wrong)
    }`,
    "",
    "| a location counts | calibration error, geometric mean | product | ROC |",
    "|---|---|---|---|",
    ...WIDTHS.map((width, i) => {
      const [mean, product] = [all[i].scenes, all[WIDTHS.length + i].scenes];
      const name = width ? `with ${width} bins on either side` : "alone";
      return `| ${name} | ${ece(mean).toFixed(3)} | ${ece(product).toFixed(3)} | ${roc(mean).toFixed(3)} |`;
    }),
    ...all.slice(-1).map(({ scenes }) =>
      `| label alone, no locations | ${ece(scenes).toFixed(3)} | | ${roc(scenes).toFixed(3)} |`
    ),
  ];
  Deno.stdout.writeSync(new TextEncoder().encode(lines.join("\n") + "\n"));
}

/** As `deno task eval` has it, what is flagged is no box. */
function whole(boxes: readonly BoxEvent[]): BoxEvent[] {
  return boxes.filter((it) => !it.flags);
}

function wanted({ boxes }: Row): Scene["want"] {
  return boxes!.map(([yMin, xMin, yMax, xMax, label]) => (
    { box: { yMin, xMin, yMax, xMax }, label, confidence: 1 }
  ));
}
