/** What the page of workers in browsers is made of, on a machine with files. */

import { join } from "@std/path";
import type { WorkerPageParts } from "../lib/http/worker.ts";
import { RequestError } from "../lib/mod.ts";
import { directoryFiles } from "./model.ts";
import { publicKey } from "./pool.ts";
import type { PoolSettings } from "./settings.ts";

const ROOT = join(import.meta.dirname!, "..");

/**
 * @param model its directory.
 * @param broker its address for browsers.
 * @throws {RequestError} `parameter_invalid` where the pool has no key to sign with.
 */
export async function openWorkerPage(
  model: string,
  pool: PoolSettings,
  broker: string,
): Promise<WorkerPageParts> {
  let script: Promise<Uint8Array<ArrayBuffer>> | undefined;
  return {
    broker,
    trusted: [await publicKey(pool)],
    files: directoryFiles(model),
    script() {
      script ??= bundle();
      script.catch(() => script = undefined);
      return script;
    },
    kernels: (build) => Deno.readFile(join(ROOT, `wasm/kernels_${build}.wasm`)),
  };
}

/**
 * `worker_tab.ts` and all it imports as one script. Deno's bundler fetches esbuild, 10 MB, when it first runs: whoever
 * serves no such page needs none, and nothing that was made of the sources is kept beside them.
 *
 * @throws {RequestError} `download_failed` when it cannot be had.
 */
async function bundle(): Promise<Uint8Array<ArrayBuffer>> {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["bundle", "--quiet", "--no-lock", "--minify", "--platform", "browser", "functions/worker_tab.ts"],
    cwd: ROOT,
  }).output();
  if (success) return stdout;
  const reason = new TextDecoder().decode(stderr).trim().split("\n")[0];
  throw new RequestError("download_failed", `Cannot make the script of the worker's page: ${reason}`);
}
