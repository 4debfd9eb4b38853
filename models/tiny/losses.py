"""What the model is taught with: answers, what each patch shows, and where the decoder should look.

Nothing here reads a number back from the device; what is reported stays a tensor.
"""

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


def bin_tokens(loc0, device=None):
    """The tokens of the places 0, 2, 4 ... 224 pixels."""
    return loc0 + torch.floor(torch.arange(BINS, device=device) / (BINS - 1) * 1023 + 0.5).long()


def mean(values, on):
    """Of the values where `on`; 0 where there are none. Shapes stay what they are, so that a GPU need not be waited for."""
    return torch.where(on, values, 0).sum() / on.sum().clamp_min(1)


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
        for name, rows in zip(("shapes", "colours", "words"), forms):
            self.register_buffer(name, rows, persistent=False)
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
        text = F.normalize((F.embedding(captions, table) * on).sum(1) / on.sum(1).clamp_min(1), dim=-1)
        image = F.normalize(tokens.float().mean(1), dim=-1)
        logits = image @ text.T * self.contrast[0].exp() + self.contrast[1]
        sign = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -F.logsigmoid(sign * logits).sum() / len(logits)

    def forward(self, tokens, dense, table, sigma=1.0):
        """tokens [B, P, D], dense [B, P, 12] -> dict of losses, dict of accuracies."""
        x, d = tokens.float().flatten(0, 1), dense.flatten(0, 1).long()
        losses, right = {}, {}

        def classify(name, logits, target):
            """-1 is not asked."""
            losses[name] = mean(F.cross_entropy(logits, target, ignore_index=-1, reduction="none"), target >= 0)
            right[name] = mean((logits.argmax(-1) == target).float(), target >= 0)

        classify("kind", self.kind(x), d[:, 0])
        unit = F.normalize(x, dim=-1)
        pick = int(torch.randint(3, ()))
        for i, (name, forms) in enumerate((("shape", self.shapes), ("colour", self.colours), ("word", self.words))):
            rows = F.normalize(F.embedding(forms[:, pick], table), dim=-1)
            classify(name, unit @ rows.T * self.scale[i].exp(), d[:, (2, 3, 8)[i]])
        on = (d[:, 1] >= 0)[:, None].expand(-1, 4)
        z = F.normalize(self.edges(x).view(-1, 4, x.shape[1]), dim=-1)
        bins = F.normalize(F.embedding(bin_tokens(self.loc0, table.device), table), dim=-1)
        logits = z @ bins.T * (self.scale[3].exp() + 10)
        truth = d[:, 4:8]
        losses["edge"] = mean(-(self.soft(truth, sigma) * logits.log_softmax(-1)).sum(-1), on)
        right["edge_px"] = mean((logits.argmax(-1) - truth).abs().float(), on) * 2
        chars, truth = self.chars(x).view(-1, len(CHARS) + 1), d[:, 9:11].flatten()
        classify("char", chars, truth)
        right["char"] = mean((chars.argmax(-1) == truth).float(), truth > 0)
        return losses, right


def packed_mask(rows, show, p, causal=False):
    """rows f32 [7, B, T]; show bool [B]: whether image tokens see the first question; p image tokens. `causal`: every
    token sees what stands before it alone. -> bool [B, S, S], True = seen."""
    number, prefix = rows[2], rows[3] > 0
    same = number[:, :, None] == number[:, None, :]
    b, t = number.shape
    order = torch.arange(t, device=rows.device)
    before = (order[:, None] >= order)[None]
    seen = same & (before if causal else prefix[:, None, :] | before)
    mask = torch.zeros(b, p + t, p + t, dtype=torch.bool, device=rows.device)
    mask[:, :, :p] = True
    mask[:, p:, p:] = seen
    if causal:
        mask[:, :p, :p] = torch.ones(p, p, dtype=torch.bool, device=rows.device).tril()
    else:
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
        logp = scores.masked_fill(~mask[:, p:], -1e9).log_softmax(-1)
        inside = logp[:, :, :p].masked_fill(~wanted, -1e9).logsumexp(-1)
        total = total - weight * mean(inside.clamp_min(-20), on)
        found = mean(inside.detach().exp(), on)
    return total, found


def answer_loss(states, table, rows, at, loc0, sigma):
    """Weighted cross entropy of the answers; places spread over their neighbours. states [N, D]: those of the tokens that
    have a target; at i64 [N]: where these stand in rows[4], flat. -> loss, {what: accuracy}."""
    h, t, w = states.float(), rows[4].flatten()[at].long(), rows[5].flatten()[at]
    logits = h @ table.float().T
    logp = logits.log_softmax(-1)
    place = (t >= loc0) & (t < loc0 + 1024)
    bins = bin_tokens(loc0, h.device)
    number = ((t - loc0).float() / 1023 * (BINS - 1)).round().clamp(0, BINS - 1)
    d = torch.arange(BINS, device=h.device) - number[:, None]
    soft = torch.softmax(-d * d / (2 * sigma * sigma), -1)
    loss = -torch.where(place, (soft * logp.index_select(1, bins)).sum(-1), logp.gather(1, t[:, None])[:, 0])
    off = (logits.detach().argmax(-1) - t).abs()
    stats = {"text": mean((off == 0).float(), ~place), "place": mean((off <= 28).float(), place)}
    return (loss * w).sum() / w.sum(), stats
