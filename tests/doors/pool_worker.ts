/** A worker of a pool as a process of its own, on a port that the system chooses. */

import { join } from "@std/path";

const PROGRAM = join(import.meta.dirname!, "../../functions/pool_worker.ts");

/** A running worker. */
export interface WorkerDoor {
  /** Where its health and metrics are. */
  readonly url: string;
  readonly pid: number;
  kill(signal: "SIGTERM" | "SIGKILL" | "SIGSTOP" | "SIGCONT"): void;
  readonly status: Promise<Deno.CommandStatus>;
}

/** Starts one with these variables and waits until it takes work. @throws {Error} with what it said, when it does not. */
export async function startWorker(env: Record<string, string>): Promise<WorkerDoor> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", PROGRAM],
    cwd: "/",
    env: { PORT: "0", ...env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const errors = new Response(child.stderr).text();
  let said = "";
  for await (
    const text of child.stdout.pipeThrough(new TextDecoderStream()).values({ preventCancel: true })
  ) {
    said += text;
    if (said.includes("\n")) break;
  }
  const url = /health at (http\S+)\/health/.exec(said)?.[1];
  if (!url) throw new Error(`The worker did not start: ${await errors}`);
  const status = Promise.all([child.status, errors]).then(([it]) => it);
  return {
    url,
    pid: child.pid,
    kill(signal) {
      try {
        child.kill(signal);
      } catch {
        // it ended already
      }
    },
    status,
  };
}
