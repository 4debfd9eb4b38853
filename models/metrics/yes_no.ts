/** Scores of a set of questions whose answers belong together. */

/** What a set of yes-or-no questions came to, "yes" being the positive class; shares, 0 to 1. */
export interface YesNoScores {
  readonly f1: number;
  readonly precision: number;
  readonly recall: number;
  readonly accuracy: number;
  /** Questions answered with yes. */
  readonly yesShare: number;
}

/** One question: what is right, and what was said. */
export interface YesNo {
  readonly want: "yes" | "no";
  readonly found: string;
}

/**
 * POPE's scores. Of an answer the first sentence counts, which is a no when it has the word no, No or not, and otherwise a
 * yes; a ratio of nothing is 0.
 *
 * Source: Li et al. (POPE), arXiv 2305.10355; evaluate.py of https://github.com/RUCAIBox/POPE.
 */
export function yesNoScores(answers: readonly YesNo[]): YesNoScores {
  const count = (want: string, found: string) =>
    answers.filter((it) => it.want === want && yesOrNo(it.found) === found).length;
  const [hits, alarms, misses, rightNo] = [
    count("yes", "yes"),
    count("no", "yes"),
    count("yes", "no"),
    count("no", "no"),
  ];
  const ratio = (a: number, b: number) => b ? a / b : 0;
  return {
    f1: ratio(2 * hits, 2 * hits + alarms + misses),
    precision: ratio(hits, hits + alarms),
    recall: ratio(hits, hits + misses),
    accuracy: ratio(hits + rightNo, answers.length),
    yesShare: ratio(hits + alarms, answers.length),
  };
}

function yesOrNo(text: string): "yes" | "no" {
  const words = text.split(".")[0].replaceAll(",", "").split(" ");
  return words.some((it) => it === "No" || it === "no" || it === "not") ? "no" : "yes";
}

/**
 * Share of the groups, such as MMVP's pairs of pictures, in which every answer is right, 0 to 1; 0 without any.
 *
 * Source: Tong et al. (MMVP), arXiv 2401.06209, section 2.
 */
export function groupAccuracy(
  answers: readonly { readonly group: string; readonly right: boolean }[],
): number {
  const groups = new Map<string, boolean>();
  for (const { group, right } of answers) groups.set(group, (groups.get(group) ?? true) && right);
  return [...groups.values()].filter(Boolean).length / (groups.size || 1);
}
