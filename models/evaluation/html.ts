/** A folder with one page that shows a run: scores beside the published ones, and the pictures that went wrong. */

import { basename, join } from "@std/path";
import { decodePicture } from "../../lib/preprocess/decode.ts";
import { encodePng } from "../../lib/vision/mask_forms.ts";
import { annotate } from "../annotate.ts";
import { locates, picturePaths } from "./data.ts";
import { comparable, type Evaluation, type Marked, type TaskResult } from "./evaluate.ts";

/** Answers of a task that are shown, worst first; the page says how many there are. */
const SHOWN = 200;

const STYLE =
  `body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}ul{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem;
padding:0;list-style:none}li{border:1px solid #ddd;border-radius:.4rem;padding:.6rem;overflow-wrap:anywhere}li img{max-width:100%}
dl{margin:.4rem 0 0}dt{font-size:.8rem;color:#555}dd{margin:0}@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}
td,th,li{border-color:#444}dt{color:#aaa}}`;

/**
 * Writes `index.html` and copies of the pictures it shows, found boxes and masks drawn on them, into a folder. The page comes
 * last, and under another name until it is whole.
 *
 * @param answers of all tasks
 */
export async function writeHtml(
  out: string,
  result: Evaluation,
  answers: readonly Marked[],
  data: string,
): Promise<void> {
  await Deno.mkdir(join(out, "pictures"), { recursive: true });
  const sections: string[] = [];
  for (const task of result.tasks) {
    const them = answers.filter((it) => it.row.task === task.task);
    const wrong = them.filter((it) => it.mark < 1).sort((a, b) => a.mark - b.mark);
    const items: string[] = [];
    for (const it of wrong.slice(0, SHOWN)) items.push(await answerItem(out, it, data));
    const cut = wrong.length > SHOWN ? ` (the ${SHOWN} worst are shown)` : "";
    sections.push(
      `<h2>${safe(task.task)}: ${wrong.length} of ${them.length} not wholly right${cut}</h2>\n<ul>\n${
        items.join("\n")
      }\n</ul>`,
    );
  }
  const title = `${result.model} on ${basename(data)}`;
  const page = `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${
    safe(title)
  }</title>
<style>${STYLE}</style>
<h1>${safe(title)}</h1>
<p>${result.n} questions, pictures of ${result.imageSize} × ${result.imageSize} pixels.</p>
<table><tr><th>Task<th>Questions<th>Metric<th>Measured<th>Published
${result.tasks.map((it) => scoreRows(it, result.imageSize)).join("\n")}
</table>
${sections.join("\n")}
</html>
`;
  await Deno.writeTextFile(join(out, "index.html.part"), page);
  await Deno.rename(join(out, "index.html.part"), join(out, "index.html"));
}

function scoreRows(task: TaskResult, imageSize: number): string {
  const published = (split?: string) =>
    comparable(task.published ?? [], imageSize).filter((it) => it.split === split)
      .map((it) => `${it.score} (${it.model}, ${it.imageSize} px; ${safe(task.measuredOn ?? "")})`).join(
        "<br>",
      );
  const row = (name: string, it: TaskResult, split?: string) =>
    `<tr><td>${safe(name)}<td class=n>${it.n}<td>${it.metric}${
      Object.entries(it.details).map(([name, value]) => `<br>${name} ${value.toFixed(3)}`).join("")
    }<td class=n>${it.score.toFixed(2)}<td>${published(split)}`;
  // Parts that are published but not measured stand in rows of their own, so that nothing published is lost.
  const parts = new Set([
    ...Object.keys(task.splits ?? {}),
    ...(task.published ?? []).flatMap((it) => it.split ?? []),
  ]);
  return [
    row(task.task, task),
    ...[...parts].map((split) => {
      const part = task.splits?.[split];
      const name = `${task.task}, ${split}`;
      return part ? row(name, part, split) : `<tr><td>${safe(name)}<td><td><td><td>${published(split)}`;
    }),
  ].join("\n");
}

async function answerItem(out: string, { row, text, items, mark }: Marked, data: string): Promise<string> {
  const images: string[] = [];
  for (const [i, path] of (await picturePaths(row, data)).entries()) {
    const bytes = await Deno.readFile(path);
    const drawn = items.length || row.box;
    const name = `${row.line}_${i}${drawn ? ".png" : path.match(/\.\w+$/)?.[0] ?? ""}`;
    if (drawn) {
      const asked = (row.box ? [row.box] : []).map(([yMin, xMin, yMax, xMax]) => (
        { box: { yMin, xMin, yMax, xMax }, label: "asked", confidence: 1 }
      ));
      const picture = annotate(await decodePicture(bytes, { maxPixels: 50_000_000 }), [...asked, ...items]);
      await Deno.writeFile(
        join(out, "pictures", name),
        await encodePng(picture.data, picture.width, picture.height),
      );
    } else await Deno.writeFile(join(out, "pictures", name), bytes);
    images.push(
      `<img loading="lazy" src="pictures/${encodeURIComponent(name)}" alt="${safe(basename(path))}">`,
    );
  }
  const wanted = locates(row.task)
    ? (row.boxes ?? []).map((it) =>
      `${it[4]} at ${it.slice(0, 4).map((side) => Number(side).toFixed(3)).join(" ")}`
    )
    : [...new Set(row.answers)];
  const fields = [["Asked", row.prompt], ["Said", text], ["Wanted", wanted.join("; ")], [
    "Worth",
    mark.toFixed(3),
  ]];
  return `<li>${images.join("")}<dl>${
    fields.map(([name, value]) => `<dt>${name}<dd>${safe(value)}`).join("")
  }</dl>`;
}

function safe(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");
}
