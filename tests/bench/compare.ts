/**
 * Holds the speed of the quick kernels in the work tree against that of a revision:
 *
 *     deno run -A tests/bench/compare.ts REF [--only WORK,…] [--rounds N] [--least MS] [--threads N]
 *
 * Both trees are measured by the benchmark of the work tree, in fresh processes that take turns. A median that is more
 * than 5 % slower is red, and the exit status is 1.
 */

import { join, resolve } from "@std/path";
import { type Result, WORKS } from "./bench.ts";
import { oneOf, parseFlags, runCommand, threadsIn, UsageError, whole } from "./command_line.ts";
import { judge } from "./statistics.ts";

const ROOT = resolve(import.meta.dirname!, "../..");
const QUICK = "gemm-int8,gemm-int4,gemm-f32,matvec-int8,matvec-int4";

if (import.meta.main) await runCommand(import.meta.filename!, main);

async function main(): Promise<number> {
  const { values: flags, positionals: [revision] } = parseFlags({
    only: { type: "string", default: QUICK },
    rounds: { type: "string", default: "5" },
    least: { type: "string", default: "150" },
    threads: { type: "string", default: "1" },
  }, true);
  if (!revision) throw new UsageError("Expected a git revision, found none: compare.ts REF");
  const rounds = whole("rounds", flags.rounds, 1);
  const args = [
    ...["--only", flags.only.split(",").map((it) => oneOf("only", it, WORKS)).join(",")],
    ...["--least", `${whole("least", flags.least, 1)}`, "--threads", `${threadsIn(flags.threads)}`],
    ...["--peers", "false"],
  ];
  await git("rev-parse", "--verify", `${revision}^{commit}`).catch(() => {
    throw new UsageError(`Expected a git revision, found "${revision}"`);
  });
  const tree = await Deno.makeTempDir({ prefix: "compare" });
  await git("worktree", "add", "--detach", "--force", tree, revision);
  try {
    await lendBench(tree);
    const [before, after] = [new Map<string, number[]>(), new Map<string, number[]>()];
    const sides = [[tree, before], [ROOT, after]] as const;
    for (let round = 0; round < rounds; round++) {
      for (const [root, times] of round % 2 ? sides.toReversed() : sides) {
        for (const { work, medianMs } of await bench(root, args)) {
          times.set(work, [...times.get(work) ?? [], medianMs]);
        }
      }
    }
    const verdicts = judge(before, after);
    for (const { work, beforeMs, afterMs, ratio, red } of verdicts) {
      const change = `${ratio > 1 ? "+" : ""}${((ratio - 1) * 100).toFixed(1)} %`;
      print(
        `${work.padEnd(14)} ${beforeMs.toFixed(3)} -> ${afterMs.toFixed(3)} ms  ${change}${
          red ? "  red" : ""
        }`,
      );
    }
    return verdicts.some((it) => it.red) ? 1 : 0;
  } finally {
    await git("worktree", "remove", "--force", tree);
  }
}

/** The benchmark of the work tree, put into the other one: the same works, measured in the same way. */
async function lendBench(tree: string): Promise<void> {
  const folder = join(tree, "tests/bench");
  await Deno.remove(folder, { recursive: true }).catch(() => {});
  await Deno.mkdir(folder, { recursive: true });
  for await (const { name, isFile } of Deno.readDir(join(ROOT, "tests/bench"))) {
    if (isFile) await Deno.copyFile(join(ROOT, "tests/bench", name), join(folder, name));
  }
  await Deno.copyFile(join(ROOT, "models/synth.ts"), join(tree, "models/synth.ts")).catch(() => {});
}

/** One process. */
async function bench(root: string, args: string[]): Promise<Result[]> {
  const json = await Deno.makeTempFile({ suffix: ".json" });
  try {
    const { code, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "-A",
        "--quiet",
        "--no-lock",
        join(root, "tests/bench/bench.ts"),
        ...args,
        "--json",
        json,
      ],
      cwd: root,
      stdout: "null",
      stderr: "piped",
    }).output();
    if (code) throw new Error(`Cannot measure ${root}: ${new TextDecoder().decode(stderr).slice(-2000)}`);
    return JSON.parse(await Deno.readTextFile(json)).results;
  } finally {
    await Deno.remove(json);
  }
}

async function git(...args: string[]): Promise<void> {
  const { code, stderr } = await new Deno.Command("git", { args: ["-C", ROOT, ...args] }).output();
  if (code) throw new Error(`git ${args[0]} ${args[1]}: ${new TextDecoder().decode(stderr).trim()}`);
}

function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(line + "\n"));
}
