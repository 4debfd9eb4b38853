/** Figures of a simulation as SVG: hit rates of all policies, and how each went over the time. */

import type { Score } from "./scores.ts";

/** A class of traces and how every policy did. */
export interface ClassScores {
  readonly class: string;
  readonly policies: readonly Score[];
}

/** Paul Tol's muted colours, told apart by colour-blind readers too. */
const COLOURS = ["#88CCEE", "#44AA99", "#DDCC77", "#CC6677", "#332288", "#888888"];
const WIDTH = 960;
const LEFT = 60;
const TOP = 40;

/** A bar for every class and policy. */
export function hitRates(classes: readonly ClassScores[]): string {
  const [height, bottom] = [360, 300];
  const y = (rate: number) => bottom - rate * (bottom - TOP);
  const group = (WIDTH - LEFT - 10) / classes.length;
  const bars = classes.flatMap(({ class: name, policies }, i) => {
    const bar = group * 0.85 / policies.length;
    return [
      ...policies.map(({ policy, hitRate }, k) => {
        const x = LEFT + i * group + k * bar;
        const title = `<title>${name}, ${policy}: ${(100 * hitRate).toFixed(1)} %</title>`;
        return `<rect x="${x.toFixed(1)}" y="${y(hitRate).toFixed(1)}" width="${(bar * 0.92).toFixed(1)}" ` +
          `height="${(bottom - y(hitRate)).toFixed(1)}" fill="${COLOURS[k]}">${title}</rect>`;
      }),
      label(LEFT + (i + 0.42) * group, bottom + 18, name, "middle"),
    ];
  });
  return svg(height, "Budgets met, by class of traces", [
    ...grid(y, 0),
    ...bars,
    ...legend(classes, height - 14),
  ]);
}

/** A line for every policy. */
export function overTime({ class: name, policies }: ClassScores): string {
  const [height, bottom] = [360, 300];
  const low = Math.floor(10 * Math.min(...policies.flatMap((it) => it.overTime))) / 10;
  const y = (rate: number) => bottom - (rate - low) / (1 - low || 1) * (bottom - TOP);
  const lines = policies.map(({ overTime }, k) => {
    const step = (WIDTH - LEFT - 20) / (overTime.length - 1);
    const points = overTime.map((it, i) => `${(LEFT + i * step).toFixed(1)},${y(it).toFixed(1)}`).join(" ");
    return `<polyline points="${points}" fill="none" stroke="${COLOURS[k]}" stroke-width="1.8"/>`;
  });
  const axis = label(WIDTH / 2, bottom + 18, "time: two days of 50 minutes", "middle");
  return svg(height, `Budgets met over the time: ${name}`, [
    ...grid(y, low),
    ...lines,
    axis,
    ...legend([{ class: name, policies }], height - 14),
  ]);
}

function svg(height: number, title: string, content: readonly string[]): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${height}" fill="white"/>`,
    `<text x="${LEFT}" y="22" font-size="15">${title}</text>`,
    ...content,
    "</svg>\n",
  ].join("\n");
}

/** Lines at every tenth from `low` to 1. */
function grid(y: (rate: number) => number, low: number): string[] {
  const tenths = Array.from({ length: Math.round((1 - low) * 10) + 1 }, (_, i) => low + i / 10);
  return tenths.flatMap((rate) => [
    `<line x1="${LEFT}" x2="${WIDTH - 10}" y1="${y(rate)}" y2="${y(rate)}" stroke="#ddd"/>`,
    label(LEFT - 8, y(rate) + 4, `${Math.round(rate * 100)} %`, "end"),
  ]);
}

function legend([first]: readonly ClassScores[], y: number): string[] {
  return first.policies.flatMap(({ policy }, k) => [
    `<rect x="${LEFT + k * 145}" y="${y - 10}" width="12" height="12" fill="${COLOURS[k]}"/>`,
    label(LEFT + k * 145 + 18, y, policy, "start"),
  ]);
}

function label(x: number, y: number, text: string, anchor: "start" | "middle" | "end"): string {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}">${text}</text>`;
}
