/** How likely each of many answers is, after one prefill. */

import { checkThat } from "../errors.ts";
import type { Pause } from "../types.ts";
import type { ModelConfig } from "../weights/config.ts";
import type { BranchRow, Decoder } from "./decoder.ts";
import { prefill, type PrefixWork } from "./prefix_cache.ts";
import { neverSampled, scored } from "./sampler.ts";

/** What to score. */
export interface LikelihoodWork extends PrefixWork {
  /** Token ids of every answer, without the end; ids below the image token's. */
  readonly answers: readonly (readonly number[])[];
  /** Told when the prefix is through. */
  readonly onPrefill?: () => void;
}

/** Answers that share their beginning. */
interface Node {
  readonly next: Map<number, Node>;
  /** Indices of the answers that end here. */
  readonly here: number[];
}

/**
 * The natural logarithm of the probability of every answer and of its end, in the order given. Probabilities are those
 * at temperature 1 among the ids that may be sampled.
 *
 * Tokens that answers begin with alike are computed once, and tokens that stand equally far from the prefix together.
 */
export async function likelihoods(
  decoder: Decoder,
  config: ModelConfig,
  work: LikelihoodWork,
  pause: Pause,
): Promise<number[]> {
  const never = neverSampled(config);
  const { answers, onPrefill } = work;
  const found = new Array<number>(answers.length);
  const cache = decoder.cache(work.prefix.rows + Math.max(...answers.map((it) => it.length)));

  /** Notes the answers that end at a node, and gives the nodes after it with their likelihoods. */
  function read(node: Node, logits: Float32Array, before: number) {
    const { scores, total } = scored(logits, config.imageTokenId, never);
    const end = config.eosIds.reduce((sum, id) => sum + Math.exp((scores[id] ?? -Infinity) - total), 0);
    for (const answer of node.here) found[answer] = before + Math.log(end);
    return [...node.next].map(([id, node]) => ({ id, node, logprob: before + scores[id] - total }));
  }

  /** One sequence after another: down the trie, and the cache truncated on the way back. */
  async function descend(node: Node, logits: Float32Array, before: number): Promise<void> {
    const length = cache.length;
    for (const { id, node: child, logprob } of read(node, logits, before)) {
      cache.truncate(length);
      await descend(child, await decoder.step(cache, id, pause), logprob);
    }
  }

  /** One level of the trie after another, so many tokens a pass. */
  async function widen(root: Node, logits: Float32Array): Promise<void> {
    let level = read(root, logits, 0).map((it) => ({ ...it, path: [] as readonly BranchRow[] }));
    while (level.length) {
      const next: typeof level = [];
      for (let at = 0; at < level.length; at += TOGETHER) {
        const part = level.slice(at, at + TOGETHER);
        const results = await decoder.branch!(cache, part, pause);
        for (const [i, { logits, row }] of results.entries()) {
          const { node, logprob, path } = part[i];
          next.push(...read(node, logits, logprob).map((it) => ({ ...it, path: [...path, row] })));
        }
      }
      level = next;
    }
  }

  try {
    const logits = await prefill(decoder, cache, work, pause);
    onPrefill?.();
    await (decoder.branch ? widen(trie(answers), logits) : descend(trie(answers), logits, 0));
  } finally {
    cache.free();
  }
  return found;
}

/** Branches a pass: their logits take 1 MB each in a vocabulary of 257,216. */
const TOGETHER = 16;

function trie(answers: readonly (readonly number[])[]): Node {
  const root: Node = { next: new Map(), here: [] };
  for (const [index, ids] of answers.entries()) {
    let node = root;
    for (const id of ids) {
      if (!node.next.has(id)) node.next.set(id, { next: new Map(), here: [] });
      node = node.next.get(id)!;
    }
    node.here.push(index);
  }
  return root;
}

const MAX_LABELS = 1000;

/** @throws {RequestError} `parameter_invalid` for none, too many, or the same twice. */
export function checkLabels(labels: readonly string[]): void {
  checkThat(labels.length >= 1 && labels.length <= MAX_LABELS, "labels", `1 to ${MAX_LABELS}`, labels.length);
  const twin = labels.find((it, i) => labels.indexOf(it) !== i);
  checkThat(twin === undefined, "labels", "to be different", twin);
}

/** Probabilities from their logarithms, scaled to sum to 1. */
export function normalised(logprobs: readonly number[]): number[] {
  const most = Math.max(...logprobs);
  const weights = logprobs.map((it) => most === -Infinity ? 1 : Math.exp(it - most));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((it) => it / sum);
}
