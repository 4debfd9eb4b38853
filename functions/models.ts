/** `models …` on the command line: parsing and wiring. */

import { basename, dirname, join } from "@std/path";
import { createWasmBackend, type ModelFiles, RequestError } from "../lib/mod.ts";
import { calibrate, calibrationSet } from "../models/calibrate.ts";
import { convert, type ConvertOptions, type Format } from "../models/convert.ts";
import { exportOnnx } from "../models/export_onnx.ts";
import { evalQuant, quantSchemes, quantTable } from "../models/eval_quant.ts";
import { describe, verify } from "../models/inspect.ts";
import { IDS, manifestOf } from "../models/manifests.ts";
import { pull, readRecord, verifyRecord } from "../models/pull.ts";
import { SHAPES } from "../models/published.ts";
import { randomCheckpoint } from "../models/random_checkpoint.ts";
import { readShown } from "../models/stages.ts";
import { synth } from "../models/synth.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { oneOf, parsed, UsageError } from "./command_line.ts";
import { leaveMeter, meter, size } from "./meter.ts";
import { directoryFiles } from "./model.ts";
import { descriptionText, manifestText } from "./model_text.ts";

const FORMATS: readonly Format[] = ["int8", "int4", "f16", "f32"];

type Print = (text: string) => Promise<void>;
type Flags = ReturnType<typeof parse>["values"];

/** One `models` command; all are given what stands behind it, if anything does. */
type Command = (subject: string, flags: Flags, print: Print, signal: AbortSignal) => Promise<void>;

const COMMANDS: Readonly<Record<string, Command>> = {
  list,
  info,
  pull: pullModel,
  convert: convertModel,
  verify: verifyModel,
  synth: synthModel,
  "export-onnx": exportModel,
  "eval-quant": evalQuantModel,
};

/**
 * Runs one of the `models` commands.
 *
 * @throws {UsageError} for arguments that cannot be understood; {RequestError} for what goes wrong.
 */
export async function modelsCommand(
  args: readonly string[],
  print: Print,
  signal: AbortSignal,
): Promise<void> {
  const { values: flags, positionals: [action = "nothing", subject, ...more] } = parse(args);
  const command = Object.hasOwn(COMMANDS, action) ? COMMANDS[action] : undefined;
  if (!command) {
    throw new UsageError(`models: expected ${Object.keys(COMMANDS).join(", ")}, found "${action}"`);
  }
  if (more.length) {
    throw new UsageError(`models ${action}: expected nothing after ${subject}, found ${more[0]}`);
  }
  try {
    await command(subject ?? "", flags, print, signal);
  } finally {
    leaveMeter();
  }
}

async function list(place: string, _: Flags, print: Print): Promise<void> {
  await print(`Bundled\n  models/tiny\n\nKnown: models pull ID --out DIR\n`);
  for (const id of IDS) await print(`  ${id}\n`);
  const found: string[] = [];
  for (const root of place ? [place] : [".", "models"]) {
    for (const name of await directoriesIn(root)) {
      const path = join(root, name);
      const names = await directoryFiles(path).list();
      const onnx = names.includes("onnx");
      const model = names.includes("config.json") &&
        (onnx || names.some((it) => it.includes(".safetensors")));
      const [started] = model || !names.includes("pull.json") ? [] : [await readRecord(path)];
      if (model && path !== "models/tiny") found.push(onnx ? `${path}   ONNX, with --backend ort` : path);
      if (started) found.push(`${path}   ${started.repo}, not whole`);
    }
  }
  await print(
    `\nIn ${place || "this directory and models/"}\n${found.map((it) => `  ${it}\n`).join("") || "  none\n"}`,
  );
}

async function info(subject: string, flags: Flags, print: Print): Promise<void> {
  if (!subject) throw new UsageError("models info: expected DIR or ID");
  if (IDS.includes(subject)) {
    const manifest = await manifestOf(subject);
    return await print(flags.json ? `${JSON.stringify(manifest, undefined, 1)}\n` : manifestText(manifest));
  }
  const files = directoryFiles(subject);
  if (!(await files.list()).length) {
    throw new UsageError(
      `models info: expected a directory, or one of ${IDS.join(", ")}; found "${subject}"`,
    );
  }
  const [description, source] = [await describe(files), await readRecord(subject)];
  if (flags.json) return await print(`${JSON.stringify({ ...description, source }, undefined, 1)}\n`);
  const from = source && `${source.repo} at ${source.revision}${source.commit ? ` (${source.commit})` : ""}`;
  await print(descriptionText(description) + (from ? `from      ${from}\n` : ""));
}

async function pullModel(subject: string, flags: Flags, print: Print, signal: AbortSignal): Promise<void> {
  const [name, revision] = subject.split(/@(.*)/);
  if (!IDS.includes(name) && !/^[\w-][\w.-]*\/[\w-][\w.-]*$/.test(name) || revision === "") {
    throw new UsageError(
      `models pull: expected owner/repo[@revision] or one of ${IDS.join(", ")}; found "${subject}"`,
    );
  }
  if (!flags.out) throw new UsageError("models pull: expected --out DIR, found none");
  const known = IDS.includes(name) ? await manifestOf(name) : undefined;
  const source = { repo: known?.source.repo ?? name, revision: revision ?? known?.source.revision ?? "main" };
  const record = await pull(source, flags.out, {
    endpoint: Deno.env.get("HF_ENDPOINT") || "https://huggingface.co",
    token: Deno.env.get("HF_TOKEN")?.trim() || undefined,
    signal,
    progress: meter(),
  });
  const total = record.files.reduce((sum, it) => sum + it.sizeBytes, 0);
  const unchecked = record.files.filter((it) => !it.checksum).map((it) => it.name);
  await print(
    `${flags.out}: ${record.files.length} files, ${size(total)}, of ${source.repo} at ${
      record.commit ?? source.revision
    }; ` +
      (unchecked.length ? `no checksum known of ${unchecked.join(", ")}\n` : "every checksum is right\n"),
  );
  const adapter = record.files.some((it) => it.name === "adapter_model.safetensors");
  const what = adapter ? `BASE --adapter ${flags.out}` : flags.out;
  if (known) await print(`licence: ${known.licence.name}, ${known.licence.url}\n`);
  await print(`next: deno task models convert ${what} --out ${flags.out}-int4\n`);
  if (known && !known.doors[0].formats.length) {
    const needed = size(known.memory.int4.peakBytes);
    await print(
      `note: at ${needed} even int4 does not fit a Deno process, whose WASM memory ends at 4 GiB\n`,
    );
  }
}

async function verifyModel(subject: string, _: Flags, print: Print, signal: AbortSignal): Promise<void> {
  if (!subject) throw new UsageError("models verify: expected DIR, found none");
  const files = directoryFiles(subject);
  const record = await readRecord(subject);
  const weightless = record && !record.files.some((it) => it.name === "config.json");
  if (record) {
    await verifyRecord(files, record, { progress: meter(), signal });
    await print(
      `ok  ${record.files.length} files are those of ${record.repo} at ${record.commit ?? record.revision}\n`,
    );
  }
  if (weightless) return; // an adapter or an .npz, which convert reads
  for (const line of await verify(files, { progress: meter(), signal })) await print(`ok  ${line}\n`);
}

async function synthModel(subject: string, flags: Flags, print: Print): Promise<void> {
  if (!SHAPES.includes(subject) || !flags.out) {
    throw new UsageError(`models synth: expected SHAPE --out DIR, SHAPE one of ${SHAPES.join(", ")}`);
  }
  const decoder = oneOf<"int4" | "int8">("decoder", flags.decoder, ["int4", "int8"]);
  const sizeBytes = await synth(subject, flags.out, { decoder, progress: meter() });
  await print(`${flags.out}: ${(sizeBytes / 1e9).toFixed(2)} GB of random weights\n`);
}

async function convertModel(subject: string, flags: Flags, _: Print, signal: AbortSignal): Promise<void> {
  if (!subject || !flags.out) throw new UsageError("models convert: expected DIR or FILE.npz --out DIR");
  const alone = subject.endsWith(".npz");
  const files = directoryFiles(alone ? dirname(subject) : subject);
  const options: ConvertOptions = {
    vision: oneOf("vision", flags.vision, FORMATS),
    decoder: oneOf("decoder", flags.decoder, FORMATS),
    embedding: flags.embedding === undefined ? undefined : oneOf("embedding", flags.embedding, FORMATS),
    group: Number(oneOf("group", flags.group, ["32", "64", "128"])),
    npz: alone ? basename(subject) : await onlyNpz(files),
    adapter: flags.adapter === undefined ? undefined : directoryFiles(flags.adapter),
    signal,
  };
  const calibration = await calibrated(files, flags, options);
  await convert(files, flags.out, { ...options, calibration, progress: meter() });
}

async function exportModel(subject: string, flags: Flags, print: Print, signal: AbortSignal): Promise<void> {
  if (!subject || !flags.out) throw new UsageError("models export-onnx: expected DIR --out DIR");
  const sizeBytes = await exportOnnx(directoryFiles(subject), flags.out, {
    vision: oneOf<"f32" | "int8">("vision", flags.vision, ["f32", "int8"]),
    decoder: oneOf<"f32" | "int8" | "int4">("decoder", flags.decoder, ["f32", "int8", "int4"]),
    slidingWindow: oneOf<"off" | "hf">("sliding-window", flags["sliding-window"], ["off", "hf"]),
    signal,
    progress: meter(),
  });
  await print(
    `${flags.out}/onnx: ${size(sizeBytes)}\n` +
      `next: deno task cli run --backend ort --model ${flags.out} --image FILE --prompt TEXT\n`,
  );
}

async function evalQuantModel(
  subject: string,
  flags: Flags,
  print: Print,
  signal: AbortSignal,
): Promise<void> {
  const { data, wider } = flags;
  if (!subject || !data) throw new UsageError("models eval-quant: expected DIR --data FILE");
  const questions = await readShown(data, whole("questions", flags.questions));
  // Random weights are right about nothing: what they are asked does not matter, nor what they answer.
  const random = wider === undefined ? undefined : await Deno.makeTempDir({ prefix: "random" });
  try {
    if (random) {
      await randomCheckpoint(subject, random, {
        wider: whole("wider", wider!),
        layers: whole("layers", flags.layers),
        seed: 1,
      });
    }
    const files = directoryFiles(random ?? subject);
    const all = { vision: "int4", decoder: "int4", embedding: "int4" } as const;
    const calibration = await calibrated(files, flags, { ...all, signal });
    const results = await evalQuant(files, {
      backend,
      schemes: quantSchemes(calibration),
      questions,
      data: random ? undefined : data,
      signal,
      done: ({ scheme }) => note(`${scheme}\n`),
    });
    await print(flags.json ? `${JSON.stringify(results)}\n` : quantTable(results));
  } finally {
    if (random) await Deno.remove(random, { recursive: true });
  }
}

const backend = () => createWasmBackend({ simd, relaxed });

/** What the pictures of `--calibrate` show, where it is given. */
async function calibrated(
  files: ModelFiles,
  { calibrate: directory }: Flags,
  options: ConvertOptions,
) {
  if (directory === undefined) return undefined;
  const progress = (done: number, total: number) =>
    note(`\rcalibrating: picture ${done} of ${total}\x1b[K${done === total ? "\n" : ""}`);
  return await calibrate(backend(), files, await calibrationSet(directory), { ...options, progress });
}

/** How far a long command is; silent where the output is not a terminal. */
function note(text: string): void {
  if (Deno.stderr.isTerminal()) Deno.stderr.writeSync(new TextEncoder().encode(text));
}

function parse(args: readonly string[]) {
  return parsed(args, {
    out: { type: "string" },
    vision: { type: "string", default: "int8" },
    decoder: { type: "string", default: "int4" },
    group: { type: "string", default: "32" },
    "sliding-window": { type: "string", default: "off" },
    adapter: { type: "string" },
    embedding: { type: "string" },
    calibrate: { type: "string" },
    data: { type: "string" },
    questions: { type: "string", default: "100" },
    wider: { type: "string" },
    layers: { type: "string", default: "2" },
    json: { type: "boolean" },
  });
}

function whole(flag: string, value: string): number {
  if (/^[1-9]\d*$/.test(value)) return Number(value);
  throw new UsageError(`--${flag}: expected a whole number above 0, found "${value}"`);
}

/** The .npz of a directory that holds one and no safetensors. */
async function onlyNpz(files: ModelFiles): Promise<string | undefined> {
  const names = await files.list();
  const found = names.filter((it) => it.endsWith(".npz"));
  return found.length === 1 && !names.some((it) => it.endsWith(".safetensors")) ? found[0] : undefined;
}

async function directoriesIn(root: string): Promise<string[]> {
  try {
    const entries = await Array.fromAsync(Deno.readDir(root));
    return entries.filter((it) => it.isDirectory && !it.name.startsWith(".")).map((it) => it.name).sort();
  } catch (cause) {
    if (root === "models") return [];
    throw new RequestError("parameter_invalid", `Cannot list ${root}: ${(cause as Error).message}`);
  }
}
