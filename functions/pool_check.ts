/** `pool check`: whether workers answer what is computed here, and how far they are off. */

import { resolve } from "@std/path";
import { parseArgs } from "node:util";
import type { Engine } from "../lib/engine.ts";
import { type Images, type Pool, PoolError, type TokenEvent, type Work } from "../lib/pool/pool.ts";
import { encodeRows } from "../lib/pool/rows.ts";
import { trialWork } from "../lib/pool/serving.ts";
import { loadEngine, TINY } from "./model.ts";
import { UsageError } from "./models.ts";
import { openPool } from "./pool.ts";
import { readSettings } from "./settings.ts";

/** What came of one piece of work. */
interface Finding {
  readonly work: string;
  /** Tokens computed here, and how many of them the pool gave as well, before the first that differs. */
  readonly tokens: number;
  readonly alike: number;
  /** Largest difference of natural logarithms of probability over the tokens that are alike. */
  readonly deviation: number;
  readonly firstMs: number;
  /** Why the pool did not answer. */
  readonly refused?: string;
}

/** Runs the command. @throws {UsageError | RequestError} for what is wrong with it or with the settings. */
export async function poolCommand(
  args: readonly string[],
  print: (text: string) => Promise<void>,
): Promise<void> {
  const { values: { model, json }, positionals: [verb, url] } = parsed(args);
  if (verb !== "check" || !/^https?:\/\/./.test(url ?? "")) {
    throw new UsageError("pool: expected check and an address with http: or https:");
  }
  const { pool: settings } = readSettings((name) => name === "POOL_URL" ? url : Deno.env.get(name));
  const open = await openPool(settings!, () => {});
  const engine = await loadEngine(resolve(model));
  const findings: Finding[] = [];
  if (!json) await print("work                     alike  deviation  first token\n");
  for (const [name, work] of await works(engine)) {
    const found = await compare(name, work, engine, open(engine.shape));
    findings.push(found);
    if (!json) await print(line(found));
  }
  if (json) await print(JSON.stringify({ revision: engine.revision, findings }) + "\n");
  if (findings.some((it) => it.refused !== undefined || it.alike < it.tokens)) Deno.exitCode = 1;
}

function parsed(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: { model: { type: "string", default: TINY }, json: { type: "boolean" } },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

function line({ work, tokens, alike, deviation, firstMs, refused }: Finding): string {
  if (refused !== undefined) return `${work.padEnd(22)} ${refused}\n`;
  return `${work.padEnd(22)} ${`${alike}/${tokens}`.padStart(7)}  ${
    deviation.toExponential(1).padStart(9)
  }  ${firstMs.toFixed(0).padStart(8)} ms\n`;
}

/** Work in every form that an answer may take. */
async function works(engine: Engine): Promise<[string, Work][]> {
  const { imageSize, imageTokens, context, featureWidth } = engine.shape;
  const { encode } = engine.tokenizer;
  const ids = [2, ...encode.call(engine.tokenizer, "caption en"), ...encode.call(engine.tokenizer, "\n")];
  const pixels = Uint8Array.from({ length: imageSize * imageSize * 3 }, (_, i) => (i * 7919) % 251);
  const images = { ...trialWork(engine.shape).images, blocks: () => [pixels] };
  const maxTokens = Math.min(32, context - imageTokens - ids.length);
  const greedy: Work = { ...trialWork(engine.shape), images, ids, maxTokens };
  const rows = async (stage: "features" | "projected"): Promise<Images> => {
    const { shape, values } = await engine.embed(images, stage, () => Promise.resolve());
    return { stage, dtype: "f16", shape, blocks: () => [encodeRows("f16", values, shape[2])] };
  };
  const given = await tokens(engine, { ...greedy, maxTokens: Math.ceil(maxTokens / 2) });
  return [
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
  let refused: string | undefined;
  try {
    for await (const event of pool.submit(work)) {
      if (event.type !== "token") continue;
      if (!found.length) firstMs = performance.now() - since;
      found.push(event);
    }
  } catch (error) {
    if (!(error instanceof PoolError)) throw error;
    refused = `${error.code}: ${error.message}`;
  }
  const differs = expected.findIndex((it, i) => it.id !== found[i]?.id);
  const alike = differs < 0 ? expected.length : differs;
  const deviation = Math.max(
    0,
    ...expected.slice(0, alike).map((it, i) => Math.abs(it.logprob - found[i].logprob)),
  );
  return { work: name, tokens: expected.length, alike, deviation, firstMs, ...refused && { refused } };
}
