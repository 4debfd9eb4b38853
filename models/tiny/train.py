"""Trains the tiny model on drawn scenes.

    python3 train.py language --minutes 5 --dir RUN         the language half learns the texts of the tasks, blind
    python3 train.py vision --minutes 15 --start RUN/language.pt --dir RUN    image tokens learn what each patch shows
    python3 train.py joint --minutes 80 --start RUN/vision.pt --dir RUN       then the whole model learns to answer
    python3 train.py joint --start models/tiny --masks RUN/masks.pt --steps 1200 --dir RUN     learns more, with masks
    python3 train.py joint ... --resume                     goes on after an interruption
    python3 train.py eval --checkpoint RUN/joint.pt         accuracy on held-out scenes
    python3 train.py export --checkpoint RUN/joint.pt --out DIR

recipe.py runs the stages one after another. The learning rate stands, then falls to nothing over the last part of
--minutes on the wall clock, or of --steps.
"""

import argparse
import csv
import os
import time

import numpy as np
import torch

import masks
from data import Packer, batches
from evaluate import evaluate, line
from export import carry, export, read
from losses import Patches, answer_loss, look, packed_mask, smooth_locations
from model import CONFIG, Linear, Tiny
from muon import Muon
from tokenizer import Tokenizer

STAGES = ["language", "vision", "joint"]
DENSE = {"kind": 0.5, "shape": 1.0, "colour": 0.5, "word": 0.7, "edge": 0.5, "char": 2.5}


class Run:
    """Model, heads, optimisers and the clock of one stage."""

    def __init__(self, args, stage):
        torch.manual_seed(args.seed)
        self.args, self.stage, self.device = args, stage, torch.device(args.device)
        self.t = Tokenizer()
        self.model = Tiny(self.t.rows, {**CONFIG, "image": args.side})
        self.heads = Patches(self.t, self.model.c["width"])
        with torch.no_grad():
            self.model.embedding[self.t.loc0:self.t.loc0 + 1024] = smooth_locations(self.model.c["width"])
        self.step, self.spent, self.pictures, self.dense = 0, 0.0, 0, DENSE
        self.path = os.path.join(args.dir, f"{stage}.pt")
        resumed = self.begin()
        self.model.to(self.device)
        self.heads.to(self.device)
        if args.frozen:
            self.model.vision.requires_grad_(False)
            self.model.vision.project.requires_grad_(args.frozen == "encoder")
        # The encoder has a rate of its own, so that it can start slowly.
        self.halves = {}
        if stage != "language":
            self.halves["vision"] = self.optimisers([*self.model.vision.named_parameters()], self.model.vision)
        text = [(k, p) for k, p in self.model.named_parameters() if not k.startswith("vision.")]
        if stage == "vision":
            text = [(k, p) for k, p in text if k == "embedding"]
        self.halves["text"] = self.optimisers(text + [*self.heads.named_parameters()], self.model.layers)
        if resumed:
            self.step, self.spent, self.pictures = resumed["step"], resumed["spent"], resumed["pictures"]
            for name, (muon, adam) in self.halves.items():
                adam.load_state_dict(resumed["adam"][name])
                muon.momentum = resumed["muon"][name]

    def optimisers(self, named, module):
        mine = {id(p) for _, p in named if p.requires_grad}
        muon = Muon([m for m in module.modules() if isinstance(m, Linear) and id(m.weight) in mine])
        matrices = {id(p) for p in muon.params}
        rest = [p for _, p in named if p.requires_grad and id(p) not in matrices]
        adam = torch.optim.AdamW(rest or [torch.zeros(1)], lr=self.args.adam, betas=(0.9, 0.95), weight_decay=0.0)
        return muon, adam

    def begin(self):
        """The weights to start from; the state of an interrupted run, or None."""
        start = self.args.start
        if self.args.resume and os.path.exists(self.path):
            state = torch.load(self.path, map_location="cpu", weights_only=False)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            return state
        if start and os.path.isdir(start):
            older = Tiny(1)
            pieces = read(older, start)
            self.model.load_state_dict(carry(older.state_dict(), self.model, pieces, self.t))
        elif start:
            state = torch.load(start, map_location="cpu", weights_only=False)
            self.model.load_state_dict(carry(state["model"], self.model, state["pieces"], self.t))
            self.heads.load_state_dict(state["heads"], strict=False)
        return None

    def save(self):
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict(), "pieces": self.t.pieces,
                 "side": self.args.side, "adam": {k: a.state_dict() for k, (_, a) in self.halves.items()},
                 "muon": {k: m.momentum for k, (m, _) in self.halves.items()}, "step": self.step, "spent": self.spent,
                 "pictures": self.pictures}
        torch.save(state, self.path + ".part")
        os.replace(self.path + ".part", self.path)

    def progress(self):
        return min(1.0, self.step / self.args.steps if self.args.steps else self.spent / (self.args.minutes * 60))

    def update(self):
        rate = min(1.0, (1 - self.progress()) / self.args.decay + 0.01)
        for name, (muon, adam) in self.halves.items():
            warm = self.args.warm if name == "vision" else 50
            mine = rate * min(1.0, (self.step + 1) / warm)
            params = [p for g in adam.param_groups for p in g["params"]]
            for p in muon.params + params:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            muon.step(self.args.muon * mine)
            for g in adam.param_groups:
                g["lr"] = self.args.adam * mine
            adam.step()
            for p in muon.params + params:
                p.grad = None

    def cast(self):
        return torch.autocast(self.device.type, torch.bfloat16)

    def loss(self, pixels, dense, rows, captions, at, vision, body=None):
        """Loss of one batch, {what: number}, all still on the device. The first B pictures have questions, the others
        only patches; at i64 [N]: the tokens of rows that have a target, flat."""
        table, p, stats = self.model.table(), dense.shape[1], {}
        sigma = 1.0 if self.args.start or self.progress() > 0.5 else 1.5
        total = torch.zeros((), device=self.device)
        if self.stage == "language":
            tokens = torch.zeros(rows.shape[1], p, self.model.c["width"], device=self.device, dtype=torch.bfloat16)
        else:
            with self.cast():
                tokens = vision(pixels.float() / 127.5 - 1)
            if self.args.frozen != "all":
                parts, stats = self.heads(tokens, dense, table, sigma)
                total = sum(self.dense[k] * v for k, v in parts.items())
            tokens, dense = tokens[:rows.shape[1]], dense[:rows.shape[1]]
        if self.stage == "vision":
            match = self.heads.match(tokens, captions, table)
            return total + 0.2 * match, {**stats, "match": match.detach()}
        show = torch.rand(rows.shape[1], device=self.device) < 0.5
        seen = packed_mask(rows, show, p, self.model.causal)
        if self.stage == "language":
            seen[:, p:, :p] = False  # blind: the texts alone
        with self.cast():
            x = torch.cat([tokens, self.model.words(rows[0].long(), table).to(tokens.dtype)], 1)
            position = self.model.positions(p, 0, self.device).expand(rows.shape[1], -1)
            score = torch.zeros(seen.shape, dtype=tokens.dtype, device=self.device).masked_fill(~seen, -1e9)[:, None]
            only = at + (at // rows.shape[2] + 1) * p  # image tokens stand before the text of every row
            states, caches = self.model.decode_only(x, score, torch.cat([position, rows[1]], 1), only, body)
        answer, more = answer_loss(states, table, rows, at, self.t.loc0, sigma)
        if self.stage == "language":
            return answer, {**more, "answer": answer.detach()}
        with self.cast():
            looking, found = look(caches, seen, rows, dense)
        return answer + self.args.dense * total + self.args.look * looking, {
            **stats, **more, "look": found, "answer": answer.detach()}


def put(arrays, device):
    """Tensors of numpy arrays on the device, which is not waited for."""
    tensors = [torch.from_numpy(a) for a in arrays]
    return [t.pin_memory().to(device, non_blocking=True) for t in tensors] if device.type == "cuda" else tensors


def train(args):
    stage = args.stage
    os.makedirs(args.dir, exist_ok=True)
    run = Run(args, stage)
    codes = masks.table(args.masks) if args.masks else None
    packer = Packer(codes, args.side // 14, args.tasks, args.detail)
    drawers = args.drawers or (max(1, os.cpu_count() - 2) if run.device.type == "cuda" else 1)
    source = batches(args.seed * 1000 + run.step, args.batch, args.aside if stage != "language" else 0, packer, drawers)
    curve = open(os.path.join(args.dir, f"{stage}.csv"), "a", newline="")
    writer = csv.writer(curve)
    sums, since, saved, tested = {}, 0, time.time(), time.time()
    vision = torch.compile(run.model.vision) if args.compile else run.model.vision
    body = torch.compile(run.model.body) if args.compile else None
    clock = time.time()
    while run.progress() < 1:
        if not run.model.fake and stage == "joint" and run.progress() > 1 - args.quantised:
            print("weights are rounded from here on", flush=True)
            run.model.fake_quantise(True)
        batch = next(source)
        batch = put((*batch, np.flatnonzero(batch[2][4] >= 0)), run.device)
        loss, stats = run.loss(*batch, vision, body)
        loss.backward()
        run.update()
        run.step, run.pictures, since = run.step + 1, run.pictures + len(batch[0]), since + 1
        now = time.time()
        run.spent, clock = run.spent + min(20.0, now - clock), now  # a pause of the machine is no training
        for k, v in {"loss": loss.detach(), **stats}.items():
            sums.setdefault(k, []).append(v)
        if since == args.log:
            mean = {k: torch.stack(v).mean().item() for k, v in sums.items()}
            print(f"{stage} {run.spent / 60:.1f} min, step {run.step}, {run.pictures} pictures: " +
                  " ".join(f"{k} {v:.3f}" for k, v in mean.items()), flush=True)
            writer.writerow([round(run.spent / 60, 2), run.step, run.pictures, round(mean["loss"], 4),
                             round(mean.get("answer", 0), 4)])
            curve.flush()
            sums, since = {}, 0
        if now - saved > 400:
            run.save()
            saved = time.time()
        if stage == "joint" and now - tested > args.test * 60:
            with run.cast():
                print("held out:", line(evaluate(run.model, run.t, 900_001, 40, args.tasks, codes=codes)), flush=True)
            tested = clock = time.time()
    source.close()
    run.save()
    print("done", flush=True)


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=STAGES + ["eval", "export"])
    p.add_argument("--dir", default="run")
    p.add_argument("--minutes", type=float, default=10)
    p.add_argument("--steps", type=int, help="instead of --minutes: the same steps on any machine")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--batch", type=int, default=64, help="pictures with questions")
    p.add_argument("--aside", type=int, default=0, help="further pictures, crowded with print, for the patches alone")
    p.add_argument("--tasks", nargs="+", help="ask these alone")
    p.add_argument("--detail", type=float, default=1, help="how much more often tasks of detail are asked")
    p.add_argument("--side", type=int, default=112, help="pixels of the picture, 112 or 224")
    p.add_argument("--muon", type=float, default=0.02)
    p.add_argument("--adam", type=float, default=2e-3)
    p.add_argument("--warm", type=int, default=50, help="steps in which the encoder's rate rises")
    p.add_argument("--decay", type=float, default=0.4, help="share of the time in which the rate falls")
    p.add_argument("--dense", type=float, default=0.2, help="weight of what patches show, in the joint stage")
    p.add_argument("--look", type=float, default=0.2, help="weight of where head 0 looks")
    p.add_argument("--quantised", type=float, default=0.2, help="share of the time with rounded weights")
    p.add_argument("--start", help="checkpoint to begin from, or a model directory, quantised or not")
    p.add_argument("--masks", help="checkpoint of masks.py: ask for masks too")
    p.add_argument("--frozen", nargs="?", choices=["all", "encoder"], const="all",
                   help="leave the vision half as it is, or all of it but the projector")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--drawers", type=int, help="processes that draw; by default one, with CUDA all cores but two")
    p.add_argument("--log", type=int, default=20)
    p.add_argument("--test", type=float, default=6, help="minutes between looks at held-out scenes")
    p.add_argument("--checkpoint")
    p.add_argument("--out")
    p.add_argument("--count", type=int, default=500)
    return p


def main():
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.stage in STAGES:
        return train(args)
    tokenizer = Tokenizer()
    state = torch.load(args.checkpoint, map_location=args.device, weights_only=False)
    model = Tiny(tokenizer.rows, {**CONFIG, "image": state["side"]}).to(args.device)
    model.load_state_dict(state["model"])
    if args.stage == "export":
        return export(model, tokenizer, args.out)
    codes = masks.table(args.masks) if args.masks else None
    for rounded in (False, True):
        model.fake_quantise(rounded)
        results = evaluate(model, tokenizer, 800_001, args.count, args.tasks, codes=codes)
        print("rounded" if rounded else "f32", line(results), flush=True)


if __name__ == "__main__":
    main()
