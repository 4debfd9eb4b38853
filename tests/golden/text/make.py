"""Writes the goldens of this folder with the sentencepiece package (pip install sentencepiece protobuf).

    python3 make.py

pg1.json, pg2.json  strings and their ids by the tokenizers in ../checkpoints, and ids with the text they decode to
variants.json       small vocabularies with settings that Gemma does not use, each with its file in base64
"""

import base64
import json
import os
import random

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = f"sentencepiece {sentencepiece.__version__} (Python), make.py"
WORDS = """answer en|detect|caption|the|license|The quick brown fox jumps over the lazy dog.|où est le chat ?|straße|русский
Ελληνικά|עברית|العربية|हिन्दी|ภาษาไทย|生活的真谛是|日本語テキスト|한국어|👩‍👩‍👧‍👦|🏳️‍🌈|👍🏽|e\u0301|\u200b|\ufeff|\u00a0|▁|▁▁|\ufffd|𝔘𝔫𝔦|\U0010ffff
<h1>|</h1>|<s>|<mask>|<unused7>|<bos>|<eos>|<pad>|<unk>|<image>|<0x0A>|<loc0001>|<loc1023>|<loc1024>|<loc12|<seg000>|<seg127>|<seg128>
<<loc0001>>|aaaaaaa|abababab|----|…|;;|://|can't|_x_|007|3.14159|1,000,000|²½|١٢٣|\r\n|\t|\0|\x7f""".replace("\n|", "|").replace(
    "русский\n", "русский|").replace("\U0010ffff\n", "\U0010ffff|").replace("<seg128>\n", "<seg128>|").split("|")


def strings(rng, count, pieces):
    yield from ["", " ", "  ", "\n", "\n\n\n\n\n", " Hello", "Hi  Hello", "Hi   Hello", "This is a test", *WORDS]
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 9)):
            kind = rng.random()
            if kind < 0.4:
                parts.append(rng.choice(WORDS))
            elif kind < 0.5:
                parts.append(rng.choice(" \n") * rng.randrange(1, 12))
            elif kind < 0.6:
                parts.append(str(rng.randrange(10 ** 7)))
            elif kind < 0.9:
                parts.append(rng.choice(pieces).replace("▁", " "))
            else:
                parts.append(chr(rng.choice([rng.randrange(32, 0x3000), rng.randrange(0x1F300, 0x1FAFF)])))
        yield rng.choice(["", " "]).join(parts)


def write(name, value):
    with open(os.path.join(HERE, name), "w") as file:
        json.dump(value, file, ensure_ascii=True, indent=None, separators=(",", ":"))
        file.write("\n")


def checkpoint(name, rng):
    model = sentencepiece.SentencePieceProcessor(
        model_file=os.path.join(HERE, "..", "checkpoints", name, "tokenizer.model"))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    encode = [[text, model.encode(text)] for text in strings(rng, 350, pieces)]
    decode = []
    for i in range(150):
        # Half of them mostly byte pieces, which end up whole, cut and broken. Id 3 is unknown, for which
        # SentencePiece writes a mark of its own.
        high = model.get_piece_size() if i % 2 else 280
        ids = [i for i in (rng.randrange(high) for _ in range(rng.randrange(1, 12))) if i != 3]
        decode.append([ids, model.decode(ids)])
    write(f"{name}.json", {"source": SOURCE, "encode": encode, "decode": decode})


def variant(about, rng, alphabet, count, **settings):
    model = proto.ModelProto()
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = settings.get("byte_fallback", False)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = settings.get("add_dummy_prefix", False)
    model.normalizer_spec.remove_extra_whitespaces = False
    for piece, kind in [("<unk>", 2), ("<s>", 3), ("</s>", 3)] + [(p, 4) for p in settings.get("user", [])]:
        model.pieces.add(piece=piece, score=0, type=kind)
    if model.trainer_spec.byte_fallback:
        for byte in range(256):
            model.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=6)
    for piece in settings["pieces"]:
        # Few different scores, so that many tie.
        model.pieces.add(piece=piece, score=-rng.randrange(settings["scores"]), type=1)
    data = model.SerializeToString()
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    cases = []
    for _ in range(count):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(0, 24)))
        ids = processor.encode(text)
        cases.append([text, ids, processor.decode([i for i in ids if i != 0])])
    return {"about": about, "model": base64.b64encode(data).decode(), "cases": cases}


def main():
    rng = random.Random(20)
    checkpoint("pg1", rng)
    checkpoint("pg2", rng)
    unions = sorted({"".join(rng.choice("ab") for _ in range(rng.randrange(2, 7))) for _ in range(60)})
    spaced = ["▁", "▁a", "▁ab", "a▁", "b▁a", "▁▁", "é", "éa"]
    write("variants.json", {"source": SOURCE, "variants": [
        variant("equal scores", rng, "ab", 150, pieces=["a", "b", *unions], scores=4),
        variant("no byte fallback: a run of unknown characters is one id", rng, "abcé ", 150,
                pieces=["a", "b", *unions, *spaced], scores=8),
        variant("a space is put before the text", rng, "ab é ", 150, add_dummy_prefix=True, byte_fallback=True,
                pieces=["a", "b", *unions, *spaced], scores=1000),
        variant("user-defined pieces that overlap, the longest first", rng, "abc", 150, user=["ab", "abc", "bca", "cc"],
                pieces=["a", "b", "c", *(p for p in unions if p != "ab"), "ca", "ac"], scores=1000),
        variant("a union whose character alone is no piece", rng, "abz", 100, byte_fallback=True,
                pieces=["a", "az", "zb", "zz", "azb"], scores=1000),
    ]})


main()
