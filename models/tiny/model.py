"""The tiny model in PyTorch: SigLIP, projector and Gemma 1 as PaliGemma joins them, for training.

B rows, P image tokens, T text tokens, S = P + T, D width. Matrices that read the same input are kept as one parameter
(`qkv`, `gate_up`); `export` in export.py gives them their published names.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = {
    "image": 112, "patch": 14, "v_width": 256, "v_layers": 6, "v_heads": 4, "v_mlp": 768, "v_eps": 1e-6,
    "width": 256, "layers": 4, "heads": 4, "head_dim": 64, "mlp": 768, "eps": 1e-6, "theta": 10_000.0,
}


class _Round(torch.autograd.Function):
    """What the quantised file will hold, in the forward pass; the identity in the backward pass."""

    @staticmethod
    def forward(ctx, w, kind):
        if kind == 8:
            scale = w.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
            return (w / scale).round() * scale
        g = w.reshape(w.shape[0], -1, 32)
        scale = g.abs().amax(2, keepdim=True).clamp_min(1e-8) / 7
        return ((g / scale).round() * scale).reshape(w.shape)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Linear(nn.Module):
    def __init__(self, inputs, outputs, bias, kind, std=None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (std if std is not None else inputs ** -0.5))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.kind, self.fake = kind, False

    def forward(self, x):
        w = _Round.apply(self.weight, self.kind) if self.fake else self.weight
        return F.linear(x, w, self.bias)


class VisionLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["v_width"]
        self.heads = c["v_heads"]
        self.norm1, self.norm2 = nn.LayerNorm(d, c["v_eps"]), nn.LayerNorm(d, c["v_eps"])
        self.qkv = Linear(d, 3 * d, True, 8)
        self.out = Linear(d, d, True, 8, 0.3 * d ** -0.5)
        self.fc1 = Linear(d, c["v_mlp"], True, 8)
        self.fc2 = Linear(c["v_mlp"], d, True, 8, 0.3 * c["v_mlp"] ** -0.5)

    def forward(self, x):
        b, p, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, p, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, p, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class Vision(nn.Module):
    """Pixels [B, side, side, 3] in [-1, 1] -> projected image tokens [B, P, D]; 112 pixels a side are 64 tokens."""

    def __init__(self, c):
        super().__init__()
        d, self.patch = c["v_width"], c["patch"]
        self.embed = Linear(3 * self.patch ** 2, d, True, 8)
        self.position = nn.Parameter(torch.randn((c["image"] // self.patch) ** 2, d) * 0.3)
        self.layers = nn.ModuleList(VisionLayer(c) for _ in range(c["v_layers"]))
        self.norm = nn.LayerNorm(d, c["v_eps"])
        self.project = Linear(d, c["width"], True, 8)

    def forward(self, pixels):
        b, h, w, _ = pixels.shape
        n, s = h // self.patch, self.patch
        x = pixels.view(b, n, s, n, s, 3).permute(0, 1, 3, 5, 2, 4).reshape(b, n * n, 3 * s * s)
        x = self.embed(x) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.project(self.norm(x))


class RMS(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(d)), eps

    def forward(self, x):
        f = x.float()
        return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)).to(x.dtype)


def rotate(x, cos, sin):
    """x [B, H, S, C], cos and sin [B, 1, S, C / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class DecoderLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.heads, self.dim = c["width"], c["heads"], c["head_dim"]
        self.norm1, self.norm2 = RMS(d, c["eps"]), RMS(d, c["eps"])
        self.qkv = Linear(d, (self.heads + 2) * self.dim, False, 4)
        self.out = Linear(self.heads * self.dim, d, False, 4, 0.3 * (self.heads * self.dim) ** -0.5)
        self.gate_up = Linear(d, 2 * c["mlp"], False, 4)
        self.down = Linear(c["mlp"], d, False, 4, 0.3 * c["mlp"] ** -0.5)

    def forward(self, x, mask, cos, sin, past=None, only=None):
        """`mask` is added to the scores; `past` are keys and values to put in front; with `only` (i64 [N], rows of
        [B * S]) the result holds these rows alone. Returns x and (q, k, v)."""
        b, s, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, s, self.heads + 2, self.dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, 1, 1], 1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        h = q.shape[1]
        a = F.scaled_dot_product_attention(q, k.expand(-1, h, -1, -1), v.expand(-1, h, -1, -1), attn_mask=mask)
        a = a.transpose(1, 2).reshape(b, s, -1)
        if only is not None:
            a, x = (t.flatten(0, 1).index_select(0, only) for t in (a, x))
        x = x + self.out(a)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.gelu(gate, approximate="tanh") * up), (q, k, v)


class Tiny(nn.Module):
    """With `causal`, image tokens and prompts see what stands before them alone; with `squeeze`, image token i stands at
    position i / squeeze, and the prompt begins at P / squeeze (RoPE interpolation). Both are for findings.py."""

    causal, squeeze = False, 1

    def __init__(self, rows, c=CONFIG):
        super().__init__()
        self.c, self.rows = c, rows
        self.vision = Vision(c)
        self.embedding = nn.Parameter(torch.randn(rows, c["width"]) * c["width"] ** -0.5)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c["layers"]))
        self.norm = RMS(c["width"], c["eps"])
        half = c["head_dim"] // 2
        self.register_buffer("rates", c["theta"] ** (-torch.arange(half) / half), persistent=False)
        self.fake = False

    def fake_quantise(self, on):
        self.fake = on
        for m in self.modules():
            if isinstance(m, Linear):
                m.fake = on
        self.vision.embed.fake = False  # the patch embedding stays f32

    def table(self):
        return _Round.apply(self.embedding, 8) if self.fake else self.embedding

    def positions(self, p, t, device):
        """Those of p image tokens and t tokens of text: f32 [P + T]."""
        return torch.cat([torch.arange(float(p), device=device), p + torch.arange(float(t), device=device)
                          * self.squeeze]) / self.squeeze

    def rope(self, positions):
        """positions [B, S] -> cos, sin [B, 1, S, C / 2]."""
        angles = positions[:, None, :, None] * self.rates
        return angles.cos(), angles.sin()

    def decode(self, x, mask, positions, past=None):
        """x [B, S, D] -> normalised states [B, S, D] and q, k, v of each layer."""
        cos, sin = (t.to(x.dtype) for t in self.rope(positions))
        caches = []
        for i, layer in enumerate(self.layers):
            x, cache = layer(x, mask, cos, sin, past[i] if past is not None else None)
            caches.append(cache)
        return self.norm(x), caches

    def body(self, x, mask, cos, sin):
        """All layers but the last, for training."""
        caches = []
        for layer in self.layers[:-1]:
            x, cache = layer(x, mask, cos, sin)
            caches.append(cache)
        return x, caches

    def decode_only(self, x, mask, positions, only, body=None):
        """As `decode`, for the rows `only` -> [N, D]; the last layer's MLP is spared on the others."""
        cos, sin = (t.to(x.dtype) for t in self.rope(positions))
        x, caches = (body or self.body)(x, mask, cos, sin)
        x, _ = self.layers[-1](x, mask, cos, sin, only=only)
        return self.norm(x), caches

    def words(self, ids, table=None):
        return F.embedding(ids, self.table() if table is None else table) * self.c["width"] ** 0.5

    @torch.no_grad()
    def greedy(self, pixels, prefixes, eos, limit=48, stop=None):
        """Answers [B] lists of ids, under the exact PaliGemma mask. `stop`: ids from here on are never chosen."""
        image = self.vision(pixels)
        b, p, _ = image.shape
        device = image.device
        t = max(map(len, prefixes))
        ids = torch.tensor([prefix + [0] * (t - len(prefix)) for prefix in prefixes]).to(device)
        lengths = torch.tensor([len(prefix) for prefix in prefixes]).to(device)
        table = self.table()
        x = torch.cat([image, self.words(ids, table).to(image.dtype)], 1)
        order = torch.arange(p + t, device=device)
        valid = (order < (p + lengths)[:, None])[:, None, None]
        seen = valid & (order <= order[:, None]) if self.causal else valid
        mask = torch.zeros(seen.shape, device=device).masked_fill(~seen, -1e9).to(x.dtype)
        x, caches = self.decode(x, mask, self.positions(p, t, device).expand(b, -1))
        mask = torch.zeros(valid.shape, device=device).masked_fill(~valid, -1e9).to(x.dtype)
        past = [(k, v) for _, k, v in caches]
        x = x[torch.arange(b, device=device), p + lengths - 1]
        chosen, done = [], torch.zeros(b, dtype=torch.bool, device=device)
        at = p / self.squeeze + lengths
        # A GPU is waited for only now and then.
        pause = 1 if device.type == "cpu" else 6
        for n in range(limit):
            logits = x.float() @ table.T.float()
            if stop:
                logits[:, stop:] = -1e9
            nxt = logits.argmax(-1)
            chosen.append(nxt)
            done |= nxt == eos
            if n % pause == pause - 1 and done.all():
                break
            mask = torch.cat([mask, mask.new_zeros(b, 1, 1, 1)], -1)
            x, caches = self.decode(self.words(nxt, table).to(image.dtype)[:, None], mask, at[:, None].float(), past)
            past = [(k, v) for _, k, v in caches]
            x, at = x[:, 0], at + 1
        answers = torch.stack(chosen, 1).tolist()
        return [answer[:answer.index(eos)] if eos in answer else answer for answer in answers]
