// deno-lint-ignore-file no-console -- a command; its words go to the terminal
/**
 * Builds the kernels: one C source, two modules, plain SIMD and relaxed SIMD, and each again for a memory that threads
 * share. Those differ in the memory that they import: a shared one, at its full size from the start (why:
 * lib/backend/wasm_arena.ts). They need no atomic operations, since the threads wait for one another outside of them.
 *
 *     deno task wasm           writes wasm/kernels_{simd,relaxed}.wasm and wasm/kernels_{simd,relaxed}_shared.wasm,
 *                              and tests/bench/limits.wasm for the benchmark
 *     deno task wasm --check   builds and compares with the committed files instead
 *
 * Needs clang 19 and lld 19 (Debian and Ubuntu: `apt install clang-19 lld-19`), and Node's npx, which fetches Binaryen:
 * it joins what they make with the loops of tiles.ts. The build is reproducible to the byte with one version of each.
 * Without them `--check` says so and passes, unless CI is set to true.
 */

import { basename, join } from "@std/path";
import { tilesModule } from "./tiles.ts";
import { limitsModule } from "./twins.ts";

const FOLDER = import.meta.dirname!;
const [COMPILER, LINKER, NPX] = ["clang-19", "wasm-ld-19", "npx"];
const FLAGS = [
  "--target=wasm32-unknown-unknown",
  "-msimd128",
  "-mbulk-memory",
  "-ffreestanding",
  "-nostdlib",
  // The same products and sums in both builds except where the source says madd.
  "-ffp-contract=off",
  "-Wall",
  "-Wextra",
  "-Werror",
];
/**
 * Files whose loop bodies are long and straight. Clang's last pass for WebAssembly moves every value to where it is
 * used, which makes small modules; but of such a body all loads are left at the top, and V8, which keeps the order,
 * has registers for none of them. Without that pass (it belongs to every level but -O0) the order of the source
 * stays: 30 instead of 17 GB/s of int4 weights from the cache on a Xeon (family 6, model 207).
 */
const STRAIGHT = ["finish.c", "gemv.c", "int4.c", "int8.c", "quantize.c"];
const LINK = [
  "--no-entry",
  "--strip-all",
  // The backend owns the memory; the modules keep only a stack and constants at its start.
  "--import-memory",
  "--max-memory=4294901760",
  "-zstack-size=65536",
  "--stack-first",
  "--export=__heap_base",
  // Instances that share a memory get a stack each.
  "--export=__stack_pointer",
];
const BUILDS = [
  { name: "simd", flags: [] },
  { name: "relaxed", flags: ["-mrelaxed-simd"] },
] as const;

/** Joins modules of which each imports what another exports. */
const MERGE = [
  ...["-y", "-p", "binaryen@132.0.0", "wasm-merge"],
  ...["bulk-memory", "gc", "mutable-globals", "nontrapping-float-to-int", "reference-types"].map(enable),
  ...["relaxed-simd", "sign-ext", "simd"].map(enable),
];
/** Steps of sums in 16 bits that the benchmark measures. */
const STEPS = [1, 2, 4, 8, 16];
const LEAST_MEMORY = "--initial-memory=131072";
const FULL_MEMORY = "--initial-memory=4294901760";

/** The import of `env.memory`, up to the flags of its limits: 1 has a maximum, 3 has one and is shared. */
const MEMORY = "\x03env\x06memory\x02\x01";

function enable(feature: string): string {
  return `--enable-${feature}`;
}

const check = Deno.args.includes("--check");
const sources = [...Deno.readDirSync(join(FOLDER, "src"))].map((it) => it.name).filter((it) =>
  it.endsWith(".c")
);
const scratch = Deno.makeTempDirSync();
try {
  const done = BUILDS.flatMap(({ name, flags }) => {
    const objects = compile(name, sources.sort(), flags);
    return [
      build(`kernels_${name}.wasm`, [...objects, LEAST_MEMORY], { text: tilesModule(name) }),
      build(`kernels_${name}_shared.wasm`, [...objects, FULL_MEMORY], {
        text: tilesModule(name),
        change: shared,
      }),
    ];
  });
  // What the benchmark measures the machine with.
  const limits = compile("limits", ["../limits.c", "constants.c"], ["-mrelaxed-simd"]);
  const folder = join(FOLDER, "../tests/bench");
  done.push(build("limits.wasm", [...limits, LEAST_MEMORY], { text: limitsModule(STEPS), folder }));
  Deno.exitCode = done.every(Boolean) ? 0 : 1;
} catch (error) {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
  const must = !check || Deno.env.get("CI") === "true";
  console.error(
    `The kernels ${
      must ? "cannot be built" : "are not compared"
    }: ${COMPILER}, ${LINKER} or ${NPX} not found`,
  );
  Deno.exitCode = must ? 1 : 0;
} finally {
  Deno.removeSync(scratch, { recursive: true });
}

/** Objects of some sources, in order. */
function compile(name: string, files: readonly string[], flags: readonly string[]): string[] {
  return files.map((file) => {
    const object = join(scratch, `${name}_${basename(file)}.o`);
    if (!STRAIGHT.includes(file)) tool(COMPILER, [...FLAGS, ...flags, "-O3", "-c", "-o", object, file]);
    else {
      const code = `${object}.bc`;
      tool(COMPILER, [...FLAGS, ...flags, "-O3", "-emit-llvm", "-c", "-o", code, file]);
      tool(COMPILER, ["--target=wasm32-unknown-unknown", "-O0", "-c", "-o", object, code]);
    }
    return object;
  });
}

function tool(command: string, args: string[]): void {
  const { success, stderr } = new Deno.Command(command, { args, cwd: join(FOLDER, "src") }).outputSync();
  if (!success) {
    throw new Error(`Cannot build: ${command} ${args.join(" ")}\n${new TextDecoder().decode(stderr)}`);
  }
}

/** Links a module and writes it, or compares it with the committed one. */
function build(
  name: string,
  args: string[],
  { text, change, folder = FOLDER }: {
    text: string;
    change?: (module: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer>;
    folder?: string;
  },
): boolean {
  const output = join(scratch, name);
  const [loops, kernels] = [`${output}.wat`, `${output}.kernels`];
  tool(LINKER, [...LINK, "--export-memory", "-o", kernels, ...args]);
  Deno.writeTextFileSync(loops, text);
  tool(NPX, [...MERGE, kernels, "kernels", loops, "tiles", "-o", output]);
  const linked = Deno.readFileSync(output);
  const made = change?.(linked) ?? linked;
  const committed = join(folder, name);
  if (!check) {
    Deno.writeFileSync(committed, made);
    console.log(`${name}: ${made.length} bytes`);
    return true;
  }
  const found = Deno.readFileSync(committed);
  const at = made.findIndex((byte, i) => byte !== found[i]);
  if (at < 0 && made.length === found.length) return true;
  console.error(
    `${name} differs from what its source builds: ${found.length} bytes committed, ${made.length} built, ` +
      `first difference at byte ${at < 0 ? made.length : at}. Run \`deno task wasm\` and commit the result.`,
  );
  return false;
}

/** lld shares a memory only with objects that were built for atomic operations; the flag alone is enough. */
function shared(module: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const at = String.fromCharCode(...module.subarray(0, 4096)).indexOf(MEMORY);
  if (at < 0) throw new Error("Cannot share the memory: expected an import of env.memory, found none");
  const copy = module.slice();
  copy[at + MEMORY.length - 1] = 3;
  return copy;
}
