/**
 * Work for a GPU, collected and submitted at once: dispatches go into one pass until something is read. Parameters of
 * all of them travel in one buffer ahead of the submission.
 */

import type { Features, Kernel } from "./webgpu_kernels.ts";
import { type KernelTime, Trace } from "./webgpu_trace.ts";

/** Flags of the WebGPU specification, which not every runtime has as globals. */
export const USAGE = {
  mapRead: 0x1,
  copySource: 0x4,
  copyTarget: 0x8,
  uniform: 0x40,
  storage: 0x80,
} as const;
const COMPUTE = 0x4;
const MAP_READ = 0x1;

/** Words between the parameters of one dispatch and those of the next: dynamic offsets are multiples of 256 bytes. */
const PARAMETER_WORDS = 64;
/** Words of parameters, ids included, in one submission. */
const TABLE_WORDS = 64 * 1024;
const SCOPES: readonly GPUErrorFilter[] = ["validation", "out-of-memory", "internal"];
/** Buffers that reads come back in, kept for the next. */
const KEPT_READS = 8;

/** Buffers of one device at a time, at most: three of their numbers and a bit are a whole number in f64. */
const BUFFERS = 2 ** 17;

/** Stands for an operand that is not there, as in `wgsl/arena.wgsl`. */
export const NONE = 0xffffffff;

/** A word that holds an f32. */
export class Float {
  constructor(readonly value: number) {}
}

/** A buffer as kernels see it, by a number that no other has at the same time. */
export interface Bound {
  readonly id: number;
  readonly buffer: GPUBuffer;
}

/** One call of a kernel. */
export interface Dispatch {
  readonly kernel: Kernel;
  readonly parameters: readonly (number | Float)[];
  /** Binding 2, by default the table of parameters. */
  readonly side?: Bound;
  /** Binding 3. */
  readonly weights?: Bound;
  readonly groups: readonly [number, number?, number?];
}

/** How work goes to the GPU, and what that has taken so far. */
export interface Submitting {
  /** As in `WebgpuOptions`; may be set between operations. */
  maxDispatches: number;
  /** Submissions, and dispatches in them. */
  readonly submissions: number;
  readonly dispatches: number;
  /** Milliseconds of submitting, and of all reads, which overlap, from there until they came. */
  readonly submitMs: number;
  readonly waitMs: number;
  /**
   * GPU time by kernel of what `work` issues and reads, the longest first. Every dispatch gets a pass of its own, so that
   * all takes longer. Undefined where the device has no timestamps.
   */
  trace(work: () => Promise<unknown>): Promise<KernelTime[] | undefined>;
}

/** The queue of one device. */
export class Queue implements Submitting {
  readonly #layouts: Readonly<Record<"reads" | "writes", GPUBindGroupLayout>>;
  readonly #pipelines = new Map<string, GPUComputePipeline>();
  readonly #groups = new Map<number, { readonly group: GPUBindGroup; readonly ids: readonly number[] }>();
  readonly #words = new Uint32Array(TABLE_WORDS);
  readonly #floats = new Float32Array(this.#words.buffer);
  /** What {@link words} and parameters lie in. */
  readonly table: Bound;
  readonly #none: Bound;
  readonly #reads: GPUBuffer[] = [];
  readonly #dropped: GPUBuffer[] = [];
  #wordsUsed = 0;
  /** Dispatches since the last submission. */
  #issued = 0;
  #count = 0;
  /** Of buffers that were dropped. */
  readonly #numbers: number[] = [];
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  /** In this pass. */
  #set: GPUComputePipeline | undefined;
  #flushing: Promise<void> | undefined;
  #failure: Error | undefined;
  #deferred: (() => void) | undefined;
  #trace: Trace | undefined;
  submissions = 0;
  dispatches = 0;
  submitMs = 0;
  waitMs = 0;

  /** @param maxDispatches of a submission, after which the GPU begins while the next are issued. */
  constructor(readonly device: GPUDevice, readonly features: Features, public maxDispatches: number) {
    const entry = (binding: number, type: GPUBufferBindingType, hasDynamicOffset = false) => ({
      binding,
      visibility: COMPUTE,
      buffer: { type, hasDynamicOffset },
    });
    const layout = (side: GPUBufferBindingType) =>
      device.createBindGroupLayout({
        entries: [
          entry(0, "storage"),
          entry(1, "uniform", true),
          entry(2, side),
          entry(3, "read-only-storage"),
        ],
      });
    this.#layouts = { reads: layout("read-only-storage"), writes: layout("storage") };
    this.table = this.buffer(TABLE_WORDS * 4, USAGE.uniform | USAGE.storage | USAGE.copyTarget);
    this.#none = this.buffer(256, USAGE.storage);
    this.#watch();
    device.lost.then(({ message }) => this.#failure ??= new Error(`The GPU was lost: ${message}`));
  }

  /** A buffer of at least so many bytes. */
  buffer(bytes: number, usage: number): Bound {
    const size = Math.ceil(Math.max(bytes, 16) / 16) * 16;
    return { id: this.#numbers.pop() ?? this.#count++, buffer: this.device.createBuffer({ size, usage }) };
  }

  /**
   * Puts off what dispatches something until the next operation, which may take it back and dispatch both in one. What
   * was put off before is dispatched.
   */
  defer(issue: () => void): void {
    this.settle();
    this.#deferred = issue;
  }

  /** Takes back what was put off. */
  takeBack(): void {
    this.#deferred = undefined;
  }

  /** Dispatches what was put off. */
  settle(): void {
    const issue = this.#deferred;
    this.#deferred = undefined;
    issue?.();
  }

  /** Destroys a buffer when what was issued with it is submitted. */
  drop({ id, buffer }: Bound): void {
    this.settle();
    for (const [key, { ids }] of this.#groups) if (ids.includes(id)) this.#groups.delete(key);
    this.#numbers.push(id);
    this.#dropped.push(buffer);
    if (!this.#encoder) this.#destroyDropped();
  }

  /** Puts words beside the parameters and tells where; the dispatch that follows reads them there as `side`. */
  words(values: Uint32Array): number {
    this.settle();
    const size = Math.ceil(values.length / PARAMETER_WORDS) * PARAMETER_WORDS;
    this.#need(size + PARAMETER_WORDS);
    const at = this.#wordsUsed;
    this.#words.set(values, at);
    this.#wordsUsed += size;
    return at;
  }

  /** Words that {@link words} takes at once. */
  readonly maxWords = TABLE_WORDS / 4;

  dispatch(arena: Bound, dispatch: Dispatch): void {
    const { kernel, parameters, side = this.table, weights = this.#none, groups } = dispatch;
    this.settle();
    this.#need(PARAMETER_WORDS);
    const at = this.#wordsUsed;
    for (let i = 0; i < parameters.length; i++) {
      const it = parameters[i];
      if (typeof it === "number") this.#words[at + i] = it;
      else this.#floats[at + i] = it.value;
    }
    this.#wordsUsed += PARAMETER_WORDS;
    const encoder = this.#trace ? this.#leavePass() : this.#encode();
    const pass = this.#pass ??= encoder.beginComputePass(this.#trace?.describe(dispatch));
    const pipeline = this.#pipeline(kernel);
    if (pipeline !== this.#set) pass.setPipeline(this.#set = pipeline);
    pass.setBindGroup(0, this.#group(kernel, arena, side, weights), [at * 4]);
    pass.dispatchWorkgroups(groups[0], groups[1], groups[2]);
    this.dispatches++;
    if (++this.#issued >= this.maxDispatches) this.flush();
  }

  async trace(work: () => Promise<unknown>): Promise<KernelTime[] | undefined> {
    if (!this.device.features.has("timestamp-query")) return undefined;
    this.flush();
    const trace = this.#trace = new Trace(this.device);
    try {
      await work();
    } finally {
      this.flush();
      this.#trace = undefined;
    }
    return await trace.end();
  }

  /** Copies bytes from one buffer to another, in order with what was dispatched. */
  copy(from: Bound, start: number, to: Bound, target: number, bytes: number): void {
    this.settle();
    this.#leavePass().copyBufferToBuffer(from.buffer, start, to.buffer, target, bytes);
  }

  /** Writes bytes, in order with what was dispatched; both in multiples of four. */
  write({ buffer }: Bound, start: number, data: Float32Array | Uint8Array | Uint32Array): void {
    this.flush();
    this.device.queue.writeBuffer(buffer, start, data as BufferSource);
  }

  /**
   * Reads rows of `bytes`, `stride` bytes apart, when all that was issued before is done. Reads that are asked for in
   * one go are submitted together.
   *
   * @throws {Error} when the device was lost or something issued before was refused.
   */
  async read(
    { buffer }: Bound,
    start: number,
    rows: number,
    bytes: number,
    stride: number,
  ): Promise<ArrayBuffer> {
    this.settle();
    const size = rows * bytes;
    const at = this.#reads.findIndex((it) => it.size >= size);
    const back = at >= 0 ? this.#reads.splice(at, 1)[0] : this.device.createBuffer({
      size: Math.max(4096, 2 ** Math.ceil(Math.log2(size || 1))),
      usage: USAGE.mapRead | USAGE.copyTarget,
    });
    const encoder = this.#leavePass();
    const together = bytes === stride ? rows : 1;
    for (let r = 0; r < rows; r += together) {
      encoder.copyBufferToBuffer(buffer, start + r * stride, back, r * bytes, together * bytes);
    }
    await (this.#flushing ??= Promise.resolve().then(() => {
      this.flush();
      this.#look();
      this.#watch();
    }));
    const since = performance.now();
    try {
      await back.mapAsync(MAP_READ, 0, Math.max(size, 4));
      this.check();
      this.waitMs += performance.now() - since;
    } catch (cause) {
      back.destroy();
      throw this.#failure ?? new Error("Cannot read from the GPU", { cause });
    }
    const values = back.getMappedRange(0, Math.max(size, 4)).slice(0, size);
    back.unmap();
    if (this.#reads.length < KEPT_READS) this.#reads.push(back);
    else back.destroy();
    return values;
  }

  /** @throws {Error} once the device was lost or has refused something. */
  check(): void {
    if (this.#failure) throw this.#failure;
  }

  /** Submits what was issued. */
  flush(): void {
    this.#flushing = undefined;
    this.settle();
    if (!this.#encoder) return;
    const since = performance.now();
    const commands = this.#leavePass().finish();
    this.#encoder = undefined;
    this.device.queue.writeBuffer(this.table.buffer, 0, this.#words, 0, this.#wordsUsed);
    this.device.queue.submit([commands]);
    this.submissions++;
    this.#wordsUsed = this.#issued = 0;
    this.#destroyDropped();
    this.submitMs += performance.now() - since;
  }

  /** Ends the device. */
  close(): void {
    this.flush();
    this.device.destroy();
  }

  /** From now on, notes what the device refuses. */
  #watch(): void {
    for (const it of SCOPES) this.device.pushErrorScope(it);
  }

  /** Notes what the device has refused since {@link #watch}. */
  #look(): void {
    for (const _ of SCOPES) {
      this.device.popErrorScope().then((error) => {
        if (error) this.#failure ??= new Error(`The GPU failed: ${error.message}`);
      }, () => {}); // lost, which has its own words
    }
  }

  #encode(): GPUCommandEncoder {
    return this.#encoder ??= this.device.createCommandEncoder();
  }

  #leavePass(): GPUCommandEncoder {
    this.#pass?.end();
    this.#pass = this.#set = undefined;
    return this.#encode();
  }

  /** Makes room for so many words in the table. */
  #need(words: number): void {
    if (this.#wordsUsed + words > TABLE_WORDS) this.flush();
  }

  #pipeline(kernel: Kernel): GPUComputePipeline {
    const { name, text, entry, writesSide } = kernel;
    const found = this.#pipelines.get(name);
    if (found) return found;
    const { device } = this;
    const pipeline = device.createComputePipeline({
      label: name,
      layout: device.createPipelineLayout({
        bindGroupLayouts: [this.#layouts[writesSide ? "writes" : "reads"]],
      }),
      compute: { module: device.createShaderModule({ label: name, code: text() }), entryPoint: entry },
    });
    this.#pipelines.set(name, pipeline);
    return pipeline;
  }

  #group({ writesSide }: Kernel, arena: Bound, side: Bound, weights: Bound): GPUBindGroup {
    // Buffers are numbered, and there are few: a key below 2⁵³ names three of them.
    const key = ((arena.id * BUFFERS + side.id) * BUFFERS + weights.id) * 2 + (writesSide ? 1 : 0);
    const found = this.#groups.get(key);
    if (found) return found.group;
    const group = this.device.createBindGroup({
      layout: this.#layouts[writesSide ? "writes" : "reads"],
      entries: [
        { binding: 0, resource: { buffer: arena.buffer } },
        { binding: 1, resource: { buffer: this.table.buffer, size: PARAMETER_WORDS * 4 } },
        { binding: 2, resource: { buffer: side.buffer } },
        { binding: 3, resource: { buffer: weights.buffer } },
      ],
    });
    this.#groups.set(key, { group, ids: [arena.id, side.id, weights.id] });
    return group;
  }

  #destroyDropped(): void {
    for (const buffer of this.#dropped.splice(0)) buffer.destroy();
  }
}
