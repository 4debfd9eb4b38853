"""The mask VQ-VAE behind `<seg>` tokens: a shape in its box, 64 x 64, as a 4 x 4 picture of 128 codes, and back.

    python3 masks.py train --minutes 5 --dir RUN              writes RUN/masks.pt
    python3 masks.py export --dir RUN --out models/tiny       writes mask_decoder.safetensors (f16)

Architecture and names of arXiv 2301.02229 as in big_vision's `vae-oid.npz`; its encoder's widths are not published, here
they mirror the decoder's. B masks, in [0, 1]; the decoder gives about -1 outside and 1 inside.
"""

import argparse
import csv
import os
import random
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import drawing as S

SIDE, GRID, CODES, WIDTH = 64, 4, 128, 512
SIZES = range(32, 90, 2)


class Residual(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(d, d, 3, padding=1), nn.ReLU(), nn.Conv2d(d, d, 3, padding=1), nn.ReLU(),
                                 nn.Conv2d(d, d, 1))

    def forward(self, x):
        return x + self.net(x)


class Codebook(nn.Module):
    """Nearest rows; the rows follow the mean of what they were nearest to, and those that nothing is near move."""

    def __init__(self):
        super().__init__()
        self.register_buffer("_embedding", torch.randn(CODES, WIDTH) * 0.1)
        self.register_buffer("count", torch.ones(CODES))
        self.register_buffer("sum", self._embedding.clone())

    def nearest(self, z):
        """z [N, WIDTH] -> [N]."""
        return torch.cdist(z, self._embedding).argmin(1)

    @torch.no_grad()
    def begin(self, z):
        """Rows from z [N, WIDTH] at random."""
        self._embedding.copy_(z[torch.randperm(len(z))[:CODES]])
        self.sum.copy_(self._embedding)
        self.count.fill_(1.0)

    @torch.no_grad()
    def follow(self, z, codes, decay=0.95):
        hot = F.one_hot(codes, CODES).float()
        self.count.lerp_(hot.sum(0), 1 - decay)
        self.sum.lerp_(hot.T @ z, 1 - decay)
        dead = self.count < 0.1
        if dead.any():
            # To what is worst represented, so that they take work from the busiest rows.
            far = (z - self._embedding[codes]).norm(dim=1)
            pick = torch.multinomial(far ** 2 + 1e-9, int(dead.sum()))
            self.sum[dead], self.count[dead] = z[pick], 1.0
        self._embedding.copy_(self.sum / self.count[:, None].clamp_min(1e-6))


class Masks(nn.Module):
    def __init__(self):
        super().__init__()

        def half(i, o):
            return [nn.Conv2d(i, o, 4, 2, 1), nn.ReLU()]

        def twice(i, o):
            return [nn.ConvTranspose2d(i, o, 4, 2, 1), nn.ReLU()]

        self.encoder = nn.Sequential(*half(1, 16), *half(16, 32), *half(32, 64), *half(64, 128),
                                     Residual(128), Residual(128), nn.Conv2d(128, WIDTH, 1))
        self._vq_vae = Codebook()
        self.decoder = nn.Sequential(nn.Conv2d(WIDTH, 128, 1), nn.ReLU(), Residual(128), Residual(128),
                                     *twice(128, 128), *twice(128, 64), *twice(64, 32), *twice(32, 16),
                                     nn.Conv2d(16, 1, 1))

    def encode(self, masks):
        """[B, 64, 64] -> what the codes stand for, [B * 16, WIDTH], rows of four."""
        return self.encoder(2 * masks[:, None] - 1).permute(0, 2, 3, 1).reshape(-1, WIDTH)

    def decode(self, z):
        """[B * 16, WIDTH] -> [B, 64, 64]."""
        return self.decoder(z.view(-1, GRID, GRID, WIDTH).permute(0, 3, 1, 2))[:, 0]

    @torch.no_grad()
    def codes(self, masks):
        """[B, 64, 64] -> [B, 16]."""
        return self._vq_vae.nearest(self.encode(masks)).view(-1, GRID ** 2)


def crop(shape, size, edges=(0.0, 0.0, 1.0, 1.0)):
    """A shape in a box of [top, left, bottom, right], 0 and 1 its own, resized as PaliGemma's training does:
    f32 [64, 64] in [0, 1]."""
    top, left, bottom, right = (round(v * size) for v in edges)
    grey = np.zeros((size, size), np.uint8)
    for row, stretches in zip(grey, S.spans(shape, size)):
        for a, b in stretches:
            row[a:b] = 255
    box = Image.fromarray(grey).crop((left, top, right, bottom))
    return np.asarray(box.resize((SIDE, SIDE), Image.BILINEAR), np.float32) / 255


def draw(rng):
    """One mask of training: half of them in a box that is a little off, so that the codes are more than eight shapes."""
    edges = (0.0, 0.0, 1.0, 1.0)
    if rng.random() < 0.5:
        edges = [v + rng.uniform(-0.12, 0.12) for v in edges]
    return crop(rng.choice(S.SHAPES), rng.choice(SIZES), edges)


def table(checkpoint):
    """The codes of every shape at every size: {(shape, size): [16]}."""
    model = load(checkpoint)
    keys = [(shape, size) for shape in S.SHAPES for size in SIZES]
    codes = model.codes(torch.from_numpy(np.stack([crop(*key) for key in keys])))
    return dict(zip(keys, codes.tolist()))


def load(checkpoint):
    model = Masks()
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return model.eval()


@torch.no_grad()
def held_out(model):
    """Mean IoU of what comes back of every shape at every size."""
    device = model._vq_vae._embedding.device
    masks = torch.from_numpy(np.stack([crop(shape, size) for shape in S.SHAPES for size in SIZES])).to(device)
    back = model.decode(model._vq_vae._embedding[model.codes(masks).flatten()]) > 0
    masks = masks > 0.5
    return ((back & masks).sum((1, 2)) / (back | masks).sum((1, 2))).mean().item()


def train(args):
    torch.manual_seed(args.seed)
    os.makedirs(args.dir, exist_ok=True)
    model, path = Masks().to(args.device), os.path.join(args.dir, "masks.pt")
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    rng, start, step, sums, coded = random.Random(f"masks/{args.seed}"), time.time(), 0, [], False
    with open(os.path.join(args.dir, "masks.csv"), "w", newline="") as file:
        curve = csv.writer(file)
        while (done := (time.time() - start) / (60 * args.minutes)) < 1:
            for g in adam.param_groups:
                g["lr"] = 1e-3 * min(1.0, (step + 1) / 20, (1 - done) / 0.4 + 0.01)
            masks = torch.from_numpy(np.stack([draw(rng) for _ in range(args.batch)])).to(args.device)
            z = model.encode(masks)
            if done < 0.15:  # no codes yet: they would all become one
                codes, rows = torch.zeros(1, device=args.device), z
            else:
                if not coded:
                    model._vq_vae.begin(z.detach())
                coded = True
                codes = model._vq_vae.nearest(z)
                rows = model._vq_vae._embedding[codes]
                if done < 0.8:
                    model._vq_vae.follow(z.detach(), codes)
            back = F.mse_loss(model.decode(z + (rows - z).detach()), 2 * masks - 1)
            loss = back + 0.25 * F.mse_loss(z, rows.detach())
            adam.zero_grad()
            loss.backward()
            adam.step()
            step += 1
            sums.append(back.item())
            if step % 50 == 0:
                line = [round(done * args.minutes, 2), step, round(sum(sums) / len(sums), 4), len(codes.unique()),
                        round(held_out(model), 4)]
                print("minutes %s, step %s: error %s, codes in use %s, mean IoU %s" % tuple(line), flush=True)
                curve.writerow(line)
                file.flush()
                sums = []
    torch.save(model.state_dict(), path + ".part")
    os.replace(path + ".part", path)
    print(f"{path}: mean IoU {held_out(model):.4f}, {len({c for row in table(path).values() for c in row})} codes")


def export(args):
    from safetensors.torch import save_file

    state = load(os.path.join(args.dir, "masks.pt")).state_dict()
    keep = {k: t.half().contiguous() for k, t in state.items() if k.startswith("decoder.") or k == "_vq_vae._embedding"}
    path = os.path.join(args.out, "mask_decoder.safetensors")
    save_file(keep, path, metadata={"format": "pt"})
    print(f"{path}: {os.path.getsize(path):,} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["train", "export"])
    parser.add_argument("--dir", default="run")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default=".")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    (train if args.action == "train" else export)(args)


if __name__ == "__main__":
    main()
