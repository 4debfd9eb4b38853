/**
 * The Worker with a model of full size in R2, in workerd: SigLIP at 224 px, int8, layer by layer.
 *
 *     deno run -A tests/bench/isolate.ts [--model DIR] [--runs N]
 *
 * Prints milliseconds a picture, those of them in which something was being read, and what the isolate takes: by the
 * Worker's own accountant, and as measured, garbage included. Without `--model`, random weights: a SigLIP of true shape, and little
 * of the decoder, which nobody reads here. What is measured must not be above what the accountant says, before there is a
 * model (that is the program alone) and, with the least garbage, after a picture; nor that above 100 MB; or the exit status
 * is 1.
 *
 * Measured is what V8 tells its inspector, objects and the memory behind buffers, and beside it WebAssembly's memories, which
 * V8 leaves out there: 32 MB of them change its figure by nothing, 32 MB of a buffer by 33.6 MB. They are read off the
 * process's address space, so this runs on Linux only.
 */

import { join } from "@std/path";
import { directoryFiles } from "../../functions/model.ts";
import { synth } from "../../models/synth.ts";
import { upload } from "../../models/upload.ts";
import { startWorkerd, type Workerd } from "../doors/workerd.ts";
import { parseFlags, runCommand, whole } from "./command_line.ts";

const ROOT = join(import.meta.dirname!, "../..");
const KEY = "bench";
const NAME = "full";
const LIMIT_BYTES = 100e6;
/** `wasmBytes` of functions/cloudflare.ts. */
const MAX_WASM_BYTES = 48 * 2 ** 20;
/** A number that wrangler's own questions do not have. */
const ASKED = 1_000_001;

if (import.meta.main) await runCommand(import.meta.filename!, main);

async function main(): Promise<number> {
  const { values: flags } = parseFlags({
    model: { type: "string" },
    runs: { type: "string", default: "3" },
  });
  const runs = whole("runs", flags.runs, 1);
  const made = flags.model ? undefined : await Deno.makeTempDir({ prefix: "full" });
  const directory = flags.model ?? made!;
  const worker = await startWorkerd(join(ROOT, "functions/wrangler.jsonc"), { MODEL: NAME, UPLOAD_KEY: KEY });
  try {
    if (made) {
      await synth("paligemma-3b-224", made, {
        decoder: "int4",
        layers: { vision: 27, decoder: 1 },
        vocabulary: 4096,
      });
    }
    const [program, programTold] = [await measure(worker, "program"), await toldBytes(worker)];
    const since = performance.now();
    const sent = await upload(directoryFiles(directory), directory, {
      url: worker.url,
      key: KEY,
      name: NAME,
    });
    const megabytes = sent.reduce((sum, it) => sum + it.sizeBytes, 0) / 1e6;
    print(`${megabytes.toFixed(0)} MB uploaded in ${((performance.now() - since) / 1000).toFixed(1)} s`);
    let leastBytes = Infinity;
    const pictures = ["five_shapes", "hearts", "park", "stars"];
    for (let run = 0; run <= runs; run++) {
      const [before, start] = [await metrics(worker), performance.now()];
      await embed(worker, pictures[run % pictures.length]);
      const [ms, after] = [performance.now() - start, await metrics(worker)];
      const read = (name: string) => after[name] - before[name];
      const readMs = 1000 * read("paligemma_model_read_seconds_total");
      print(
        `${run ? `run ${run}` : "first"}  ${ms.toFixed(0)} ms, of which ${readMs.toFixed(0)} ms reading ` +
          `${(read("paligemma_model_read_bytes_total") / 1e6).toFixed(0)} MB, ${
            (ms - readMs).toFixed(0)
          } ms computing`,
      );
      leastBytes = Math.min(leastBytes, await measure(worker, "isolate"));
    }
    const told = await toldBytes(worker);
    return program <= programTold && leastBytes <= told && told <= LIMIT_BYTES ? 0 : 1;
  } finally {
    await worker.stop();
    if (made) await Deno.remove(made, { recursive: true });
  }
}

async function embed({ url }: Workerd, picture: string): Promise<void> {
  const body = new FormData();
  body.append("image", new Blob([await Deno.readFile(join(ROOT, `models/tiny/pictures/${picture}.png`))]));
  const response = await fetch(`${url}/v1/embeddings/image`, { method: "POST", body });
  const text = await response.text();
  if (!response.ok) throw new Error(`The Worker answered ${response.status}: ${text.slice(0, 500)}`);
}

/** Numbers of `/metrics` by name and labels. */
async function metrics({ url }: Workerd): Promise<Record<string, number>> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Object.fromEntries(
    [...text.matchAll(/^(\w\S*) (\S+)$/gm)].map(([, name, value]) => [name, Number(value)]),
  );
}

/** The most that the isolate's accountant has counted, bytes. */
async function toldBytes(worker: Workerd): Promise<number> {
  return (await metrics(worker))[`paligemma_isolate_bytes{kind="most"}`];
}

/** What the isolate takes now, bytes, and prints it beside what its accountant says. */
async function measure(worker: Workerd, what: string): Promise<number> {
  const { usedSize, embedderHeapUsedSize, backingStorageSize } = await heapUsage(worker);
  const parts = {
    objects: usedSize + embedderHeapUsedSize,
    buffers: backingStorageSize,
    WebAssembly: await wasmBytes(),
  };
  const measured = Object.values(parts).reduce((a, b) => a + b);
  const told = await toldBytes(worker);
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
  const list = Object.entries(parts).map(([name, bytes]) => `${megabytes(bytes)} ${name}`).join(", ");
  print(`  ${what}: ${megabytes(measured)} MB (${list}), ${megabytes(told)} MB by its accountant`);
  return measured;
}

/**
 * Bytes of WebAssembly's memories in the engines that this process started. Each is a mapping that may be written, before
 * one that may not, where it would grow: to 4 GiB, or to the maximum that the Worker sets. The lowest of 4 GiB in a process is
 * V8's own heap.
 */
async function wasmBytes(): Promise<number> {
  const ps = await new Deno.Command("ps", { args: ["-eo", "pid=,ppid=,comm="] }).output();
  const processes = new TextDecoder().decode(ps.stdout).trim().split("\n").map((it) =>
    it.trim().split(/\s+/)
  );
  const own = new Set([`${Deno.pid}`]);
  for (let before = 0; before < own.size;) {
    before = own.size;
    for (const [pid, parent] of processes) if (own.has(parent)) own.add(pid);
  }
  let sum = 0;
  for (const [pid, , name] of processes) {
    if (name !== "workerd" || !own.has(pid)) continue;
    const maps = (await Deno.readTextFile(`/proc/${pid}/maps`)).trim().split("\n").map((line) => {
      const [, start, end, rights] = /^(\w+)-(\w+) (\S+)/.exec(line)!;
      return { start: parseInt(start, 16), end: parseInt(end, 16), rights };
    });
    const growing = maps.flatMap(({ start, end, rights }, i) => {
      const next = maps[i + 1];
      if (rights !== "rw-p" || next?.rights !== "---p" || next.start !== end) return [];
      return [{ bytes: end - start, most: next.end - start }];
    });
    const [, ...open] = growing.filter(({ most }) => most > 2 ** 31);
    // Something small may lie behind it that may not be written either.
    const bounded = growing.filter(({ most }) => most >= MAX_WASM_BYTES && most < MAX_WASM_BYTES + 2 ** 20);
    sum += [...open, ...bounded].reduce((total, it) => total + it.bytes, 0);
  }
  return sum;
}

/** Bytes, of the answer to Runtime.getHeapUsage. */
type Usage = Record<"usedSize" | "embedderHeapUsedSize" | "backingStorageSize", number>;

/** What V8 says that the isolate takes, bytes; without WebAssembly's memories. */
async function heapUsage({ inspectorPort }: Workerd): Promise<Usage> {
  const targets = await (await fetch(`http://127.0.0.1:${inspectorPort}/json`)).json();
  // wrangler lets only pages of its own in. Deno takes headers, which browsers' types do not know.
  const options = { headers: { origin: "http://localhost" } } as unknown as string[];
  const socket = new WebSocket(targets[0].webSocketDebuggerUrl, options);
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = reject;
  });
  const answer = new Promise<{ result: Usage }>((resolve) => {
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.id === ASKED) resolve(message);
    };
  });
  socket.send(JSON.stringify({ id: ASKED, method: "Runtime.getHeapUsage" }));
  const { result } = await answer;
  socket.close(); // which wrangler does not answer
  return result;
}

function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(line + "\n"));
}
