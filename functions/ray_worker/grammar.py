"""What an answer to `detect` or `segment` may look like, and which tokens are places: lib/text/grammar.ts, locations.ts."""

import re
from pathlib import Path

import numpy as np

from .work import refuse

LOCATIONS, MASK_CODES, CODES_PER_MASK, NEAR = 1024, 128, 16, 32


class Pieces:
    """A model's tokenizer, as far as answers need it."""

    def __init__(self, directory: Path):
        if (directory / "tokenizer.model").exists():
            import sentencepiece

            processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
            self.encode = processor.encode
            ids = {processor.id_to_piece(id): id for id in range(processor.get_piece_size())}
            find = ids.get
        else:
            import tokenizers

            tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
            self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
            find = tokenizer.token_to_id
        self.locations = [find(f"<loc{i:04}>") for i in range(LOCATIONS)]
        self.codes = [find(f"<seg{i:03}>") for i in range(MASK_CODES)]
        self.bins = {id: i for i, id in enumerate(self.locations) if id is not None}

    def near(self, id: int) -> list[int] | None:
        """Ids of the locations within a thirty-second of the picture's side of this one; None for other tokens."""
        if id not in self.bins:
            return None
        bin = self.bins[id]
        return [it for it in self.locations[max(0, bin - NEAR) : bin + NEAR + 1] if it is not None]


class Node:
    """A set of label endings that share their beginnings."""

    def __init__(self):
        self.next: dict[int, Node] = {}
        self.end = self.again = False

    def walk(self, ids: list[int]) -> "Node":
        node = self
        for id in ids:
            node = node.next.setdefault(id, Node())
        return node


class Grammar:
    """
    One answer: ( item ( " ; " item )* )? EOS, where item is loc loc loc loc ( seg × 16 )? " " label, the second corner
    beyond the first. Raises PoolError `malformed` where the vocabulary or the labels do not allow one.
    """

    @staticmethod
    def of(pieces: Pieces, prompt: str | None, eos_ids: set[int]) -> "Grammar | None":
        """That of a prompt; None for one that begins with neither `detect` nor `segment`."""
        found = re.match(r"(detect|segment)\b([^\n]*)", prompt or "")
        return Grammar(pieces, found[1] == "segment", found[2], eos_ids) if found else None

    def __init__(self, pieces: Pieces, segment: bool, labels: str, eos_ids: set[int]):
        if None in pieces.locations or segment and None in pieces.codes:
            refuse("malformed", "the model's vocabulary has no location pieces, or no mask pieces")
        if re.search("[<>]", labels):
            refuse("malformed", "expected labels without < and >")
        tails = [f" {it.strip()}" for it in labels.split(";") if it.strip()]
        if segment or not tails:
            tails.append("")
        self._pieces, self._codes, self._ends = pieces, pieces.codes if segment else [], sorted(eos_ids)
        self._root = self._label = Node()
        edge = len(pieces.encode("<loc0000>"))
        for tail in tails:
            self._root.walk(pieces.encode(f"<loc0000>{tail}")[edge:]).end = True
            self._root.walk(pieces.encode(f"<loc0000>{tail} ; <loc0000>")[edge:-edge]).again = True
        self._parts, self._bins, self._first, self._ended = 0, [], True, False

    def allowed(self) -> np.ndarray:
        """Ids that may come next."""
        if self._ended:
            return np.array(self._ends)
        if self._parts < 4:
            locations = self._pieces.locations
            ids = locations[:-1] if self._parts < 2 else locations[self._bins[self._parts - 2] + 1 :]
            return np.array(ids + (self._ends if self._first and not self._parts else []))
        if 4 < self._parts < 4 + CODES_PER_MASK:
            return np.array(self._codes)
        ids = list(self._label.next) + (self._ends if self._label.end else [])
        return np.array(ids + (self._codes if self._parts == 4 and self._label is self._root else []))

    def advance(self, id: int) -> None:
        """Takes the token that came."""
        if id not in self.allowed():
            refuse("malformed", f"token {id} was given, which the grammar does not allow")
        if id in self._ends:
            self._ended = True
        elif self._parts < 4:
            self._bins.append(self._pieces.bins[id])
            self._parts += 1
        elif id in self._codes:
            self._parts += 1
        else:
            self._label = self._label.next[id]
            if self._label.again:
                self._parts, self._bins, self._label, self._first = 0, [], self._root, False
