/** VQA accuracy, as visualqa.org's evaluation script computes it. */

/** Words that the script writes with an apostrophe when exactly one of theirs is missing: `dont`, `couldn'tve`. */
const CONTRACTIONS = missingApostrophes(
  `'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
  he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't
  not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
  someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
  they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd
  where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
  y'all'd've y'all'll you'd you'd've you'll you're you've`.split(/\s+/),
);

/** What a word becomes. The script takes the apostrophe of one word away. */
const WORDS: ReadonlyMap<string, string> = new Map([
  ...CONTRACTIONS,
  ["somebody'd", "somebodyd"],
  ["none", "0"],
  ..."zero one two three four five six seven eight nine ten".split(" ")
    .map((word, i) => [word, `${i}`] as const),
]);
const ARTICLES: ReadonlySet<string> = new Set(["a", "an", "the"]);
const PUNCTUATION = [...`;/[]"{}()=+\\_-><@\`,?!`];

function missingApostrophes(words: readonly string[]): [string, string][] {
  return words.flatMap((word) =>
    [...word.matchAll(/'/g)].map(({ index }): [string, string] => [
      word.slice(0, index) + word.slice(index + 1),
      word,
    ])
  );
}

/**
 * An answer in the form in which answers are compared: lower case, without articles and punctuation, numbers up to ten as
 * digits. Oddities of the script are kept: a comma between digits anywhere makes all punctuation vanish where it would
 * become a space, and a full stop stays before a digit only.
 *
 * Source: https://visualqa.org/evaluation.html, `processPunctuation` and `processDigitArticle` of
 * https://github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py.
 */
export function normalAnswer(text: string): string {
  const between = /\d,\d/.test(text);
  const bare = PUNCTUATION.reduce((sum, it) => {
    const vanishes = between || text.includes(`${it} `) || text.includes(` ${it}`);
    return sum.replaceAll(it, vanishes ? "" : " ");
  }, text);
  return bare.replaceAll(/\.(?!\d)/g, "").toLowerCase().split(/\s+/)
    .filter((it) => it && !ARTICLES.has(it)).map((it) => WORDS.get(it) ?? it).join(" ");
}

/**
 * VQA accuracy of one answer, 0 to 1: the mean over all people of min(1, others who gave this answer / 3). Answers are
 * compared in their {@link normalAnswer} form, but as they are where all people agree.
 *
 * Source: Antol et al., arXiv 1505.00468, section 4, averaged over subsets of people as vqaEval.py does.
 *
 * @param answers what people said, usually ten
 * @throws {RangeError} without an answer to compare with.
 */
export function vqaAccuracy(answer: string, answers: readonly string[]): number {
  if (!answers.length) throw new RangeError("Cannot compute VQA accuracy: expected answers, found none");
  const light = (text: string) => text.replaceAll(/[\n\t]/g, " ").trim();
  const said = answers.map(light);
  const form = new Set(said).size > 1 ? normalAnswer : (text: string) => text;
  const same = said.map((it) => form(it) === form(light(answer)));
  const agreed = same.filter(Boolean).length;
  return same.reduce((sum, it) => sum + Math.min(1, (agreed - Number(it)) / 3), 0) / same.length;
}
