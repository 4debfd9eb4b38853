"""PaliGemma's recipe (arXiv 2407.07726, section 3.1) at a size anyone can run, from nothing to a model for one task.

    python3 recipe.py --dir RUN                      two hours on a CPU
    python3 recipe.py --dir RUN --minutes 15         on CUDA, where batches are four times as large
    python3 recipe.py --dir RUN --steps 2            two steps a stage: does it run?

Stage 0, unimodal: the mask codes; the language half alone on the texts of the tasks; the encoder against the language
half's embedding, by SigLIP's sigmoid contrast of pictures and captions and by what each patch shows. Stage 1: both
together, nothing frozen, the encoder's rate rising slowly. Stage 2: 224 pixels instead of 112, the table of positions
stretched, tasks of detail asked more often. Stage 3: one task alone. Each stage has a directory of its own in RUN with its
curve, and those with answers a model in Hugging Face layout. An interrupted recipe goes on where it was when called again.
"""

import argparse
import os

import torch

import export
import masks
import train
from model import CONFIG, Tiny
from questions import TASKS
from tokenizer import Tokenizer

# Name, share of the time, arguments of train.py. The learning rates are those of the bundled model.
STAGES = [
    ("0_language", 0.03, ["language"]),
    ("0_vision", 0.14, ["vision", "--batch", "32", "--aside", "48"]),
    ("1_joint", 0.53, ["joint", "--batch", "32", "--aside", "16", "--warm", "400", "--adam", "1e-3"]),
    ("2_detail", 0.20, ["joint", "--batch", "16", "--aside", "8", "--side", "224", "--detail", "2", "--warm", "100",
                        "--muon", "0.01", "--adam", "1e-3"]),
    ("3_transfer", 0.06, ["joint", "--batch", "16", "--side", "224", "--muon", "0.004", "--adam", "3e-4"]),
]
MASKS = 0.04


def stage(args, number):
    """The arguments of a stage; it starts from the checkpoint of the one before."""
    name, share, given = STAGES[number]
    length = ["--steps", str(args.steps)] if args.steps else ["--minutes", str(share * args.minutes)]
    given = [*given, *length, "--dir", os.path.join(args.dir, name), "--seed", str(args.seed * 10 + number), "--resume",
             "--masks", os.path.join(args.dir, "masks.pt"), "--device", args.device, "--log", "1" if args.steps else "20"]
    if number:
        before, _, (kind, *_) = STAGES[number - 1]
        given += ["--start", os.path.join(args.dir, before, f"{kind}.pt")]
    if name == "3_transfer":
        given += ["--tasks", args.task]
    given = train.parser().parse_args(given)
    given.batch, given.aside, given.drawers = given.batch * args.scale, given.aside * args.scale, args.drawers
    return given


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--steps", type=int, help="of each stage, instead of --minutes: the same on any machine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--task", choices=TASKS + ["chart", "marked"], default="ocr", help="what stage 3 transfers to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=int, help="pictures of a batch in those of the stages above; 1, with CUDA 4")
    parser.add_argument("--drawers", type=int, help="processes that draw; by default one, with CUDA all cores but two")
    args = parser.parse_args()
    args.scale = args.scale or (4 if args.device == "cuda" else 1)
    torch.set_num_threads(args.threads)
    os.makedirs(args.dir, exist_ok=True)
    if not os.path.exists(os.path.join(args.dir, "masks.pt")):
        minutes = 0.02 if args.steps else MASKS * args.minutes
        masks.train(argparse.Namespace(dir=args.dir, minutes=minutes, seed=args.seed, batch=64, device=args.device))
    for number, (name, _, (kind, *_)) in enumerate(STAGES):
        print(f"stage {name}", flush=True)
        given = stage(args, number)
        train.train(given)
        if kind == "joint":
            tokenizer, out = Tokenizer(), os.path.join(given.dir, "model")
            model = Tiny(tokenizer.rows, {**CONFIG, "image": given.side})
            path = os.path.join(given.dir, "joint.pt")
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=False)["model"])
            export.export(model, tokenizer, out)
            masks.export(argparse.Namespace(dir=args.dir, out=out))


if __name__ == "__main__":
    main()
