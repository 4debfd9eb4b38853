"""Pictures that are drawn once, by all cores, for the many trainings of findings.py; and its held-out questions.

A pool is a directory of numpy arrays, mapped into memory by those who sample from it: `pixels_S` uint8 [N, S, S, 3] and
`dense_S` int16 [N, P, 12] for each side S, `rows` f32 [N, R, 7, LENGTH] (R rows of other questions to a picture) and
`captions` int16 [N, CAPTION]. A file `done` says that it is whole.
"""

import functools
import json
import os
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

import charts
import drawing as D
import questions as Q
from data import ASIDE, CAPTION, DENSE, LENGTH, PATCH, Packer, dense, pick, shrink
from scenes import scenes

# What pictures with questions show, by share, in this order; None is a chart. Those with a red box come first.
MIXTURE = [(0.20, D.MARKED), (0.57, replace(D.USUAL, printed=0.7, numbers=0.55)), (0.08, D.VARIED), (0.15, None)]
SMALL = D.Style(things=(2, 5), largest=18)
LONG = D.Style(things=(5, 9), printed=0.0, largest=28)
EDGE = D.SIZE // 4  # a canvas of two to one is the middle half of a drawing


@dataclass(frozen=True)
class Pool:
    share: float  # pictures, as a share of those of `main`
    sides: tuple = (112,)
    rows: int = 2


POOLS = {
    "aside": Pool(0.5, rows=0),  # crowded with print, for the patches alone
    "main": Pool(1),
    "twin": Pool(MIXTURE[0][0]),  # the first pictures of `main` without their red boxes, which the prompts name by places
    "detail": Pool(0.5, (56, 112, 224), 1),
    "square": Pool(0.4),  # long canvases, squeezed into a square
    "padded": Pool(0.4),  # the same with grey bars
}


class Coordinates(Packer):
    """Asks for what is in a box of four places instead of the red one."""

    def ask(self, task, scene, rng):
        q = super().ask(task, scene, rng)
        if q and q.task == "marked":
            q.prompt = f"answer en what is in {''.join(map(Q.loc, scene.things[scene.mark].box))}?"
        return q


@functools.cache
def packer(name, directory):
    if name not in ("square", "padded"):
        return (Coordinates if name == "twin" else Packer)()
    packer = Packer(codes(directory), tasks=["segment", "detect", "colour", "shape", "count", "yesno", "caption"])
    packer.plan["segment"] = (1.5, packer.plan["segment"][1])
    return packer


def codes(directory):
    """{(shape, size): [16]}, as masks.table gives them."""
    with open(os.path.join(directory, "codes.json")) as f:
        return {(shape, size): row for shape, size, row in json.load(f)}


def long_scene(rng, wide):
    """A scene on a canvas twice as wide as high, or the reverse: what lies wholly in the middle half of a drawing."""
    while True:
        scene = D.Scene(rng, LONG)
        scene.things = [t for t in scene.things if EDGE <= (at := t.y if wide else t.x) and at + t.size <= D.SIZE - EDGE]
        if scene.things:
            return scene


def squeezed(t, wide):
    """The thing as it lies in the canvas that was made a square."""
    x, y, w, h = (t.x, 2 * (t.y - EDGE), t.size, 2 * t.size) if wide else (2 * (t.x - EDGE), t.y, 2 * t.size, t.size)
    box = [v / D.SIZE for v in (y, x, y + h, x + w)]
    return SimpleNamespace(shape=t.shape, colour=t.colour, size=t.size, angle=0, x=x, y=y, width=w, height=h, box=box)


def long_picture(scene, wide, name):
    """Pixels of 112 x 112; for `square` the things of the scene move along."""
    whole = np.frombuffer(scene.draw(), np.uint8).reshape(D.SIZE, D.SIZE, 3).copy()
    view = whole if wide else whole.transpose(1, 0, 2)
    if name == "padded":
        view[:EDGE] = view[-EDGE:] = 127
        return shrink(whole.tobytes())
    band = view[EDGE:-EDGE] if wide else view[EDGE:-EDGE].transpose(1, 0, 2)
    scene.things = [squeezed(t, wide) for t in scene.things]
    return np.asarray(Image.fromarray(np.ascontiguousarray(band)).resize((112, 112), Image.BICUBIC))


def create(directory, name, pictures):
    """Empty arrays of a pool. -> [(start, stop)] to be drawn, nothing where it is there already."""
    pool, at = POOLS[name], os.path.join(directory, name)
    if os.path.exists(os.path.join(at, "done")):
        return []
    os.makedirs(at, exist_ok=True)
    n = max(64, round(pool.share * pictures))
    shapes = {"rows": ((n, pool.rows, 7, LENGTH), np.float32), "captions": ((n, CAPTION), np.int16)} if pool.rows else {}
    for side in pool.sides:
        shapes[f"pixels_{side}"] = (n, side, side, 3), np.uint8
        shapes[f"dense_{side}"] = (n, (side // PATCH) ** 2, len(DENSE)), np.int16
    for key, (shape, kind) in shapes.items():
        np.lib.format.open_memmap(os.path.join(at, key + ".npy"), "w+", kind, shape).flush()
    return [(start, min(n, start + 256)) for start in range(0, n, 256)]


def draw(directory, name, start, stop):
    """Draws a part of a pool that `create` made."""
    pool, at = POOLS[name], os.path.join(directory, name)
    out = {f[:-4]: np.load(os.path.join(at, f), mmap_mode="r+") for f in os.listdir(at) if f.endswith(".npy")}
    source = {"twin": "main", "padded": "square"}.get(name, name)
    ends = np.cumsum([share for share, _ in MIXTURE])
    for n in range(start, stop):
        rng = random.Random(f"findings/{source}/{n}")
        if source == "square":
            scene = long_scene(rng, n % 2)
            out["pixels_112"][n] = long_picture(scene, n % 2, name)
        else:
            if source == "aside":
                scene = pick(ASIDE, rng)
            else:
                total = len(out["captions"]) / pool.share if name == "twin" else len(out["captions"])
                scene = pick([MIXTURE[min(len(ends) - 1, np.searchsorted(ends, (n + 0.5) / total))]], rng)
            mark = scene.mark
            if name == "twin":
                scene.mark = None
            drawn = scene.draw()
            scene.mark = mark
            for side in pool.sides:
                out[f"pixels_{side}"][n] = shrink(drawn, side // PATCH)
        for side in pool.sides:
            out[f"dense_{side}"][n] = dense(scene, side // PATCH)
        if pool.rows:
            out["captions"][n] = packer(name, directory).caption(scene, rng)
            for r in range(pool.rows):
                out["rows"][n, r] = packer(name, directory).row(scene, rng)


class Sampler:
    """Batches in the order that a seed gives: every picture once before any comes again, then with its other questions.

    `parts` are (pool, pictures): one with questions, then those for the patches alone. `places` is the position at which
    the text begins. What train.Run.loss takes, as numpy arrays."""

    def __init__(self, directory, parts, side, steps, seed, places, twin=False):
        self.parts, self.places = [], places
        for k, (name, size) in enumerate(parts):
            arrays = self.open(directory, name, side)
            n, rng = len(arrays["pixels"]), np.random.default_rng([seed, k])
            order = np.concatenate([rng.permutation(n) for _ in range(-(-steps * size // n))])
            self.parts.append((arrays, size, order))
        self.twin = self.open(directory, "twin", side) if twin else None

    def open(self, directory, name, side):
        arrays = {}
        for key in ("pixels", "dense", "rows", "captions"):
            path = os.path.join(directory, name, f"{key}_{side}.npy" if key in ("pixels", "dense") else f"{key}.npy")
            if os.path.exists(path):
                arrays[key] = torch.from_numpy(np.load(path, mmap_mode="c"))  # copied where written: nobody writes
        return arrays

    def batch(self, step):
        got = {"pixels": [], "dense": []}
        for arrays, size, order in self.parts:
            index = torch.from_numpy(order[step * size:(step + 1) * size])
            for key in got:
                got[key].append(arrays[key].index_select(0, index))
        arrays, size, order = self.parts[0]
        index = torch.from_numpy(order[step * size:(step + 1) * size])
        turn = step * size // len(arrays["pixels"]) % arrays["rows"].shape[1]
        rows, captions = arrays["rows"][:, turn].index_select(0, index), arrays["captions"].index_select(0, index)
        if self.twin:
            mine = (index < len(self.twin["pixels"])).nonzero()[:, 0]
            got["pixels"][0][mine] = self.twin["pixels"].index_select(0, index[mine])
            rows[mine] = self.twin["rows"][:, turn].index_select(0, index[mine])
        rows[:, 1] += self.places - (112 // PATCH) ** 2
        at = (rows[:, 4].flatten() >= 0).nonzero()[:, 0]
        return [t.numpy() for t in (torch.cat(got["pixels"]), torch.cat(got["dense"]), rows.transpose(0, 1).contiguous(),
                                    captions.long(), at)]


# Held-out questions: {name: (task, style)}; `twin`, `square` and `padded` as above.
HELD = {
    **{task: (task, D.USUAL) for task in
       ["colour", "shape", "count", "yesno", "where", "size", "compare", "detect", "ocr", "caption", "chart", "marked"]},
    "small shape": ("shape", SMALL), "small detect": ("detect", SMALL), "twin": ("marked", D.MARKED),
    "square": ("segment", LONG), "padded": ("segment", LONG),
}


def held_out(directory, name, count):
    """Draws `count` held-out scenes with a question each: pictures of all sides, and a JSON list with, for each question,
    prefix (token ids), answers, boxes, and shapes and sizes of what is asked for."""
    path = os.path.join(directory, "held", name.replace(" ", "_"))
    if os.path.exists(path + ".json"):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    task, style = HELD[name]
    long = name in ("square", "padded")
    sides = (112,) if long or name == "twin" else (56, 112, 224)
    pixels, questions, coordinates = {s: np.empty((count, s, s, 3), np.uint8) for s in sides}, [], Coordinates()
    for n, (scene, questions_of) in enumerate(scenes(800_501, count, task, style) if not long else
                                              ((None, None) for _ in range(count))):
        if long:
            rng = random.Random(f"800501/long/{n}")
            scene = long_scene(rng, n % 2)
            pixels[112][n] = long_picture(scene, n % 2, name)
            questions_of = [Q.ASK["segment"](scene, rng)]
        elif name == "twin":
            questions_of = [coordinates.ask(task, scene, random.Random(0))]
            scene.mark = None
        q = questions_of[0]
        if not long:
            drawn = scene.draw()
            for side in sides:
                pixels[side][n] = shrink(drawn, side // PATCH)
        things = [[scene.things[i].shape, scene.things[i].size] for (i,) in q.steps] if task == "segment" else []
        questions.append({"prefix": coordinates.prefix(q.prompt), "answers": q.answers, "boxes": q.boxes, "things": things})
    for side in sides:
        np.save(f"{path}_{side}.npy", pixels[side])
    with open(path + ".part", "w") as f:
        json.dump(questions, f)
    os.replace(path + ".part", path + ".json")
