/**
 * The Worker with a model of full size in R2, in workerd: SigLIP at 224 px, int8, layer by layer.
 *
 *     deno run -A tests/bench/isolate.ts [--model DIR] [--runs N]
 *
 * Prints milliseconds a picture, those of them in which something was being read, and what the isolate takes: by the
 * Worker's own accountant, and by V8. Without `--model`, random weights: a SigLIP of true shape, and little
 * of the decoder, which nobody reads here. What V8 has must not be above what the accountant says, nor that above 100 MB,
 * or the exit status is 1.
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
    const since = performance.now();
    const sent = await upload(directoryFiles(directory), directory, {
      url: worker.url,
      key: KEY,
      name: NAME,
    });
    const megabytes = sent.reduce((sum, it) => sum + it.sizeBytes, 0) / 1e6;
    print(`${megabytes.toFixed(0)} MB uploaded in ${((performance.now() - since) / 1000).toFixed(1)} s`);
    const pictures = ["five_shapes", "hearts", "park", "stars"];
    let [v8Bytes, good] = [0, true];
    for (let run = 0; run <= runs; run++) {
      const [before, start] = [await metrics(worker), performance.now()];
      await embed(worker, pictures[run % pictures.length]);
      const [ms, after] = [performance.now() - start, await metrics(worker)];
      const used = await heapUsage(worker);
      v8Bytes = Math.max(v8Bytes, used.sum);
      const read = (name: string) => after[name] - before[name];
      const readMs = 1000 * read("paligemma_model_read_seconds_total");
      print(
        `${run ? `run ${run}` : "first"}  ${ms.toFixed(0)} ms, of which ${readMs.toFixed(0)} ms reading ` +
          `${(read("paligemma_model_read_bytes_total") / 1e6).toFixed(0)} MB, ${
            (ms - readMs).toFixed(0)
          } ms computing`,
      );
      print(`  V8: ${used.text}`);
    }
    const told = (await metrics(worker))[`paligemma_isolate_bytes{kind="most"}`];
    print(`isolate ${(told / 1e6).toFixed(1)} MB by its accountant, ${(v8Bytes / 1e6).toFixed(1)} MB by V8`);
    good &&= told <= LIMIT_BYTES && v8Bytes <= told;
    return good ? 0 : 1;
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

/** What the isolate takes by V8: objects, and the memory behind buffers and WebAssembly. */
async function heapUsage({ inspectorPort }: Workerd): Promise<{ sum: number; text: string }> {
  const targets = await (await fetch(`http://127.0.0.1:${inspectorPort}/json`)).json();
  // wrangler lets only pages of its own in. Deno takes headers, which browsers' types do not know.
  const options = { headers: { origin: "http://localhost" } } as unknown as string[];
  const socket = new WebSocket(targets[0].webSocketDebuggerUrl, options);
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = reject;
  });
  const answer = new Promise<{ result: Record<string, number> }>((resolve) => {
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.id === ASKED) resolve(message);
    };
  });
  socket.send(JSON.stringify({ id: ASKED, method: "Runtime.getHeapUsage" }));
  const { result } = await answer;
  socket.close(); // which wrangler does not answer
  const { usedSize = 0, embedderHeapUsedSize = 0, backingStorageSize = 0 } = result;
  return { sum: usedSize + embedderHeapUsedSize + backingStorageSize, text: JSON.stringify(result) };
}

function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(line + "\n"));
}
