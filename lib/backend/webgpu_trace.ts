/** GPU time by kernel, where the device has timestamps. */

import type { Dispatch } from "./webgpu_queue.ts";

/** Query sets hold no more, two to a dispatch. */
const QUERIES = 4096;
const USAGE = { mapRead: 0x1, copySource: 0x4, copyTarget: 0x8, queryResolve: 0x200 } as const;
const MAP_READ = 0x1;

/** What the dispatches of one kernel with the same workgroups took on the GPU. */
export interface KernelTime {
  /** The kernel with its constants, then its workgroups. */
  readonly kernel: string;
  readonly count: number;
  /** Microseconds of one, on average. */
  readonly usEach: number;
}

/** Times dispatches, each in a pass of its own; those beyond 2048 run untimed. */
export class Trace {
  readonly #set: GPUQuerySet;
  readonly #names: string[] = [];

  constructor(private readonly device: GPUDevice) {
    this.#set = device.createQuerySet({ type: "timestamp", count: QUERIES });
  }

  /** How the pass of a dispatch is begun. */
  describe({ kernel, groups }: Dispatch): GPUComputePassDescriptor {
    const at = this.#names.length * 2;
    if (at === QUERIES) return {};
    this.#names.push(`${kernel.name} [${groups}]`);
    return {
      timestampWrites: { querySet: this.#set, beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 },
    };
  }

  /** Times of what was submitted, the longest together first. Ends the trace. */
  async end(): Promise<KernelTime[]> {
    const { device } = this;
    const queries = this.#names.length * 2;
    const size = Math.max(queries, 1) * 8;
    const make = (usage: number) => device.createBuffer({ size, usage });
    const [found, back] = [
      make(USAGE.queryResolve | USAGE.copySource),
      make(USAGE.mapRead | USAGE.copyTarget),
    ];
    try {
      const encoder = device.createCommandEncoder();
      encoder.resolveQuerySet(this.#set, 0, queries, found, 0);
      encoder.copyBufferToBuffer(found, 0, back, 0, queries * 8);
      device.queue.submit([encoder.finish()]);
      await back.mapAsync(MAP_READ);
      return this.#sums(new BigInt64Array(back.getMappedRange().slice(0)));
    } finally {
      for (const it of [this.#set, found, back]) it.destroy();
    }
  }

  #sums(nanoseconds: BigInt64Array): KernelTime[] {
    const sums = new Map<string, { count: number; us: number }>();
    for (const [i, name] of this.#names.entries()) {
      const sum = sums.get(name) ?? { count: 0, us: 0 };
      sum.count++;
      sum.us += Number(nanoseconds[i * 2 + 1] - nanoseconds[i * 2]) / 1000;
      sums.set(name, sum);
    }
    return [...sums].sort(([, a], [, b]) => b.us - a.us)
      .map(([kernel, { count, us }]) => ({ kernel, count, usEach: us / count }));
  }
}
