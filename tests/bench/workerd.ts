/**
 * Holds the kernels in workerd, the engine of Cloudflare Workers, against the same in Deno, on one thread:
 *
 *     deno run -A tests/bench/workerd.ts [--rounds N] [--ms MS]
 *
 * A time is that of a request with many runs less that of a request with one. Results must be the same numbers; more
 * than 10 % slower is red, and the exit status is 1.
 */

import { startWorkerd } from "../doors/workerd.ts";
import { parseFlags, runCommand, whole } from "./command_line.ts";
import { median } from "./statistics.ts";
import { openWork, WORKERD_WORKS } from "./workerd_worker.ts";

const TOLERANCE = 0.1;

/** Runs of a work, and the number that it leaves. */
type Runner = (name: string, runs: number) => Promise<number>;

if (import.meta.main) await runCommand(import.meta.filename!, main);

async function main(): Promise<number> {
  const { values: flags } = parseFlags({
    rounds: { type: "string", default: "45" },
    ms: { type: "string", default: "100" },
  });
  const [rounds, ms] = [whole("rounds", flags.rounds, 1), whole("ms", flags.ms, 1)];
  const worker = await startWorker();
  try {
    let good = true;
    for (const name of Object.keys(WORKERD_WORKS)) {
      const run = openWork(name);
      const here: Runner = (_, runs) => run(runs);
      const [mine, theirs] = [await here(name, 1), await worker.run(name, 1)];
      const same = Math.abs(mine - theirs) <= 1e-5 * Math.max(1, Math.abs(mine));
      if (!same) print(`${name}: ${theirs} in workerd, ${mine} in Deno`);
      // Both engines compile anew what they have run for a while, on a thread beside.
      for (let i = 0; i < 4; i++) for (const it of [here, worker.run]) await it(name, 10);
      const runs = Math.max(4, Math.round(ms / await each(here, name, 5)));
      const times: [number[], number[]] = [[], []];
      for (let round = 0; round < rounds; round++) {
        for (const side of round % 2 ? [1, 0] : [0, 1]) {
          times[side].push(await each(side ? worker.run : here, name, runs));
        }
      }
      const [deno, workerd] = times.map(median);
      // Of the rounds, since a machine that others use too changes from second to second.
      const slower = median(times[1].map((ms, i) => ms / times[0][i])) - 1;
      const red = slower > TOLERANCE;
      print(
        `${name.padEnd(12)} Deno ${deno.toFixed(3)} ms  workerd ${workerd.toFixed(3)} ms  ` +
          `${(slower * 100).toFixed(1)} %${red ? "  red" : ""}`,
      );
      good &&= same && !red;
    }
    return good ? 0 : 1;
  } finally {
    await worker.stop();
  }
}

/** Milliseconds of one run. */
async function each(runner: Runner, name: string, runs: number): Promise<number> {
  const timed = async (count: number) => {
    const before = performance.now();
    await runner(name, count);
    return performance.now() - before;
  };
  const single = await timed(1);
  return (await timed(runs + 1) - single) / runs;
}

/** The kernels in a workerd of their own. */
async function startWorker(): Promise<{ run: Runner; stop(): Promise<void> }> {
  const directory = await Deno.makeTempDir({ prefix: "workerd" });
  const config = `${directory}/wrangler.json`;
  await Deno.writeTextFile(
    config,
    JSON.stringify({
      name: "bench",
      main: new URL("workerd_worker.ts", import.meta.url).pathname,
      compatibility_date: "2026-04-01",
      send_metrics: false,
    }),
  );
  const forget = () => Deno.remove(directory, { recursive: true });
  const worker = await startWorkerd(config).catch(async (error) => {
    await forget();
    throw error;
  });
  const run: Runner = async (name, runs) => {
    const answer = await fetch(`${worker.url}/?work=${name}&runs=${runs}`);
    const text = await answer.text();
    if (!answer.ok) throw new Error(`workerd answered ${answer.status}: ${text.slice(0, 500)}`);
    return Number(text);
  };
  return {
    run,
    async stop() {
      await worker.stop();
      await forget();
    },
  };
}

function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(line + "\n"));
}
