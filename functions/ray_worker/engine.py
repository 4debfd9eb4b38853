"""
Answers side by side: new ones join between two tokens, and leave when they end. Admission is that of lib/pool/serving.ts.
"""

import asyncio
import collections
import itertools
import threading
import time

import torch

from .gemma import PaliGemma
from .grammar import Grammar, Pieces
from .sampler import Choice, choose, random_from
from .work import PoolError, Work

NEWEST = 1 / 8


class Serving:
    """So many answers at once, so many waiting, and none begun that cannot be in time."""

    def __init__(self, max_active: int, max_waiting: int):
        self.max_active, self.max_waiting = max_active, max_waiting
        self.seated = 0
        self._first_ms, self._token_ms, self._tokens = 0.0, 0.0, 16.0

    def predict_ms(self, tokens: float) -> float:
        alone = self._first_ms + min(tokens, max(1.0, self._tokens)) * self._token_ms
        ahead = max(0, self.seated + 1 - self.max_active)
        return alone + ahead * alone / self.max_active

    def enter(self, tokens: float, deadline_ms: float) -> float:
        """Takes a place and gives the predicted milliseconds. Raises PoolError `busy` or `late`."""
        predicted = self.predict_ms(tokens)
        if self.seated >= self.max_active + self.max_waiting:
            raise PoolError("busy", f"Cannot take work: {self.seated} answers are computed or wait", predicted)
        if predicted > deadline_ms:
            raise PoolError(
                "late", f"Cannot take work: it is wanted within {deadline_ms:.0f} ms and would take {predicted:.0f} ms",
                predicted,
            )
        self.seated += 1
        return predicted

    def leave(self) -> None:
        self.seated -= 1

    def measured(self, first_ms: float, token_ms: float | None, tokens: int) -> None:
        mean = lambda before, now: before if now is None else before + NEWEST * (now - before) if before else now
        self._first_ms = mean(self._first_ms, first_ms)
        self._token_ms = mean(self._token_ms, token_ms)
        self._tokens = mean(self._tokens, tokens)

    def load(self) -> dict:
        return {
            "maxActive": self.max_active, "maxWaiting": self.max_waiting, "active": min(self.seated, self.max_active),
            "waiting": max(0, self.seated - self.max_active), "firstMs": self._first_ms, "tokenMs": self._token_ms,
            "tokens": self._tokens,
        }


class Sequence:
    """One answer being computed."""

    def __init__(self, work: Work, engine: "Engine", leave):
        self.work, self._leave = work, leave
        self.count = len(work.given)
        self.most = len(work.forced) + work.max_tokens
        self.random = random_from(work.seed)
        if work.temperature > 0:
            # As every choice takes one number, whatever it comes to.
            collections.deque(itertools.islice(self.random, len(work.given)), maxlen=0)
        eos = engine.model.config.eos_ids
        self.grammar = Grammar.of(engine.pieces, work.grammar, eos)
        for id in work.given if self.grammar else []:
            self.grammar.advance(id)
        self.image_tokens = len(work.images) * engine.model.config.image_tokens
        self.position = self.image_tokens + len(work.ids) + len(work.given)
        self.last, self.first = -1, 0.0
        self.cancelled = self.over = False
        self.timings = {"preprocess": 0, "vision": 0.0, "prefill": 0.0, "perToken": 0.0}
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue()

    def tell(self, event: dict | Exception) -> None:
        """From the computing thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def leave(self) -> None:
        """From the computing thread, once: nothing is computed for it any more."""
        self._loop.call_soon_threadsafe(self._leave)

    async def next(self) -> dict:
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event


class Engine:
    """A model, and the thread that computes with it."""

    def __init__(self, model: PaliGemma, pieces: Pieces):
        self.model, self.pieces = model, pieces
        self._arrived: collections.deque[Sequence] = collections.deque()
        self._running: dict[int, Sequence] = {}
        self._wake = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, work: Work, leave) -> Sequence:
        """
        Begins an answer; its events come from `next`, up to `done`, and `leave` is called when its place is free. Raises
        PoolError for a grammar that cannot be.
        """
        sequence = Sequence(work, self, leave)
        with self._wake:
            self._arrived.append(sequence)
            self._wake.notify()
        return sequence

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._arrived or self._running)
                unwanted = [it for it in (*self._arrived, *self._running.values()) if it.cancelled]
                self._arrived = collections.deque(it for it in self._arrived if not it.cancelled)
                self._running = {slot: it for slot, it in self._running.items() if not it.cancelled}
                free = [it for it in range(self.model.slots) if it not in self._running]
                joining = self._arrived.popleft() if self._arrived and free else None
            for it in unwanted:
                it.leave()
            if joining:
                self._safely([joining], self._join, joining, free[0])
            if self._running:
                self._safely(list(self._running.values()), self._step)

    def _safely(self, sequences: list[Sequence], compute, *arguments) -> None:
        try:
            compute(*arguments)
        except Exception as error:  # whatever it is, it ends these answers and no others
            for it in sequences:
                if it.over:
                    continue
                it.tell(error)
                it.leave()
            self._running = {slot: it for slot, it in self._running.items() if it not in sequences}

    @torch.inference_mode()
    def _join(self, sequence: Sequence, slot: int) -> None:
        work, model = sequence.work, self.model
        if sequence.count >= sequence.most:
            return self._end(sequence, "length")
        start = time.perf_counter()
        images = work.images
        if work.stage == "pixels":
            images = model.project(model.features(images))
        else:
            images = torch.from_numpy(images).to(model.device)
            images = model.project(images) if work.stage == "features" else images
        encoded = time.perf_counter()
        scores = model.prefill(slot, images, work.ids, work.given)
        sequence.first = time.perf_counter()
        sequence.timings["vision"] = 1000 * (encoded - start)
        sequence.timings["prefill"] = 1000 * (sequence.first - encoded)
        self._running[slot] = sequence
        self._choose(scores[None], {0: slot})

    def _step(self) -> None:
        scores = self.model.step({slot: (it.last, it.position - 1) for slot, it in self._running.items()})
        self._choose(scores, {slot: slot for slot in self._running})

    @torch.inference_mode()
    def _choose(self, scores: torch.Tensor, slots: dict[int, int]) -> None:
        """Chooses and tells a token for each slot, by its row of scores [B, V]."""
        best = scores.amax(1, keepdim=True)
        ids = torch.arange(scores.shape[1], device=scores.device)
        # The first of the largest, which argmax does not promise.
        first = torch.where(scores == best, ids, scores.shape[1]).amin(1).tolist()
        logprobs = (best[:, 0].double() - scores.double().logsumexp(1)).tolist()
        for row, slot in slots.items():
            it = self._running[slot]
            work = it.work
            forced = work.forced[it.count] if it.count < len(work.forced) else None
            allowed = [forced] if forced is not None else it.grammar.allowed() if it.grammar else None
            simple = allowed is None and not work.temperature and not work.top_logits
            if simple and first[row] not in self.pieces.bins:
                logprob = min(0.0, logprobs[row])
                choice = Choice(first[row], logprob, logprob, [])
            else:
                choice = choose(scores[row].float().cpu().numpy(), work, it.random, allowed, self.pieces.near)
            if it.grammar:
                it.grammar.advance(choice.id)
            if forced is None and not work.ignore_eos and choice.id in self.model.config.eos_ids:
                self._leave(slot, "stop")
                continue
            it.last = choice.id
            it.position += 1
            it.count += 1
            done = it.count - len(work.given)
            if done > 1:
                it.timings["perToken"] = 1000 * (time.perf_counter() - it.first) / (done - 1)
            top = [{"id": id, "text": "", "logit": logit, "logprob": log} for id, logit, log in choice.top]
            it.tell({
                "type": "token", "id": choice.id, "text": "", "logprob": choice.logprob,
                "nearLogprob": choice.near_logprob, **({"top": top} if top else {}),
            })
            if it.count == it.most:
                self._leave(slot, "length")

    def _leave(self, slot: int, reason: str) -> None:
        self._end(self._running.pop(slot), reason)

    def _end(self, it: Sequence, reason: str) -> None:
        it.tell({
            "type": "usage", "imageTokens": it.image_tokens, "promptTokenIds": it.work.ids,
            "completionTokens": it.count, "timings": it.timings,
        })
        it.tell({"type": "done", "finishReason": reason, "text": ""})
        it.over = True
        it.leave()
