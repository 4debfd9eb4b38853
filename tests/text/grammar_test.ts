import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createGrammar } from "../../lib/text/grammar.ts";
import { findLocations } from "../../lib/text/locations.ts";
import { createBoxParser } from "../../lib/text/parse.ts";
import { fromModel } from "../../lib/text/tokenizer.ts";

const tokenizer = fromModel(
  await readFile(new URL("../golden/checkpoints/pg1/tokenizer.model", import.meta.url)),
);
const locations = findLocations(tokenizer);
const EOS = 1;

/** Numbers in [0, 1), the same every run. */
function random(seed: number): () => number {
  return () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
}

const PROMPTS = ["detect cat", "detect cat ; catfish ; red car", "segment cat ; 猫", "detect ", "segment a"];

/** A random answer that the grammar allows, of at most `most` tokens. */
function stream(prompt: string, next: () => number, most = 120): { ids: number[]; ended: boolean } {
  const grammar = createGrammar(tokenizer, locations, prompt, [EOS, 107])!();
  const ids: number[] = [];
  while (ids.length < most) {
    const spans = grammar.allowed();
    let at = Math.floor(next() * spans.reduce((sum, [first, end]) => sum + end - first, 0));
    const [first] = spans.find(([first, end]) => at < end - first || (at -= end - first, false))!;
    const id = first + at;
    grammar.advance(id);
    if (id === EOS || id === 107) return { ids, ended: true };
    ids.push(id);
  }
  return { ids, ended: false };
}

Deno.test("10,000 random constrained answers parse: every item whole, with a label that was asked for", () => {
  const next = random(1);
  let items = 0, ends = 0;
  for (let n = 0; n < 10_000; n++) {
    const prompt = PROMPTS[n % PROMPTS.length];
    const asked = prompt.slice(7).split(";").map((it) => it.trim());
    const { ids, ended } = stream(prompt, next);
    const parser = createBoxParser(tokenizer, { locations });
    const found = [...ids.flatMap((id) => [...parser.push(id, -0.1)]), ...parser.end({ truncated: !ended })];
    assert.equal(parser.plainText, "", tokenizer.decode(ids));
    const whole = ended ? found : found.filter((it) => !it.flags?.includes("cut-off"));
    if (ended) assert.equal(parser.brokenItems, 0, tokenizer.decode(ids));
    for (const { flags, label, box, maskCodes } of whole) {
      assert.equal(flags, undefined, tokenizer.decode(ids));
      assert.ok(asked.includes(label) || label === "" && prompt.startsWith("segment"), label);
      assert.ok(box.yMax > box.yMin && box.xMax > box.xMin);
      if (maskCodes) assert.ok(prompt.startsWith("segment"));
    }
    items += whole.length;
    ends += Number(ended);
  }
  assert.ok(items > 5000 && ends > 5000, `${items} items, ${ends} answers that ended`);
});

Deno.test("10,000 random token streams: the parser never throws, and every box is four locations that came", () => {
  const next = random(2);
  const loc = tokenizer.idOf("<loc0000>")!;
  let items = 0;
  for (let n = 0; n < 10_000; n++) {
    const parser = createBoxParser(tokenizer, { locations, locScale: n % 2 ? 1023 : 1024 });
    const came = new Set<number>();
    const events = [];
    for (let length = Math.floor(next() * 40); length > 0; length--) {
      // Locations and masks often, so that items come about; ids outside the vocabulary now and then.
      const kind = next();
      const id = kind < 0.6
        ? loc + Math.floor(next() * 1024)
        : kind < 0.7
        ? loc + 1024 + Math.floor(next() * 128)
        : kind < 0.8
        ? tokenizer.idOf(";") ?? 5
        : Math.floor(next() * (tokenizer.size + 20)) - 5;
      if (id >= loc && id < loc + 1024) came.add(id - loc);
      events.push(...parser.push(id, -next() * 20));
    }
    events.push(...parser.end({ truncated: next() < 0.3 }));
    for (const { box, confidence } of events) {
      for (const side of Object.values(box)) assert.ok(came.has(Math.round(side * (n % 2 ? 1023 : 1024))));
      assert.ok(confidence > 0 && confidence <= 1);
    }
    items += events.length;
  }
  assert.ok(items > 1000, `${items}`);
});

Deno.test("the tokens of answers as models write them are allowed, one after another", () => {
  const box = "<loc0204><loc0366><loc0469><loc0558>";
  const mask = "<seg003>".repeat(16);
  const cases: [string, string][] = [
    ["detect cat ; red car", `${box} red car ; ${box} cat ; ${box} red car`],
    ["detect cat", `${box} cat`],
    ["detect cat", ""],
    ["segment cat", `${box}${mask} cat ; ${box}${mask} cat`],
    ["segment cat", `${box}${mask}`],
    ["segment cat", `${box}${mask} ; ${box}${mask}`],
    ["segment cat", `${box} cat`],
  ];
  for (const [prompt, answer] of cases) {
    const grammar = createGrammar(tokenizer, locations, prompt, [EOS])!();
    for (const id of [...tokenizer.encode(answer, { tokens: "allow" }), EOS]) grammar.advance(id);
    assert.deepEqual(grammar.allowed(), [[EOS, EOS + 1]], "after its end, only the end");
  }
});

Deno.test("what is not of the grammar is not allowed", () => {
  const box = "<loc0204><loc0366><loc0469><loc0558>";
  const refused: [string, string][] = [
    ["detect cat", "cat"],
    ["detect cat", "<loc0001> cat"],
    ["detect cat", "<loc1023>"],
    ["detect cat", "<loc0009><loc0000><loc0009>"],
    ["detect cat", "<loc0009><loc0005><loc0010><loc0005>"],
    ["detect cat", `${box} dog`],
    ["detect cat", `${box}<seg001>`],
    ["detect cat", `${box}${box}`],
    ["segment cat", `${box}${"<seg003>".repeat(3)} cat`],
    ["segment cat", `${box}${"<seg003>".repeat(17)}`],
  ];
  for (const [prompt, answer] of refused) {
    const grammar = createGrammar(tokenizer, locations, prompt, [EOS])!();
    const take = () => tokenizer.encode(answer, { tokens: "allow" }).forEach((id) => grammar.advance(id));
    assert.throws(take, RangeError, answer);
  }
  const open = createGrammar(tokenizer, locations, "detect cat", [EOS])!();
  tokenizer.encode(box, { tokens: "allow" }).forEach((id) => open.advance(id));
  assert.throws(() => open.advance(EOS), RangeError, "a label is missing");
});

Deno.test("other prompts have no grammar; labels no answer can hold are refused", () => {
  for (const prompt of ["caption en", "", "detection x", "answer en detect cat"]) {
    assert.equal(createGrammar(tokenizer, locations, prompt, [EOS]), undefined);
  }
  assert.throws(() => createGrammar(tokenizer, locations, "detect <b>", [EOS]), {
    code: "parameter_invalid",
  });
});
