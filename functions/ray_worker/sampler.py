"""The next token from the logits: lib/decode/sampler.ts, number for number."""

import math
from dataclasses import dataclass

import numpy as np


def random_from(seed: int):
    """Numbers in [0, 1) from a 32-bit seed: SplitMix32 with the finaliser of MurmurHash3."""
    state = seed
    while True:
        state = (state + 0x9E3779B9) & 0xFFFFFFFF
        z = (state ^ (state >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
        z = (z ^ (z >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        yield (z ^ (z >> 16)) / 2**32


@dataclass(frozen=True)
class Choice:
    id: int
    logprob: float
    near_logprob: float
    top: list[tuple[int, float, float]]


def choose(scores: np.ndarray, work, random, allowed=None, near=None) -> Choice:
    """
    scores: f32 [V], those that never take part at -inf. allowed: the only ids that may be chosen, an index array.
    near: a function from an id to the ids that mean the same, or None.
    """
    values = scores.astype(np.float64)
    most = values.max()
    total = most + math.log(np.exp(values - most).sum())
    open_ = scores
    if allowed is not None:
        open_ = np.full_like(scores, -np.inf)
        open_[allowed] = scores[allowed]
    best = int(open_.argmax())
    chosen = _draw(open_, best, work, next(random)) if work.temperature > 0 else best
    logprob = min(0.0, float(scores[chosen]) - total)
    same = near(chosen) if near else None
    near_logprob = logprob if same is None else min(0.0, math.log(np.exp(values[same] - total).sum()))
    top = [(int(it), float(scores[it]), float(scores[it]) - total) for it in _largest(scores, work.top_logits)]
    return Choice(chosen, logprob, near_logprob, top)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Ids of the largest scores, largest first, lower id first among equals."""
    if not count:
        return np.zeros(0, np.int64)
    if count < scores.size // 8:
        bound = np.partition(scores, scores.size - count)[scores.size - count]
        ids = np.flatnonzero(scores >= bound)
    else:
        ids = np.arange(scores.size)
    return ids[np.argsort(-scores[ids], kind="stable")][:count]


def _draw(scores: np.ndarray, best: int, work, number: float) -> int:
    ids = _largest(scores, min(work.top_k, scores.size)) if work.top_k else np.arange(scores.size)
    weights = np.exp((scores[ids].astype(np.float64) - float(scores[best])) / work.temperature)
    mass = weights.sum()
    if work.top_p < 1:
        order = np.argsort(-scores[ids], kind="stable")
        ids, weights = ids[order], weights[order]
        sums = np.cumsum(weights)
        count = min(int(np.searchsorted(sums, work.top_p * mass)) + 1, ids.size)
        ids, weights, mass = ids[:count], weights[:count], sums[count - 1]
    at = int(np.searchsorted(np.cumsum(weights), number * mass, side="right"))
    return int(ids[at]) if at < ids.size else best
