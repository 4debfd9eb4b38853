/** A Worker in workerd, the engine of Cloudflare Workers, as wrangler starts it: here and offline. */

import { join } from "@std/path";

const ROOT = join(import.meta.dirname!, "../..");
const WRANGLER = "npm:wrangler@4.153.0";
const PATIENCE_MS = 120_000;

/** A running Worker. */
export interface Workerd {
  readonly url: string;
  /** Where its engine can be inspected, by Chrome's DevTools Protocol. */
  readonly inspectorPort: number;
  /** Ends it and forgets what it stored. */
  stop(): Promise<void>;
}

/** Whether wrangler is there or can be downloaded. */
export async function haveWrangler(): Promise<boolean> {
  return (await deno(["run", "-A", "--no-lock", "--no-config", WRANGLER, "--version"]).output()).success;
}

/**
 * Starts the Worker of a wrangler configuration file and waits for its first answer. Of several files the first one's
 * Worker answers, and reaches the others by its bindings.
 *
 * @param vars variables of the Worker.
 */
export async function startWorkerd(
  config: string | readonly string[],
  vars: Record<string, string> = {},
): Promise<Workerd> {
  // wrangler looks for packages where Node does.
  const installed = await deno(["install", "--node-modules-dir=auto"]).output();
  if (!installed.success) throw new Error(`deno install: ${new TextDecoder().decode(installed.stderr)}`);
  const directory = await Deno.makeTempDir({ prefix: "workerd" });
  const [port, inspectorPort] = [freePort(), freePort()];
  const process = deno([
    ...["run", "-A", "--no-lock", "--no-config", WRANGLER, "dev", "--local"],
    ...[config].flat().flatMap((it) => ["--config", it]),
    ...["--ip", "127.0.0.1", "--port", `${port}`, "--inspector-port", `${inspectorPort}`],
    ...["--persist-to", directory, "--log-level", "error", "--show-interactive-dev-session=false"],
    ...Object.entries(vars).flatMap(([name, value]) => ["--var", `${name}:${value}`]),
  ]).spawn();
  process.stdout.cancel();
  const said = new Response(process.stderr).text();
  let ended = false;
  const status = process.status.finally(() => ended = true);
  const stop = async () => {
    if (!ended) process.kill("SIGTERM");
    await status;
    await said;
    await Deno.remove(directory, { recursive: true });
  };
  const url = `http://127.0.0.1:${port}`;
  const since = performance.now();
  while (true) {
    const answer = await fetch(url).catch(() => undefined);
    await answer?.body?.cancel();
    if (answer) return { url, inspectorPort, stop };
    const waited = Math.round(performance.now() - since);
    if (ended || waited > PATIENCE_MS) {
      await stop();
      throw new Error(`workerd did not answer within ${waited} ms: ${(await said).slice(-2000)}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** A wrangler configuration, as far as tests change it. */
export type Config = Record<string, unknown> & {
  name: string;
  vars: Record<string, string>;
  durable_objects: { bindings: { name: string; script_name?: string }[] };
  queues: { consumers?: unknown };
};

/**
 * Starts this project's Worker several times, in one engine: `/NAME/v1/…` asks the one of that name.
 *
 * @param changes what each one's configuration has other than the shipped one.
 */
export async function startWorkers(changes: Record<string, (config: Config) => void>): Promise<Workerd> {
  const directory = join(ROOT, "functions");
  const shipped = (await Deno.readTextFile(join(directory, "wrangler.jsonc"))).replaceAll(
    /^\s*\/\/.*$/gm,
    "",
  );
  const configs = Object.entries(changes).map(([name, change]) => {
    const config: Config = { ...JSON.parse(shipped), name };
    change(config);
    return config;
  });
  const { compatibility_date, compatibility_flags } = configs[0];
  const chooser = {
    name: "chooser",
    main: join(import.meta.dirname!, "isolates_worker.ts"),
    compatibility_date,
    compatibility_flags,
    services: Object.keys(changes).map((service) => ({ binding: service, service })),
  };
  const paths = await Promise.all([chooser, ...configs].map(async (config) => {
    const path = await Deno.makeTempFile({ suffix: ".json", dir: directory });
    await Deno.writeTextFile(path, JSON.stringify(config));
    return path;
  }));
  return await startWorkerd(paths).finally(() => Promise.all(paths.map((it) => Deno.remove(it))));
}

function deno(args: string[]): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: [args[0], "--quiet", ...args.slice(1)],
    env: { WRANGLER_SEND_METRICS: "false", CI: "1", NO_COLOR: "1" },
    cwd: ROOT,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
}

function freePort(): number {
  using listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  return (listener.addr as Deno.NetAddr).port;
}
