/**
 * The planner against other policies, in simulation: 2,070 edges, those of a class of traces with one pool, on links from
 * slow 3G to LAN, over days and nights, failures of the pool, cold starts, heavy tails and noisy neighbours.
 *
 *     deno task sim [--seed N] [--json FILE] [--plots DIR] [--edges N] [--class NAME]
 *     deno task sim --real [--requests N] [--seed N] [--json FILE]
 *
 * The same seed gives the same figures, but for the microseconds of a plan. --edges is the number of edges in each class
 * of traces, 230 by default; figures go to FILE, and SVGs to DIR, tmp/sim by default. What is measured, extrapolated and
 * assumed stands in planner/world.ts, the rules that hold for every policy in planner/engine.ts.
 *
 * --real asks N questions, 504 by default, of real servers and a worker with shaped links between them, under each of the
 * policies (planner/real.ts); what they are, and within what budgets, stands in planner/trace.ts.
 */

import { join } from "@std/path";
import { oneOf, parseFlags, runCommand, whole } from "./command_line.ts";
import { simulate } from "./planner/engine.ts";
import { type ClassScores, hitRates, overTime } from "./planner/plots.ts";
import { POLICIES, type PolicyName } from "./planner/policies.ts";
import { playReal, REAL_POLICIES } from "./planner/real.ts";
import { realScores, realTable } from "./planner/real_scores.ts";
import { score } from "./planner/scores.ts";
import { drawTrace } from "./planner/trace.ts";
import { CLASSES, createWorld, type WorldClass } from "./planner/world.ts";

/** Everything that came out. */
export interface Simulation {
  readonly seed: number;
  readonly edges: number;
  /** Microseconds of a plan. */
  readonly planMicros: { readonly p50: number; readonly p99: number };
  readonly classes: readonly (ClassScores & { readonly requests: number })[];
}

/** Plays classes of traces under every policy. @param told hears of each class. */
export function runSimulation(
  classes: readonly WorldClass[],
  edges: number,
  seed: number,
  told: (scores: ClassScores) => void = () => {},
): Simulation {
  const planMillis: number[] = [];
  const played = classes.map((kind) => {
    const world = createWorld(kind, edges, seed);
    const names = Object.keys(POLICIES) as PolicyName[];
    const play = (name: PolicyName) => {
      return simulate(world, (edge, index) => POLICIES[name]({ edge, index, seed, planMillis }));
    };
    const oracle = play("oracle");
    const policies = names.map((name) => {
      return score(name, world, name === "oracle" ? oracle : play(name), oracle);
    });
    const scores = { class: kind.name, requests: world.asked.length, policies };
    told(scores);
    return scores;
  });
  planMillis.sort((a, b) => a - b);
  const micros = (q: number) => 1000 * (planMillis[Math.floor(planMillis.length * q)] ?? 0);
  return { seed, edges, planMicros: { p50: micros(0.5), p99: micros(0.99) }, classes: played };
}

/** A table of one class. */
function lines({ class: name, policies }: ClassScores): string {
  const percent = (value: number | null) => value === null ? "" : (100 * value).toFixed(1);
  const cells = policies.map((it) => {
    const { hitRate, regret, coverage95, hedgeRate, misroutes, poolShare } = it;
    const numbers = [hitRate, regret, coverage95, hedgeRate, misroutes, poolShare].map(percent);
    const lost = it.lostToOutage ? `  ${it.lostToOutage.p99}, ${it.lostToOutage.max}` : "";
    return `  ${it.policy.padEnd(17)}${numbers.map((cell) => cell.padStart(9)).join("")}${lost}`;
  });
  const titles = ["met", "regret", "covered", "hedged", "misroute", "pool"].map((it) => it.padStart(9)).join(
    "",
  );
  const lost = policies[0].lostToOutage ? "  lost to an outage (P99, most)" : "";
  return [`${name.padEnd(19)}${titles}${lost}`, ...cells].join("\n");
}

async function main(): Promise<number> {
  const { values } = parseFlags({
    seed: { type: "string", default: "1" },
    json: { type: "string" },
    plots: { type: "string", default: "tmp/sim" },
    edges: { type: "string", default: "230" },
    class: { type: "string" },
    real: { type: "boolean" },
    requests: { type: "string", default: "504" },
  });
  const seed = whole("seed", values.seed, 0, 2 ** 31 - 1);
  const edges = whole("edges", values.edges, 1, 100_000);
  const name = values.class && oneOf("class", values.class, CLASSES.map((it) => it.name));
  const classes = CLASSES.filter((it) => !name || it.name === name);
  const say = (text: string) => Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
  if (values.real) {
    const each = Math.ceil(whole("requests", values.requests, 1, 100_000) / drawTrace(1, seed).length);
    const since = performance.now();
    const { rows, ledger } = await playReal(each, seed, (row, done, all) => {
      const minutes = (performance.now() - since) / 60_000;
      const left = minutes / done * (all - done);
      Deno.stderr.writeSync(
        new TextEncoder().encode(
          `\r${done} of ${all} questions, ${row.class}, ${minutes.toFixed(1)} min, ${left.toFixed(1)} to go `,
        ),
      );
    });
    say(`\n${realTable(realScores(rows, REAL_POLICIES), rows, ledger)}`);
    if (values.json) await Deno.writeTextFile(values.json, JSON.stringify({ seed, rows, ledger }));
    return 0;
  }
  const found = runSimulation(classes, edges, seed, (scores) => say(lines(scores)));
  const { p50, p99 } = found.planMicros;
  say(`a plan takes ${p50.toFixed(1)} µs, 99 of 100 at most ${p99.toFixed(1)} µs`);
  await Deno.mkdir(values.plots, { recursive: true });
  await Deno.writeTextFile(join(values.plots, "hit_rates.svg"), hitRates(found.classes));
  for (const it of found.classes) {
    await Deno.writeTextFile(join(values.plots, `${it.class}.svg`), overTime(it));
  }
  if (values.json) await Deno.writeTextFile(values.json, JSON.stringify(found, null, 1));
  return 0;
}

if (import.meta.main) await runCommand(new URL(import.meta.url).pathname, main);
