// deno-lint-ignore no-import-prefix -- only this test needs the oracle, and `deno task start` would download it
import { Tokenizer as Oracle } from "npm:@huggingface/tokenizers@0.2.0";
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { fromJson, fromModel, type Tokenizer } from "../../lib/text/tokenizer.ts";
import { type Piece, piecesOf, toBytes, toJson } from "./convert.ts";
import { fuzzed } from "./fuzz.ts";

const COUNT = 10_000;

/** The oracle for a vocabulary; with `tokens: "plain"` it does not know the location pieces. */
export function oracleOf(pieces: readonly Piece[], tokens: "plain" | "allow"): (text: string) => number[] {
  const known = tokens === "allow"
    ? pieces
    : pieces.map((it) => LOCATION.test(it.piece) ? { ...it, type: 1 } : it);
  const oracle = new Oracle(toJson(known, { control: "characters" }), {});
  // Rust and SentencePiece only know well-formed text; the JavaScript oracle would take a lone surrogate apart.
  return (text) => oracle.encode(text.toWellFormed(), { add_special_tokens: false }).ids;
}

const LOCATION = /^<(loc\d{4}|seg\d{3})>$/;

for (const name of ["pg1", "pg2"]) {
  const file = await readFile(new URL(`../golden/checkpoints/${name}/tokenizer.model`, import.meta.url));
  const pieces = piecesOf(file);
  const texts = fuzzed(COUNT, 7, pieces.map((it) => it.piece));

  for (const tokens of ["plain", "allow"] as const) {
    Deno.test(`${name}: ${COUNT} fuzzed strings get the ids of Hugging Face's tokenizers, tokens: ${tokens}`, () => {
      const oracle = oracleOf(pieces, tokens), tokenizer = fromModel(file);
      for (const text of texts) {
        assert.deepEqual(tokenizer.encode(text, { tokens }), oracle(text), JSON.stringify(text));
      }
    });
  }

  Deno.test(`${name}: tokenizer.json gives the ids of tokenizer.model, with merges as strings and as pairs`, () => {
    const model = fromModel(file);
    for (const mergeFormat of ["string", "pair"] as const) {
      const json = fromJson(toBytes(toJson(pieces, { control: "special", mergeFormat })));
      assert.equal(json.size, model.size);
      for (const tokens of ["plain", "allow"] as const) {
        for (const text of texts.slice(0, COUNT / 4)) {
          const ids = model.encode(text, { tokens });
          assert.deepEqual(json.encode(text, { tokens }), ids, JSON.stringify(text));
          assert.equal(json.decode(ids), model.decode(ids));
        }
      }
    }
  });

  Deno.test(`${name}: decoding what was encoded gives the text back, and so does a stream`, () => {
    const tokenizer: Tokenizer = fromModel(file);
    for (const text of texts) {
      const expected = text.toWellFormed().replaceAll("▁", " ");
      const ids = tokenizer.encode(text), stream = tokenizer.stream();
      assert.equal(tokenizer.decode(ids), expected);
      let streamed = "";
      for (const id of ids) {
        const part = stream.push(id);
        assert.ok(part.isWellFormed());
        streamed += part;
      }
      assert.equal(streamed + stream.end(), expected);
    }
  });
}
