/** Ids back to text, one at a time, never half a character. */

import { decodeUtf8, Kind, type Vocabulary } from "./vocabulary.ts";

/** Turns ids into text as they come. */
export interface TextStream {
  /** The text that this id completes. */
  push(id: number): string;
  /** What is left: U+FFFD for every byte of a character that never ended. */
  end(): string;
}

/**
 * A fresh stream. Control pieces, the unknown piece and ids outside the vocabulary give no text.
 *
 * Byte pieces are gathered until they make a character. Bytes that cannot are U+FFFD each, which is SentencePiece's
 * way; Hugging Face's decoder agrees but for a run of byte pieces that holds both whole and broken characters, all
 * of which it gives up, and which no stream could do.
 */
export function createTextStream(vocabulary: Vocabulary, dummyPrefix: boolean): TextStream {
  const bytes: number[] = [];
  let atStart = dummyPrefix;

  /** Takes whole characters, and bytes that begin none, off the front; an unfinished one stays unless `final`. */
  function flush(final: boolean): string {
    let text = "", at = 0;
    while (at < bytes.length) {
      const length = characterLength(bytes, at);
      if (length === "unfinished" && !final) break;
      if (typeof length === "number") {
        text += decodeUtf8(Uint8Array.from(bytes.slice(at, at + length)));
        at += length;
      } else {
        text += "\ufffd";
        at++;
      }
    }
    bytes.splice(0, at);
    return text;
  }

  return {
    push(id) {
      const kind = id >= 0 && id < vocabulary.size ? vocabulary.kinds[id] : Kind.control;
      if (kind & (Kind.control | Kind.unknown)) return "";
      if (kind === Kind.byte) {
        bytes.push(vocabulary.byteIds.indexOf(id));
        atStart = false;
        return flush(false);
      }
      const before = flush(true);
      let piece = vocabulary.piece(id).replaceAll("\u2581", " ");
      if (atStart && piece.startsWith(" ")) piece = piece.slice(1);
      atStart = false;
      return before + piece;
    },
    end: () => flush(true),
  };
}

/** Length of the well-formed character at `at` (Unicode table 3-7), or why there is none. */
function characterLength(bytes: readonly number[], at: number): number | "unfinished" | "broken" {
  const first = bytes[at];
  const length = first < 0x80
    ? 1
    : first < 0xc2
    ? 0
    : first < 0xe0
    ? 2
    : first < 0xf0
    ? 3
    : first < 0xf5
    ? 4
    : 0;
  if (length === 0) return "broken";
  for (let i = 1; i < length; i++) {
    const byte = bytes[at + i];
    if (byte === undefined) return "unfinished";
    const low = i > 1 ? 0x80 : first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
    const high = i > 1 ? 0xbf : first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
    if (byte < low || byte > high) return "broken";
  }
  return length;
}
