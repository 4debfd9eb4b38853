/** A nats-server with the shipped configuration, on a port of its own, and keys for those who connect. */

import assert from "node:assert/strict";
import { join } from "@std/path";
import { writePoolKeys } from "../../functions/pool_keys.ts";
import type { PoolSettings } from "../../functions/settings.ts";

const CONFIGURATION = join(import.meta.dirname!, "../../functions/nats.conf");
const PATIENCE_MS = 10_000;

/** Whether there is a nats-server to test with: Debian's package of that name. */
export const haveNats = await new Deno.Command("nats-server", {
  args: ["--version"],
  stdout: "null",
  stderr: "null",
})
  .output().then((it) => it.success, () => false);

/** A running broker. */
export interface Broker {
  readonly url: string;
  /** The same for browsers. */
  readonly webUrl: string;
  /** Where the keys are. */
  readonly keys: string;
  /** Settings to connect with, as variables. */
  env(role: "server" | "worker"): Record<string, string>;
  settings(role: "server" | "worker"): PoolSettings;
  kill(): Promise<void>;
  /** Starts it again, on the same port, with nothing remembered. */
  restart(): Promise<void>;
  stop(): Promise<void>;
}

function freePort(): number {
  using listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  return (listener.addr as Deno.NetAddr).port;
}

/** Starts one and waits until it takes connections. @param features whether workers take more than pixels. */
export async function startBroker(features = false): Promise<Broker> {
  const directory = await Deno.makeTempDir({ prefix: "nats" });
  const keys = join(directory, "keys");
  await writePoolKeys(keys, features);
  const lines = (await Deno.readTextFile(join(keys, "nats.env"))).trim().split("\n");
  const [port, webPort] = [freePort(), freePort()];
  const configuration = join(directory, "nats.conf");
  const shipped = await Deno.readTextFile(CONFIGURATION);
  assert.match(shipped, /port: 8443/);
  await Deno.writeTextFile(configuration, shipped.replace("port: 8443", `port: ${webPort}`));
  let process: Deno.ChildProcess;
  const start = async () => {
    process = new Deno.Command("nats-server", {
      args: ["-c", configuration, "-p", `${port}`, "-sd", await Deno.makeTempDir({ dir: directory })],
      env: Object.fromEntries(lines.map((it) => it.split("=") as [string, string])),
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    for (const since = performance.now();;) {
      try {
        (await Deno.connect({ port, hostname: "127.0.0.1" })).close();
        return;
      } catch (error) {
        if (performance.now() - since > PATIENCE_MS) throw error;
        await new Promise((wake) => setTimeout(wake, 20));
      }
    }
  };
  const kill = async () => {
    process.kill("SIGKILL");
    await process.status;
  };
  await start();
  const url = `nats://127.0.0.1:${port}`;
  const env = (role: "server" | "worker") => ({
    POOL_URL: url,
    POOL_NKEY: join(keys, `${role}.nkey`),
    ...role === "server"
      ? { POOL_SIGNING_KEY: join(keys, "server.jwk") }
      : { POOL_TRUSTED_KEYS: join(keys, "trusted.jwks") },
  });
  return {
    url,
    webUrl: `ws://127.0.0.1:${webPort}`,
    keys,
    env,
    settings: (role) => ({ url, nkey: join(keys, `${role}.nkey`) }),
    kill,
    restart: start,
    async stop() {
      await kill();
      await Deno.remove(directory, { recursive: true });
    },
  };
}
