/** What answers of the real system come to. */

import { Chance } from "./chance.ts";
import type { RealLedger, RealRow } from "./real.ts";

/** A share, with the interval that it lies in with 95 %. */
export interface Share {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

/** How one policy did. */
export interface RealScore {
  readonly policy: string;
  /** Of all questions, those whose budget was met; by class, and altogether. */
  readonly classes: Readonly<Record<string, number>>;
  readonly hitRate: Share;
  /** By how much the planner is ahead of it. */
  readonly behind: Share;
  readonly routes: Readonly<Record<string, number>>;
}

const RESAMPLES = 10_000;
/** Questions that follow one another have links and neighbours in common: so many are drawn together. */
const BLOCK = 8;

/**
 * Shares, and intervals by the paired bootstrap: blocks of questions are drawn anew, with what every policy made of them.
 */
export function realScores(rows: readonly RealRow[], policies: readonly string[]): RealScore[] {
  const met = policies.map((name) => Float64Array.from(rows, (it) => Number(it.answers[name].met)));
  const planner = met[policies.indexOf("planner")];
  const classes = [...new Set(rows.map((it) => it.class))];
  return policies.map((policy, i) => {
    const behind = planner.map((it, row) => it - met[i][row]);
    const routes: Record<string, number> = {};
    for (const { answers: { [policy]: { route } } } of rows) routes[route] = (routes[route] ?? 0) + 1;
    const inClass = (name: string) => {
      const those = met[i].filter((_, row) => rows[row].class === name);
      return those.reduce((a, b) => a + b, 0) / those.length;
    };
    return {
      policy,
      classes: Object.fromEntries(classes.map((name) => [name, inClass(name)])),
      hitRate: bootstrapped(met[i]),
      behind: bootstrapped(behind),
      routes,
    };
  });
}

/** The mean of values, and the middle 95 % of the means of as many blocks drawn anew; always the same draws. */
export function bootstrapped(values: Float64Array): Share {
  const blocks: { sum: number; count: number }[] = [];
  for (let at = 0; at < values.length; at += BLOCK) {
    const block = values.subarray(at, at + BLOCK);
    blocks.push({ sum: block.reduce((a, b) => a + b, 0), count: block.length });
  }
  const chance = new Chance(7, 7);
  const means = Float64Array.from({ length: RESAMPLES }, () => {
    let [sum, count] = [0, 0];
    for (let i = 0; i < blocks.length; i++) {
      const it = blocks[Math.floor(chance.uniform() * blocks.length)];
      sum += it.sum;
      count += it.count;
    }
    return sum / count;
  }).sort();
  const at = (q: number) => means[Math.floor(q * (RESAMPLES - 1))];
  return { value: values.reduce((a, b) => a + b, 0) / values.length, low: at(0.025), high: at(0.975) };
}

/** The table, in Markdown, and what there is to say beside it. */
export function realTable(
  scores: readonly RealScore[],
  rows: readonly RealRow[],
  ledger: RealLedger,
): string {
  const percent = (it: number) => (100 * it).toFixed(1);
  const spelled = ({ value, low, high }: Share) => `${percent(value)} (${percent(low)} to ${percent(high)})`;
  const line = (cells: readonly string[]) => `| ${cells.join(" | ")} |`;
  const any = (some: readonly RealRow[]) =>
    percent(some.filter((it) => Object.values(it.answers).some(({ met }) => met)).length / some.length);
  const lines = [
    line(["", ...scores.map((it) => it.policy), "any of them"]),
    line(Array(scores.length + 2).fill("---")),
    ...Object.keys(scores[0].classes).map((name) =>
      line([
        name,
        ...scores.map((it) => percent(it.classes[name])),
        any(rows.filter((it) => it.class === name)),
      ])
    ),
    line(["all", ...scores.map((it) => spelled(it.hitRate)), any(rows)]),
    line([
      "the planner is ahead by",
      ...scores.map((it) => it.policy === "planner" ? "" : spelled(it.behind)),
      "",
    ]),
  ];
  const { judged, covered, hedges } = ledger;
  const ways = scores.map(({ policy, routes }) =>
    `${policy}: ${Object.entries(routes).map(([name, count]) => `${name} ${count}`).join(", ")}`
  );
  return [...lines, "", ...ways, `P95s that held: ${percent(covered / judged)}; hedged: ${hedges}`].join(
    "\n",
  );
}
