"""Muon: momentum made orthogonal, for the matrices of a network (K. Jordan, https://kellerjordan.github.io/posts/muon)."""

import torch


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
        self.momentum = {s: torch.zeros(len(g), *s, device=g[0][0].device) for s, g in self.groups.items()}

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
            matrices = [p.data[at:at + shape[0]] for p, at in group]
            torch._foreach_mul_(matrices, 1 - lr * decay)
            torch._foreach_sub_(matrices, list(x), alpha=lr)
