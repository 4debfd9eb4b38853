"""Findings of the PaliGemma article, checked again with the tiny model: short trainings that differ in one thing alone.

    python3 findings.py run --dir RUN --minutes 9           draws, trains, evaluates; called again, goes on where it was
    python3 findings.py run --dir RUN --steps 2 2 2 --pictures 320 --count 4 --batch 4 --seeds 2       does it run?
    python3 findings.py table --dir RUN                     the tables, of what is there
    python3 findings.py table --dir RUN --into findings.md  the same, each between its marks in that file

Per seed there is one stage 0, shared; trainings of stage 1 that begin from it; and trainings of stage 2 that begin from
stage 1's baseline. Seeds come one after another, so that whatever is finished makes whole tables. A finished training
leaves RUN/results/SEED_ARM.json; RUN/findings.json holds all of them and is all that `table` needs.
"""

import argparse
import json
import os
import re
import shutil
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from PIL import Image

import masks
import pools
import train
from evaluate import ITEM, boxes, detection, iou
from tables import SETTINGS, collect, markdown, put
from tokenizer import EOS


@dataclass(frozen=True)
class Arm:
    stage: int
    start: str = ""
    pool: str = "main"
    side: int = 112
    frozen: bool = False
    causal: bool = False
    squeeze: int = 1
    twin: bool = False
    held: tuple = ()  # what it is asked, of pools.HELD


ANSWERS = ("colour", "shape", "count", "yesno", "where", "size", "compare", "detect", "ocr", "caption", "chart")
DETAIL = ("ocr", "chart", "small detect", "small shape", "detect", "count", "colour", "where", "caption")
# In the order in which a seed does them.
ARMS = {
    "stage0": Arm(0),
    "baseline": Arm(1, "stage0", held=(*ANSWERS, "marked")),
    "frozen": Arm(1, "stage0", frozen=True, held=ANSWERS),
    "causal": Arm(1, "stage0", causal=True, held=ANSWERS),
    "coordinates": Arm(1, "stage0", twin=True, held=("twin", "colour", "shape")),
    "square": Arm(1, "stage0", "square", held=("square",)),
    "padded": Arm(1, "stage0", "padded", held=("padded",)),
    "side56": Arm(2, "baseline", "detail", 56, held=DETAIL),
    "side112": Arm(2, "baseline", "detail", 112, held=DETAIL),
    "side224": Arm(2, "baseline", "detail", 224, held=DETAIL),
    "interpolated": Arm(2, "baseline", "detail", 224, squeeze=4, held=DETAIL),
}
# What a stage adds to train.py's defaults: the learning rates are recipe.py's, the warm-ups shorter.
STAGES = [
    ["vision", "--warm", "50"],
    ["joint", "--warm", "100", "--adam", "1e-3"],
    ["joint", "--warm", "50", "--muon", "0.01", "--adam", "1e-3"],
]
# Tokens of the longest answer.
LIMITS = {"detect": 48, "small detect": 48, "caption": 48, "square": 96, "padded": 96}


class Late(Exception):
    """The time is up."""


def follow(parent):
    """Ends this process with its parent, however that ends."""
    def look():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)
    threading.Thread(target=look, daemon=True).start()


def yield_to_training(parent):
    """What a process that draws does first."""
    follow(parent)
    os.nice(5)


def settle(args, parent):
    """What a process that trains does first."""
    follow(parent)
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(1 if args.device == "cuda" else max(1, os.cpu_count() // args.jobs))
    torch.zeros(1, device=args.device)


def checkpoint(args, seed, name):
    return os.path.join(args.dir, "checkpoints", f"{seed}_{name}.pt")


def learn_masks(args):
    """The codes of `segment`: RUN/masks.pt, and for the drawing RUN/codes.json."""
    path = os.path.join(args.dir, "masks.pt")
    if args.masks:
        shutil.copy(args.masks, path)
    elif not os.path.exists(path):
        masks.train(argparse.Namespace(dir=args.dir, minutes=args.mask_minutes, seed=1, batch=64, device=args.device))
    with open(os.path.join(args.dir, "codes.part"), "w") as f:
        json.dump([[shape, size, row] for (shape, size), row in masks.table(path).items()], f)
    os.replace(f.name, os.path.join(args.dir, "codes.json"))


def job(args, seed, name, deadline):
    """Trains and evaluates one arm. -> pictures; its result lies in RUN/results."""
    arm, steps, began = ARMS[name], args.steps[ARMS[name].stage], time.time()
    aside = (args.batch, args.batch // 4 if arm.pool == "main" else 0, 0)[arm.stage]
    given = [*STAGES[arm.stage], "--steps", str(steps), "--seed", str(seed), "--side", str(arm.side), "--batch",
             str(args.batch), "--device", args.device, "--dir", args.dir]
    if arm.start:
        given += ["--start", checkpoint(args, seed, arm.start)]
    if arm.frozen:
        given += ["--frozen", "encoder"]
    run = train.Run(train.parser().parse_args(given), STAGES[arm.stage][0])
    run.model.causal, run.model.squeeze = arm.causal, arm.squeeze
    if arm.stage == 0:
        run.dense = {**run.dense, "edge": 0.0}  # names alone: places are what finding 3 asks about
    places = (arm.side // 14) ** 2 // arm.squeeze
    sampler = pools.Sampler(args.dir, [(arm.pool, args.batch)] + [("aside", aside)] * (aside > 0), arm.side, steps,
                            seed * 10 + arm.stage, places, arm.twin)
    curve, sums, mark = [], {}, time.time()
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(lambda: train.put(sampler.batch(0), run.device))
        for step in range(steps):
            if time.time() > deadline:
                raise Late
            batch = coming.result()
            coming = ahead.submit(lambda at: train.put(sampler.batch(at), run.device), min(step + 1, steps - 1))
            loss, stats = run.loss(*batch, run.model.vision)
            loss.backward()
            run.update()
            run.step += 1
            for k, v in {"loss": loss.detach(), **stats}.items():
                sums.setdefault(k, []).append(v)
            if run.step % args.log == 0 or run.step == steps:
                curve.append({"step": run.step, **{k: round(torch.stack(v).mean().item(), 4) for k, v in sums.items()}})
                rate = len(sums["loss"]) * (args.batch + aside) / (time.time() - mark)
                print(f"{seed} {name}: step {run.step} of {steps}, loss {curve[-1]['loss']}, {rate:.0f} pictures/s",
                      flush=True)
                sums, mark = {}, time.time()
    trained = time.time()
    pictures = steps * (args.batch + aside)
    result = {"seed": seed, "arm": name, "steps": steps, "pictures": pictures, "seconds": round(trained - began, 1),
              "rate": round(pictures / (trained - began)), "device": torch.cuda.get_device_name() if args.device == "cuda"
              else "CPU", "curve": curve, "scores": {}}
    for held in arm.held:
        if time.time() > deadline:
            raise Late
        with run.cast():
            result["scores"][held] = score(run, args, held, arm.side)
    result["evaluation_seconds"] = round(time.time() - trained, 1)
    if any(other.start == name for other in ARMS.values()):
        path = checkpoint(args, seed, name)
        state = {"model": run.model.state_dict(), "heads": run.heads.state_dict(), "pieces": run.t.pieces}
        torch.save(state, path + ".part")
        os.replace(path + ".part", path)
    path = os.path.join(args.dir, "results", f"{seed}_{name}.json")
    with open(path + ".part", "w") as f:
        json.dump(result, f)
    os.replace(path + ".part", path)
    if args.device == "cuda":
        torch.cuda.empty_cache()
    return pictures


def score(run, args, held, side):
    """Greedy answers to held-out questions, under the mask of the arm. -> {metric: share}."""
    path = os.path.join(args.dir, "held", held.replace(" ", "_"))
    pixels = np.load(f"{path}_{side}.npy", mmap_mode="r")
    with open(path + ".json") as f:
        questions = json.load(f)
    texts = []
    for at in range(0, len(questions), 500):
        [part] = train.put([pixels[at:at + 500].copy()], run.device)
        ids = run.model.greedy(part.float() / 127.5 - 1, [q["prefix"] for q in questions[at:at + 500]], EOS,
                               LIMITS.get(held, 16), run.t.image)
        texts += [run.t.decode(answer) for answer in ids]
    out = {"exact": sum(text in q["answers"] for q, text in zip(questions, texts)) / len(questions)}
    if "detect" in held or questions[0]["things"]:
        out["F1"] = detection([(q["boxes"], boxes(text)) for q, text in zip(questions, texts)])[0]
        places = [matched(q["boxes"], boxes(text)) for q, text in zip(questions, texts)]
        wanted = sum(len(q["boxes"]) for q in questions)
        out["box IoU"] = sum(share for found in places for _, _, share in found) / max(1, wanted)
    if questions[0]["things"]:
        out["codes"], out["mask IoU"] = segmented(args, questions, texts, places)
    return out


def matched(truth, found):
    """(wanted, given, IoU) of boxes of one label, the nearest pairs first."""
    pairs, used = [], set()
    ways = [(iou(t, f), i, j) for i, t in enumerate(truth) for j, f in enumerate(found) if t[4] == f[4]]
    for share, i, j in sorted(ways, reverse=True):
        if share > 0 and ("t", i) not in used and ("f", j) not in used:
            used |= {("t", i), ("f", j)}
            pairs.append((i, j, share))
    return pairs


@torch.no_grad()
def segmented(args, questions, texts, places):
    """Share of right codes of the masks whose box was found at an IoU of 0.5, and mean IoU of all masks that were asked
    for, 0 for one that was not given."""
    codes, model = pools.codes(args.dir), masks.load(os.path.join(args.dir, "masks.pt")).to(args.device)
    given, asked, right = [], [], []
    for q, text, found in zip(questions, texts, places):
        items = [[int(c) for c in re.findall(r"<seg(\d{3})>", m[4])] for m in ITEM.findall(text)]
        ends = boxes(text)
        for i, j, share in found:
            shape, size = q["things"][i]
            if share >= 0.5:
                right.append(sum(a == b for a, b in zip(codes[shape, size], items[j])) / 16)
            if len(items[j]) == 16:
                given.append(items[j])
                asked.append((shape, size, q["boxes"][i], ends[j]))
    total = 0.0
    for at in range(0, len(given), 250):
        z = model._vq_vae._embedding[torch.tensor(given[at:at + 250], device=args.device).flatten()]
        for grey, (shape, size, wanted, end) in zip((model.decode(z).float().cpu().numpy() + 1) / 2, asked[at:at + 250]):
            a, b = painted(masks.crop(shape, size), wanted), painted(grey, end)
            total += (a & b).sum() / max(1, (a | b).sum())
    return sum(right) / max(1, len(right)), total / sum(len(q["boxes"]) for q in questions)


def painted(grey, box, side=224):
    """A mask of 64 x 64 in its box of a picture: bool [side, side]."""
    y0, x0, y1, x1 = (round(v * side) for v in box[:4])
    out = np.zeros((side, side), bool)
    if y1 > y0 and x1 > x0:
        whole = Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8)).resize((x1 - x0, y1 - y0), Image.BILINEAR)
        out[y0:y1, x0:x1] = (np.asarray(whole) > 127)[:side - y0, :side - x0]
    return out


def begin(args):
    """The directory of a run; one that was begun with other settings is refused."""
    if args.pictures < 320:
        raise SystemExit(f"--pictures: expected at least 320, found {args.pictures}")
    for part in ("checkpoints", "results", "held"):
        os.makedirs(os.path.join(args.dir, part), exist_ok=True)
    path, mine = os.path.join(args.dir, "settings.json"), {k: getattr(args, k) for k in SETTINGS}
    if os.path.exists(path):
        with open(path) as f:
            theirs = json.load(f)
        if theirs != mine:
            raise SystemExit(f"{args.dir} was begun with {theirs}; expected the same, found {mine}")
    with open(path, "w") as f:
        json.dump(mine, f)


def run(args):
    """Draws and trains until all is done or the time is up, as many at a time as --cores and --jobs say."""
    began = time.time()
    deadline = began + args.minutes * 60
    begin(args)

    def say(text):
        print(f"[{time.time() - began:.0f} s] {text}", flush=True)

    drawing = ProcessPoolExecutor(args.cores, get_context("fork"), yield_to_training, (os.getpid(),))
    done, failed, running, trained, first = set(), {}, {}, 0, None
    exists = lambda *parts: os.path.exists(os.path.join(args.dir, *parts))
    for seed in range(1, args.seeds + 1):
        done |= {(seed, name) for name, arm in ARMS.items() if exists("results", f"{seed}_{name}.json")
                 and (name not in ("stage0", "baseline") or exists("checkpoints", f"{seed}_{name}.pt"))}
    if exists("codes.json"):
        done.add("masks")
    parts = {}  # what is still to be drawn of a pool

    def start_drawing(*names):
        for name in names:
            tasks = pools.create(args.dir, name, args.pictures)
            parts[name] = len(tasks)
            for task in tasks:
                running[drawing.submit(pools.draw, args.dir, name, *task)] = ("draw", name)
            if not tasks:
                done.add(name)

    start_drawing("aside", "main")
    training = ProcessPoolExecutor(args.jobs, get_context("spawn"), settle, (args, os.getpid()))
    for _ in range(args.jobs):
        training.submit(time.sleep, 0)  # starts them all now
    if "masks" in done:
        start_drawing("square", "padded")
    else:
        running[training.submit(learn_masks, args)] = "masks"
    start_drawing("twin", "detail")
    for held in pools.HELD:
        running[drawing.submit(pools.held_out, args.dir, held, args.count)] = ("held", held)

    def needs(seed, name):
        arm = ARMS[name]
        wanted = {arm.pool, *[("held", h) for h in arm.held]} | ({(seed, arm.start)} if arm.start else set())
        if arm.stage < 2 and arm.pool == "main":
            wanted.add("aside")
        if arm.twin:
            wanted.add("twin")
        return wanted - done

    while True:
        busy, late = set(running.values()) - done, time.time() > deadline
        free = 0 if late else args.jobs - len([what for what in busy if what == "masks" or isinstance(what[0], int)])
        ready = [what for what in ((seed, name) for seed in range(1, args.seeds + 1) for name in ARMS)
                 if what not in done and what not in busy and failed.get(what, 0) < 2 and not needs(*what)]
        for what in ready[:free]:
            first = first or time.time()
            running[training.submit(job, args, *what, deadline)] = what
        if not running or time.time() > deadline + 5:
            break
        for future in wait(running, timeout=5, return_when=FIRST_COMPLETED).done:
            what, error = running.pop(future), future.exception()
            if isinstance(error, Late):
                say(f"{what}: no time left")
            elif error:
                failed[what] = failed.get(what, 0) + 1
                say(f"{what} failed: " + "".join(traceback.format_exception(error))[-2000:])
            elif isinstance(what, tuple) and what[0] == "draw":
                parts[what[1]] -= 1
                if not parts[what[1]]:
                    open(os.path.join(args.dir, what[1], "done"), "w").close()
                    done.add(what[1])
                    say(f"drawn: {what[1]}")
            else:
                done.add(what)
                if what == "masks":
                    start_drawing("square", "padded")
                if isinstance(what[0], int):
                    trained += future.result()
                    collect(args.dir)
                    say(f"{what[0]} {what[1]} done; all together {trained / (time.time() - first):.0f} pictures/s")
    drawing.shutdown(wait=False, cancel_futures=True)
    training.shutdown(wait=False, cancel_futures=True)
    say(f"{len([w for w in done if isinstance(w[0], int)])} of {args.seeds * len(ARMS)} trainings are done")
    print(markdown(collect(args.dir)), flush=True)
    os._exit(0)  # whatever still runs ends with this process


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--dir", required=True)
    parser.add_argument("--minutes", type=float, default=9, help="of the whole, drawing included")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs=3, default=[300, 400, 200], help="of the stages 0, 1 and 2")
    parser.add_argument("--batch", type=int, default=128, help="pictures with questions")
    parser.add_argument("--pictures", type=int, default=60_000, help="drawn for stage 1; the other pools in proportion")
    parser.add_argument("--count", type=int, default=1000, help="held-out questions of a task")
    parser.add_argument("--jobs", type=int, default=8, help="trainings at a time")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="processes that draw")
    parser.add_argument("--masks", help="checkpoint of masks.py; without it one is made")
    parser.add_argument("--mask-minutes", type=float, default=0.4)
    parser.add_argument("--log", type=int, default=100)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--into", help="for `table`: a file with the marks of tables.put")
    args = parser.parse_args()
    if args.action == "run":
        # Asked without touching CUDA, which a process that is forked later could not use.
        args.device = args.device or ("cuda" if torch.cuda.device_count() else "cpu")
        try:
            return run(args)
        except KeyboardInterrupt:
            print("interrupted; called again, it goes on where it was", flush=True)
            os._exit(130)  # whatever still runs ends with this process
    found = collect(args.dir)
    if args.into:
        put(found, args.into)
    else:
        print(markdown(found))


if __name__ == "__main__":
    main()
