"""Work as bytes: lib/pool/work.ts, signature.ts and rows.ts on the serving side. Nothing is believed, nothing unpickled."""

import hashlib
import json
import math
import struct
import time
from dataclasses import dataclass

import jwt
import numpy as np

# What a worker says of work, and the HTTP status it says it with.
STATUS = {
    "magic": 400, "version": 400, "malformed": 400, "shape": 400, "length": 400, "sum": 400, "number": 400,
    "norm": 400, "unsigned": 401, "forbidden": 403, "revision": 404, "failed": 500, "busy": 503, "late": 503,
}

STAGES = ("pixels", "features", "projected")
DTYPES = ("u8", "f16", "int8")
HEADER_BYTES = 64
QUESTION_BYTES = 60
MAX_QUESTION_BYTES = 1 << 20
SUM_BYTES = 32
# Root mean square of a row: beyond these bounds it comes from no encoder.
RMS = (1e-4, 1e4)


class PoolError(Exception):
    """Work that is not done, with one of the codes of lib/pool/pool.ts."""

    def __init__(self, code: str, message: str, predicted_ms: float | None = None):
        super().__init__(message)
        self.code = code
        self.predicted_ms = predicted_ms


def refuse(code: str, message: str):
    raise PoolError(code, f"Cannot take work: {message}")


@dataclass(frozen=True)
class ModelShape:
    """What work has to fit."""

    revision: str
    image_size: int
    image_tokens: int
    feature_width: int
    width: int
    context: int
    vocabulary: int


@dataclass(frozen=True)
class Work:
    """What to compute: images are u8 [N, S, S, 3], or f32 [N, P, W] of features or image tokens."""

    stage: str
    images: np.ndarray
    ids: list[int]
    forced: list[int]
    given: list[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    ignore_eos: bool
    top_logits: int
    grammar: str | None


def _header(head: bytes, model: ModelShape):
    if len(head) < HEADER_BYTES:
        refuse("length", f"expected a header of {HEADER_BYTES} bytes, found {len(head)}")
    magic, version, stage, dtype, scale, revision, *sizes, zeros = struct.unpack_from("<4s4B32s4III", head)
    shape, question = sizes[:4], sizes[4]
    if magic != b"PGWK":
        refuse("magic", "expected a message that begins with PGWK")
    if version != 1:
        refuse("version", f"expected version 1, found {version}")
    if stage > 2 or dtype > 2 or (stage == 0) != (dtype == 0) or scale or zeros:
        refuse("malformed", f"there is no stage {stage} as {dtype} with scale {scale}")
    revision = revision.rstrip(b"\0").decode(errors="replace")
    if revision != model.revision:
        refuse("revision", f"expected {model.revision}, found {json.dumps(revision)}")
    wanted = [
        [model.image_size, model.image_size, 3],
        [model.image_tokens, model.feature_width, 1],
        [model.image_tokens, model.width, 1],
    ][stage]
    most = model.context // model.image_tokens
    if shape[1:] != wanted or not 1 <= shape[0] <= most:
        refuse("shape", f"expected {STAGES[stage]} [1 to {most}, {wanted}], found {shape}")
    if not QUESTION_BYTES <= question <= MAX_QUESTION_BYTES:
        refuse("malformed", f"expected a question of {QUESTION_BYTES} bytes or more, found {question}")
    row = [3 * model.image_size**2, 2 * shape[2], 4 + shape[2]][dtype]
    rows = shape[0] if stage == 0 else shape[0] * shape[1]
    return STAGES[stage], DTYPES[dtype], shape if stage == 0 else shape[:3], question, rows * row


def message_bytes(head: bytes, model: ModelShape) -> int:
    """Of the whole message, from its first bytes. Raises PoolError."""
    *_, question, images = _header(head, model)
    return HEADER_BYTES + question + images + SUM_BYTES


def decode_work(message: bytes, model: ModelShape) -> Work:
    """Reads and checks a whole message. Raises PoolError."""
    size = message_bytes(message, model)
    if len(message) != size:
        refuse("length", f"expected {size} bytes, found {len(message)}")
    if hashlib.sha256(message[:-SUM_BYTES]).digest() != message[-SUM_BYTES:]:
        refuse("sum", "its sha256 is another")
    stage, dtype, shape, question, _ = _header(message, model)
    images = _images(dtype, message[HEADER_BYTES + question : -SUM_BYTES], shape)
    work = Work(stage=stage, images=images, **_question(message[HEADER_BYTES : HEADER_BYTES + question]))
    _check(work, shape[0] * model.image_tokens, model)
    return work


def _images(dtype: str, data: bytes, shape: list[int]) -> np.ndarray:
    if dtype == "u8":
        return np.frombuffer(data, np.uint8).reshape(shape)
    width = shape[-1]
    with np.errstate(all="ignore"):
        if dtype == "f16":
            rows = np.frombuffer(data, "<f2").astype(np.float32).reshape(-1, width)
        else:
            packed = np.frombuffer(data, np.dtype([("scale", "<f4"), ("data", "i1", width)]))
            rows = packed["data"].astype(np.float32) * packed["scale"][:, None]
        rms = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1))
    if not np.isfinite(rms).all():
        refuse("number", f"row {int(np.argmin(np.isfinite(rms)))} holds NaN or infinite values")
    odd = (rms < RMS[0]) | (rms > RMS[1])
    if odd.any():
        row = int(np.argmax(odd))
        refuse("norm", f"expected rows whose root mean square is {RMS[0]} to {RMS[1]}, found {rms[row]} in row {row}")
    return rows.reshape(shape)


def _question(data: bytes) -> dict:
    flags, top, zeros, maximum, temperature, k, p, seed, *counts, prompt_bytes, more = struct.unpack_from(
        "<BBH4d6I", data
    )
    total = sum(counts)
    size = QUESTION_BYTES + 4 * total + prompt_bytes
    if size != len(data) or flags > 3 or zeros or more:
        refuse("malformed", f"expected a question of {size} bytes, found {len(data)}")
    whole = lambda value: int(value) if math.isfinite(value) and value == int(value) else -1
    ids = list(struct.unpack_from(f"<{total}I", data, QUESTION_BYTES))
    first, second = counts[0], counts[0] + counts[1]
    prompt = data[QUESTION_BYTES + 4 * total :].decode(errors="replace")
    return {
        "ids": ids[:first], "forced": ids[first:second], "given": ids[second:],
        "max_tokens": whole(maximum), "temperature": temperature, "top_k": whole(k), "top_p": p, "seed": seed,
        "ignore_eos": bool(flags & 1), "top_logits": top, "grammar": prompt if flags & 2 else None,
    }


def _check(work: Work, image_tokens: int, model: ModelShape) -> None:
    if not (
        1 <= work.max_tokens < 2**53 and 0 <= work.top_k < 2**53 and work.top_logits <= 100
        and 0 <= work.temperature <= 2 and 0 < work.top_p <= 1
        and len(work.given) <= len(work.forced) + work.max_tokens
    ):
        refuse("malformed", "sampling or numbers of tokens are out of their ranges")
    stranger = next((it for it in work.ids + work.forced + work.given if it >= model.vocabulary), None)
    if stranger is not None:
        refuse("malformed", f"expected ids below {model.vocabulary}, found {stranger}")
    positions = image_tokens + len(work.ids) + len(work.forced) + work.max_tokens
    if not work.ids or positions > model.context:
        refuse("shape", f"expected a prefix, and {model.context} positions at most, found {len(work.ids)} and {positions}")


class Verifier:
    """Who may ask: EdDSA tokens of the keys of a JWKS, each good for one message, one model and a minute."""

    LIFE_SECONDS = 60
    TOLERANCE_SECONDS = 5

    def __init__(self, jwks: dict, revision: str):
        self._keys = {it["kid"]: (it, jwt.PyJWK(it, algorithm="EdDSA").key) for it in jwks["keys"]}
        self._audience = f"pool:{revision}"
        self._used: dict[str, float] = {}

    def check(self, token: str, digest: bytes, stage: str) -> None:
        """Raises PoolError `unsigned`, or `forbidden` for a stage that the key may not bring."""
        if not token:
            refuse("unsigned", "expected a signature, found none")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            if kid not in self._keys:
                refuse("unsigned", "signed with a key that this worker does not know")
            key, public = self._keys[kid]
            claims = jwt.decode(
                token, public, algorithms=["EdDSA"], audience=self._audience, leeway=self.TOLERANCE_SECONDS,
                options={"require": ["exp", "iat", "jti", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise PoolError("unsigned", f"Cannot take work: its signature is not good: {error}") from error
        now = time.time()
        if claims["iat"] < now - self.LIFE_SECONDS - self.TOLERANCE_SECONDS:
            refuse("unsigned", "its signature is out of date")
        if claims.get("sum") != digest.hex():
            refuse("unsigned", "signed for another message")
        self._used = {it: until for it, until in self._used.items() if until >= now}
        if claims["jti"] in self._used:
            refuse("unsigned", "its signature was used before")
        self._used[claims["jti"]] = claims["exp"] + self.TOLERANCE_SECONDS
        if stage != "pixels" and not key.get("features"):
            refuse("forbidden", f"found {stage} of {kid}, expected pixels")
