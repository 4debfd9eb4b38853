/** Random strings that find where tokenizers differ; the same seed gives the same strings. */

// deno-fmt-ignore
const WORDS = [
  "answer en", "detect", "caption", "the", "The quick brown fox", "license", "distribution", "où est", "straße",
  "naïve", "Ελληνικά", "русский язык", "עברית", "العربية", "हिन्दी", "ไทยภาษา", "中文字符", "日本語テキスト", "한국어", "ქართული",
  "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "e\u0301", "\u200b", "\ufeff", "\u00a0", "\u2581", "▁▁", "\ufffd", "𝔘𝔫𝔦", "𓀀", "\u{10ffff}",
  "<h1>", "</h1>", "<s>", "</s>", "<table>", "<code>", "<b>", "<td", "<strong>", "<mask>", "<unused7>", "<2mass>",
  "<bos>", "<eos>", "<pad>", "<unk>", "<image>", "<start_of_turn>", "<0x0A>", "<0x", "<loc0001>", "<loc1023>",
  "<loc1024>", "<loc12", "<seg000>", "<seg127>", "<seg128>", "<<loc0001>>", "\r\n", "\t", "\0", "\x7f", "aaaa",
  "aaaaaaaaa", "abababab", "!!!!", "----", "====", "….", "::", ";;", " ; ", "://", "i.e.", "can't", "I'm", "_x_",
  "CamelCaseWord", "ALLCAPS", "0", "007", "3.14159", "1,000,000", "²½", "١٢٣", "\ud800", "\udc00", "\ud800\ud800",
  "x\udfff",
];

/** Unicode ranges to draw single characters from. */
// deno-fmt-ignore
const RANGES = [
  [0x20, 0x7e], [0x20, 0x7e], [0x61, 0x7a], [0x00, 0x1f], [0xa0, 0x24f], [0x370, 0x52f], [0x590, 0x6ff],
  [0x900, 0xdff], [0x1100, 0x11ff], [0x2000, 0x2bff], [0x3040, 0x30ff], [0x4e00, 0x9fff], [0xac00, 0xd7a3],
  [0xd800, 0xdfff], [0xe000, 0xffff], [0x10000, 0x10fff], [0x1f000, 0x1ffff], [0x20000, 0x2ffff],
];

/** Numbers in [0, 1) from a 32-bit seed (mulberry32). */
export function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * `count` strings of words, single characters of many scripts, runs of spaces, newlines and letters, digits, tags,
 * names of control pieces and lone surrogates. `pieces` adds a vocabulary's own pieces, whole and cut.
 */
export function fuzzed(count: number, seed: number, pieces: readonly string[] = []): string[] {
  const next = random(seed), below = (n: number) => Math.floor(next() * n);
  const part = (): string => {
    const choice = next();
    if (choice < 0.35) return WORDS[below(WORDS.length)];
    if (choice < 0.45) return " ".repeat(1 + below(below(4) ? 4 : 70));
    if (choice < 0.5) return "\n".repeat(1 + below(below(4) ? 4 : 70));
    if (choice < 0.55) return String(below(10 ** (1 + below(9))));
    if (choice < 0.58) return "abct.-= ▁"[below(9)].repeat(1 + below(40));
    if (choice < 0.8 && pieces.length > 0) {
      const piece = pieces[below(pieces.length)].replaceAll("▁", " ");
      return below(4) ? piece : piece.slice(below(piece.length));
    }
    const [low, high] = RANGES[below(RANGES.length)];
    return Array.from({ length: 1 + below(6) }, () => String.fromCodePoint(low + below(high - low + 1))).join(
      "",
    );
  };
  return Array.from({ length: count }, () => {
    const joint = below(2) ? " " : "";
    return Array.from({ length: below(14) }, part).join(joint);
  });
}
