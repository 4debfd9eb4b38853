/** What a Deno server keeps between runs: where it lies, and how it is worked off. */

import { join, resolve } from "@std/path";
import { consume } from "../lib/jobs/consume.ts";
import { RequestError } from "../lib/mod.ts";
import { openKvStore } from "../lib/store/deno_kv.ts";
import { createFileBlobs } from "../lib/store/files.ts";
import type { PullQueue, Store } from "../lib/store/store.ts";
import type { Work } from "./work.ts";

/** Jobs that compute at once; the pipeline answers one question at a time, so more only wait in its line. */
const JOBS_AT_ONCE = 2;
const WEBHOOKS_AT_ONCE = 8;

/**
 * Opens the store: records and queues in `kv.sqlite`, blobs in `blobs/` of the directory. On Deno Deploy, whose disks do
 * not last, everything is in the platform's KV unless a directory is named.
 *
 * @throws {RequestError} `storage_failed` when it cannot be opened.
 */
export async function openStore(
  directory: string | undefined,
  onCorrupt: (error: unknown) => void,
): Promise<Store<PullQueue>> {
  if (directory === undefined && Deno.env.has("DENO_DEPLOYMENT_ID")) return await openKvStore({ onCorrupt });
  const place = resolve(directory ?? userData());
  try {
    // Pictures and secrets of this user.
    await Deno.mkdir(place, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new RequestError("storage_failed", `Cannot make ${place}: ${(cause as Error).message}`, { cause });
  }
  const { records, queue } = await openKvStore({ path: join(place, "kv.sqlite"), onCorrupt });
  return { records, queue, blobs: createFileBlobs(join(place, "blobs")) };
}

/** The directory for data of programs, as each system has it. */
function userData(): string {
  const home = Deno.env.get("HOME") ?? Deno.env.get("USERPROFILE") ?? ".";
  switch (Deno.build.os) {
    case "darwin":
      return join(home, "Library/Application Support/paligemma-edge");
    case "windows":
      return join(Deno.env.get("LOCALAPPDATA") ?? join(home, "AppData/Local"), "paligemma-edge");
    default:
      return join(Deno.env.get("XDG_DATA_HOME") || join(home, ".local/share"), "paligemma-edge");
  }
}

/** Works a store's queues off until the signal aborts, and ends when what was begun is put down. */
export async function workOff(
  store: Store<PullQueue>,
  { handlers, recover }: Work,
  options: { readonly signal: AbortSignal; readonly onError: (error: unknown) => void },
): Promise<void> {
  await Promise.all([
    recover().catch(options.onError),
    consume(store.queue("jobs"), handlers.jobs, { concurrency: JOBS_AT_ONCE, ...options }),
    consume(store.queue("webhooks"), handlers.webhooks, { concurrency: WEBHOOKS_AT_ONCE, ...options }),
  ]);
}
