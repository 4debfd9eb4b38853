"""Training batches: pictures of scenes.py, what each patch shows, and packed questions.

A picture's questions stand one after another in one row of `LENGTH` tokens, each at the positions it would have alone;
train.py's mask keeps them apart. Numbers in a patch's row of `dense`: see DENSE.
"""

import multiprocessing
import os
import random

import numpy as np
from PIL import Image

import scenes as S
from tokenizer import BOS, EOS, NEWLINE, Tokenizer

PATCHES, STEP, LENGTH = 8, 28, 192
# kind: 0 ground, 1 thing, 2 word, -1 unsure; thing: index or -1; box in steps of 2 pixels; word: index in WORDS or -1;
# char0, char1: character whose middle is in the left or right half of the patch (0 none, -1 not asked).
DENSE = ["kind", "thing", "shape", "colour", "y0", "x0", "y1", "x1", "word", "char0", "char1"]
CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORD_BIT = 7
# How often each task is asked of a picture, and what its answer weighs in the loss.
PLAN = [("caption", 1, 2.5), ("ocr", 1, 2.0), ("segment", 1, 2.5), ("colour", 2, 1.5), ("shape", 1, 1.0), ("detect", 3, 2.5),
        ("where", 1, 1.0), ("yesno", 2, 1.0), ("count", 2, 1.2)]
# Asked where the row has room.
EXTRA = [("colour", 1, 1.5), ("shape", 1, 1.0), ("where", 1, 1.0), ("detect", 1, 2.5), ("yesno", 1, 1.0)]


def shrink(pixels):
    """RGB bytes of 224 x 224 -> uint8 [112, 112, 3], as the product resizes (Pillow's bicubic)."""
    return np.asarray(Image.frombytes("RGB", (S.SIZE, S.SIZE), bytes(pixels)).resize((112, 112), Image.BICUBIC))


def dense(scene):
    """What each patch shows: int16 [64, len(DENSE)]."""
    out = np.full((PATCHES * PATCHES, len(DENSE)), -1, np.int16)
    out[:, 0] = 0
    best = np.zeros(PATCHES * PATCHES, np.float32)

    def cover(x, y, w, h):
        for r in range(y // STEP, min(PATCHES, (y + h + STEP - 1) // STEP)):
            oy = min(y + h, (r + 1) * STEP) - max(y, r * STEP)
            for c in range(x // STEP, min(PATCHES, (x + w + STEP - 1) // STEP)):
                yield r * PATCHES + c, oy * (min(x + w, (c + 1) * STEP) - max(x, c * STEP)) / STEP ** 2

    def claim(x, y, w, h, row, threshold):
        parts = list(cover(x, y, w, h))
        top = max(parts, key=lambda p: p[1])[0]
        for i, part in parts:
            if (part >= threshold or i == top) and part > best[i]:
                best[i] = part
                out[i] = row
            elif part > 0.02 and best[i] == 0:
                out[i, 0] = -1

    for n, t in enumerate(scene.things):
        row = [1, n, S.SHAPES.index(t.shape), S.COLOUR_NAMES.index(t.colour),
               t.y // 2, t.x // 2, (t.y + t.size) // 2, (t.x + t.size) // 2, -1, -1, -1]
        claim(t.x, t.y, t.size, t.size, row, 0.15)
    for w in scene.words:
        index = -1 if w.text.isdigit() else S.WORDS.index(w.text)
        claim(w.x, w.y, w.width, w.height, [2, -1, -1, -1, -1, -1, -1, -1, index, 0, 0], 0.1)
        for i, c in enumerate(w.text):
            cx, cy = w.x + 6 * i * w.scale + 5 * w.scale // 2, w.y + 7 * w.scale // 2
            patch = out[cy // STEP * PATCHES + cx // STEP]
            if patch[0] == 2:
                patch[9 + (cx % STEP >= STEP // 2)] = 1 + CHARS.index(c)
    return out


class Packer:
    """`codes`: the mask tokens of every shape at every size ({(shape, size): [16]}); without them nothing is asked to be
    segmented."""

    def __init__(self, codes=None):
        self.t, self.codes = Tokenizer(), codes

    def prefix(self, prompt):
        return [BOS] + self.t.encode(prompt) + [NEWLINE]

    def bits(self, q, answer):
        """For each token of the answer: which things (bits) it speaks of."""
        word = 1 << WORD_BIT
        if q.task == "ocr":
            return [word] * len(answer)
        if q.task == "caption":
            out, step, end = [], 0, {self.t.ids[","], self.t.ids["\u2581and"], self.t.ids["\u2581with"]}
            for token in answer:
                if token in end:
                    step += 1
                out.append(1 << q.steps[step][0] if step < len(q.steps) else word)
            return out
        if q.task in ("detect", "segment"):
            out, step, separator = [], 0, self.t.ids["\u2581;\u2581"]
            for token in answer:
                if token == separator:
                    step += 1
                    out.append(0)
                else:
                    out.append(1 << q.steps[step][0])
            return out
        return [sum(1 << i for i in q.about)] * len(answer)

    def ask(self, task, scene, rng):
        """A question of that task; None where the scene has none."""
        if task != "segment":
            return S.ASK[task](scene, rng)
        if not self.codes:
            return None
        q = S._detect(scene, rng, 1 if rng.random() < 0.8 else 2, "segment")
        items = q.answers[0].split(" ; ") if q.answers[0] else []
        for k, (i,) in enumerate(q.steps):
            codes = self.codes[scene.things[i].shape, scene.things[i].size]
            at = items[k].index(" ")
            items[k] = items[k][:at] + "".join(f"<seg{c:03d}>" for c in codes) + items[k][at:]
        q.answers = [" ; ".join(items)]
        return q

    def row(self, scene, rng):
        """ids, position, question number (-1 padding), prefix?, target (-1 none), weight, bits; each [LENGTH]."""
        questions, used = [], 0
        for task, times, weight in PLAN + EXTRA:
            for _ in range(times):
                q = self.ask(task, scene, rng)
                if q is None and task == "ocr" and rng.random() < 0.1:
                    q = S.Question("ocr", "ocr", [""])
                if not q or task == "caption" and not q.answers[0] or any(q.prompt == o[0].prompt for o in questions):
                    continue
                prefix, answer = self.prefix(q.prompt), self.t.encode(q.answers[0])
                if used + len(prefix) + len(answer) <= LENGTH:
                    used += len(prefix) + len(answer)
                    questions.append((q, weight, prefix, answer))
        rng.shuffle(questions)
        out = np.zeros((7, LENGTH), np.float32)
        out[2], out[4] = -1, -1
        at = number = 0
        for q, weight, prefix, answer in questions:
            n, m = len(prefix), len(answer)
            s = slice(at, at + n + m)
            out[0, s] = prefix + answer
            out[1, s] = range(PATCHES ** 2, PATCHES ** 2 + n + m)
            out[2, s] = number
            out[3, at:at + n] = 1
            out[4, at + n - 1:at + n + m] = answer + [EOS]
            out[5, at + n - 1:at + n + m] = weight / (m + 1) ** 0.8
            out[6, at + n - 1:at + n - 1 + m] = self.bits(q, answer)
            at, number = at + n + m, number + 1
        return out


def _work(queue, seed, size, crowded, questions, codes, parent):
    packer, n = Packer(codes), 0
    while os.getppid() == parent:
        pixels, patches, rows = [], [], []
        for _ in range(size):
            rng = random.Random(f"train/{seed}/{n}")
            n += 1
            scene = S.Scene(rng, rng.random() < crowded)
            pixels.append(shrink(scene.draw()))
            patches.append(dense(scene))
            if questions:
                rows.append(packer.row(scene, rng))
        item = (np.stack(pixels), np.stack(patches), np.stack(rows, 1) if questions else None)
        while os.getppid() == parent:
            try:
                queue.put(item, timeout=5)
                break
            except Exception:
                continue


def batches(seed, size, crowded=0.0, questions=True, codes=None):
    """Endless (pixels uint8 [B, 112, 112, 3], dense int16 [B, 64, 11], rows f32 [7, B, LENGTH] or None), drawn beside."""
    assert seed < S.HELD_OUT, "this seed is held out"
    context = multiprocessing.get_context("fork")
    queue = context.Queue(4)
    worker = context.Process(
        target=_work, args=(queue, seed, size, crowded, questions, codes, os.getpid()), daemon=True)
    worker.start()
    while True:
        yield queue.get()
