/** CIDEr-D: how much a caption says what people said, words that few pictures call for weighing most. */

const LONGEST = 4;
const SIGMA = 6;

/** One picture: the caption to be scored and what people wrote. */
export interface Captioned {
  readonly candidate: string;
  readonly references: readonly string[];
}

/** How often each run of one to four words occurs, words joined by spaces; index n − 1 holds the runs of n words. */
type Counts = readonly ReadonlyMap<string, number>[];

interface Weighted {
  readonly weights: Counts;
  readonly norms: readonly number[];
  /** Runs of two words, which the length penalty goes by. */
  readonly length: number;
}

/**
 * CIDEr-D of each caption, 0 to 10; papers give the mean times 100, so that 1.419 reads 141.9. How rare a run of words is
 * comes from the references of all pictures given, so a score belongs to its set: of one picture alone it is 0.
 *
 * Source: Vedantam et al., arXiv 1411.5726, section 7; cider_scorer.py of https://github.com/tylin/coco-caption.
 *
 * @param captions with text as {@link captionTokens} leaves it
 * @throws {RangeError} for a picture without references.
 */
export function ciderD(captions: readonly Captioned[]): number[] {
  const counted = captions.map(({ candidate, references }, i) => {
    if (!references.length) {
      throw new RangeError(`Cannot score caption ${i}: expected references, found none`);
    }
    return { candidate: counts(candidate), references: references.map(counts) };
  });
  const pictures = new Map<string, number>();
  for (const { references } of counted) {
    const seen = new Set(references.flatMap((it) => it.flatMap((runs) => [...runs.keys()])));
    for (const run of seen) pictures.set(run, (pictures.get(run) ?? 0) + 1);
  }
  const rarity = (run: string) => Math.log(captions.length) - Math.log(pictures.get(run) ?? 1);
  return counted.map(({ candidate, references }) => {
    const said = weighted(candidate, rarity);
    const sum = references.reduce((sum, it) => sum + similarity(said, weighted(it, rarity)), 0);
    return 10 * sum / references.length;
  });
}

function counts(text: string): Counts {
  const words = text.split(" ").filter(Boolean);
  return Array.from({ length: LONGEST }, (_, n) => {
    const found = new Map<string, number>();
    for (let at = 0; at + n < words.length; at++) {
      const run = words.slice(at, at + n + 1).join(" ");
      found.set(run, (found.get(run) ?? 0) + 1);
    }
    return found;
  });
}

function weighted(runs: Counts, rarity: (run: string) => number): Weighted {
  const weights = runs.map((it) => new Map([...it].map(([run, count]) => [run, count * rarity(run)])));
  const norms = weights.map((it) =>
    Math.sqrt([...it.values()].reduce((sum, weight) => sum + weight ** 2, 0))
  );
  return { weights, norms, length: [...runs[1].values()].reduce((sum, it) => sum + it, 0) };
}

/** Mean over run lengths of the clipped cosine, times a penalty for being longer or shorter, 0 to 1. */
function similarity(said: Weighted, wanted: Weighted): number {
  const penalty = Math.exp(-((said.length - wanted.length) ** 2) / (2 * SIGMA ** 2));
  let sum = 0;
  for (let n = 0; n < LONGEST; n++) {
    const norm = said.norms[n] * wanted.norms[n];
    if (!norm) continue;
    for (const [run, weight] of said.weights[n]) {
      const other = wanted.weights[n].get(run) ?? 0;
      sum += Math.min(weight, other) * other / norm;
    }
  }
  return penalty * sum / LONGEST;
}

/**
 * A caption as words with single spaces between, as the caption metrics want it: lower case, clitics apart (`do n't`,
 * `dog 's`), punctuation gone.
 *
 * Source: the rules of the Penn Treebank (tokenizer.sed) that Stanford's PTBTokenizer follows, and the signs that
 * coco-caption's ptbtokenizer.py drops. Rarer things that Stanford's keeps whole, such as web addresses, are not known.
 */
export function captionTokens(text: string): string {
  return text.toLowerCase()
    .replaceAll(/[‘’]/g, "'").replaceAll(/[“”"]|``|''/g, " ")
    .replaceAll(
      /\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(lem|gim)(me)\b/g,
      (it) => `${it.slice(0, 3)} ${it.slice(3)}`,
    )
    .replaceAll(/(\w)(n't)(?!\w)/g, "$1 $2")
    .replaceAll(/(\w)('(?:s|m|d|ll|re|ve))(?!\w)/g, "$1 $2")
    .replaceAll(/(\d)[,](?=\d)/g, "$1\u0000").replaceAll(/(\d)[:](?=\d)/g, "$1\u0001")
    .replaceAll(/[,:;?!(){}\[\]]|\.{2,}|--+/g, " ")
    .replaceAll("\u0000", ",").replaceAll("\u0001", ":")
    .replaceAll(/([$#%&*@/])/g, " $1 ")
    .split(/\s+/).map((it) => /^(\w\.){2,}$/.test(it) ? it : it.replace(/\.$/, ""))
    .filter((it) => it && it !== "-" && it !== "'" && it !== "`").join(" ");
}
