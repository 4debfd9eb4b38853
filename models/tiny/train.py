"""Trains the tiny model on drawn scenes.

    python3 train.py vision --minutes 15 --dir RUN          image tokens learn what each patch shows
    python3 train.py joint --minutes 80 --dir RUN           then the whole model learns to answer
    python3 train.py joint --start models/tiny --masks RUN/masks.pt --steps 1200 --dir RUN     learns more, with masks
    python3 train.py joint ... --resume                     goes on after an interruption
    python3 train.py eval --checkpoint RUN/joint.pt         accuracy on held-out scenes
    python3 train.py export --checkpoint RUN/joint.pt --out DIR

The learning rate stands, then falls to nothing over the last part of --minutes on the wall clock, or of --steps.
"""

import argparse
import csv
import os
import time

import torch

import masks
from data import batches
from evaluate import evaluate, line
from export import export, read
from losses import Patches, answer_loss, look, packed_mask, smooth_locations
from model import Linear, Tiny
from tokenizer import Tokenizer

VISION = {"kind": 0.5, "shape": 1.0, "colour": 0.5, "word": 0.7, "edge": 0.5, "char": 0.7}


class Muon:
    """Momentum made orthogonal by Newton and Schulz's iteration, for matrices; those of one shape go together."""

    def __init__(self, modules):
        self.groups = {}
        self.params = [m.weight for m in modules]
        for p in self.params:
            n, k = p.shape
            parts = n // k if n % k == 0 and n > k else 1
            for i in range(parts):
                self.groups.setdefault((n // parts, k), []).append((p, i * (n // parts)))
        self.momentum = {shape: torch.zeros(len(g), *shape) for shape, g in self.groups.items()}

    def step(self, lr, decay=0.01, beta=0.95):
        for shape, group in self.groups.items():
            g = torch.stack([p.grad[at:at + shape[0]] for p, at in group])
            m = self.momentum[shape]
            m.lerp_(g, 1 - beta)
            x = g.lerp(m, beta).bfloat16()
            tall = shape[0] > shape[1]
            if tall:
                x = x.transpose(1, 2)
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.transpose(1, 2)
                x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
            if tall:
                x = x.transpose(1, 2)
            x = x.float() * max(1.0, shape[0] / shape[1]) ** 0.5
            for (p, at), u in zip(group, x):
                p.data[at:at + shape[0]].mul_(1 - lr * decay).sub_(u, alpha=lr)


class Run:
    """Model, heads, optimisers and the clock of one stage."""

    def __init__(self, args, stage):
        torch.manual_seed(args.seed)
        self.args, self.stage = args, stage
        self.t = Tokenizer()
        self.model = Tiny(self.t.rows)
        self.heads = Patches(self.t, self.model.c["width"])
        with torch.no_grad():
            self.model.embedding[self.t.loc0:self.t.loc0 + 1024] = smooth_locations(self.model.c["width"])
        self.step, self.spent, self.pictures = 0, 0.0, 0
        whole = self.model if stage == "joint" else self.model.vision
        if args.frozen:
            self.model.vision.requires_grad_(False)
        matrices = [m for m in whole.modules() if isinstance(m, Linear) and m.weight.requires_grad]
        self.muon = Muon(matrices)
        mine = {id(p) for p in self.muon.params}
        rest = [p for p in whole.parameters() if p.requires_grad and id(p) not in mine] + list(self.heads.parameters())
        if stage == "vision":
            rest.append(self.model.embedding)
        self.adam = torch.optim.AdamW(rest, lr=args.adam, betas=(0.9, 0.95), weight_decay=0.0)
        self.path = os.path.join(args.dir, f"{stage}.pt")
        if args.resume and os.path.exists(self.path):
            self.load(self.path, True)
        elif args.start and os.path.isdir(args.start):
            read(self.model, args.start)
        elif args.start:
            self.load(args.start, False)

    def load(self, path, optimisers):
        state = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        if optimisers:
            self.step, self.spent, self.pictures = state["step"], state["spent"], state["pictures"]
            self.adam.load_state_dict(state["adam"])
            self.muon.momentum = state["muon"]

    def save(self):
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict(), "adam": self.adam.state_dict(),
                 "muon": self.muon.momentum, "step": self.step, "spent": self.spent, "pictures": self.pictures}
        torch.save(state, self.path + ".part")
        os.replace(self.path + ".part", self.path)

    def progress(self):
        return min(1.0, self.step / self.args.steps if self.args.steps else self.spent / (self.args.minutes * 60))

    def update(self):
        done = self.progress()
        warm = min(1.0, (self.step + 1) / 50)
        rate = warm * min(1.0, (1 - done) / self.args.decay + 0.01)
        params = [p for g in self.adam.param_groups for p in g["params"]]
        for p in self.muon.params + params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        self.muon.step(self.args.muon * rate)
        for g in self.adam.param_groups:
            g["lr"] = self.args.adam * rate
        self.adam.step()
        for p in self.muon.params + params:
            p.grad = None


def train(args):
    stage = args.stage
    os.makedirs(args.dir, exist_ok=True)
    run = Run(args, stage)
    codes = masks.table(args.masks) if args.masks else None
    source = batches(args.seed * 1000 + run.step, args.batch, args.crowded, stage == "joint", codes)
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
        pixels, dense, rows = next(source)
        pixels = torch.from_numpy(pixels).float() / 127.5 - 1
        dense = torch.from_numpy(dense)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = vision(pixels)
        table = run.model.table()
        sigma = 1.0 if args.start or run.progress() > 0.5 else 1.5
        loss, stats = 0.0, {}
        if not args.frozen:
            parts, stats = run.heads(tokens, dense, table, sigma)
            loss = sum(VISION[k] * v for k, v in parts.items())
        if stage == "joint":
            rows = torch.from_numpy(rows)
            show = torch.rand(rows.shape[1]) < 0.5
            seen = packed_mask(rows, show)
            with torch.autocast("cpu", torch.bfloat16):
                x = torch.cat([tokens, run.model.words(rows[0].long(), table).to(tokens.dtype)], 1)
                position = torch.arange(64.0).expand(rows.shape[1], -1)
                score = torch.zeros(seen.shape, dtype=tokens.dtype).masked_fill(~seen, -1e9)[:, None]
                only = torch.cat([torch.zeros_like(position, dtype=torch.bool), rows[4] >= 0], 1)
                states, caches = run.model.decode_only(x, score, torch.cat([position, rows[1]], 1), only, body)
                looking, found = look(caches, seen, rows, dense)
            answer, more = answer_loss(states, table, rows, run.t.loc0, sigma)
            loss = answer + args.dense * loss + args.look * looking
            stats = {**stats, **more, "look": found, "answer": answer.item()}
        loss.backward()
        run.update()
        run.step, run.pictures, since = run.step + 1, run.pictures + len(pixels), since + 1
        now = time.time()
        run.spent, clock = run.spent + min(20.0, now - clock), now  # a pause of the machine is no training
        for k, v in {"loss": loss.item(), **stats}.items():
            sums.setdefault(k, []).append(v)
        if since == args.log:
            mean = {k: sum(v) / len(v) for k, v in sums.items()}
            print(f"{stage} {run.spent / 60:.1f} min, step {run.step}, {run.pictures} pictures: " +
                  " ".join(f"{k} {v:.3f}" for k, v in mean.items()), flush=True)
            writer.writerow([round(run.spent / 60, 2), run.step, run.pictures, round(mean["loss"], 4),
                             round(mean.get("answer", 0), 4)])
            curve.flush()
            sums, since = {}, 0
        if now - saved > 240:
            run.save()
            saved = time.time()
        if stage == "joint" and now - tested > args.test * 60:
            with torch.autocast("cpu", torch.bfloat16):
                print("held out:", line(evaluate(run.model, run.t, 900_001, 40, codes=codes)), flush=True)
            tested = clock = time.time()
    run.save()
    print("done", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["vision", "joint", "eval", "export"])
    parser.add_argument("--dir", default="run")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--steps", type=int, help="instead of --minutes: the same steps on any machine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--crowded", type=float, default=0.0, help="share of pictures with many things and words")
    parser.add_argument("--muon", type=float, default=0.02)
    parser.add_argument("--adam", type=float, default=2e-3)
    parser.add_argument("--decay", type=float, default=0.4, help="share of the time in which the rate falls")
    parser.add_argument("--dense", type=float, default=0.2, help="weight of what patches show, in the joint stage")
    parser.add_argument("--look", type=float, default=0.2, help="weight of where head 0 looks")
    parser.add_argument("--quantised", type=float, default=0.2, help="share of the time with rounded weights")
    parser.add_argument("--start", help="checkpoint to begin from, or a model directory, quantised or not")
    parser.add_argument("--masks", help="checkpoint of masks.py: ask for masks too")
    parser.add_argument("--frozen", action="store_true", help="leave the vision half as it is")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=int, default=20)
    parser.add_argument("--test", type=float, default=6, help="minutes between looks at held-out scenes")
    parser.add_argument("--checkpoint")
    parser.add_argument("--out")
    parser.add_argument("--count", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.stage in ("vision", "joint"):
        return train(args)
    tokenizer = Tokenizer()
    model = Tiny(tokenizer.rows)
    if args.checkpoint:
        model.load_state_dict(torch.load(args.checkpoint, weights_only=False)["model"])
    if args.stage == "export":
        return export(model, tokenizer, args.out)
    codes = masks.table(args.masks) if args.masks else None
    for rounded in (False, True):
        model.fake_quantise(rounded)
        results = evaluate(model, tokenizer, 800_001, args.count, codes=codes)
        print("rounded" if rounded else "f32", line(results), flush=True)


if __name__ == "__main__":
    main()
