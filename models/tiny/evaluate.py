"""Accuracy on held-out scenes: greedy answers under the exact PaliGemma mask."""

import re

import numpy as np
import torch

from drawing import USUAL
from data import Packer, shrink
from scenes import ALL_TASKS, scenes
from tokenizer import EOS

ITEM = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>((?:<seg\d{3}>)*) ([^;<]*)")


def boxes(text):
    """[[yMin, xMin, yMax, xMax, label]] of a detect or segment answer."""
    return [[int(v) / 1023 for v in m[:4]] + [m[5].strip()] for m in ITEM.findall(text)]


def codes_right(scene, question, text, table):
    """For each mask of an answer that belongs to a wanted box the share of its sixteen codes that are right."""
    shares = []
    for *edges, codes, label in ITEM.findall(text):
        box = [int(v) / 1023 for v in edges]
        thing = next((scene.things[i] for (i,) in question.steps if iou(scene.things[i].box, box) >= 0.5), None)
        if thing:
            wanted, given = table[thing.shape, thing.size], [int(c[4:7]) for c in re.findall("<seg...>", codes)]
            shares.append(sum(a == b for a, b in zip(wanted, given)) / 16)
    return shares


def iou(a, b):
    h, w = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if h <= 0 or w <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return h * w / (area - h * w)


def detection(pairs):
    """pairs of (true boxes, found boxes) a picture -> F1 at IoU 0.5, mean over shapes of the average precision at 0.5.
    An answer has no scores, so all boxes count alike, in the order of the pictures."""
    flags, wanted = {}, {}
    for truth, found in pairs:
        left = list(truth)
        for t in truth:
            wanted[t[4].split()[-1]] = wanted.get(t[4].split()[-1], 0) + 1
        for f in found:
            best = max((t for t in left if t[4] == f[4]), key=lambda t: iou(t, f), default=None)
            hit = best is not None and iou(best, f) >= 0.5
            if hit:
                left.remove(best)
            flags.setdefault((f[4].split() or [""])[-1], []).append(hit)
    aps = []
    for label, total in wanted.items():
        hits = np.array(flags.get(label, [False]), float)
        precision, recall = hits.cumsum() / np.arange(1, len(hits) + 1), hits.cumsum() / total
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        aps.append(float((np.diff(recall, prepend=0) * precision).sum()))
    hits, made, total = sum(map(sum, flags.values())), sum(map(len, flags.values())), sum(wanted.values())
    return 2 * hits / max(1, made + total), sum(aps) / max(1, len(aps))


def evaluate(model, tokenizer, seed, count, tasks=None, wrong=None, codes=None, style=USUAL):
    """{task: share of exact answers; detect: exact answers, F1 and mAP; segment: F1 and the share of right codes}, the
    last where the `codes` of shapes are given."""
    device, grid = model.embedding.device, model.c["image"] // model.c["patch"]
    packer, results = Packer(grid=grid), {}
    for task in tasks or [t for t in ALL_TASKS if codes or t != "segment"]:
        hits, pairs, rows, shares = 0, [], list(scenes(seed, count, task, style)), []
        for start in range(0, len(rows), 100):
            part = rows[start:start + 100]
            pixels = torch.from_numpy(np.stack([shrink(s.draw(), grid) for s, _ in part])).to(device).float() / 127.5 - 1
            answers = model.greedy(pixels, [packer.prefix(q[0].prompt) for _, q in part], EOS, stop=tokenizer.image,
                                   limit=140 if task == "segment" else 48)
            for (scene, (q,)), ids in zip(part, answers):
                text = tokenizer.decode(ids)
                hits += text in q.answers
                if task in ("detect", "segment"):
                    pairs.append((q.boxes, boxes(text)))
                if task == "segment":
                    shares += codes_right(scene, q, text, codes)
                if wrong is not None and text not in q.answers:
                    wrong.append((task, q.prompt, q.answers[0], text))
        results[task] = hits / count
        if task == "segment":
            results["segment"], results["codes"] = detection(pairs)[0], sum(shares) / max(1, len(shares))
        if task == "detect":
            results["F1"], results["mAP"] = detection(pairs)
    return results


def line(results):
    return ", ".join(f"{k} {100 * v:.1f}" for k, v in results.items())
