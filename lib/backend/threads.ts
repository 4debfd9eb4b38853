/**
 * The WASM backend on several threads of one process: workers with a memory they share, for Deno and whatever else
 * has `node:worker_threads`. Where there are none, as on Cloudflare, `createWasmBackend` does the same on one.
 *
 * Workers of this kind, because they can be kept from holding the process open: a program that ends without `close`
 * ends nevertheless.
 */

import { Worker } from "node:worker_threads";
import { Control, Leader, SHARE_ABOVE_NS } from "./crew.ts";
import { createSharedMemory } from "./wasm_arena.ts";
import { Wasm, type WasmBackend, type WasmOptions } from "./wasm.ts";
import { type Builds, chooseKernels } from "./wasm_kernels.ts";

export interface ThreadsOptions extends WasmOptions {
  /** How many compute, the calling one included; from 1 to 64. */
  readonly threads: number;
  /** A thread that takes longer than this for a part of one operation is given up; 10,000 by default. */
  readonly stallMs?: number;
  /** What is cheaper than this on one thread, by a guess in nanoseconds, is not shared out; 4000 by default. */
  readonly shareAboveNs?: number;
  /** What the other threads run, for tests; by default `threads_worker.ts`. */
  readonly script?: URL;
}

/** A backend with threads that end with it. */
export interface ThreadedBackend extends WasmBackend {
  readonly threads: number;
  /** Settles when every thread computes; before that the others do its work. Rejects when one cannot start. */
  readonly ready: Promise<void>;
  /** Ends the threads; operations fail from now on. Not needed before the process ends. */
  close(): Promise<void>;
}

/** What a worker is started with. */
export interface WorkerData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly control: SharedArrayBuffer;
  /** From 1; the leader is 0. */
  readonly thread: number;
  readonly stack: number;
}

/**
 * Makes a backend from the builds for a shared memory (`wasm/kernels_shared.js`). Its results are bit for bit those
 * of one thread. It computes at once, with more threads as they come up.
 *
 * Operations throw an `Error` once a thread has failed, ended or stalled; the backend is lost then.
 *
 * @throws {RangeError} when the system refuses the addresses of a memory of 4 GiB.
 */
export function createThreadedBackend(kernels: Builds, options: ThreadsOptions): ThreadedBackend {
  const { threads } = options;
  if (!Number.isInteger(threads) || threads < 1 || threads > 64) {
    throw new RangeError(`Cannot start threads: expected 1 to 64, found ${threads}`);
  }
  const memory = createSharedMemory();
  return new Threaded(chooseKernels(kernels, memory), memory, options);
}

class Threaded extends Wasm implements ThreadedBackend {
  readonly threads: number;
  readonly ready: Promise<void>;
  readonly #control: Control;
  readonly #workers: readonly Worker[];

  constructor(module: WebAssembly.Module, memory: WebAssembly.Memory, options: ThreadsOptions) {
    const { threads, stallMs = 10_000, shareAboveNs = SHARE_ABOVE_NS } = options;
    const { script = new URL("./threads_worker.ts", import.meta.url) } = options;
    const control = new Control();
    let workers: Worker[] = [];
    super(module, options, {
      threads,
      memory,
      hire(kernels, stacks) {
        workers = stacks.map((stack, i) => {
          const workerData = { module, memory, control: control.buffer, thread: i + 1, stack };
          return new Worker(script, { workerData: workerData satisfies WorkerData });
        });
        return new Leader(threads, kernels, control, stallMs, shareAboveNs);
      },
    });
    this.threads = threads;
    this.#control = control;
    this.#workers = workers;
    const started = workers.map((worker) => start(worker, control));
    this.ready = Promise.all(started).then(() => {});
    this.ready.catch(() => {}); // the next operation tells, too
  }

  async close(): Promise<void> {
    this.#control.stop();
    await Promise.all(this.#workers.map((it) => it.terminate()));
  }
}

/** Settles when the worker says that it is there. From then on it does not keep the process alive. */
function start(worker: Worker, control: Control): Promise<void> {
  return new Promise((resolve, reject) => {
    worker.once("message", () => {
      worker.unref();
      resolve();
    });
    worker.on("error", (error) => {
      control.fail(error);
      reject(error);
    });
    worker.on("exit", () => {
      if (control.stopped) return resolve();
      const error = new Error("A thread has ended by itself");
      control.fail(error);
      reject(error);
    });
  });
}
