"""What the model is taught with: answers, what each patch shows, and where the decoder should look."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from drawing import COLOUR_NAMES, SHAPES, SIZE, WORDS
from data import CHARS

BINS = SIZE // 2 + 1


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
        for group in (SHAPES, COLOUR_NAMES, WORDS):
            rows = []
            for w in group:
                ids = [tokenizer.encode(" " + w)[0], tokenizer.encode(w)[0]]
                plural = tokenizer.encode(" " + w + ("es" if w.endswith("s") else "s"))
                ids.append(plural[0] if group is SHAPES else ids[0])
                rows.append(ids)
            forms.append(torch.tensor(rows))
        self.forms = forms
        self.loc0 = tokenizer.loc0
        self.kind = nn.Linear(width, 3)
        self.chars = nn.Linear(width, 2 * (len(CHARS) + 1))
        self.edges = nn.Linear(width, 4 * width, bias=False)
        self.scale = nn.Parameter(torch.full((4,), 2.3))
        # Temperature (logarithm) and bias of the sigmoid contrast, as SigLIP begins (arXiv 2303.15343, section 3).
        self.contrast = nn.Parameter(torch.tensor([2.3026, -10.0]))

    def soft(self, bins, sigma):
        d = torch.arange(BINS, device=bins.device) - bins[..., None].float()
        return torch.softmax(-d * d / (2 * sigma * sigma), -1)

    def match(self, tokens, captions, table):
        """SigLIP's loss: every picture with every caption, yes or no. tokens [B, P, D], captions i64 [B, n], 0 padding;
        a text is the mean of its words' rows of the table."""
        on = (captions > 0).float()[..., None]
        text = F.normalize((table[captions] * on).sum(1) / on.sum(1).clamp_min(1), dim=-1)
        image = F.normalize(tokens.float().mean(1), dim=-1)
        logits = image @ text.T * self.contrast[0].exp() + self.contrast[1]
        sign = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -F.logsigmoid(sign * logits).sum() / len(logits)

    def forward(self, tokens, dense, table, sigma=1.0):
        """tokens [B, P, D], dense [B, P, 12] -> dict of losses, dict of accuracies."""
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
            rows = F.normalize(table[self.forms[i][:, pick].to(table.device)], dim=-1)
            classify(name, unit[on] @ rows.T * self.scale[i].exp(), d[on, (2, 3, 8)[i]])
        on = d[:, 1] >= 0
        z = F.normalize(self.edges(x[on]).view(-1, 4, x.shape[1]), dim=-1)
        logits = z @ F.normalize(table[bin_tokens(self.loc0).to(table.device)], dim=-1).T * (self.scale[3].exp() + 10)
        truth = d[on, 4:8]
        losses["edge"] = -(self.soft(truth, sigma) * logits.log_softmax(-1)).sum(-1).mean()
        right["edge_px"] = (logits.argmax(-1) - truth).abs().float().mean().item() * 2
        chars = self.chars(x).view(-1, 2, len(CHARS) + 1)
        on = d[:, 9:11] >= 0
        if on.any():
            losses["char"] = F.cross_entropy(chars[on], d[:, 9:11][on])
            some = d[:, 9:11] > 0
            right["char"] = (chars[some].argmax(-1) == d[:, 9:11][some]).float().mean().item()
        return losses, right


def packed_mask(rows, show, p):
    """rows f32 [7, B, T]; show bool [B]: whether image tokens see the first question; p image tokens.
    -> bool [B, S, S], True = seen."""
    number, prefix = rows[2], rows[3] > 0
    same = number[:, :, None] == number[:, None, :]
    b, t = number.shape
    order = torch.arange(t, device=rows.device)
    seen = same & (prefix[:, None, :] | (order[None, :, None] >= order[None, None, :]))
    mask = torch.zeros(b, p + t, p + t, dtype=torch.bool, device=rows.device)
    mask[:, :, :p] = True
    mask[:, p:, p:] = seen
    mask[:, :p, p:] = (show[:, None] & (number == 0) & prefix)[:, None, :]
    return mask


def look(caches, mask, rows, dense, layers=((1, 0.5), (2, 1.0))):
    """How little head 0 of some layers looks at the patches of what the answer speaks of next."""
    p, bits = dense.shape[1], dense[:, :, 11].long()
    wanted = (rows[6].long()[:, :, None] & bits[:, None, :]) != 0
    on = wanted.any(-1)
    total = 0.0
    found = 0.0
    for layer, weight in layers:
        q, k, _ = caches[layer]
        scores = (q[:, 0, p:] @ k[:, 0].transpose(1, 2)).float() * q.shape[-1] ** -0.5
        logp = scores.masked_fill(~mask[:, p:], -1e9)[on].log_softmax(-1)
        inside = logp[:, :p].masked_fill(~wanted[on], -1e9).logsumexp(-1)
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
    bins = bin_tokens(loc0).to(h.device)
    loss = -logp.gather(1, t[:, None])[:, 0]
    number = ((t[place] - loc0).float() / 1023 * (BINS - 1)).round()
    d = torch.arange(BINS, device=h.device) - number[:, None]
    soft = torch.softmax(-d * d / (2 * sigma * sigma), -1)
    loss = loss.masked_scatter(place, -(soft * logp[place][:, bins]).sum(-1))
    hit = logits.argmax(-1) == t
    near = (logits[place].argmax(-1) - t[place]).abs() <= 28
    stats = {k: v.float().mean().item() for k, v in (("text", hit[~place]), ("place", near)) if len(v)}
    return (loss * w).sum() / w.sum(), stats
