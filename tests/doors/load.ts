/**
 * Many clients at once, each with one stream after another: every event must come once and in order, and every answer
 * be the one that a single client gets, and memory has to stay. `deno task load` runs 200 clients for 60 s.
 */

import { parseEvents } from "../http/doubles.ts";

const ROOT = new URL("../../", import.meta.url).pathname;
const PICTURE = await Deno.readFile(`${ROOT}models/tiny/pictures/five_shapes.png`);
const PROMPTS = [
  "caption en",
  "detect star ; heart",
  "answer en what colour is the heart?",
  "ocr",
  "detect circle",
];

/** What came of it. */
export interface LoadReport {
  readonly answers: number;
  readonly events: number;
  /** 429 and 503 with `Retry-After`, after which the client came back. */
  readonly shed: number;
  /** What was lost, repeated, cut or different. */
  readonly wrong: string[];
  /** Milliseconds to an answer's first byte and to its end: half of all are below, and 95 of 100. */
  readonly firstMs: readonly [number, number];
  readonly wholeMs: readonly [number, number];
}

/** Runs `clients` for `seconds` against the bundled model at `url`; `every` is called once a second. */
export async function load(url: string, { clients, seconds, every }: {
  readonly clients: number;
  readonly seconds: number;
  every?(second: number): unknown;
}): Promise<LoadReport> {
  const expected = new Map<string, string>();
  const first: number[] = [];
  const whole: number[] = [];
  const wrong: string[] = [];
  let [answers, events, shed] = [0, 0, 0];

  async function ask(prompt: string): Promise<string | undefined> {
    const body = new FormData();
    for (const [name, value] of Object.entries({ prompt, stream: "true" })) body.append(name, value);
    body.append("image", new Blob([PICTURE]), "a.png");
    const since = performance.now();
    const response = await fetch(`${url}/v1/generate`, { method: "POST", body });
    if ([429, 503].includes(response.status) && response.headers.has("retry-after")) {
      await response.body?.cancel();
      shed++;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Number(response.headers.get("retry-after"))));
      return;
    }
    if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
    first.push(performance.now() - since);
    const found = parseEvents(await response.text());
    whole.push(performance.now() - since);
    found.forEach(({ id }, i) => {
      if (id !== String(i)) wrong.push(`${prompt}: event ${id} in place ${i}`);
    });
    if (found.at(-1)?.event !== "done") wrong.push(`${prompt}: ended with ${found.at(-1)?.event}`);
    answers++;
    events += found.length;
    return found.filter(({ event }) => event !== "route" && event !== "usage")
      .map((it) => JSON.stringify(it.data)).join("\n");
  }

  for (const prompt of PROMPTS) expected.set(prompt, (await ask(prompt))!);
  const end = performance.now() + seconds * 1000;
  let second = 0;
  const timer = setInterval(() => every?.(++second), 1000);
  await Promise.all(Array.from({ length: clients }, async (_, i) => {
    for (let round = i; performance.now() < end; round++) {
      const prompt = PROMPTS[round % PROMPTS.length];
      try {
        const found = await ask(prompt);
        if (found !== undefined && found !== expected.get(prompt)) wrong.push(`${prompt}: another answer`);
      } catch (error) {
        wrong.push(`${prompt}: ${error}`);
      }
    }
  }));
  clearInterval(timer);
  return { answers, events, shed, wrong, firstMs: quantiles(first), wholeMs: quantiles(whole) };
}

function quantiles(values: number[]): [number, number] {
  values.sort((a, b) => a - b);
  return [0.5, 0.95].map((it) => Math.round(values[Math.floor(it * (values.length - 1))])) as [
    number,
    number,
  ];
}

/** Memory of a process, MB; Linux only. */
export async function residentMb(pid: number): Promise<number> {
  return Number(/VmRSS:\s+(\d+)/.exec(await Deno.readTextFile(`/proc/${pid}/status`))![1]) / 1024;
}

if (import.meta.main) {
  const { startDoor } = await import("./door.ts");
  const [clients, seconds] = [Number(Deno.args[0] ?? 200), Number(Deno.args[1] ?? 60)];
  const door = await startDoor({});
  /** Every fifth second, MB. */
  const memory: number[] = [];
  const report = await load(door.url, {
    clients,
    seconds,
    every: async (second) => second % 5 || memory.push(Math.round(await residentMb(door.pid))),
  });
  door.kill("SIGTERM");
  await door.status;
  // After 20 s it has all it needs; it breathes with the garbage collector, but its low points do not rise.
  const [settled, ...later] = memory.slice(3);
  const grown = later.length > 0 && Math.min(...later.slice(-3)) > settled * 1.1 + 10;
  if (grown) report.wrong.push("memory grew after the first 20 s");
  const text = JSON.stringify({
    clients,
    seconds,
    ...report,
    wrong: report.wrong.slice(0, 20),
    memoryMb: memory,
  });
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n${door.output().stderr}`));
  Deno.exitCode = report.wrong.length ? 1 : 0;
}
