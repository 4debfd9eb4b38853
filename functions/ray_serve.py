"""
A pool's workers on Ray Serve: `python functions/ray_serve.py`, with CUDA where there is a GPU. It takes what
lib/pool/http.ts sends (POST /work), and each replica computes many answers side by side. Needs the packages ray[serve],
torch, safetensors, sentencepiece, pyjwt and cryptography. Settings, beside POOL_TRUSTED_KEYS, POOL_ACTIVE and
POOL_WAITING, which are those of functions/settings.ts:

    MODEL           a directory in Hugging Face layout, f32, bf16 or f16
    POOL_REVISION   the revision of the servers' model, where theirs is a converted one; by default the directory's
    POOL_POSITIONS  rows of each answer's cache; by default the model's context
    POOL_REPLICAS   at most; one is always there. On CUDA each has a GPU of its own
    POOL_DTYPE      f32, bf16 or f16 for matrices and cache; by default f32 on a CPU and bf16 on a GPU
    SLIDING_WINDOW  off or hf
    HOST, PORT      127.0.0.1 and 8001

Traffic within a Ray cluster is neither signed nor encrypted: keep it on a network of its own, and put TLS before PORT.
"""

import asyncio
import json
import logging
import math
import os
from pathlib import Path

# Read when Ray is imported: nothing is reported to its makers, and a busy machine may take its time to start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

import ray
import torch
from ray import serve
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ray_worker.engine import Engine, Serving
from ray_worker.gemma import PaliGemma, revision_of
from ray_worker.grammar import Pieces
from ray_worker.work import HEADER_BYTES, STATUS, ModelShape, PoolError, Verifier, decode_work, message_bytes

HEARTBEAT_SECONDS = 1
PART_SECONDS = 10
MAX_SIGNATURE_BYTES = 4096
GRACE_SECONDS = 20
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

log = logging.getLogger("ray.serve")


def problem(error: PoolError) -> Response:
    """RFC 9457."""
    status = STATUS[error.code]
    body = {"type": "about:blank", "title": error.code, "status": status, "detail": str(error), "code": error.code}
    if error.predicted_ms is not None:
        body["predictedMs"] = error.predicted_ms
    wait = min(60, max(1, math.ceil((error.predicted_ms or 0) / 1000)))
    headers = {"retry-after": str(wait)} if status == 503 else {}
    return JSONResponse(body, status, headers, "application/problem+json")


def as_pool_error(error: Exception) -> PoolError:
    if isinstance(error, PoolError):
        return error
    log.error("an answer failed", exc_info=error)
    return PoolError("failed", "The worker failed")


class Worker:
    """One replica: a model, its engine, and the door before it."""

    def __init__(self, settings: dict):
        directory = Path(settings["model"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = DTYPES[settings["dtype"] or ("bf16" if device == "cuda" else "f32")]
        model = PaliGemma(directory, settings["active"], settings["positions"], device, dtype, settings["window"])
        config, window = model.config, settings["window"]
        self.shape = ModelShape(
            revision=settings["revision"] or revision_of(directory) + ("" if window == "off" else f"-{window}"),
            image_size=config.image_size, image_tokens=config.image_tokens, feature_width=config.feature_width,
            width=config.width, context=model.positions, vocabulary=config.image_token_id,
        )
        self.verifier = Verifier(settings["keys"], self.shape.revision)
        self.serving = Serving(settings["active"], settings["waiting"])
        self.engine = Engine(model, Pieces(directory))

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/health":
            return JSONResponse({"status": "ok", "revision": self.shape.revision, **self.serving.load()})
        if request.url.path != "/work" or request.method != "POST":
            return Response("There is POST /work and GET /health\n", 404)
        entered = False
        try:
            number = lambda name: float(request.headers.get(name) or "inf")
            try:
                tokens, deadline = number("max-tokens"), number("deadline-ms")
            except ValueError:
                raise PoolError("malformed", "Cannot take work: expected numbers in max-tokens and deadline-ms")
            body, parts = bytearray(), request.stream().__aiter__()
            await fill(body, parts, HEADER_BYTES)
            size = message_bytes(bytes(body[:HEADER_BYTES]), self.shape)
            predicted = self.serving.enter(tokens, deadline)
            entered = True
            await fill(body, parts, size + MAX_SIGNATURE_BYTES)
            message, token = bytes(body[:size]), bytes(body[size:]).decode(errors="replace")
            work = decode_work(message, self.shape)
            self.verifier.check(token, message[-32:], work.stage)
            sequence = self.engine.submit(work, self.serving.leave)
            entered = False  # its place is the answer's now
            return StreamingResponse(
                self.lines(sequence), 200, {"predicted-ms": str(round(predicted))}, "application/x-ndjson"
            )
        except Exception as error:  # whatever it is, the answer is a code
            return problem(as_pool_error(error))
        finally:
            if entered:
                self.serving.leave()

    async def lines(self, sequence):
        """Events as lines, and an empty one whenever there was none for a second."""
        loop = asyncio.get_running_loop()
        since, first, tokens = loop.time(), None, 0
        try:
            yield "\n"
            coming = asyncio.ensure_future(sequence.next())
            while True:
                if not (await asyncio.wait({coming}, timeout=HEARTBEAT_SECONDS))[0]:
                    yield "\n"
                    continue
                event = coming.result()
                if event["type"] == "token":
                    first = first or loop.time()
                    tokens += 1
                yield json.dumps(event, allow_nan=False) + "\n"
                if event["type"] == "done":
                    break
                coming = asyncio.ensure_future(sequence.next())
            if first is not None:
                each = 1000 * (loop.time() - first) / (tokens - 1) if tokens > 1 else None
                self.serving.measured(1000 * (first - since), each, sequence.count)
        except Exception as error:  # whatever it is, the answer ends with a code
            known = as_pool_error(error)
            yield json.dumps({"type": "refused", "code": known.code, "message": str(known)}) + "\n"
        finally:
            sequence.cancelled = True


async def fill(body: bytearray, parts, length: int) -> None:
    """Reads until there are so many bytes, or no more to come. Raises PoolError `length` when they come too slowly."""
    while len(body) < length:
        try:
            part = await asyncio.wait_for(anext(parts, None), PART_SECONDS)
        except (TimeoutError, ClientDisconnect) as error:
            raise PoolError("length", "Cannot take work: the message broke off, or came too slowly") from error
        if part is None:
            return
        body += part


def read_settings(get=os.environ.get) -> dict:
    """Raises SystemExit, naming the variable, what was expected and what was found."""

    def fail(name: str, expected: str):
        raise SystemExit(f"Cannot serve a pool: expected {name} to be {expected}, found {get(name)!r}")

    def whole(name: str, low: int, high: int, otherwise):
        value = get(name)
        if not value:
            return otherwise
        return int(value) if value.isdecimal() and low <= int(value) <= high else fail(name, f"{low} to {high}")

    def one_of(name: str, values, otherwise):
        value = get(name) or otherwise
        return value if value in (*values, otherwise) else fail(name, " or ".join(values))

    model = get("MODEL") or ""
    if not (Path(model) / "config.json").is_file():
        fail("MODEL", "a directory with config.json")
    keys = get("POOL_TRUSTED_KEYS") or fail("POOL_TRUSTED_KEYS", "the public keys of its servers, a JWKS or its file")
    context = json.loads((Path(model) / "config.json").read_text())["text_config"].get("max_position_embeddings", 8192)
    return {
        "model": str(Path(model).resolve()),
        "keys": json.loads(keys if keys.lstrip().startswith("{") else Path(keys).read_text()),
        "revision": get("POOL_REVISION"),
        "active": whole("POOL_ACTIVE", 1, 256, 8),
        "waiting": whole("POOL_WAITING", 0, 10_000, 16),
        "positions": whole("POOL_POSITIONS", 1, context, context),
        "replicas": whole("POOL_REPLICAS", 1, 1000, 1),
        "dtype": one_of("POOL_DTYPE", DTYPES, None),
        "window": one_of("SLIDING_WINDOW", ("off", "hf"), "off"),
        "host": get("HOST") or "127.0.0.1",
        "port": whole("PORT", 1, 65535, 8001),
    }


def build(settings: dict) -> serve.Application:
    """The deployment. Replicas come and go with the answers under way; what even they cannot hold is 503 at the proxy."""
    places = settings["active"] + settings["waiting"]
    return serve.deployment(
        name="paligemma",
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if torch.cuda.is_available() else 0},
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": settings["replicas"],
            "target_ongoing_requests": settings["active"],
        },
        # A few more than there are places, so that what is too much is refused by the replica, in its own words.
        max_ongoing_requests=places + 8,
        max_queued_requests=8,
        graceful_shutdown_timeout_s=GRACE_SECONDS,
    )(Worker).bind(settings)


def main() -> None:
    settings = read_settings()
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": settings["host"], "port": settings["port"]})
    serve.run(build(settings), route_prefix="/")
    print(f"Ray Serve takes work at http://{settings['host']}:{settings['port']}", flush=True)
    try:
        while True:
            asyncio.run(asyncio.sleep(3600))
    except KeyboardInterrupt:
        serve.shutdown()


if __name__ == "__main__":
    main()
