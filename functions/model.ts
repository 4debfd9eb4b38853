/** What the doors on a machine with files share: a model directory and the compiled kernels become a pipeline. */

import { join, resolve } from "@std/path";
import {
  type Backend,
  createPipeline,
  createReferenceBackend,
  createWasmBackend,
  type LocalPipeline,
  type ModelFiles,
  type PipelineParts,
  RequestError,
} from "../lib/mod.ts";
import { type Engine as ComputingEngine, openEngine } from "../lib/engine.ts";
import { createThreadedBackend } from "../lib/backend/threads.ts";
import { openGpu } from "./gpu.ts";
import { openOnnx } from "./ort.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import * as shared from "../wasm/kernels_shared.js";

/** The bundled model. */
export const TINY = join(import.meta.dirname!, "../models/tiny");

/** A directory as the library sees it. */
export function directoryFiles(directory: string): ModelFiles {
  const place = resolve(directory);
  const missing = (error: unknown) => {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw error;
  };
  return {
    place: directory,
    async list() {
      try {
        return (await Array.fromAsync(Deno.readDir(place))).map((it) => it.name).sort();
      } catch (error) {
        return missing(error) ?? [];
      }
    },
    async size(name) {
      try {
        const info = await Deno.stat(join(place, name));
        return info.isFile ? info.size : undefined;
      } catch (error) {
        return missing(error);
      }
    },
    async read(name, start = 0, end, room) {
      // Opened at once, so that the read itself is under way before the caller computes anything.
      using file = Deno.openSync(join(place, name));
      const stop = end ?? file.statSync().size;
      const bytes = room ? room.subarray(0, stop - start) : new Uint8Array(stop - start);
      file.seekSync(start, Deno.SeekMode.Start);
      for (let at = 0; at < bytes.length;) {
        const count = await file.read(bytes.subarray(at));
        if (count === null) {
          throw new RequestError(
            "model_invalid",
            `Cannot read ${name} of ${directory}: expected ${bytes.length} bytes from ${start}, found ${at}`,
          );
        }
        at += count;
      }
      return bytes;
    },
  };
}

/**
 * What computes: plain loops, our kernels in WebAssembly or on a GPU, or onnxruntime-web, which runs the ONNX files of
 * the directory.
 */
export type Engine = "reference" | "wasm" | "webgpu" | "ort";

/** How to load a model; everything has a default but the directory. */
export interface ModelOptions
  extends Partial<Omit<PipelineParts, "backend" | "files" | "name" | "stages" | "smaller">> {
  /** The directory of a smaller variant, which answers where a budget allows a worse answer. */
  readonly smaller?: string;
  readonly backend?: Engine;
  /** Threads of our kernels or of onnxruntime-web; by default as {@link usualThreads}. With ours the answers are the same. */
  readonly threads?: number;
  /** Told what the operator should know, in a sentence. */
  readonly onNotice?: (notice: string) => void;
}

/** Bytes of weights from which on a model is shared out: a small one is done before other threads have heard of it. */
const LARGE_BYTES = 128 * 2 ** 20;
/** What reads weights from memory gains nothing from more. */
const MOST_THREADS = 8;

/** Threads for a model where nobody says how many: one for a small one, for a large one those of the machine, at most 8. */
export async function usualThreads(
  files: ModelFiles,
  cores = navigator.hardwareConcurrency,
): Promise<number> {
  const weights = (await files.list()).filter((it) => it.endsWith(".safetensors"));
  const sizes = await Promise.all(weights.map(async (it) => await files.size(it) ?? 0));
  return sizes.reduce((a, b) => a + b, 0) < LARGE_BYTES ? 1 : Math.min(cores, MOST_THREADS);
}

/**
 * Opens a model directory: what a pipeline, or an engine alone, is made of.
 *
 * @throws {RequestError} `model_invalid` when ONNX files do not fit together; `parameter_invalid` for a setting that the
 * engine does not have.
 */
async function openParts(
  directory: string,
  { backend: engine = "wasm", onNotice, smaller: _, ...parts }: ModelOptions,
): Promise<PipelineParts> {
  const files = directoryFiles(directory);
  const threads = parts.threads ?? await usualThreads(files);
  const backend = await openBackend(engine, threads, onNotice);
  if (engine === "ort" && parts.slidingWindow === "hf") {
    throw new RequestError(
      "parameter_invalid",
      "Cannot load ONNX files with --sliding-window hf: they keep the windows that they were exported with",
    );
  }
  return {
    backend,
    files,
    name: nameOf(directory),
    stages: engine === "ort" ? await openOnnx(files, backend, { ...parts, threads }) : undefined,
    ...parts,
  };
}

/** What clients call the model in a directory. */
function nameOf(directory: string): string {
  return resolve(directory).split("/").at(-1)!;
}

/** Loads the model in a directory. @throws {RequestError} as `createPipeline`, and for a setting that is wrong. */
export async function loadModel(directory: string, options: ModelOptions = {}): Promise<LocalPipeline> {
  const { smaller, backend, threads, onNotice } = options;
  const variant = smaller === undefined ? undefined : {
    name: nameOf(smaller),
    engine: await loadEngine(smaller, { backend, threads, onNotice }),
  };
  return await createPipeline({ ...await openParts(directory, options), smaller: variant });
}

/** Loads the half of it that computes. @throws {RequestError} as {@link loadModel}. */
export async function loadEngine(directory: string, options: ModelOptions = {}): Promise<ComputingEngine> {
  return await openEngine(await openParts(directory, options));
}

async function openBackend(
  engine: Engine,
  threads: number,
  onNotice?: (notice: string) => void,
): Promise<Backend> {
  switch (engine) {
    case "reference":
      return createReferenceBackend();
    case "webgpu": {
      const backend = await openGpu();
      if (backend.software) {
        onNotice?.(`No GPU here: ${backend.adapter} stands in, slower than --backend wasm.`);
      }
      return backend;
    }
    case "ort":
      return createWasmBackend({ simd, relaxed });
    case "wasm":
      return threads === 1
        ? createWasmBackend({ simd, relaxed })
        : createThreadedBackend(shared, { threads });
  }
}
