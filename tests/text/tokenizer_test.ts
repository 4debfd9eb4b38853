import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { RequestError } from "../../lib/errors.ts";
import { readSentencePiece } from "../../lib/text/sentencepiece.ts";
import { prefixIds } from "../../lib/text/prompt.ts";
import { fromJson, fromModel, loadTokenizer } from "../../lib/text/tokenizer.ts";
import { memoryFiles } from "../memory_files.ts";
import { type Piece, piecesOf, setting, toBytes, toJson, toModel } from "./convert.ts";
import { random } from "./fuzz.ts";

const golden = (name: string) => readFile(new URL(`../golden/${name}`, import.meta.url));
const goldenJson = async (name: string) => JSON.parse(String(await golden(name)));

const pg1 = await golden("checkpoints/pg1/tokenizer.model");
const pieces = piecesOf(pg1);
const tokenizer = fromModel(pg1);

function refuses(read: () => unknown, ...words: string[]): void {
  assert.throws(read, (error) => {
    assert.ok(error instanceof RequestError, String(error));
    assert.equal(error.code, "model_invalid");
    for (const word of words) assert.ok(error.message.includes(word), `${error.message} lacks ${word}`);
    return true;
  });
}

for (const name of ["pg1", "pg2"]) {
  Deno.test(`${name}: strings get SentencePiece's ids, and ids its text`, async () => {
    const { encode, decode } = await goldenJson(`text/${name}.json`);
    const tokenizer = fromModel(await golden(`checkpoints/${name}/tokenizer.model`));
    assert.ok(encode.length > 400 && decode.length === 150);
    for (const [text, ids] of encode) {
      assert.deepEqual(tokenizer.encode(text, { tokens: "allow" }), ids, JSON.stringify(text));
    }
    for (const [ids, text] of decode) assert.equal(tokenizer.decode(ids), text, ids.join(" "));
  });

  Deno.test(`${name}: prompts get the prefix ids of transformers, and its answers their text`, async () => {
    const { cases } = await goldenJson(`checkpoints/${name}/golden.json`);
    const tokenizer = fromModel(await golden(`checkpoints/${name}/tokenizer.model`));
    for (const { prompt, prefix_ids, greedy_ids, greedy_text } of cases) {
      assert.deepEqual(prefixIds(tokenizer, prompt, { bosId: 2 }), prefix_ids, prompt);
      assert.equal(tokenizer.decode(greedy_ids), greedy_text);
    }
  });
}

const { variants } = await goldenJson("text/variants.json");
for (const { about, model, cases } of variants) {
  Deno.test(`a small vocabulary gets SentencePiece's ids: ${about}`, () => {
    const tokenizer = fromModel(Uint8Array.from(atob(model), (it) => it.charCodeAt(0)));
    for (const [text, ids, decoded] of cases) {
      assert.deepEqual(tokenizer.encode(text), ids, JSON.stringify(text));
      assert.equal(tokenizer.decode(ids), decoded, JSON.stringify(text));
    }
  });
}

Deno.test("control pieces in text are the characters they are, and location pieces unless they are allowed", () => {
  const control = new Set([0, 1, 2, 3]);
  const locations = (ids: number[]) => ids.filter((id) => /^<(loc|seg)/.test(tokenizer.piece(id)));
  for (const text of ["<eos>", "<bos>", "<pad>", "<unk>", "<image>", "a <eos> b"]) {
    for (const tokens of ["plain", "allow"] as const) {
      const ids = tokenizer.encode(text, { tokens });
      assert.ok(ids.length > 1 && !ids.some((id) => control.has(id)), text);
      assert.equal(tokenizer.decode(ids), text);
    }
  }
  const text = "caption <loc0001><loc1023><seg000> <loc1024><seg128>";
  assert.deepEqual(locations(tokenizer.encode(text)), []);
  assert.deepEqual(locations(tokenizer.encode(text, { tokens: "plain" })), []);
  assert.equal(tokenizer.decode(tokenizer.encode(text)), text);
  const allowed = tokenizer.encode(text, { tokens: "allow" });
  assert.deepEqual(
    locations(allowed).map((id) => tokenizer.piece(id)),
    ["<loc0001>", "<loc1023>", "<seg000>"],
  );
  assert.equal(tokenizer.decode(allowed), text);
});

Deno.test("in tokenizer.json a special token never comes from text, even where location tokens are special", () => {
  const json = toJson(pieces, { control: "special" });
  const added = json.added_tokens as Record<string, unknown>[];
  for (const token of added) if (/^<(loc|seg)/.test(token.content as string)) token.special = true;
  added.push({ id: pieces.length, content: "<image>", special: true, normalized: false });
  const read = fromJson(toBytes(json));
  assert.equal(read.idOf("<image>"), pieces.length);
  assert.equal(read.decode([pieces.length, 1]), "");
  const text = "<image><eos><loc0001>";
  assert.deepEqual(read.encode(text), tokenizer.encode(text));
  assert.deepEqual(read.encode(text, { tokens: "allow" }), tokenizer.encode(text, { tokens: "allow" }));
});

Deno.test("added tokens with normalized: false are found before spaces are replaced", () => {
  const json = toJson(pieces, { control: "special" }), size = pieces.length;
  (json.added_tokens as unknown[]).push(
    { id: size, content: "cat dog", special: false, normalized: false },
    { id: size + 1, content: "▁cat", special: false, normalized: false },
  );
  const read = fromJson(toBytes(json));
  assert.deepEqual(read.encode("a cat dog"), [...tokenizer.encode("a "), size]);
  assert.deepEqual(read.encode("a▁cat cat"), [
    ...tokenizer.encode("a"),
    size + 1,
    ...tokenizer.encode(" cat"),
  ]);
});

Deno.test("a stream holds back half a character and flushes what never ends", () => {
  const byte = (value: number) => tokenizer.idOf(`<0x${value.toString(16).toUpperCase()}>`)!;
  const stream = tokenizer.stream(), e = tokenizer.idOf("e")!;
  assert.deepEqual([0xf0, 0x9f, 0x90, 0x88].map((it) => stream.push(byte(it))), ["", "", "", "🐈"]);
  assert.deepEqual([stream.push(byte(0xe7)), stream.push(byte(0x94)), stream.push(e)], [
    "",
    "",
    "\ufffd\ufffde",
  ]);
  assert.deepEqual([stream.push(byte(0xe7)), stream.push(byte(0xc3)), stream.push(byte(0xa9))], [
    "",
    "\ufffd",
    "é",
  ]);
  // Overlong forms, surrogates and what lies beyond U+10FFFF are no characters: U+FFFD for every byte, at once.
  for (const broken of [[0xc0, 0x80], [0xe0, 0x80], [0xed, 0xa0], [0xf0, 0x80], [0xf4, 0x90], [0xf5, 0x80]]) {
    assert.equal(broken.map((it) => stream.push(byte(it))).join(""), "\ufffd\ufffd", broken.join(" "));
  }
  assert.deepEqual([stream.push(byte(0xf0)), stream.end(), stream.end()], ["", "\ufffd", ""]);
  assert.deepEqual(
    [1, 2, 3, -1, 1.5, tokenizer.size, 1e9].map((id) => tokenizer.stream().push(id)).join(""),
    "",
  );
});

Deno.test("pieces and ids name each other", () => {
  for (let id = 0; id < tokenizer.size; id++) {
    assert.equal(tokenizer.piece(id), pieces[id].piece);
    assert.equal(tokenizer.idOf(pieces[id].piece), id);
  }
  assert.deepEqual([tokenizer.idOf(""), tokenizer.idOf("no such piece"), tokenizer.piece(-1)], [
    undefined,
    undefined,
    "",
  ]);
});

Deno.test("a prefix is BOS, the prompt without newlines at its end, and one newline", () => {
  const prefix = (prompt: string, tokens?: "plain" | "allow") =>
    prefixIds(tokenizer, prompt, { bosId: 2, tokens });
  assert.deepEqual(prefix(""), [2, 5]);
  assert.deepEqual(prefix("\n\n\n"), [2, 5]);
  assert.deepEqual(prefix("caption en\n"), prefix("caption en"));
  assert.deepEqual(prefix("a\nb"), [2, ...tokenizer.encode("a\nb"), 5]);
  assert.equal(prefix("<loc0001>", "allow").length, 3);
  assert.ok(prefix("<loc0001>").length > 3);
  assert.equal(tokenizer.decode(prefix("x".repeat(10_000))), "x".repeat(10_000) + "\n");
});

Deno.test("a text ten times as long takes about ten times as long", () => {
  const next = random(3), letters = "the license of a b e";
  const text = Array.from({ length: 400_000 }, () => letters[Math.floor(next() * letters.length)]).join("");
  const time = (text: string) => {
    const start = performance.now();
    tokenizer.encode(text);
    return performance.now() - start;
  };
  time(text.slice(0, 40_000));
  const short = Math.min(time(text.slice(0, 40_000)), time(text.slice(0, 40_000))), long = time(text);
  assert.ok(long < 40 * short + 50, `40,000 characters took ${short} ms, 400,000 ${long} ms`);
});

Deno.test("257,216 pieces take less than 12 MB", () => {
  const file = toModel(manyPieces(257_216));
  const start = performance.now();
  const { vocabulary } = readSentencePiece(file, "tokenizer.model");
  const elapsed = performance.now() - start;
  assert.equal(vocabulary.size, 257_216);
  assert.ok(vocabulary.bytes.length > 1_900_000, `${vocabulary.bytes.length} bytes of pieces`);
  assert.ok(vocabulary.sizeBytes < 12_000_000, `${vocabulary.sizeBytes} bytes`);
  assert.ok(elapsed < 3000, `${elapsed} ms`);
});

/** As many pieces as PaliGemma has, of 7.6 bytes on average as there. */
function manyPieces(count: number): Piece[] {
  const next = random(5), seen = new Set<string>();
  while (seen.size < count) {
    seen.add(
      Array.from(
        { length: 5 + Math.floor(next() * 6) },
        () => String.fromCharCode(97 + Math.floor(next() * 26)),
      ).join(""),
    );
  }
  return [...seen].map((piece, id) => ({ piece, score: -id, type: 1 }));
}

Deno.test("tokenizer.model comes before tokenizer.json, and a directory without both is refused", async () => {
  const json = toBytes(toJson(pieces.slice(0, 900), { control: "special" }));
  assert.equal(
    (await loadTokenizer(memoryFiles({ "tokenizer.model": pg1, "tokenizer.json": json }))).size,
    2092,
  );
  assert.equal((await loadTokenizer(memoryFiles({ "tokenizer.json": json }))).size, 900);
  await assert.rejects(loadTokenizer(memoryFiles({ "config.json": json })), {
    code: "model_invalid",
    message: /expected tokenizer\.model or tokenizer\.json, found config\.json/,
  });
});

Deno.test("a broken tokenizer.model is refused", () => {
  refuses(() => fromModel(new Uint8Array(0)), "found no pieces");
  refuses(() => fromModel(pg1.subarray(0, 20_000)), "cut short");
  refuses(
    () => fromModel(new TextEncoder().encode("version https://git-lfs.github.com/spec/v1")),
    "at byte 0",
  );
  refuses(() => fromModel(toModel([...pieces, pieces[300]])), "each piece once", "id 300", "id 2092");
  refuses(() => fromModel(toModel([...pieces, { piece: "x y", score: 0, type: 5 }])), '"x y" of type 5');
  refuses(() => fromModel(toModel([...pieces, { piece: "<0xGG>", score: 0, type: 6 }])), "<0xGG>");
  refuses(() => fromModel(toModel([...pieces, { piece: "", score: 0, type: 1 }])), "found 0 at id 2092");
  for (let end = 1; end < 3000; end += 7) {
    try {
      fromModel(pg1.subarray(0, end));
    } catch (error) {
      assert.ok(error instanceof RequestError, String(error));
    }
  }
});

Deno.test("a tokenizer.model with settings that are not done here is refused by name", () => {
  const small = pieces.slice(0, 400);
  assert.ok(fromModel(toModel(small)).encode("the").length > 0);
  refuses(() => fromModel(toModel(small, setting(2, 3, 1))), "model_type BPE", "UNIGRAM");
  refuses(() => fromModel(toModel(small, setting(2, 24, 1))), "treat_whitespace_as_suffix");
  refuses(() => fromModel(toModel(small, setting(3, 4, 1))), "remove_extra_whitespaces");
  refuses(() => fromModel(toModel(small, setting(3, 5, 0))), "escape_whitespaces");
  refuses(() => fromModel(toModel(small, [26, 3, 18, 1, 65])), "precompiled_charsmap");
  refuses(() => fromModel(toModel(small, [42, 3, 18, 1, 65])), "denormalisation");
});

Deno.test("a broken or unsupported tokenizer.json is refused", () => {
  const json = () => toJson(pieces.slice(0, 900), { control: "special" });
  const changed = (path: string, value: unknown) => {
    const whole = json(), names = path.split(".");
    let at = whole;
    for (const name of names.slice(0, -1)) at = at[name] as Record<string, unknown>;
    at[names.at(-1)!] = value;
    return () => fromJson(toBytes(whole));
  };
  const bytes = toBytes(json());
  refuses(() => fromJson(new Uint8Array(0)), "end of the file");
  refuses(() => fromJson(toBytes([])), '"{"');
  refuses(() => fromJson(toBytes({})), "model");
  for (let end = 1; end < bytes.length; end += 997) refuses(() => fromJson(bytes.subarray(0, end)));
  refuses(changed("model.type", "Unigram"), "model.type", "Unigram");
  refuses(changed("model.dropout", 0.1), "model.dropout");
  refuses(changed("model.ignore_merges", true), "model.ignore_merges");
  refuses(changed("model.merges", ["th q@"]), "thq@");
  refuses(changed("model.vocab.th", 1e9), "1000000000");
  refuses(changed("model.vocab.th", 268), "each id once, found 268 twice");
  refuses(changed("model.vocab.th", "1"), "whole number");
  refuses(changed("normalizer", { type: "NFKC" }), "normalizer", "NFKC");
  refuses(changed("pre_tokenizer", { type: "ByteLevel" }), "pre_tokenizer", "ByteLevel");
  refuses(changed("decoder", { type: "ByteLevel" }), "decoder", "ByteLevel");
  refuses(changed("added_tokens", [{ id: 5, content: "\n", rstrip: true }]), "rstrip");
  refuses(changed("added_tokens", [{ id: 5, content: "th" }]), "the id of");
  refuses(changed("added_tokens", 7), "added_tokens");
  refuses(changed("added_tokens", [7]), "an added token");
});
