"""
What a worker of functions/ray_serve.py computes, without Ray around it: a random PaliGemma 3B of true shape in bf16.

    python3 tests/bench/ray_bench.py [--layers N] [--json FILE]

First the golden checkpoints: in f32 this device must give the greedy tokens that the CPU gives. Then medians of encoding,
of a prefill and of decoding beside others, and the share that reading the weights has of a token's time, at the bandwidth
of a copy measured in the same run. Needs torch, numpy, safetensors and PyJWT.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "functions"))

from ray_worker.gemma import PaliGemma

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT, TOKENS, BESIDE = 8, 32, (1, 4, 16)


def configuration(layers: int | None) -> dict:
    """PaliGemma 1 3B at 224 pixels, as published; `layers` cuts both halves."""
    text = {
        "model_type": "gemma", "hidden_size": 2048, "num_hidden_layers": min(18, layers or 18), "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 16384, "vocab_size": 257216,
    }
    vision = {
        "hidden_size": 1152, "num_hidden_layers": min(27, layers or 27), "num_attention_heads": 16, "patch_size": 14,
        "intermediate_size": 4304, "image_size": 224,
    }
    return {"text_config": text, "vision_config": vision, "image_token_index": 257152}


def tensors(config: dict):
    """(name, shape) of all weights."""
    text, vision = config["text_config"], config["vision_config"]
    d, f, c = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    w, m = vision["hidden_size"], vision["intermediate_size"]
    yield "language_model.model.embed_tokens.weight", (text["vocab_size"], d)
    yield "language_model.model.norm.weight", (d,)
    for i in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}."
        yield layer + "input_layernorm.weight", (d,)
        yield layer + "post_attention_layernorm.weight", (d,)
        for name, heads in (("q", text["num_attention_heads"]), ("k", 1), ("v", 1)):
            yield f"{layer}self_attn.{name}_proj.weight", (heads * c, d)
        yield layer + "self_attn.o_proj.weight", (d, text["num_attention_heads"] * c)
        yield layer + "mlp.gate_proj.weight", (f, d)
        yield layer + "mlp.up_proj.weight", (f, d)
        yield layer + "mlp.down_proj.weight", (d, f)
    tower = "vision_tower.vision_model."
    yield tower + "embeddings.patch_embedding.weight", (w, 3, vision["patch_size"], vision["patch_size"])
    yield tower + "embeddings.patch_embedding.bias", (w,)
    yield tower + "embeddings.position_embedding.weight", ((vision["image_size"] // vision["patch_size"]) ** 2, w)
    for i in range(vision["num_hidden_layers"]):
        layer = f"{tower}encoder.layers.{i}."
        shapes = {f"self_attn.{it}_proj": (w, w) for it in ("q", "k", "v", "out")}
        for name, shape in {**shapes, "mlp.fc1": (m, w), "mlp.fc2": (w, m)}.items():
            yield f"{layer}{name}.weight", shape
            yield f"{layer}{name}.bias", shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            yield f"{layer}{name}.weight", (w,)
            yield f"{layer}{name}.bias", (w,)
    for name in ("weight", "bias"):
        yield f"{tower}post_layernorm.{name}", (w,)
    yield "multi_modal_projector.linear.weight", (d, w)
    yield "multi_modal_projector.linear.bias", (d,)


def synthesise(directory: Path, layers: int | None) -> int:
    """Writes the checkpoint; returns the bytes that a token reads."""
    config, read = configuration(layers), 0
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    weights = {}
    for name, shape in tensors(config):
        scale = 0.1 if len(shape) == 1 else float(np.prod(shape[1:])) ** -0.5
        weights[name] = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) * scale).cpu()
        if name.startswith("language_model.") and len(shape) > 1:
            read += weights[name].nbytes
    save_file(weights, directory / "model.safetensors")
    return read


def settle() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def median_ms(run, times: int) -> float:
    """After two runs that do not count."""
    taken = []
    for i in range(times + 2):
        settle()
        since = time.perf_counter()
        run(i)
        settle()
        taken.append(1000 * (time.perf_counter() - since))
    return statistics.median(taken[2:])


def bandwidth() -> float:
    """10⁹ bytes read and written a second by a copy of 2 GB, of 64 MB on a CPU."""
    source = torch.zeros((2 << 30 if DEVICE == "cuda" else 64 << 20), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_ms(lambda _: target.copy_(source), 10) / 1e6


def greedy(model: PaliGemma, images: torch.Tensor, ids: list[int], count: int) -> list[int]:
    at, found = images.shape[0] * images.shape[1] + len(ids), []
    scores = model.prefill(0, images, ids, [])
    for i in range(count):
        found.append(int(scores.argmax()))
        scores = model.step({0: (found[-1], at + i)})[0]
    return found


def same_as_cpu(name: str) -> dict:
    """Greedy tokens of a golden checkpoint, with pixels at random, in f32."""
    found, scores = [], []
    directory = ROOT / "tests/golden/checkpoints" / name
    for device in dict.fromkeys(("cpu", DEVICE)):
        model = PaliGemma(directory, 2, 256, device, torch.float32)
        side = model.config.image_size
        pixels = np.random.default_rng(7).integers(0, 256, (1, side, side, 3), np.uint8)
        images = model.project(model.features(pixels))
        found.append(greedy(model, images, [2, 7, 11, 13], 24))
        scores.append(model.prefill(0, images, [2, 7, 11, 13], []).cpu())
    finite = torch.isfinite(scores[0])
    far = (scores[0] - scores[-1])[finite].abs().max().item()
    return {"checkpoint": name, "device": DEVICE, "sameTokens": found[0] == found[-1], "largestScoreDifference": far}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="of either half, instead of 18 and 27")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    result = {"device": device, "torch": torch.__version__, "exact": [same_as_cpu(it) for it in ("pg1", "pg2")]}
    print(result["exact"], flush=True)
    with tempfile.TemporaryDirectory() as place:
        read = synthesise(Path(place), args.layers)
        since = time.perf_counter()
        dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
        model = PaliGemma(Path(place), max(BESIDE), 512, DEVICE, dtype)
        settle()
        result["loadMs"] = 1000 * (time.perf_counter() - since)
    read *= 1 if DEVICE == "cuda" else 2
    result["copyGBs"] = bandwidth()
    pixels = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), np.uint8)
    result["encodeMs"] = median_ms(lambda _: model.project(model.features(pixels)), 10 if DEVICE == "cuda" else 1)
    images, ids = model.project(model.features(pixels)), [2, *range(100, 100 + PROMPT - 1)]
    result["prefillMs"] = median_ms(lambda _: model.prefill(0, images, ids, []), 10 if DEVICE == "cuda" else 1)
    at = images.shape[1] + PROMPT
    for slot in range(max(BESIDE)):
        model.prefill(slot, images, ids, [])
    result["decode"] = []
    for count in BESIDE:
        # The choice is read back after each token, as the engine does.
        step = lambda i: model.step({slot: (100, at + i) for slot in range(count)}).argmax(1).tolist()
        ms = median_ms(step, args.tokens)
        row = {"answers": count, "msAToken": ms, "tokensASecond": 1000 * count / ms, "weightsRead": read}
        row["shareOfCopy"] = read / ms / 1e6 / result["copyGBs"]
        result["decode"].append(row)
        print(row, flush=True)
    print(json.dumps(result), flush=True)
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")
    if not all(it["sameTokens"] for it in result["exact"]):
        raise SystemExit("the golden checkpoints give other tokens here than on the CPU")


if __name__ == "__main__":
    main()
