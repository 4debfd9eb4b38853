"""Draws scenes of coloured shapes and printed words, with questions and answers about them.

    python3 scenes.py --seed 800001 --count 500 --task detect --out DIR

writes PNG pictures of 224 x 224 and `data.jsonl`, one question a line: `image`, `task`, `prompt`, `answers` (any of
them is right), `boxes` ([yMin, xMin, yMax, xMax, label] in [0, 1]) and, for `segment`, `masks` (one PNG of
224 x 224 a box, 255 inside the shape). With `--task all` every scene gets one question of each task that fits it;
`marked` and `chart` have pictures of their own. `--style varied` draws patterned grounds, speckles, other fonts, turned
and partly hidden things. The same seed gives the same files. Seeds from 800,000 upward are held out: training never
draws them. Only the standard library is needed.
"""

import argparse
import json
import os
import random

import charts
from drawing import MARKED, SIZE, STYLES, USUAL, Scene, mask, png
from questions import ASK, TASKS

HELD_OUT = 800_000
ALL_TASKS = TASKS + ["marked", "chart"]


def scenes(seed, count, task, style=USUAL):
    """Yields (scene, questions): `count` scenes, each of which the task (or `all`) fits."""
    made = attempt = 0
    while made < count:
        rng = random.Random(f"{seed}/{task}/{attempt}")
        attempt += 1
        if task == "chart":
            scene = charts.Chart(rng)
            questions = [charts.ask(scene, rng)]
        else:
            scene = Scene(rng, MARKED if task == "marked" else style)
            questions = [q for q in (ASK[t](scene, rng) for t in (TASKS if task == "all" else [task])) if q]
        if questions:
            made += 1
            yield scene, questions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--task", choices=ALL_TASKS + ["all"], default="all")
    parser.add_argument("--style", choices=STYLES, default="usual")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "data.jsonl"), "w") as out:
        for n, (scene, questions) in enumerate(scenes(args.seed, args.count, args.task, STYLES[args.style])):
            image = f"{args.task}_{n:05d}.png"
            with open(os.path.join(args.out, image), "wb") as f:
                f.write(png(scene.draw(), SIZE, SIZE))
            for q in questions:
                row = {"image": image, "task": q.task, "prompt": q.prompt, "answers": q.answers, "boxes": q.boxes}
                if q.task == "segment":
                    row["masks"] = []
                    for k, (i,) in enumerate(q.steps):
                        row["masks"].append(f"{args.task}_{n:05d}_mask{k}.png")
                        with open(os.path.join(args.out, row["masks"][-1]), "wb") as f:
                            f.write(png(mask(scene.things[i]), SIZE, SIZE, 1))
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
