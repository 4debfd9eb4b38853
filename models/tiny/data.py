"""Training batches: pictures of drawing.py and charts.py, what each patch shows, and packed questions.

A picture's questions stand one after another in one row of `LENGTH` tokens, each at the positions it would have alone;
losses.py's mask keeps them apart. Numbers in a patch's row of `dense`: see DENSE. A grid is the number of patches a side:
8 for pictures of 112 pixels, 16 for 224.
"""

import itertools
import multiprocessing
import os
import random
from dataclasses import replace
from queue import Empty, Full

import numpy as np
from PIL import Image

import charts
import drawing as D
import questions as Q
from scenes import HELD_OUT
from tokenizer import BOS, EOS, NEWLINE, Tokenizer

PATCH, GRID, LENGTH, CAPTION = 14, 8, 192, 48
# kind: 0 ground, 1 thing, 2 word, -1 unsure; thing: index or -1; box in steps of 2 pixels; word: index in WORDS or -1;
# char0, char1: character whose middle is in the left or right half of the patch (0 none, -1 not asked); bits: what the
# decoder may be shown here, a bit for each of seven things, WORD_BIT, and one for each character of a number.
DENSE = ["kind", "thing", "shape", "colour", "y0", "x0", "y1", "x1", "word", "char0", "char1", "bits"]
CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORD_BIT, CHAR_BIT = 7, 8
# What questions are asked about, and the share of each; None is a chart.
ASKED = [(0.67, replace(D.USUAL, printed=0.7, numbers=0.55)), (0.08, D.VARIED), (0.10, D.MARKED), (0.15, None)]
# What only the patches learn from: many words and numbers, many things.
ASIDE = [(0.88, D.PRINTED), (0.12, replace(D.PRINTED, varied=0.4))]
# How often each task is asked of a picture on average, where the row has room, and what its answer weighs in the loss.
PLAN = {
    "caption": (0.8, 3.0), "caption_de": (0.6, 2.5), "caption_fr": (0.6, 2.5), "ocr": (1, 4.0), "segment": (0.6, 2.5),
    "colour": (1, 1.5), "shape": (0.7, 1.0), "detect": (1.8, 2.5), "where": (0.9, 1.0), "yesno": (1.2, 1.0),
    "count": (1.6, 1.5), "size": (1.2, 1.0), "compare": (2, 1.2), "marked": (1, 2.0), "chart": (9, 1.2),
}
# The tasks that hang on small things.
DETAIL = ["caption", "ocr", "segment", "detect", "chart", "count"]


def pick(styles, rng):
    """A scene of one of [(share, style)]."""
    style = rng.choices([s for _, s in styles], [w for w, _ in styles])[0]
    return D.Scene(rng, style) if style else charts.Chart(rng)


def shrink(pixels, grid=GRID):
    """RGB bytes of 224 x 224 -> uint8 [14 grid, 14 grid, 3], as the product resizes (Pillow's bicubic)."""
    whole = Image.frombytes("RGB", (D.SIZE, D.SIZE), bytes(pixels))
    return np.asarray(whole.resize((PATCH * grid, PATCH * grid), Image.BICUBIC))


def dense(scene, grid=GRID):
    """What each patch shows: int16 [grid * grid, len(DENSE)]."""
    step = D.SIZE // grid
    out = np.full((grid * grid, len(DENSE)), -1, np.int16)
    out[:, 0], out[:, 11] = 0, 0
    best = np.zeros(grid * grid, np.float32)

    def cover(x, y, w, h):
        for r in range(y // step, min(grid, (y + h + step - 1) // step)):
            oy = min(y + h, (r + 1) * step) - max(y, r * step)
            for c in range(x // step, min(grid, (x + w + step - 1) // step)):
                yield r * grid + c, oy * (min(x + w, (c + 1) * step) - max(x, c * step)) / step ** 2

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
        row = [1, n, D.SHAPES.index(t.shape) if t.shape else -1, D.COLOUR_NAMES.index(t.colour),
               t.y // 2, t.x // 2, (t.y + t.height) // 2, (t.x + t.width) // 2, -1, -1, -1, 1 << n]
        claim(t.x, t.y, t.width, t.height, row, 0.15)
    for w in scene.words:
        index = -1 if w.text.isdigit() else D.WORDS.index(w.text)
        claim(w.x, w.y, w.width, w.height, [2, -1, -1, -1, -1, -1, -1, -1, index, 0, 0, 1 << WORD_BIT], 0.1)
        for i, c in enumerate(w.text):
            cx, cy = w.x + 6 * i * w.scale + 5 * w.scale // 2, w.y + 7 * w.scale // 2
            patch = out[cy // step * grid + cx // step]
            if patch[0] == 2:
                patch[9 + (cx % step >= step // 2)] = 1 + CHARS.index(c)
                if w.text.isdigit():
                    patch[11] |= 1 << CHAR_BIT + i
    return out


class Packer:
    """Prompts and answers as tokens. `codes` are those of masks.table, without which there is no `segment`; `tasks` are
    the only ones to ask; those of DETAIL are asked `detail` times as often as PLAN says."""

    def __init__(self, codes=None, grid=GRID, tasks=None, detail=1):
        self.t, self.codes, self.grid = Tokenizer(), codes, grid
        self.plan = {k: (times * (detail if k in DETAIL else 1), weight) for k, (times, weight) in PLAN.items()
                     if (not tasks or k in tasks) and (codes or k != "segment")}

    def prefix(self, prompt):
        return [BOS] + self.t.encode(prompt) + [NEWLINE]

    def bits(self, q, answer, scene):
        """For each token of the answer: which things (bits) it speaks of."""
        if q.task.startswith("caption") or q.task == "ocr":
            out, step, last, *word = [], 0, *(self.t.ids["\u2581" + w] for w in self.joints[q.task])
            for token in answer:
                step += token in (self.t.ids[","], last, *word)
                out.append(1 << q.steps[step][0] if step < len(q.steps) else 1 << WORD_BIT)
            number = scene.words[0].text if scene.words and scene.words[0].text.isdigit() else ""
            for i in range(len(number)):  # one token a digit, at the end
                out[len(out) - len(number) + i] = 1 << CHAR_BIT + i
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
        return [sum(1 << i for i in set(q.about))] * len(answer)

    # What joins the last thing, and the word, to a caption.
    joints = {"caption": ("and", "with"), "caption_de": ("und", "mit"), "caption_fr": ("et", "avec"), "ocr": ("and",)}

    def ask(self, task, scene, rng):
        """A question of that task; None where the scene has none."""
        if isinstance(scene, charts.Chart) or task == "chart":
            return charts.ask(scene, rng) if task == "chart" and isinstance(scene, charts.Chart) else None
        if task == "ocr" and not scene.words and rng.random() < 0.1:
            return Q.Question("ocr", "ocr", [""])
        if task != "segment":
            return Q.ASK[task](scene, rng)
        q = Q.located(scene, rng, 1 if rng.random() < 0.8 else 2, "segment")
        items = q.answers[0].split(" ; ") if q.answers[0] else []
        for k, (i,) in enumerate(q.steps):
            if scene.things[i].angle:
                return None  # the codes are those of shapes that stand upright
            codes = self.codes[scene.things[i].shape, scene.things[i].size]
            at = items[k].index(" ")
            items[k] = items[k][:at] + "".join(f"<seg{c:03d}>" for c in codes) + items[k][at:]
        q.answers = [" ; ".join(items)]
        return q

    def row(self, scene, rng):
        """ids, position, question number (-1 padding), prefix?, target (-1 none), weight, bits; each [LENGTH]."""
        wanted = [t for t, (times, _) in self.plan.items() for _ in range(int(times) + (rng.random() < times % 1))]
        rng.shuffle(wanted)
        out = np.zeros((7, LENGTH), np.float32)
        out[2], out[4] = -1, -1
        at, asked = 0, []
        for task in wanted:
            q = self.ask(task, scene, rng)
            if not q or q.task.startswith("caption") and not q.answers[0] or q.prompt in asked:
                continue
            prefix, answer = self.prefix(q.prompt), self.t.encode(q.answers[0])
            n, m = len(prefix), len(answer)
            if at + n + m > LENGTH:
                continue
            s = slice(at, at + n + m)
            out[0, s] = prefix + answer
            out[1, s] = range(self.grid ** 2, self.grid ** 2 + n + m)
            out[2, s] = len(asked)
            out[3, at:at + n] = 1
            out[4, at + n - 1:at + n + m] = answer + [EOS]
            out[5, at + n - 1:at + n + m] = self.plan[task][1] / (m + 1) ** 0.8
            out[6, at + n - 1:at + n - 1 + m] = self.bits(q, answer, scene)
            at += n + m
            asked.append(q.prompt)
        return out

    def caption(self, scene, rng):
        """The words of an English caption, [CAPTION], for the contrast of pictures and texts."""
        text = Q.ASK["caption"](scene, rng).answers[0] if not isinstance(scene, charts.Chart) else Q.listed(
            [f"{b.colour} bar" for b in scene.things], "and")
        ids = self.t.encode(text)[:CAPTION]
        return ids + [0] * (CAPTION - len(ids))


def _draw(queue, seed, first, step, size, aside, packer, parent):
    """The batches first, first + step, first + 2 step ... of a seed; whoever draws them, they are the same."""
    for number in itertools.count(first, step):
        pixels, patches, rows, captions = [], [], [], []
        for k in range(size + aside):
            rng = random.Random(f"train/{seed}/{number * (size + aside) + k}")
            scene = pick(ASKED if k < size else ASIDE, rng)
            if k < size:
                # A model for one task sees the pictures that this task fits.
                while not (row := packer.row(scene, rng))[5].any():
                    scene = pick(ASKED, rng)
                rows.append(row)
                captions.append(packer.caption(scene, rng))
            pixels.append(shrink(scene.draw(), packer.grid))
            patches.append(dense(scene, packer.grid))
        item = np.stack(pixels), np.stack(patches), np.stack(rows, 1), np.array(captions, np.int64)
        while True:
            if os.getppid() != parent:
                return
            try:
                queue.put(item, timeout=5)
                break
            except Full:
                continue


def batches(seed, size, aside=0, packer=None, drawers=1):
    """Endless (pixels uint8 [B + aside, side, side, 3], dense int16 [B + aside, P, 12], rows f32 [7, B, LENGTH], captions
    i64 [B, CAPTION]), drawn beside the training by so many processes; the batches do not depend on how many."""
    assert seed < HELD_OUT, "this seed is held out"
    context = multiprocessing.get_context("fork")
    queues = [context.Queue(2 + 8 // drawers) for _ in range(drawers)]
    rest = size, aside, packer or Packer(), os.getpid()
    workers = [context.Process(target=_draw, args=(q, seed, i, drawers, *rest), daemon=True)
               for i, q in enumerate(queues)]
    for worker in workers:
        worker.start()
    try:
        for turn in itertools.count():
            worker, queue = workers[turn % drawers], queues[turn % drawers]
            while True:
                try:
                    item = queue.get(timeout=30)
                    break
                except Empty:
                    if not worker.is_alive():
                        raise RuntimeError(
                            f"the pictures of seed {seed} stopped: their process ended with {worker.exitcode}")
            yield item
    finally:
        for worker in workers:
            worker.terminate()
