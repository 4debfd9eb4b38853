/**
 * Puts a model directory into the R2 bucket of a Worker:
 *
 *     deno task cf:upload-model DIR [NAME] --to https://WORKER
 *
 * `UPLOAD_KEY` is the Worker's secret of that name.
 */

import { basename, resolve } from "@std/path";
import { parseArgs } from "node:util";
import { RequestError } from "../lib/mod.ts";
import { upload } from "../models/upload.ts";
import { leaveMeter, meter, size } from "./meter.ts";
import { directoryFiles } from "./model.ts";

/** Where `deno task cf:dev` serves. */
const HERE = "http://localhost:8787";

const USAGE = `cf:upload-model DIR [NAME] [--to URL]
  DIR    a model directory, int8 in its vision part, as models convert writes it
  NAME   the model's name, for MODEL of the Worker; by default the directory's
  --to   the Worker's address; by default ${HERE}, where cf:dev serves
UPLOAD_KEY is the Worker's secret of that name.`;

const print = (text: string) => void Deno.stderr.writeSync(new TextEncoder().encode(`${text}\n`));

function usage(wrong: string): never {
  print(`${wrong}\n\n${USAGE}`);
  Deno.exit(2);
}

function parse() {
  try {
    return parseArgs({ options: { to: { type: "string", default: HERE } }, allowPositionals: true });
  } catch (error) {
    return usage((error as Error).message);
  }
}

const { values, positionals: [directory, given, ...more] } = parse();
if (!directory || more.length) usage(`expected DIR [NAME], found ${more.join(" ") || "nothing"}`);
const key = Deno.env.get("UPLOAD_KEY")?.trim();
if (!key) usage("expected UPLOAD_KEY in the environment, found none");
if (!URL.canParse(values.to)) usage(`--to: expected a URL, found "${values.to}"`);

const name = given ?? basename(resolve(directory));
const stop = new AbortController();
Deno.addSignalListener("SIGINT", () => stop.abort());
try {
  const url = new URL(values.to).origin;
  const results = await upload(directoryFiles(directory), directory, {
    url,
    key,
    name,
    signal: stop.signal,
    progress: meter(),
  });
  for (const it of results) {
    const known = it.knownBytes === it.sizeBytes
      ? ", there already"
      : it.knownBytes
      ? `, ${size(it.knownBytes)} there already`
      : "";
    print(`${it.name}: ${size(it.sizeBytes)}${known}`);
  }
  print(`next: MODEL=${name} among the Worker's variables, then deno task cf:deploy`);
} catch (error) {
  leaveMeter();
  if (!(error instanceof RequestError)) throw error;
  print(error.message);
  Deno.exit(error.code === "cancelled" ? 130 : 1);
}
