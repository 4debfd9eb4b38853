/** Scores of one short answer against those that are right. All functions are pure; scores are 0 to 1. */

const NUMBERS: ReadonlyMap<string, string> = new Map([
  ["none", "0"],
  ...("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen " +
    "eighteen nineteen twenty").split(" ").map((word, i) => [word, `${i}`] as const),
]);

/** Whether the answer, without space around it, is one of those that are right, letter for letter. */
export function exactMatch(answer: string, answers: readonly string[]): boolean {
  return answers.includes(answer.trim());
}

/**
 * Average normalised Levenshtein similarity of one answer: 1 − distance / length of the longer, 0 where that distance is
 * half the length or more; the best over all right answers. Case makes no difference.
 *
 * Source: Biten et al., arXiv 1907.00490, equation 1, with its threshold of 0.5.
 */
export function anls(answer: string, answers: readonly string[]): number {
  const found = [...answer.toLowerCase()];
  return answers.reduce((best, it) => {
    const want = [...it.toLowerCase()];
    if (!want.length) return Math.max(best, Number(!found.length));
    const distance = levenshtein(want, found) / Math.max(want.length, found.length);
    return distance < 0.5 ? Math.max(best, 1 - distance) : best;
  }, 0);
}

/** Fewest insertions, deletions and replacements of characters that make one text the other. */
function levenshtein(a: readonly string[], b: readonly string[]): number {
  let above = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (const [i, letter] of a.entries()) {
    const row = [i + 1];
    for (const [j, other] of b.entries()) {
      row.push(Math.min(row[j] + 1, above[j + 1] + 1, above[j] + Number(letter !== other)));
    }
    above = row;
  }
  return above[b.length];
}

/**
 * Relaxed accuracy: a number is right within 5 % of the right one, `50%` being 0.5; zero and words must be met exactly.
 * Case makes no difference.
 *
 * Source: Masry et al. (ChartQA), arXiv 2203.10244, section 5.1, read as big_vision's transfers/chartqa.py reads it.
 */
export function relaxedMatch(answer: string, answers: readonly string[]): boolean {
  const text = answer.toLowerCase();
  const found = numberIn(text);
  return answers.some((it) => {
    const want = numberIn(it.toLowerCase());
    return found !== undefined && want
      ? Math.abs(found - want) / Math.abs(want) <= 0.05
      : it.toLowerCase() === text;
  });
}

function numberIn(text: string): number | undefined {
  const percent = text.endsWith("%");
  const digits = (percent ? text.replace(/%+$/, "") : text).trim();
  if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/.test(digits)) return undefined;
  return Number(digits) / (percent ? 100 : 1);
}

/**
 * Counting accuracy: whether the answer is the right number, in digits or as an English word up to twenty.
 *
 * Source: Beyer et al. (CountBenchQA), arXiv 2407.07726, appendix; words as in big_vision's transfers/tallyqa.py.
 */
export function countMatch(answer: string, answers: readonly string[]): boolean {
  const number = (text: string) => NUMBERS.get(text.toLowerCase()) ?? text;
  return answers.some((it) => number(it) === number(answer));
}

/**
 * Whether the answer names the right choice, both saying "The answer is B."; one that says something else is wrong.
 *
 * Source: Lu et al. (ScienceQA), arXiv 2209.09513, models/run_gpt3.py of its repository.
 */
export function choiceMatch(answer: string, answers: readonly string[]): boolean {
  const choice = (text: string) => text.toLowerCase().match(/^the answer is ([a-z])\./)?.[1];
  const found = choice(answer);
  return found !== undefined && answers.some((it) => choice(it) === found);
}
