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
  /** The same of two vectors at once, where the engine makes one of them. */
  readonly twins: Pick<Limits, "dotAdd" | "pmaddubsw" | "fma">;
}

/** 16-bit products summed before they are widened. */
export const STEPS = [1, 2, 4, 8, 16] as const;

/** One measurement by one thread. */
export type LimitName =
  | "dramRead"
  | "l3Read"
  | Product
  | `${Product}_twins`;
type Product = "multiply_add" | "dot_add" | `words_${(typeof STEPS)[number]}`;

interface Loops extends Record<Product | `${Product}_twins`, (turns: number, seed: number) => number> {
  read(from: number, bytes: number): number;
  read_streams(from: number, bytes: number): number;
  readonly __heap_base: WebAssembly.Global;
}

const PAGE = 65_536;
const MIB = 2 ** 20;
/** What surely stays in a last-level cache, and what is read of memory at a time. */
const [L3_BYTES, SLICE_BYTES] = [6 * MIB, 64 * MIB];

/**
 * Bytes that are read one after the other, again and again, to come from memory: what the last-level cache holds, as far as
 * Linux tells its size, and no less than 192 MiB. (Of a cache of 300 MB, which others use too, 192 MB were a tenth faster than
 * 300, 64 MB a quarter.)
 */
export function coldBytes(): number {
  let kibibytes = 0;
  try {
    kibibytes = parseInt(Deno.readTextFileSync("/sys/devices/system/cpu/cpu0/cache/index3/size"));
  } catch {
    // Another system, or a machine without such a cache.
  }
  return Math.max(192 * MIB, 1024 * (kibibytes || 0));
}

/** The loops, warm; returns the best rate seen, 10⁹ a second. `threads`: so many measure at once. */
export function openLimits(threads = 1): (name: LimitName, budgetMs: number) => number {
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
  /** Reads so many bytes, a slice at a time. */
  const reader = (size: number, slice: number) => {
    let next = 0;
    const from = () => start + (next = (next + slice) % size);
    return (budgetMs: number) => {
      const missing = start + size - memory.buffer.byteLength;
      if (missing > 0) {
        memory.grow(Math.ceil(missing / PAGE));
        // Pages never written are all one page of zeros, which no cache would miss.
        new Uint8Array(memory.buffer, start).fill(1);
      }
      // In one stream and in eight: what is best differs between processors.
      const half = budgetMs / 2;
      return Math.max(
        best(slice, half, () => loops.read(from(), slice)),
        best(slice, half, () => loops.read_streams(from(), slice)),
      );
    };
  };
  const fromMemory = reader(Math.ceil(coldBytes() / threads / SLICE_BYTES) * SLICE_BYTES, SLICE_BYTES);
  const fromCache = reader(L3_BYTES, L3_BYTES);
  return (name, budgetMs) => {
    const turns = 100_000;
    switch (name) {
      case "dramRead":
        return fromMemory(budgetMs);
      case "l3Read":
        return fromCache(budgetMs);
      default: {
        const vectors = (name.startsWith("words") ? 80 : 48) * (name.endsWith("twins") ? 2 : 1);
        const operations = vectors * (name.startsWith("multiply") ? 8 : 32);
        return best(turns * operations, budgetMs, () => loops[name](turns, 3));
      }
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
  const own = openLimits(threads);
  const script = new URL("limits_worker.ts", import.meta.url);
  const workers = Array.from(
    { length: threads - 1 },
    () => new Worker(script, { type: "module", name: `${threads}` }),
  );
  const measure = async (name: LimitName, budgetMs: number) => {
    const others = workers.map((it) => answer(it, { name, budgetMs }));
    // The others are asked first, and have begun when this one begins.
    if (workers.length) await new Promise((resolve) => setTimeout(resolve, 1));
    return [own(name, budgetMs), ...await Promise.all(others)].reduce((a, b) => a + b);
  };
  // Once in vain: compiles, and fills the memory.
  for (const name of ["dramRead", "dot_add", "dot_add_twins"] as const) await measure(name, 1);
  return { threads, measure, close: () => workers.forEach((it) => it.terminate()) };
}

/** Measures all limits, `budgetMs` for each in two turns, of which the better counts: others may disturb one of them. */
export async function measureLimits(yardstick: Yardstick, budgetMs: number): Promise<Limits> {
  const products: Product[] = ["multiply_add", "dot_add", ...STEPS.map((it) => `words_${it}` as const)];
  const twins = products.map((it) => `${it}_twins` as const);
  const names: LimitName[] = ["dramRead", "l3Read", ...products, ...twins];
  const best = new Map<LimitName, number>();
  for (let turn = 0; turn < 2; turn++) {
    for (const name of names) {
      best.set(name, Math.max(best.get(name) ?? 0, await yardstick.measure(name, budgetMs / 2)));
    }
  }
  const rate = (name: LimitName) => best.get(name)!;
  const ofProducts = (twins: "" | "_twins") => ({
    fma: rate(`multiply_add${twins}`),
    dotAdd: rate(`dot_add${twins}`),
    pmaddubsw: Object.fromEntries(
      STEPS.map((it) => [it, rate(`words_${it}${twins}`)]),
    ) as Limits["pmaddubsw"],
  });
  return {
    threads: yardstick.threads,
    dramRead: rate("dramRead"),
    l3Read: rate("l3Read"),
    ...ofProducts(""),
    twins: ofProducts("_twins"),
  };
}

function answer(worker: Worker, question: { name: LimitName; budgetMs: number }): Promise<number> {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = (event) => reject(new Error(event.message));
    worker.postMessage(question);
  });
}
