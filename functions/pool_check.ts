/** `pool check`: whether workers answer what is computed here, and how far they are off. */

import { join, resolve } from "@std/path";
import type { Engine } from "../lib/engine.ts";
import { type Images, type Pool, PoolError, type TokenEvent, type Work } from "../lib/pool/pool.ts";
import { encodeRows } from "../lib/pool/rows.ts";
import { trialWork } from "../lib/pool/serving.ts";
import { prepare } from "../lib/preprocess/preprocess.ts";
import { prefixIds } from "../lib/text/prompt.ts";
import { examples } from "../models/demo.ts";
import { parsed, UsageError } from "./command_line.ts";
import { loadEngine, TINY } from "./model.ts";
import { openPool } from "./pool.ts";
import { readSettings } from "./settings.ts";

/** What came of one piece of work. */
interface Finding {
  readonly work: string;
  /** Tokens computed here, and how many of them the pool gave as well, before the first that differs. */
  readonly tokens: number;
  readonly alike: number;
  /** Where they part: the token's number from 0, its text here, and there; "" where an answer has ended. */
  readonly difference?: { readonly at: number; readonly here: string; readonly there: string };
  /** Largest difference of natural logarithms of probability over the tokens that are alike. */
  readonly deviation: number;
  readonly firstMs: number;
  /** Why the pool did not answer. */
  readonly refused?: string;
  /** Whether that is because servers of its kind do no such work. */
  readonly unsupported?: boolean;
}

/** Tokens of an answer at most. */
const MOST_TOKENS = 32;

/** Runs the command. @throws {UsageError | RequestError} for what is wrong with it or with the settings. */
export async function poolCommand(
  args: readonly string[],
  print: (text: string) => Promise<void>,
): Promise<void> {
  const { values: { model, json, tolerance: most }, positionals: [verb, url] } = parsed(args, {
    model: { type: "string", default: TINY },
    tolerance: { type: "string", default: "0.05" },
    json: { type: "boolean" },
  });
  const tolerance = Number(most);
  if (verb !== "check" || !/^((openai|vllm)\+)?https?:\/\/./.test(url ?? "")) {
    throw new UsageError(
      "pool: expected check and an address with http: or https:, openai+ or vllm+ before it or not",
    );
  }
  if (!(tolerance >= 0)) throw new UsageError(`--tolerance: expected a number of 0 or more, found "${most}"`);
  const { pool: settings } = readSettings((name) => name === "POOL_URL" ? url : Deno.env.get(name));
  const open = await openPool(settings!, () => {});
  const engine = await loadEngine(resolve(model));
  const pool = open(engine.shape, engine);
  const findings: Finding[] = [];
  const all = await works(engine);
  const width = Math.max(...all.map(([name]) => name.length));
  if (!json) await print(`${"work".padEnd(width)}  alike  deviation  first token\n`);
  for (const [name, work] of all) {
    const found = await compare(name, work, engine, pool);
    findings.push(found);
    if (!json) await print(line(found, width));
  }
  if (json) await print(JSON.stringify({ revision: engine.revision, tolerance, findings }) + "\n");
  const compared = findings.filter((it) => !it.unsupported);
  const off = compared.some((it) => it.refused !== undefined || it.difference || it.deviation > tolerance);
  if (off || !compared.length) Deno.exitCode = 1;
}

function line(
  { work, tokens, alike, deviation, difference, firstMs, refused }: Finding,
  width: number,
): string {
  if (refused !== undefined) return `${work.padEnd(width)}  ${refused}\n`;
  const numbers = `${work.padEnd(width)} ${`${alike}/${tokens}`.padStart(6)}  ${
    deviation.toExponential(1).padStart(9)
  }  ${firstMs.toFixed(0).padStart(8)} ms`;
  if (!difference) return `${numbers}\n`;
  const { at, here, there } = difference;
  return `${numbers}  token ${at}: ${JSON.stringify(there)}, here ${JSON.stringify(here)}\n`;
}

/** Questions about the bundled pictures, and work in every form that an answer may take. */
async function works(engine: Engine): Promise<[string, Work][]> {
  const { imageSize, imageTokens, context, featureWidth } = engine.shape;
  const trial = trialWork(engine.shape);
  const asked = (prompt: string, images: Images): Work => {
    const ids = prefixIds(engine.tokenizer, prompt, { bosId: engine.config.bosId });
    const maxTokens = Math.min(MOST_TOKENS, context - imageTokens - ids.length);
    return { ...trial, images, ids, maxTokens, ignoreEos: false };
  };
  const { directory, list } = await examples();
  const questions = await Promise.all(list.map(async ({ image, prompt }): Promise<[string, Work]> => {
    const bytes = await Deno.readFile(join(directory, image));
    const { samples } = await prepare(bytes, { size: imageSize, method: "hf-bicubic", maxPixels: 1e7 });
    return [`${image} ${prompt}`, asked(prompt, { ...trial.images, blocks: () => [samples] })];
  }));
  const pattern = Uint8Array.from({ length: imageSize * imageSize * 3 }, (_, i) => (i * 7919) % 251);
  const images = { ...trial.images, blocks: () => [pattern] };
  const greedy: Work = { ...asked("caption en", images), ignoreEos: true };
  const rows = async (stage: "features" | "projected"): Promise<Images> => {
    const { shape, values } = await engine.embed(images, stage, () => Promise.resolve());
    return { stage, dtype: "f16", shape, blocks: () => [encodeRows("f16", values, shape[2])] };
  };
  const given = await tokens(engine, { ...greedy, maxTokens: Math.ceil(greedy.maxTokens / 2) });
  return [
    ...questions,
    ["pixels", greedy],
    ["continued", { ...greedy, given: given.map((it) => it.id) }],
    ["sampled with a seed", { ...greedy, sampling: { temperature: 0.7, topK: 40, topP: 0.9, seed: 7 } }],
    ["image tokens", { ...greedy, images: await rows("projected") }],
    ...featureWidth === undefined
      ? []
      : [["features", { ...greedy, images: await rows("features") }] satisfies [string, Work]],
  ];
}

async function tokens(pool: Pool, work: Work): Promise<TokenEvent[]> {
  return (await Array.fromAsync(pool.submit(work))).filter((it) => it.type === "token");
}

async function compare(name: string, work: Work, engine: Engine, pool: Pool): Promise<Finding> {
  const expected = await tokens(engine, work);
  const found: TokenEvent[] = [];
  const since = performance.now();
  let firstMs = 0;
  let refusal: PoolError | undefined;
  try {
    for await (const event of pool.submit(work)) {
      if (event.type !== "token") continue;
      if (!found.length) firstMs = performance.now() - since;
      found.push(event);
    }
  } catch (error) {
    if (!(error instanceof PoolError)) throw error;
    refusal = error;
  }
  const longer = expected.length > found.length ? expected : found;
  const at = longer.findIndex((_, i) => expected[i]?.id !== found[i]?.id);
  const alike = at < 0 ? expected.length : at;
  const text = (it?: TokenEvent) => it ? engine.tokenizer.decode([it.id]) : "";
  const deviation = Math.max(
    0,
    ...expected.slice(0, alike).map((it, i) => Math.abs(it.logprob - found[i].logprob)),
  );
  return {
    work: name,
    tokens: expected.length,
    alike,
    ...at >= 0 && { difference: { at, here: text(expected[at]), there: text(found[at]) } },
    deviation,
    firstMs,
    ...refusal && { refused: `${refusal.code}: ${refusal.message}` },
    ...refusal?.code === "unsupported" && { unsupported: true },
  };
}
