"""What the model is taught with: answers, what each patch shows, and where the decoder should look."""

import torch
import torch.nn as nn
import torch.nn.functional as F

import scenes as S
from data import CHARS, LENGTH, PATCHES

BINS = S.SIZE // 2 + 1
P = PATCHES ** 2


def smooth_locations(width, low=26.0, high=2200.0):
    """1,024 unit vectors, neighbours alike: cosines and sines of the number at wavelengths `low` to `high`."""
    rates = 2 * torch.pi / torch.logspace(torch.log10(torch.tensor(low)), torch.log10(torch.tensor(high)), width // 2)
    angles = torch.arange(1024)[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1) * (2 / width) ** 0.5


def bin_tokens(loc0):
    """The tokens of the places 0, 2, 4 ... 224 pixels."""
    return loc0 + torch.floor(torch.arange(BINS) / (BINS - 1) * 1023 + 0.5).long()


class Patches(nn.Module):
    """Throw-away heads on image tokens. Names of shapes, colours and words are read with the embedding table itself,
    so that image tokens and words come to lie in one space; edges likewise, through one map a side."""

    def __init__(self, tokenizer, width):
        super().__init__()
        forms = []
        for group in (S.SHAPES, S.COLOUR_NAMES, S.WORDS):
            rows = []
            for w in group:
                ids = [tokenizer.encode(" " + w)[0], tokenizer.encode(w)[0]]
                plural = tokenizer.encode(" " + w + ("es" if w.endswith("s") else "s"))
                ids.append(plural[0] if group is S.SHAPES else ids[0])
                rows.append(ids)
            forms.append(torch.tensor(rows))
        self.forms = forms
        self.bins = bin_tokens(tokenizer.loc0)
        self.kind = nn.Linear(width, 3)
        self.chars = nn.Linear(width, 2 * (len(CHARS) + 1))
        self.edges = nn.Linear(width, 4 * width, bias=False)
        self.scale = nn.Parameter(torch.full((4,), 2.3))

    def soft(self, bins, sigma):
        d = torch.arange(BINS) - bins[..., None].float()
        return torch.softmax(-d * d / (2 * sigma * sigma), -1)

    def forward(self, tokens, dense, table, sigma=1.0):
        """tokens [B, P, D], dense [B, P, 11] -> dict of losses, dict of accuracies."""
        x, d = tokens.float().flatten(0, 1), dense.flatten(0, 1).long()
        losses, right = {}, {}

        def classify(name, logits, target):
            if len(target):
                losses[name] = F.cross_entropy(logits, target)
                right[name] = (logits.argmax(-1) == target).float().mean().item()

        kind = d[:, 0]
        sure = kind >= 0
        classify("kind", self.kind(x)[sure], kind[sure])
        unit = F.normalize(x, dim=-1)
        pick = int(torch.randint(3, ()))
        for i, name in enumerate(("shape", "colour", "word")):
            on = d[:, (2, 3, 8)[i]] >= 0
            rows = F.normalize(table[self.forms[i][:, pick]], dim=-1)
            classify(name, unit[on] @ rows.T * self.scale[i].exp(), d[on, (2, 3, 8)[i]])
        on = d[:, 1] >= 0
        z = F.normalize(self.edges(x[on]).view(-1, 4, x.shape[1]), dim=-1)
        logits = z @ F.normalize(table[self.bins], dim=-1).T * (self.scale[3].exp() + 10)
        truth = d[on, 4:8]
        losses["edge"] = -(self.soft(truth, sigma) * logits.log_softmax(-1)).sum(-1).mean()
        right["edge_px"] = (logits.argmax(-1) - truth).abs().float().mean().item() * 2
        chars = self.chars(x).view(-1, 2, len(CHARS) + 1)
        on = d[:, 9:] >= 0
        if on.any():
            losses["char"] = F.cross_entropy(chars[on], d[:, 9:][on])
            some = d[:, 9:] > 0
            right["char"] = (chars[some].argmax(-1) == d[:, 9:][some]).float().mean().item()
        return losses, right


def packed_mask(rows, show):
    """rows f32 [7, B, T]; show bool [B]: whether image tokens see the first question. -> bool [B, S, S], True = seen."""
    number, prefix = rows[2], rows[3] > 0
    same = number[:, :, None] == number[:, None, :]
    order = torch.arange(LENGTH)
    seen = same & (prefix[:, None, :] | (order[None, :, None] >= order[None, None, :]))
    b = number.shape[0]
    mask = torch.zeros(b, P + LENGTH, P + LENGTH, dtype=torch.bool)
    mask[:, :, :P] = True
    mask[:, P:, P:] = seen
    mask[:, :P, P:] = (show[:, None] & (number == 0) & prefix)[:, None, :]
    return mask


def look(caches, mask, rows, dense, layers=((1, 0.5), (2, 1.0))):
    """How little head 0 of some layers looks at the patches of what the answer speaks of next."""
    things = dense[:, :, 1].long()
    bits = torch.where(things >= 0, 1 << things.clamp_min(0), torch.where(dense[:, :, 0] == 2, 128, 0))
    wanted = (rows[6].long()[:, :, None] & bits[:, None, :]) != 0
    on = wanted.any(-1)
    total = 0.0
    found = 0.0
    for layer, weight in layers:
        q, k, _ = caches[layer]
        scores = (q[:, 0, P:] @ k[:, 0].transpose(1, 2)).float() * q.shape[-1] ** -0.5
        logp = scores.masked_fill(~mask[:, P:], -1e9)[on].log_softmax(-1)
        inside = logp[:, :P].masked_fill(~wanted[on], -1e9).logsumexp(-1)
        total = total - weight * inside.clamp_min(-20).mean()
        found = inside.exp().mean().item()
    return total, found


def answer_loss(states, table, rows, loc0, sigma):
    """Weighted cross entropy of the answers; places spread over their neighbours. states [N, D]: the rows that have a
    target. -> loss, {what: accuracy}."""
    on = rows[4] >= 0
    h, t, w = states.float(), rows[4][on].long(), rows[5][on]
    logits = h @ table.float().T
    logp = logits.log_softmax(-1)
    place = (t >= loc0) & (t < loc0 + 1024)
    bins = bin_tokens(loc0)
    loss = -logp.gather(1, t[:, None])[:, 0]
    number = ((t[place] - loc0).float() / 1023 * (BINS - 1)).round()
    d = torch.arange(BINS) - number[:, None]
    soft = torch.softmax(-d * d / (2 * sigma * sigma), -1)
    loss = loss.masked_scatter(place, -(soft * logp[place][:, bins]).sum(-1))
    hit = logits.argmax(-1) == t
    near = (logits[place].argmax(-1) - t[place]).abs() <= 28
    stats = {"text": hit[~place].float().mean().item(), "place": near.float().mean().item()}
    return (loss * w).sum() / w.sum(), stats
