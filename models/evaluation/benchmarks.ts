/**
 * The benchmarks that PaliGemma's articles report: how a question becomes a prompt, which metric scores the answers, and what
 * was published.
 *
 * Prompts, lengths and metrics: big_vision's configs/proj/paligemma/transfers (MMVP, POPE and CountBenchQA are questions to
 * the models tuned for VQAv2 and TallyQA). Scores: PaliGemma, arXiv 2407.07726, and the table in big_vision's
 * configs/proj/paligemma/README.md; PaliGemma 2 3B, arXiv 2412.03555, table 13. They are of checkpoints tuned for the one
 * benchmark, with squares of 224, 448 or 896 pixels; COCO captions and TextCaps by beam search, where this program is greedy.
 */

/** How answers are scored; each in its room, models/metrics. */
export type Metric =
  | "exact match"
  | "F1@0.5"
  | "CIDEr-D"
  | "VQA accuracy"
  | "ANLS"
  | "relaxed accuracy"
  | "counting accuracy"
  | "choice accuracy"
  | "paired accuracy"
  | "POPE F1"
  | "mAP"
  | "mean IoU";

/** A score from an article, in its unit: percent, or a hundred times CIDEr-D. */
export interface Published {
  readonly model: "PaliGemma" | "PaliGemma 2 3B";
  readonly imageSize: number;
  readonly score: number;
  /** The part of the benchmark it is of, where the article tells parts apart. */
  readonly split?: string;
}

/** One benchmark, or a kind of task. */
export interface Benchmark {
  readonly metric: Metric;
  /** What is asked; `{question}` stands for a row's question. Rows that have a prompt of their own go by that. */
  readonly prompt?: string;
  readonly maxTokens?: number;
  readonly published?: readonly Published[];
  /** What the published scores were measured on. */
  readonly measuredOn?: string;
}

const PG1 = "PaliGemma", PG2 = "PaliGemma 2 3B";

/** Scores of one model at 224, 448 and 896 pixels. */
function at(model: Published["model"], scores: readonly number[], split?: string): Published[] {
  return scores.map((score, i) => ({ model, imageSize: 224 << i, score, ...split && { split } }));
}

const ANSWER = "answer en {question}";

/** By the name that `--task` takes. */
export const BENCHMARKS: Readonly<Record<string, Benchmark>> = {
  cococap: {
    metric: "CIDEr-D",
    prompt: "caption en",
    maxTokens: 32,
    published: [...at(PG1, [141.92, 144.6]), ...at(PG2, [141.3, 143.4])],
    measuredOn: "COCO captions, Karpathy's val",
  },
  textcaps: {
    metric: "CIDEr-D",
    prompt: "caption en",
    maxTokens: 32,
    published: [...at(PG1, [127.48, 153.94]), ...at(PG2, [127.5, 152.1])],
    measuredOn: "val",
  },
  widgetcap: {
    metric: "CIDEr-D",
    prompt: "caption en",
    maxTokens: 32,
    published: [...at(PG1, [136.07, 148.36]), ...at(PG2, [138.1, 151.4])],
    measuredOn: "test",
  },
  vqav2: {
    metric: "VQA accuracy",
    prompt: ANSWER,
    maxTokens: 32,
    published: [...at(PG1, [83.19, 85.64]), ...at(PG2, [83, 84.8])],
    measuredOn: "test-std (PaliGemma), the last 10,240 questions of val (PaliGemma 2)",
  },
  gqa: {
    metric: "exact match",
    prompt: ANSWER,
    maxTokens: 32,
    published: [...at(PG1, [65.61, 67.03]), ...at(PG2, [66.2, 68.1])],
    measuredOn: "testdev balanced",
  },
  scienceqa: {
    metric: "choice accuracy",
    prompt: "{question}",
    maxTokens: 512,
    published: [...at(PG1, [95.39, 95.93]), ...at(PG2, [96.1, 96.2])],
    measuredOn: "test, questions with a picture",
  },
  textvqa: {
    metric: "VQA accuracy",
    prompt: ANSWER,
    maxTokens: 32,
    published: [...at(PG1, [55.47, 73.15, 76.48]), ...at(PG2, [59.6, 75.2])],
    measuredOn: "test-std (PaliGemma), val (PaliGemma 2)",
  },
  docvqa: {
    metric: "ANLS",
    prompt: "{question}",
    maxTokens: 32,
    published: [...at(PG1, [43.74, 78.02, 84.77]), ...at(PG2, [39.9, 73.6])],
    measuredOn: "test (PaliGemma), val (PaliGemma 2)",
  },
  chartqa: {
    metric: "relaxed accuracy",
    prompt: "{question}",
    maxTokens: 48,
    published: [
      ...at(PG1, [57.08, 71.36]),
      ...at(PG2, [42, 54], "human"),
      ...at(PG2, [74.4, 89.2], "augmented"),
    ],
    measuredOn: "test; the mean of its parts, human and augmented",
  },
  tallyqa: {
    metric: "counting accuracy",
    prompt: ANSWER,
    maxTokens: 32,
    published: [
      ...at(PG1, [81.72, 84.86], "simple"),
      ...at(PG1, [69.56, 72.27], "complex"),
      ...at(PG2, [70.3, 73.6], "complex"),
    ],
    measuredOn: "test",
  },
  countbenchqa: {
    metric: "counting accuracy",
    prompt: ANSWER,
    maxTokens: 32,
    published: at(PG2, [81, 82]),
    measuredOn: "all of it",
  },
  mmvp: {
    metric: "paired accuracy",
    prompt: ANSWER,
    maxTokens: 32,
    published: at(PG1, [47.33, 45.33]),
    measuredOn: "all of it, with the checkpoints tuned for VQAv2",
  },
  // big_vision publishes POPE's accuracy (87.80 random, 85.87 popular, 84.27 adversarial at 224), not its F1.
  pope: { metric: "POPE F1", prompt: "{question}", maxTokens: 48 },
  refcoco: {
    metric: "mean IoU",
    prompt: "{question}",
    maxTokens: 48,
    published: [
      ...at(PG1, [73.4, 75.57, 76.94], "refcoco"),
      ...at(PG1, [68.32, 69.76, 72.18], "refcoco+"),
      ...at(PG1, [67.65, 70.17, 72.22], "refcocog"),
      ...at(PG2, [73.4, 76.3], "refcoco"),
    ],
    measuredOn: "val",
  },
  msvdqa: {
    metric: "exact match",
    prompt: ANSWER,
    maxTokens: 64,
    published: at(PG1, [60.22]),
    measuredOn: "test, eight frames",
  },
  coco: { metric: "mAP", prompt: "detect all classes" },
  // What models/tiny/scenes.py draws, with prompts of their own; its other tasks are matched exactly.
  detect: { metric: "F1@0.5" },
  segment: { metric: "F1@0.5" },
};

/** The frames that are taken of a video, and how far apart, as msvd_qa.py takes them; a short video begins anew. */
export const FRAMES = { count: 8, stride: 26 } as const;
