/**
 * Prints what V8 has to be told before it starts, for `DENO_V8_FLAGS`: that it may make one vector of 256 bits of two, where it
 * can. Products of many rows take little more than half the time then (`wasm/twins.ts`); every number is as it was. It is an
 * experiment of V8's: `DENO_V8_FLAGS=--no-experimental-wasm-revectorize` goes first, and keeps it out.
 *
 * Elsewhere than on x86-64 an engine would not know the flag and refuse to start; there it is told what it does anyway.
 */

const own = Deno.env.get("DENO_V8_FLAGS");
const name = "experimental-wasm-revectorize";
const flag = Deno.build.arch === "x86_64" ? `--${name}` : "--wasm-opt";
// deno-lint-ignore no-console -- a command; its words go to the task that runs it
console.log(own?.includes(name) ? own : [...own ? [own] : [], flag].join());
