"""The tokenizer of the tiny model: a SentencePiece BPE model whose words are those of drawing.py and questions.py.

    python3 tokenizer.py tokenizer.model

Ids: 0 <pad>, 1 <eos>, 2 <bos>, 3 <unk>, 4 newline, 5..260 bytes, single characters, merges, more characters, then <loc0000> to
<loc1023> and <seg000> to <seg127>. The image token is the next id after these and has no piece.
"""

import struct
import sys

from drawing import COLOUR_NAMES, PLACES, SHAPES, WORDS
from questions import FRENCH, GERMAN

PAD, EOS, BOS, UNK, NEWLINE = range(5)
SPACE = "\u2581"


def _words():
    """What shall be one token each, with its leading space where it has one."""
    english = "answer caption detect segment ocr en what colour shape how many is are the there where a an and with word number yes no".split()
    english += [s for s in SHAPES] + COLOUR_NAMES + ["object"] + sorted({w for p in PLACES for w in p.split()})
    english += [w + ("es" if w.endswith("s") else "s") for w in SHAPES + ["object"]]
    words = []
    for w in english:
        words += [SPACE + w, w]
    for w in WORDS:
        words += [SPACE + w, w]
    words.append(f"{SPACE};{SPACE}")
    # Added later, at the end, so that the words before keep their pieces. Some answers begin with these:
    words += ["small", "medium", "large", "ein", "eine", "un", "une", "das", "die", "le"]
    later = "de fr small medium large larger smaller than of above value bar bars which highest lowest in box".split()
    for language in (GERMAN, FRENCH):
        for part in language.values():
            later += [w for text in part for w in text.split() if len(w) > 1]
    return list(dict.fromkeys(words + [SPACE + w for w in later]))


class Tokenizer:
    """Encodes as SentencePiece does with this model (checked against the package in `main`)."""

    def __init__(self):
        characters = [SPACE] + [chr(c) for c in range(33, 127)]
        self.merges = []
        self.rank = {}
        for word in _words():
            # The lowest rank so far: words added before keep their pieces.
            while len(pieces := self._bpe(word)) > 1:
                piece = pieces[0] + pieces[1]
                self.rank[piece] = len(self.merges)
                self.merges.append(piece)
        self.pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\n"] + [f"<0x{b:02X}>" for b in range(256)]
        self.first_char = len(self.pieces)
        self.pieces += characters + self.merges + list("éœü")
        self.loc0 = len(self.pieces)
        self.pieces += [f"<loc{i:04d}>" for i in range(1024)]
        self.seg0 = len(self.pieces)
        self.pieces += [f"<seg{i:03d}>" for i in range(128)]
        self.image = len(self.pieces)
        self.rows = (self.image + 1 + 63) // 64 * 64
        self.ids = {p: i for i, p in enumerate(self.pieces)}
        self._cache = {}

    def _bpe(self, text):
        pieces = list(text)
        while True:
            best = min(
                ((self.rank[a + b], i) for i, (a, b) in enumerate(zip(pieces, pieces[1:])) if a + b in self.rank),
                default=None)
            if best is None:
                return pieces
            i = best[1]
            pieces[i:i + 2] = [pieces[i] + pieces[i + 1]]

    def encode(self, text):
        """Token ids of text in the vocabulary's characters; <locNNNN>, <segNNN> and newline are one token each."""
        ids = []
        while text:
            if text[0] == "\n":
                ids.append(NEWLINE)
                text = text[1:]
            elif text[:4] in ("<loc", "<seg"):
                piece, rest = text.split(">", 1)
                ids.append(self.ids[piece + ">"])
                text = rest
            else:
                ends = [e for e in (text.find("<loc"), text.find("<seg"), text.find("\n")) if e > 0]
                run, text = text[:min(ends, default=len(text))], text[min(ends, default=len(text)):]
                if run not in self._cache:
                    if len(self._cache) > 50_000:
                        self._cache.clear()
                    self._cache[run] = [self.ids[p] for p in self._bpe(run.replace(" ", SPACE))]
                ids += self._cache[run]
        return ids

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids if i > UNK and i < self.image).replace(SPACE, " ")

    def model(self):
        """The bytes of tokenizer.model (sentencepiece_model.proto)."""
        normal, unknown, control, user, byte = 1, 2, 3, 4, 6
        out = b""
        for i, piece in enumerate(self.pieces):
            kind, score = normal, 0.0
            if i in (PAD, EOS, BOS):
                kind = control
            elif i == UNK:
                kind = unknown
            elif i == NEWLINE or i >= self.loc0:
                kind = user
            elif i < self.first_char:
                kind = byte
            elif piece in self.rank:
                score = -float(self.rank[piece])
            else:
                score = -float(len(self.merges) + i)
            text = piece.encode()
            body = _field(1, 2, _varint(len(text)) + text) + _field(2, 5, struct.pack("<f", score))
            body += _field(3, 0, _varint(kind))
            out += _field(1, 2, _varint(len(body)) + body)
        trainer = b"".join(_field(n, 0, _varint(v & (1 << 64) - 1)) for n, v in (
            (3, 2),  # BPE
            (4, len(self.pieces)),
            (35, 1),  # byte fallback
            (40, UNK), (41, BOS), (42, EOS), (43, PAD),
        ))
        for n, text in ((45, b"<unk>"), (46, b"<bos>"), (47, b"<eos>"), (48, b"<pad>")):
            trainer += _field(n, 2, _varint(len(text)) + text)
        normalizer = _field(1, 2, _varint(8) + b"identity")
        normalizer += b"".join(_field(n, 0, _varint(v)) for n, v in ((3, 0), (4, 0), (5, 1)))
        for n, body in ((2, trainer), (3, normalizer)):
            out += _field(n, 2, _varint(len(body)) + body)
        return out


def _varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def _field(number, wire, payload):
    return _varint(number << 3 | wire) + payload


def main():
    tokenizer = Tokenizer()
    path = sys.argv[1]
    with open(path, "wb") as f:
        f.write(tokenizer.model())
    print(f"{path}: {len(tokenizer.pieces)} pieces, loc from {tokenizer.loc0}, {tokenizer.rows} embedding rows")
    try:
        import sentencepiece
    except ImportError:
        return
    from scenes import scenes
    processor = sentencepiece.SentencePieceProcessor(model_file=path)
    wrong = total = 0
    for _, questions in scenes(1, 500, "all"):
        for q in questions:
            for text in (q.prompt, q.prompt + "\n", q.answers[0]):
                total += 1
                wrong += processor.encode(text) != tokenizer.encode(text)
    print(f"sentencepiece differs on {wrong} of {total} texts")


if __name__ == "__main__":
    main()
