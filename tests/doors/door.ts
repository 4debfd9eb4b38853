/** The Deno door as a process of its own, on a port that the system chooses. */

import { join } from "@std/path";

const ROOT = join(import.meta.dirname!, "../..");

/** A small random model with a real tokenizer. */
export const CHECKPOINT = join(ROOT, "tests/golden/checkpoints/pg1");

/** A running server. */
export interface Door {
  readonly url: string;
  /** All it printed so far. */
  output(): { stdout: string; stderr: string };
  readonly pid: number;
  kill(signal: "SIGTERM" | "SIGINT" | "SIGKILL"): void;
  readonly status: Promise<Deno.CommandStatus>;
}

/**
 * Starts the door with these variables and waits until it says where it answers, or ends. Without a `DATA_DIR` it has one
 * of its own, until it ends. A write that would make a file longer than `maxFileBytes` fails, as on a full disk; `flags`
 * are Deno's.
 */
export async function startDoor(
  env: Record<string, string>,
  { maxFileBytes, flags = [] }: { maxFileBytes?: number; flags?: readonly string[] } = {},
): Promise<Door> {
  const own = env.DATA_DIR === undefined ? await Deno.makeTempDir() : undefined;
  const command = [Deno.execPath(), "run", "-A", "--no-check", ...flags, join(ROOT, "functions/deno.ts")];
  const limited = [
    "bash",
    "-c",
    `trap '' XFSZ; ulimit -f ${(maxFileBytes ?? 0) / 1024}; exec "$@"`,
    "bash",
    ...command,
  ];
  const [program, ...args] = maxFileBytes === undefined ? command : limited;
  const child = new Deno.Command(program, {
    args,
    // Elsewhere than the repository: nothing may depend on where it is started.
    cwd: "/",
    env: { PORT: "0", ...own && { DATA_DIR: own }, ...env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const output = { stdout: "", stderr: "" };
  const { promise, resolve } = Promise.withResolvers<void>();
  async function gather(name: "stdout" | "stderr") {
    for await (const text of child[name].pipeThrough(new TextDecoderStream())) {
      output[name] += text;
      if (/ answers at http/.test(output.stdout)) resolve();
    }
  }
  const gathered = Promise.all([gather("stdout"), gather("stderr")]);
  const status = gathered.then(() => child.status).finally(() =>
    own && Deno.removeSync(own, { recursive: true })
  );
  await Promise.race([promise, status]);
  return {
    url: / answers at (http\S+)/.exec(output.stdout)?.[1] ?? "",
    output: () => output,
    pid: child.pid,
    kill: (signal) => child.kill(signal),
    status,
  };
}
