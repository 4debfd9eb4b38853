/**
 * Chaos: a real nats-server, real worker processes, a real server and its HTTP clients; a worker is killed (SIGKILL) at a
 * random token of a stream, again and again. Every client's stream has to be the one that nobody disturbed, token for
 * token.
 *
 * `deno task chaos --kills 50 --seed 1 --json FILE` writes `{ kills, streams, identical, lost, repeated, recoveryMs: { p50,
 * p95 } }`, and more: `disturbed` streams had a worker killed under them. Recovery is the longest time that a disturbed
 * stream stood still, from one token to the next.
 */

import { join } from "@std/path";
import { randomFrom } from "../../lib/decode/sampler.ts";
import { haveNats, startBroker } from "../pool/broker.ts";
import { type Door, startDoor } from "../doors/door.ts";
import { startWorker, type WorkerDoor } from "../doors/pool_worker.ts";

const PICTURE = join(import.meta.dirname!, "../../models/tiny/pictures/five_shapes.png");
const WORKERS = 2;
/** Streams at once, and tokens of each: long enough that a kill comes in the midst of them. */
const STREAMS = 3;
const TOKENS = 300;

/** What came of it. */
export interface Outcome {
  readonly kills: number;
  readonly streams: number;
  /** Streams whose tokens, in number, order and probability, are the undisturbed one's. */
  readonly identical: number;
  /** Tokens that were missing, and tokens that came more than once, in all streams. */
  readonly lost: number;
  readonly repeated: number;
  /** Streams that went on elsewhere. */
  readonly disturbed: number;
  readonly recoveryMs: { readonly p50: number; readonly p95: number };
}

/** A client's stream. */
interface Stream {
  /** Tokens as JSON, without what depends on the text before them. */
  readonly tokens: string[];
  readonly ids: number[];
  /** Longest time between two tokens. */
  readonly pauseMs: number;
  readonly text: string;
}

/** Asks with this seed, so that streams differ; tells every token. */
async function listen(url: string, seed: number, onToken: () => void = () => {}): Promise<Stream> {
  const body = new FormData();
  body.set("image", new Blob([await Deno.readFile(PICTURE)], { type: "image/png" }), "picture.png");
  const fields = {
    prompt: "caption en",
    stream: true,
    ignoreEos: true,
    maxTokens: TOKENS,
    temperature: 1,
    seed,
  };
  for (const [name, value] of Object.entries(fields)) body.set(name, `${value}`);
  const answer = await fetch(`${url}/v1/generate`, { method: "POST", body });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  const tokens: string[] = [], ids: number[] = [];
  let [text, rest, last, pauseMs] = ["", "", 0, 0];
  for await (const chunk of answer.body!.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.type === "done") text = event.text;
      if (event.type !== "token") continue;
      const now = performance.now();
      if (ids.length) pauseMs = Math.max(pauseMs, now - last);
      last = now;
      tokens.push(JSON.stringify(event));
      ids.push(event.id);
      onToken();
    }
  }
  return { tokens, ids, text, pauseMs };
}

/** How often an answer went on elsewhere because its worker was gone. */
async function detours({ url }: Door): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^paligemma_detours_total\{route="pool",reason="gone"\} (\d+)$/m.exec(text)?.[1] ?? 0);
}

function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
}

/** Kills workers until so many are dead. */
export async function chaos(kills: number, seed: number): Promise<Outcome> {
  const random = randomFrom(seed);
  const broker = await startBroker();
  const [alone, door, ...workers] = await Promise.all([
    startDoor({}),
    startDoor(broker.env("server")),
    ...Array.from({ length: WORKERS }, () => startWorker(broker.env("worker"))),
  ]);
  const living: WorkerDoor[] = workers;
  try {
    const undisturbed = new Map<number, Stream>();
    for (let i = 0; i < STREAMS; i++) undisturbed.set(i, await listen(alone.url, i));
    const outcome = { kills: 0, streams: 0, identical: 0, lost: 0, repeated: 0, disturbed: 0 };
    const pauses: number[] = [];
    while (outcome.kills < kills) {
      const [victim] = living.splice(Math.floor(random() * living.length), 1);
      const at = 1 + Math.floor(random() * STREAMS * (TOKENS - 20));
      let count = 0;
      const before = await detours(door);
      const streams = await Promise.all([...undisturbed.keys()].map((it) =>
        listen(door.url, it, () => {
          if (++count === at) victim.kill("SIGKILL");
        })
      ));
      await victim.status;
      outcome.kills++;
      const moved = await detours(door) - before;
      outcome.disturbed += moved;
      pauses.push(...streams.map((it) => it.pauseMs).sort((a, b) => b - a).slice(0, moved));
      for (const [i, stream] of streams.entries()) {
        const expected = undisturbed.get(i)!;
        outcome.streams++;
        const same = stream.tokens.length === expected.tokens.length && stream.text === expected.text &&
          stream.tokens.every((it, at) => it === expected.tokens[at]);
        if (same) outcome.identical++;
        outcome.lost += Math.max(0, expected.ids.length - stream.ids.length);
        outcome.repeated += Math.max(0, stream.ids.length - expected.ids.length);
      }
      living.push(await startWorker(broker.env("worker")));
    }
    pauses.sort((a, b) => a - b);
    return { ...outcome, recoveryMs: { p50: percentile(pauses, 0.5), p95: percentile(pauses, 0.95) } };
  } finally {
    const all = [alone, door, ...living];
    for (const it of all) it.kill("SIGKILL");
    await Promise.all(all.map((it) => it.status));
    await broker.stop();
  }
}

if (import.meta.main) {
  const say = (text: string) => Deno.stdout.writeSync(new TextEncoder().encode(text + "\n"));
  const option = (name: string) => {
    const at = Deno.args.indexOf(`--${name}`);
    return at < 0 ? undefined : Deno.args[at + 1];
  };
  const [kills, seed, file] = [Number(option("kills") ?? 10), Number(option("seed") ?? 1), option("json")];
  if (!(kills >= 1) || !(seed >= 0)) {
    say("Usage: deno task chaos [--kills 10] [--seed 1] [--json FILE]");
    Deno.exit(2);
  }
  if (!haveNats) {
    say("Cannot make chaos: expected nats-server on the PATH, found none. Debian's package is nats-server.");
    Deno.exit(1);
  }
  const outcome = await chaos(kills, seed);
  if (file) await Deno.writeTextFile(file, JSON.stringify(outcome, null, 1) + "\n");
  const { streams, identical, lost, repeated, disturbed, recoveryMs } = outcome;
  say(
    `${outcome.kills} workers killed: ${identical} of ${streams} streams identical, ${disturbed} went on elsewhere, ` +
      `${lost} tokens lost, ${repeated} repeated, recovery p50 ${recoveryMs.p50.toFixed(0)} ms, ` +
      `p95 ${recoveryMs.p95.toFixed(0)} ms`,
  );
  if (identical < streams) Deno.exit(1);
}
