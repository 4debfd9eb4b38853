/** Which machine this is: no figure means anything without it. */

import { kernelOf } from "./kernels.ts";
import { type Limits, measureLimits, type Yardstick } from "./limits.ts";
import { openBackend, type Settings, TWIN } from "./work.ts";

const FEATURES = /^(avx2|avx_vnni|avx512_vnni|avx512f|fma|amx_int8|asimddp|i8mm)$/;

/** The machine as the benchmark writes it. */
export interface Machine {
  readonly processor: string;
  readonly features: readonly string[];
  readonly cores: number;
  /** Processes that wanted to compute in the minute before: above 1, figures of one thread may be too low. */
  readonly load: number;
  readonly runtime: string;
  /** `dot`: integers are multiplied by the relaxed dot product; `words`: in 16 bits; `plain`: without relaxed SIMD. */
  readonly kernel: "dot" | "words" | "plain";
  /** Whether the engine makes one vector of two. */
  readonly twins: boolean;
  readonly limits: Limits;
}

/** Describes the machine and measures its limits, `budgetMs` for each. */
export async function describeMachine(
  settings: Settings,
  yardstick: Yardstick,
  budgetMs: number,
): Promise<Machine> {
  const text = await Deno.readTextFile("/proc/cpuinfo").catch(() => "");
  const field = (name: string) => text.match(new RegExp(`^${name}\\s*: (.*)$`, "mi"))?.[1] ?? "";
  const { backend, close } = await openBackend({ ...settings, threads: 1 });
  const number = kernelOf(backend, "int8-p8-s4", 256);
  await close();
  return {
    processor: `${field("model name") || "unknown processor"} (family ${field("cpu family")}, model ${
      field("model")
    })`,
    features: (field("flags") || field("Features")).split(" ").filter((it) => FEATURES.test(it)),
    cores: navigator.hardwareConcurrency,
    load: Deno.loadavg()[0],
    runtime: `Deno ${Deno.version.deno}, V8 ${Deno.version.v8}`,
    kernel: settings.build === "simd" ? "plain" : number & ~TWIN ? "words" : "dot",
    twins: (number & TWIN) > 0,
    limits: await measureLimits(yardstick, budgetMs),
  };
}

/** The machine in a few lines. */
export function machineLines(
  { processor, features, cores, load, runtime, kernel, twins, limits }: Machine,
): string[] {
  const products = ({ dotAdd, pmaddubsw, fma }: Limits["twins"]) => {
    const words = Object.entries(pmaddubsw).map(([steps, rate]) => `S = ${steps} ${rate.toFixed(0)}`);
    return `dot-add ${dotAdd.toFixed(0)} GOP/s, pmaddubsw ${words.join(", ")}; FMA ${fma.toFixed(1)} GFLOP/s`;
  };
  return [
    `${processor}, ${cores} cores, load ${load.toFixed(1)}, ${
      features.join(" ") || "no vector features reported"
    }, ${runtime}`,
    `kernel ${kernel}${twins ? ", twins" : ""}; limits of ${limits.threads} thread${
      limits.threads > 1 ? "s" : ""
    }: ` +
    `read ${limits.dramRead.toFixed(1)} GB/s from memory, ${limits.l3Read.toFixed(1)} from cache; ` +
    `${products(limits)}; of twins ${products(limits.twins)}`,
  ];
}
