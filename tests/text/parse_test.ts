import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { findLocations, nearby } from "../../lib/text/locations.ts";
import { type BoxEvent, type BoxOptions, createBoxParser, withoutDuplicates } from "../../lib/text/parse.ts";
import { fromModel } from "../../lib/text/tokenizer.ts";

const tokenizer = fromModel(
  await readFile(new URL("../golden/checkpoints/pg1/tokenizer.model", import.meta.url)),
);

const HALF = Math.log(0.5);

/** Items of an answer, every token of probability one half. */
function parse(text: string, options: BoxOptions & { truncated?: boolean } = {}): BoxEvent[] {
  const parser = createBoxParser(tokenizer, options);
  const events = tokenizer.encode(text, { tokens: "allow" }).flatMap((id) => [...parser.push(id, HALF)]);
  return [...events, ...parser.end(options)];
}

/** Labels of the items with nothing wrong. */
const labels = (text: string, options = {}) =>
  parse(text, options).filter((it) => !it.flags).map((it) => it.label);
const flags = (text: string, options = {}) => parse(text, options).map((it) => it.flags);
const MASK = Array.from({ length: 16 }, (_, i) => `<seg${String(7 * i).padStart(3, "0")}>`).join("");
const BOX = "<loc0204><loc0366><loc0469><loc0558>";
const OTHER = "<loc0000><loc0000><loc1023><loc1023>";

Deno.test("an item has the fractions of its locations, in 1024ths or 1023rds", () => {
  const [{ type, box, label }] = parse(`${BOX} road sign`);
  assert.deepEqual([type, label], ["box", "road sign"]);
  assert.deepEqual(box, { yMin: 204 / 1024, xMin: 366 / 1024, yMax: 469 / 1024, xMax: 558 / 1024 });
  assert.deepEqual(parse(OTHER, { locScale: 1023 })[0].box, { yMin: 0, xMin: 0, yMax: 1, xMax: 1 });
});

Deno.test("every item comes with its semicolon, the last with the end", () => {
  const parser = createBoxParser(tokenizer);
  const came: [string, string[]][] = [];
  for (const id of tokenizer.encode(`${BOX} cat ; ${OTHER} dog`, { tokens: "allow" })) {
    const events = parser.push(id, -1);
    if (events.length) came.push([tokenizer.piece(id), events.map((it) => it.label)]);
  }
  assert.equal(came.length, 1);
  assert.ok(came[0][0].includes(";"));
  assert.deepEqual(came[0][1], ["cat"]);
  assert.deepEqual(parser.end().map((it) => it.label), ["dog"]);
  assert.deepEqual(parser.end(), []);
});

Deno.test("the grammar takes what models write and drops or flags what is no box", () => {
  const cases: [string, string[]][] = [
    ["", []],
    ["no cat here", []],
    ["cat ; dog", []],
    [`${BOX}`, [""]],
    [`${BOX};${OTHER}`, ["", ""]],
    [`${BOX} ; ${OTHER} ;`, ["", ""]],
    [`${BOX} cat ; ${BOX} cat`, ["cat", "cat"]],
    [`I see ${BOX} cat`, ["cat"]],
    [`;; ${BOX} cat ;; ${OTHER} dog;`, ["cat", "dog"]],
    [`${BOX} cat ${OTHER} dog`, ["cat", "dog"]],
    [`${BOX} kätzchen 猫🐈 ; ${OTHER} x`, ["kätzchen 猫🐈", "x"]],
    [`${BOX}${"<seg003>".repeat(16)} cat ; ${OTHER} dog`, ["cat", "dog"]],
    [`${BOX}${"<seg003>".repeat(16)} ; ${OTHER}${"<seg004>".repeat(16)}`, ["", ""]],
    [`<seg003> ${BOX} cat`, ["cat"]],
    // Fewer than four, more than four, apart.
    ["<loc0001> cat", []],
    [`<loc0001><loc0001><loc0009> cat ; ${BOX} dog`, ["dog"]],
    [`<loc0001>${BOX} cat ; ${BOX} dog`, ["dog"]],
    [`${BOX}${OTHER} cat ; ${BOX} dog`, ["dog"]],
    ["<loc0001><loc0001> <loc0009><loc0009> cat", []],
    // Bottom not below top, right not beyond left.
    [`<loc0005><loc0001><loc0005><loc0009> cat ; ${BOX} dog`, ["dog"]],
    ["<loc0001><loc0009><loc0005><loc0001> cat", []],
    // A label ends at an angle bracket.
    [`${BOX} cat <b> x ; ${OTHER} dog`, ["cat", "dog"]],
  ];
  for (const [text, expected] of cases) assert.deepEqual(labels(text), expected, text);
});

Deno.test("locations spelled in characters are text", () => {
  const parser = createBoxParser(tokenizer);
  const ids = tokenizer.encode(`${BOX} cat`, { tokens: "plain" });
  assert.deepEqual([...ids.flatMap((id) => [...parser.push(id, -1)]), ...parser.end()], []);
});

Deno.test("a truncated answer loses its last item, but not one that its semicolon ended", () => {
  assert.deepEqual(labels(`${BOX} cat ; ${OTHER} do`, { truncated: true }), ["cat"]);
  assert.deepEqual(labels(`${BOX} cat ;`, { truncated: true }), ["cat"]);
  assert.deepEqual(labels(`${BOX}`, { truncated: true }), []);
  const [whole, cut] = parse(`${BOX} cat ; ${OTHER} do`, { truncated: true });
  assert.deepEqual([whole.flags, cut.flags, cut.label], [undefined, ["cut-off"], "do"]);
});

Deno.test("flags say what is wrong, and nothing is made up", () => {
  assert.deepEqual(flags("<loc0005><loc0001><loc0005><loc0009> cat"), [["empty"]]);
  assert.deepEqual(flags(`${BOX}<seg003><seg004> cat`), [["mask"]]);
  assert.deepEqual(flags(`${BOX}${MASK}<seg001> cat`), [["mask"]]);
  assert.deepEqual(flags(`${BOX} cat ${MASK}`), [["mask"]]);
  assert.deepEqual(flags(`${BOX}${MASK.slice(0, 80)}`, { truncated: true }), [["cut-off", "mask"]]);
  assert.deepEqual(flags(`<loc0001><loc0002>`, { truncated: true }), []);
  const [item] = parse(`${BOX}${MASK} cat`);
  assert.deepEqual(item.maskCodes, Array.from({ length: 16 }, (_, i) => 7 * i));
  assert.equal(item.flags, undefined);
});

Deno.test("text around the items is kept apart, and items without a box are counted", () => {
  const read = (text: string) => {
    const parser = createBoxParser(tokenizer);
    for (const id of tokenizer.encode(text, { tokens: "allow" })) parser.push(id, -1);
    parser.end();
    return [parser.plainText, parser.brokenItems];
  };
  assert.deepEqual(read(`I see ${BOX} cat ; and more`), ["I see ; and more", 0]);
  assert.deepEqual(read("no cat here"), ["no cat here", 0]);
  assert.deepEqual(read(`${BOX} cat <b> x`), ["<b> x", 0]);
  assert.deepEqual(read(`<loc0001> cat ; ${BOX}${OTHER} ; ${BOX} dog`), ["", 2]);
});

Deno.test("of overlapping boxes of one label the surest stays, in its place", () => {
  const item = (label: string, xMin: number, confidence: number) => ({
    label,
    confidence,
    box: { yMin: 0, xMin, yMax: 1, xMax: xMin + 0.5 },
  });
  const items = [item("cat", 0, 0.5), item("cat", 0.05, 0.9), item("dog", 0.05, 0.1), item("cat", 0.5, 0.2)];
  assert.deepEqual(withoutDuplicates(items, 0.5), [items[1], items[2], items[3]]);
  assert.deepEqual(withoutDuplicates(items, 0.9), items);
});

Deno.test("confidence is the mean of the locations times the mean of the label, both geometric", () => {
  const close = (found: number, expected: number) =>
    assert.ok(Math.abs(found - expected) < 1e-12, `${found} ${expected}`);
  close(parse(BOX)[0].confidence, 0.5);
  close(parse(`${BOX} disclaimer 猫 ; ${BOX} cat`)[0].confidence, 0.25);

  const parser = createBoxParser(tokenizer);
  const locations = tokenizer.encode(BOX, { tokens: "allow" });
  [0.9, 0.8, 0.7, 0.6].forEach((p, i) => parser.push(locations[i], Math.log(p)));
  // Neither the space before the label nor the semicolon after it counts, nor does the end-of-answer token.
  for (const [piece, p] of [["▁", 0.01], ["c", 0.5], ["at", 0.4], ["▁", 0.01], ["<eos>", 0.01]] as const) {
    parser.push(tokenizer.idOf(piece)!, Math.log(p));
  }
  const [{ confidence, label }] = parser.end();
  assert.equal(label, "cat");
  close(confidence, (0.9 * 0.8 * 0.7 * 0.6) ** 0.25 * (0.5 * 0.4) ** 0.5);

  const lost = createBoxParser(tokenizer);
  for (const id of locations) lost.push(id, -Infinity);
  assert.ok(lost.end()[0].confidence > 0);
});

Deno.test("near a location are those within a thirty-second of the side, near another token nothing is", () => {
  const pieces = findLocations(tokenizer);
  const bins = (bin: number) =>
    nearby(pieces, pieces.ids[bin]!)!.flatMap(([first, end]) =>
      end === first + 1 ? [pieces.bins.get(first)!] : []
    );
  const range = (first: number, last: number) =>
    Array.from({ length: last - first + 1 }, (_, i) => first + i);
  assert.deepEqual(bins(500), range(468, 532));
  assert.deepEqual(bins(3), range(0, 35));
  assert.deepEqual(bins(1023), range(991, 1023));
  assert.equal(nearby(pieces, tokenizer.idOf("cat") ?? tokenizer.idOf("c")!), undefined);
});
