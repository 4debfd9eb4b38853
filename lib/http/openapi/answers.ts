/** What the routes answer with, as schemas: for the documentation, and for tests that hold the routes to it. */

import * as z from "zod/mini";
import { BUDGET } from "../budget.ts";

const side = z.number().check(z.gte(0), z.lte(1));
const whole = z.int().check(z.gte(0));
const size = z.tuple([whole, whole]).check(z.describe("Height and width of the picture."));

const MASK = z.union([
  z.strictObject({ size, counts: z.string().check(z.describe("COCO's compressed run lengths.")) }),
  z.strictObject({ size, polygons: z.array(z.array(z.number())) }),
  z.strictObject({ size, png: z.string().check(z.describe("A grey PNG in base64.")) }),
]);

/** One thing the model located. */
export const ITEM = z.strictObject({
  label: z.string(),
  box: z.strictObject({ yMin: side, xMin: side, yMax: side, xMax: side }).check(
    z.describe("In fractions of the upright picture."),
  ),
  boxPixels: z.optional(z.strictObject({ yMin: whole, xMin: whole, yMax: whole, xMax: whole })),
  confidence: z.number().check(z.gt(0), z.lte(1)),
  maskCodes: z.optional(z.array(whole)),
  mask: z.optional(MASK),
  flags: z.optional(z.array(z.enum(["cut-off", "empty", "mask"]))),
});

const CACHED = z.optional(z.strictObject({ images: whole, prefix: z.boolean() })).check(
  z.describe("Pictures whose image tokens were known, and whether all that comes before the answer was."),
);

const ms = z.number().check(z.gte(0));

const late = z.nullable(ms).check(z.describe("Null while the place of the route cannot be relied on."));

/** What was expected of one route. */
const PREDICTION = z.strictObject({
  route: z.string().check(
    z.describe(
      "local: all here. features: SigLIP here, the decoder in the pool. pixels: all in the pool. With -known where the " +
        "pictures' image tokens were, -prefilled where all before the answer was, -short for fewer tokens, -smaller for all here by a smaller variant.",
    ),
  ),
  firstP50Ms: ms,
  firstP95Ms: late,
  totalP50Ms: ms,
  totalP95Ms: late,
  chance: side,
  cost: ms,
});

const OUTCOME = z.strictObject({
  route: z.string(),
  firstMs: ms,
  totalMs: ms,
  met: z.optional(z.boolean()),
  hedge: z.optional(z.enum(["won", "wasted"])),
}).check(z.describe("How the answer came, from the decision; met where the budget has times."));

const HANDOVER = z.strictObject({
  from: z.string(),
  to: z.string(),
  afterTokens: whole,
  afterMs: ms,
  stayingMs: ms,
  totalP50Ms: ms,
  totalP95Ms: ms,
}).check(z.describe("Where the rest of the answer came from elsewhere, to be in time: why."));

const REASON = z.enum(["usual", "in-time", "likeliest", "kept", "explored"]);

/** Which way an answer took, and why. */
export const ROUTE = z.strictObject({
  candidates: z.array(PREDICTION),
  excluded: z.array(
    z.strictObject({ route: z.string(), why: z.enum(["absent", "privacy", "cost", "quality"]) }),
  ),
  chosen: z.string(),
  reason: REASON,
  variant: z.optional(z.string()).check(z.describe("Name of the smaller variant, where it was chosen.")),
  hedge: z.optional(z.strictObject({ route: z.string(), afterMs: ms })),
  handover: z.optional(HANDOVER),
  actual: z.optional(OUTCOME),
});

/** What `/v1/generate` and the tasks but `classify` answer. */
export const ANSWER = z.strictObject({
  model: z.string(),
  text: z.string(),
  tokenIds: z.array(whole),
  items: z.array(ITEM),
  plainText: z.optional(z.string()).check(z.describe("The text that belongs to no item.")),
  brokenItems: z.optional(whole),
  finishReason: z.enum(["stop", "length"]),
  promptTokenIds: z.array(whole),
  imageTokens: whole,
  cached: CACHED,
  timings: z.strictObject({ preprocess: ms, vision: ms, prefill: ms, perToken: ms }).check(
    z.describe("Milliseconds."),
  ),
  route: z.optional(ROUTE).check(
    z.describe("The way it took; in a stream, the event route, once more with handover, and usage.route."),
  ),
});

const LINE = z.strictObject({ baseMs: ms, perUnitMs: ms });

/** What `GET /v1/planner` answers. */
export const PLANNER = z.strictObject({
  calibration: z.record(
    z.string(),
    z.strictObject({
      vision: LINE.check(z.describe("By pixels.")),
      prefill: LINE.check(z.describe("By positions.")),
      step: LINE.check(z.describe("By tokens after the first.")),
      link: z.optional(LINE).check(z.describe("By bytes sent; its base is a round trip.")),
      pricePerSecond: z.optional(ms),
    }),
  ).check(z.describe("What stages cost before anything was seen, by place.")),
  factors: z.record(z.string(), ms).check(z.describe("What they take now, of that; by place/stage.")),
  pool: z.optional(z.strictObject({ present: z.boolean(), waitMs: ms, distrust: side })),
  edgeWaitMs: ms,
  lengths: z.record(z.string(), ms).check(z.describe("Tokens of answers, by the prompt's first word.")),
  ledger: z.strictObject({
    plans: whole,
    budgets: whole,
    met: whole,
    judged: whole,
    covered: whole,
    hedges: whole,
    hedgesWon: whole,
    handovers: whole,
    refused: whole,
  }).check(
    z.describe("Decisions since the start; those with a budget, and met; P95s put to the test, and held."),
  ),
  recent: z.array(
    z.strictObject({
      at: whole,
      budget: z.optional(BUDGET),
      chosen: PREDICTION,
      reason: REASON,
      actual: z.optional(OUTCOME),
    }),
  ).check(z.describe("The last answers, the latest first.")),
});

/** What `/v1/classify` answers. */
export const CLASSIFICATION = z.strictObject({
  model: z.string(),
  labels: z.array(
    z.strictObject({ label: z.string(), probability: side, logprob: z.number().check(z.lte(0)) }),
  ),
  promptTokenIds: z.array(whole),
  imageTokens: whole,
  cached: CACHED,
  timings: z.strictObject({ preprocess: ms, vision: ms, prefill: ms, labels: ms }),
});

/** What `/v1/embeddings/image` answers. */
export const EMBEDDED = z.strictObject({
  object: z.literal("image_embeddings"),
  model: z.string(),
  revision: z.string().check(
    z.describe("A fingerprint of the weights: embeddings of two revisions do not mix."),
  ),
  stage: z.enum(["projected", "features"]),
  scale: z.literal("unscaled").check(
    z.describe("As the projector gives them, not divided by the root of the width."),
  ),
  shape: z.tuple([whole, whole, whole]).check(z.describe("Pictures, image tokens of each, width.")),
  dtype: z.enum(["f16", "int8"]),
  data: z.string().check(z.describe("Little-endian, row-major, in base64.")),
  scales: z.optional(z.string()).check(
    z.describe("For int8: an f32 for each row, in base64; value = byte · scale."),
  ),
});

const LOGPROB = { token: z.string(), logprob: z.number().check(z.lte(0)), bytes: z.array(whole) };

/** What `/v1/chat/completions` answers. */
export const COMPLETION = z.strictObject({
  id: z.string(),
  object: z.literal("chat.completion"),
  created: whole,
  model: z.string(),
  dropped: z.optional(z.array(z.strictObject({ index: whole, role: z.string() }))).check(
    z.describe("Messages that took no part: system, earlier turns. Not OpenAI's."),
  ),
  choices: z.array(z.strictObject({
    index: z.literal(0),
    message: z.strictObject({
      role: z.literal("assistant"),
      content: z.string(),
      refusal: z.null(),
      items: z.optional(z.array(ITEM)).check(z.describe("Boxes and masks. Not OpenAI's.")),
    }),
    logprobs: z.nullable(z.strictObject({
      content: z.array(z.strictObject({ ...LOGPROB, top_logprobs: z.array(z.strictObject(LOGPROB)) })),
      refusal: z.null(),
    })),
    finish_reason: z.enum(["stop", "length"]),
  })),
  usage: z.strictObject({
    prompt_tokens: whole,
    completion_tokens: whole,
    total_tokens: whole,
    prompt_tokens_details: z.strictObject({ image_tokens: whole, cached_tokens: whole }),
  }),
  route: z.optional(ROUTE).check(
    z.describe("The way it took; not in a stream. Not OpenAI's, and only where the request has a budget."),
  ),
});

/** A model. */
export const MODEL = z.strictObject({
  id: z.string(),
  object: z.literal("model"),
  created: whole,
  owned_by: z.string(),
  name: z.string(),
  revision: z.string(),
  family: z.enum(["paligemma", "paligemma2"]),
  imageSize: whole,
  imageTokensPerImage: whole,
  context: whole,
  vocabulary: whole,
});

/** What `GET /v1/models` answers. */
export const MODELS = z.strictObject({ object: z.literal("list"), data: z.array(MODEL) });

/** An error on a native route, RFC 9457. */
export const PROBLEM = z.strictObject({
  type: z.literal("about:blank"),
  title: z.string(),
  status: whole,
  detail: z.string(),
  code: z.string().check(z.describe("Which problem it is.")),
  field: z.optional(z.string()),
  instance: z.optional(z.string()),
});

/** An error on OpenAI's routes. */
export const OPENAI_ERROR = z.strictObject({
  error: z.strictObject({
    message: z.string(),
    type: z.string(),
    param: z.nullable(z.string()),
    code: z.string(),
  }),
});
