/**
 * What the machine can do at most, measured by loops in WASM (`wasm/limits.c`) in the engine that runs the kernels:
 * the yardstick of every figure of the benchmark.
 */

/** Limits of all threads together. Operations: a multiplication and an addition are two. */
export interface Limits {
  readonly threads: number;
  /** Bytes read a second, 10⁹: from memory, and from what the last-level cache holds. */
  readonly dramRead: number;
  readonly l3Read: number;
  /** Operations a second, 10⁹. */
  readonly dotAdd: number;
  /** The same by 16-bit products, by the steps summed before widening. */
  readonly pmaddubsw: Readonly<Record<(typeof STEPS)[number], number>>;
  readonly fma: number;
}

/** 16-bit products summed before they are widened. */
export const STEPS = [1, 2, 4, 8, 16] as const;

/** One measurement by one thread. */
export type LimitName = "dramRead" | "l3Read" | "dotAdd" | "fma" | `words_${(typeof STEPS)[number]}`;

interface Loops extends Record<`words_${(typeof STEPS)[number]}`, (turns: number, seed: number) => number> {
  dot_add(turns: number, seed: number): number;
  multiply_add(turns: number, seed: number): number;
  read(from: number, bytes: number): number;
  read_streams(from: number, bytes: number): number;
  readonly __heap_base: WebAssembly.Global;
}

const PAGE = 65_536;
/** Far more than any last-level cache in reach of one core here, and what surely stays in one. */
const [DRAM_BYTES, L3_BYTES] = [192 * 2 ** 20, 6 * 2 ** 20];

/** The loops, warm; returns the best rate seen, 10⁹ a second. */
export function openLimits(): (name: LimitName, budgetMs: number) => number {
  const bytes = Deno.readFileSync(new URL("limits.wasm", import.meta.url));
  const memory = new WebAssembly.Memory({ initial: 2, maximum: 65_535 });
  const loops = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } })
    .exports as unknown as Loops;
  const start = 2 * PAGE;
  const best = (amount: number, budgetMs: number, run: () => void) => {
    let least = Infinity;
    const since = performance.now();
    do {
      const before = performance.now();
      run();
      least = Math.min(least, performance.now() - before);
    } while (performance.now() - since < budgetMs);
    return amount / least / 1e6;
  };
  const read = (size: number, budgetMs: number) => {
    const missing = start + size - memory.buffer.byteLength;
    if (missing > 0) {
      memory.grow(Math.ceil(missing / PAGE));
      // Pages never written are all one page of zeros, which no cache would miss.
      new Uint8Array(memory.buffer, start).fill(1);
    }
    // In one stream and in eight: what is best differs between processors.
    const half = budgetMs / 2;
    return Math.max(
      best(size, half, () => loops.read(start, size)),
      best(size, half, () => loops.read_streams(start, size)),
    );
  };
  return (name, budgetMs) => {
    const turns = 100_000;
    switch (name) {
      case "dramRead":
        return read(DRAM_BYTES, budgetMs);
      case "l3Read":
        return read(L3_BYTES, budgetMs);
      case "dotAdd":
        return best(turns * 48 * 32, budgetMs, () => loops.dot_add(turns, 3));
      case "fma":
        return best(turns * 48 * 8, budgetMs, () => loops.multiply_add(turns, 3));
      default:
        return best(turns * 80 * 32, budgetMs, () => loops[name](turns, 3));
    }
  };
}

/** All threads at once, ready to measure. */
export interface Yardstick {
  readonly threads: number;
  /** Their rates together, 10⁹ a second: the best that each saw in `budgetMs`; with 0, one pass. */
  measure(name: LimitName, budgetMs: number): Promise<number>;
  close(): void;
}

/** Starts so many threads, this one included. */
export async function openYardstick(threads: number): Promise<Yardstick> {
  const own = openLimits();
  const script = new URL("limits_worker.ts", import.meta.url);
  const workers = Array.from({ length: threads - 1 }, () => new Worker(script, { type: "module" }));
  const measure = async (name: LimitName, budgetMs: number) => {
    const others = workers.map((it) => answer(it, { name, budgetMs }));
    // The others are asked first, and have begun when this one begins.
    if (workers.length) await new Promise((resolve) => setTimeout(resolve, 1));
    return [own(name, budgetMs), ...await Promise.all(others)].reduce((a, b) => a + b);
  };
  // Once in vain: compiles, and fills the memory.
  for (const name of ["dramRead", "dotAdd"] as const) await measure(name, 1);
  return { threads, measure, close: () => workers.forEach((it) => it.terminate()) };
}

/** Measures all limits, `budgetMs` for each in two turns, of which the better counts: others may disturb one of them. */
export async function measureLimits(yardstick: Yardstick, budgetMs: number): Promise<Limits> {
  const names = [
    "dramRead",
    "l3Read",
    "dotAdd",
    "fma",
    ...STEPS.map((it) => `words_${it}` as const),
  ] as const;
  const best = new Map<LimitName, number>();
  for (let turn = 0; turn < 2; turn++) {
    for (const name of names) {
      best.set(name, Math.max(best.get(name) ?? 0, await yardstick.measure(name, budgetMs / 2)));
    }
  }
  const rate = (name: LimitName) => best.get(name)!;
  const words = STEPS.map((it) => [it, rate(`words_${it}`)]);
  return {
    threads: yardstick.threads,
    dramRead: rate("dramRead"),
    l3Read: rate("l3Read"),
    dotAdd: rate("dotAdd"),
    pmaddubsw: Object.fromEntries(words),
    fma: rate("fma"),
  };
}

function answer(worker: Worker, question: { name: LimitName; budgetMs: number }): Promise<number> {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = (event) => reject(new Error(event.message));
    worker.postMessage(question);
  });
}
