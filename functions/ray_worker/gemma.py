"""
PaliGemma 1 and 2 in PyTorch: lib/vision/siglip.ts and lib/decode/gemma.ts, for many sequences at once.

Image rows enter as the projector left them, text rows as embedding · √D. The prefix (image tokens, BOS, prompt, newline)
sees itself in full, what comes after is causal; positions count from 0 over both. The residual stream, norms and softmax
are f32; matrices are in the dtype that was asked for.

Shape letters: B slots, T rows of this pass, S rows in the cache, P image tokens, L layers, D width, H heads, K key-value
heads, C head width, F MLP width, V vocabulary.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

SAMPLES, SAMPLE_BYTES = 16, 4096

torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


def revision_of(directory: Path) -> str:
    """The fingerprint of lib/weights/revision.ts."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        last = max(0, size - SAMPLE_BYTES)
        with path.open("rb") as file:
            for i in range(SAMPLES):
                start = last * i // (SAMPLES - 1)
                file.seek(start)
                digest.update(file.read(min(size, start + SAMPLE_BYTES) - start))
    return digest.hexdigest()[:16]


class Config:
    """What a model is: lib/weights/config.ts, with the same defaults where published configs leave a field out."""

    def __init__(self, directory: Path):
        def read(name):
            path = directory / name
            return json.loads(path.read_text()) if path.exists() else {}

        top, pre, generation = read("config.json"), read("preprocessor_config.json"), read("generation_config.json")
        text, vision = top["text_config"], top["vision_config"]
        family = text.get("model_type", "gemma")
        if family not in ("gemma", "gemma2"):
            raise ValueError(f"expected text_config.model_type to be gemma or gemma2, found {family}")
        self.second = second = family == "gemma2"
        self.width = text.get("hidden_size", 2304 if second else 3072)
        self.layers = text.get("num_hidden_layers", 26 if second else 28)
        self.heads = text.get("num_attention_heads", 8 if second else 16)
        self.kv_heads = text.get("num_key_value_heads", 4 if second else 16)
        self.head_dim = text.get("head_dim", 256)
        self.vocabulary_rows = text.get("vocab_size", 257216)
        self.context = text.get("max_position_embeddings", 8192)
        self.eps = text.get("rms_norm_eps", 1e-6)
        self.theta = text.get("rope_theta") or (text.get("rope_parameters") or {}).get("rope_theta", 10000.0)
        scale_of = text.get("query_pre_attn_scalar", 256) if second else self.head_dim
        self.attention_scale = scale_of**-0.5
        self.softcap = text.get("attn_logit_softcapping", 50.0) if second else None
        self.window = text.get("sliding_window", 4096) if second else None
        self.image_size = vision.get("image_size", (pre.get("size") or {}).get("height", 224))
        self.patch = vision.get("patch_size", 14)
        self.image_tokens = (self.image_size // self.patch) ** 2
        self.feature_width = vision.get("hidden_size", 1152)
        self.vision_layers = vision.get("num_hidden_layers", 27)
        self.vision_heads = vision.get("num_attention_heads", 16)
        self.vision_eps = vision.get("layer_norm_eps", 1e-6)
        self.mean = pre.get("image_mean", [0.5] * 3)
        self.std = pre.get("image_std", [0.5] * 3)
        self.image_token_id = top.get("image_token_index", top.get("image_token_id", 257152))
        self.bos_id = top.get("bos_token_id", text.get("bos_token_id", 2))
        self.pad_id = top.get("pad_token_id", text.get("pad_token_id", 0))
        ends = [top.get("eos_token_id", text.get("eos_token_id", 1)), generation.get("eos_token_id", [])]
        self.eos_ids = {id for it in ends for id in (it if isinstance(it, list) else [it])}


def load_weights(directory: Path, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors under the names first published; matrices in `dtype`, vectors in f32."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                short = re.sub(r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)", "", name)
                if short in ("lm_head.weight", "language_model.lm_head.weight"):
                    continue  # tied
                short = re.sub(r"^language_model\.(?!model\.)", "language_model.model.", short)
                short = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", short)
                tensor = file.get_tensor(name)
                if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                    raise ValueError(f"expected {name} as f32, bf16 or f16, found {tensor.dtype}")
                found[short] = tensor.to(device, dtype if tensor.ndim > 1 else torch.float32)
    if not found:
        raise ValueError(f"expected safetensors in {directory}, found none")
    return found


class PaliGemma:
    """One model with a static cache for `slots` sequences of `positions` rows each."""

    def __init__(
        self, directory: Path, slots: int, positions: int, device: str, dtype: torch.dtype, sliding_window: str = "off"
    ):
        self.config = config = Config(directory)
        self.device, self.slots, self.positions = device, slots, positions
        self._window = config.window if sliding_window == "hf" else None
        self._weights = load_weights(directory, device, dtype)
        self._dtype = dtype
        self._layers = [self._take_layer(i) for i in range(config.layers)]
        self._last_norm = 1 + self._weights["language_model.model.norm.weight"]
        shape = (config.layers, slots, config.kv_heads, positions, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        half = config.head_dim // 2
        rates = config.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), rates)
        cos, sin = angles.cos().float().to(device), angles.sin().float().to(device)
        # For both halves of a head; the first takes from the second what the second takes from it.
        self._cos, self._sin = torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)
        self._ids = torch.zeros(slots, dtype=torch.long, device=device)
        self._at = torch.zeros(slots, dtype=torch.long, device=device)
        self._graphs: dict[tuple[int, int], tuple] = {}

    def _take_layer(self, i: int) -> dict[str, torch.Tensor]:
        """A decoder layer's weights: those that read the same rows as one, and norms with the 1 that Gemma adds."""
        start = f"language_model.model.layers.{i}."
        names = [it for it in self._weights if it.startswith(start)]
        layer = {it[len(start) :]: self._weights.pop(it) for it in names}
        stack = lambda names: torch.cat([layer.pop(f"{it}_proj.weight") for it in names])
        layer["qkv.weight"] = stack(f"self_attn.{it}" for it in "qkv")
        layer["gate_up.weight"] = stack(["mlp.gate", "mlp.up"])
        return {name: it if it.ndim > 1 else 1 + it for name, it in layer.items()}

    def _linear(self, x: torch.Tensor, name: str, weights=None, bias: str | None = None) -> torch.Tensor:
        weights = self._weights if weights is None else weights
        y = F.linear(x.to(self._dtype), weights[name]).float()
        return y if bias is None else y + weights[bias]

    # -- SigLIP ---------------------------------------------------------------------------------------------------

    def features(self, pixels: np.ndarray) -> torch.Tensor:
        """u8 [N, S, S, 3] to SigLIP's features [N, P, W], after its last norm."""
        config, tower = self.config, "vision_tower.vision_model."
        mean, std = (np.asarray(it, np.float32) for it in (config.mean, config.std))
        samples = (pixels.astype(np.float32) * np.float32(1 / 255) - mean) / std
        x = torch.from_numpy(samples).to(self.device)
        count, side, patch = len(x), config.image_size // config.patch, config.patch
        x = x.reshape(count, side, patch, side, patch, 3).permute(0, 1, 3, 5, 2, 4).reshape(count, side * side, -1)
        name = f"{tower}embeddings.patch_embedding"
        x = F.linear(x, self._weights[f"{name}.weight"].float().flatten(1), self._weights[f"{name}.bias"])
        x = x + self._weights[f"{tower}embeddings.position_embedding.weight"].float()
        for i in range(config.vision_layers):
            layer = f"{tower}encoder.layers.{i}."
            linear = lambda y, part: self._linear(y, f"{layer}{part}.weight", bias=f"{layer}{part}.bias")
            y = self._layer_norm(x, f"{layer}layer_norm1")
            q, k, v = (
                linear(y, f"self_attn.{it}_proj").unflatten(2, (config.vision_heads, -1)).transpose(1, 2) for it in "qkv"
            )
            scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
            x = x + linear((scores @ v).transpose(1, 2).flatten(2), "self_attn.out_proj")
            y = self._layer_norm(x, f"{layer}layer_norm2")
            x = x + linear(F.gelu(linear(y, "mlp.fc1"), approximate="tanh"), "mlp.fc2")
        return self._layer_norm(x, f"{tower}post_layernorm")

    def _layer_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.config.vision_eps)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """[N, P, W] to image tokens [N, P, D]."""
        name = "multi_modal_projector.linear"
        return self._linear(features, f"{name}.weight", bias=f"{name}.bias")

    # -- Gemma ----------------------------------------------------------------------------------------------------

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self._weights["language_model.model.embed_tokens.weight"]).float() * self.config.width**0.5

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x / RMS · weight, which holds Gemma's 1 + w."""
        return F.rms_norm(x, weight.shape, weight, self.config.eps)

    def _rope(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """x [.., T, heads, C], at [.., T]."""
        a, b = x.chunk(2, -1)
        return torch.addcmul(x * self._cos[at].unsqueeze(-2), torch.cat([b, a], -1), self._sin[at].unsqueeze(-2))

    def _block(self, i: int, x: torch.Tensor, at: torch.Tensor, attend) -> torch.Tensor:
        """
        One layer over x [B, T, D] at positions at [B, T]; attend(q, k, v) stores keys and mixes values, of all rows or of the
        last, which alone go on.
        """
        config, layer = self.config, self._layers[i]
        post, pre_mlp = "post_attention_layernorm.weight", "pre_feedforward_layernorm.weight"
        norm = lambda y, name: self._norm(y, layer[name])
        linear = lambda y, name: self._linear(y, f"{name}.weight", layer)
        y = norm(x, "input_layernorm.weight")
        heads = linear(y, "qkv").unflatten(-1, (-1, config.head_dim))
        turned = self._rope(heads[..., : config.heads + config.kv_heads, :], at)
        mixed = attend(*turned.split([config.heads, config.kv_heads], -2), heads[..., -config.kv_heads :, :])
        y = linear(mixed, "self_attn.o_proj")
        x = x[:, -mixed.shape[1] :] + (norm(y, post) if config.second else y)
        # Gemma 1 calls its pre-MLP norm "post_attention_layernorm"; in Gemma 2 that name is what it says.
        y = norm(x, pre_mlp if config.second else post)
        gate, up = linear(y, "gate_up").chunk(2, -1)
        y = F.gelu(gate, approximate="tanh") * up
        y = linear(y, "mlp.down_proj")
        return x + (norm(y, "post_feedforward_layernorm.weight") if config.second else y)

    def _mix(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """q [B, T, H, C], keys and values [B, K, S, C], hidden [B or 1, 1, 1, T, S] to [B, T, H·C]."""
        config = self.config
        q = q.unflatten(2, (config.kv_heads, -1)).permute(0, 2, 3, 1, 4)  # [B, K, H/K, T, C]
        scores = q @ keys.float().unsqueeze(2).transpose(-1, -2) * config.attention_scale
        if config.softcap:
            scores = config.softcap * torch.tanh(scores / config.softcap)
        scores = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return (scores @ values.float().unsqueeze(2)).permute(0, 3, 1, 2, 4).flatten(2)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] of the last rows; ids that are never given are at -inf, those from the image token on cut off."""
        config = self.config
        x = self._norm(x[:, -1], self._last_norm)
        logits = self._linear(x, "language_model.model.embed_tokens.weight")[:, : config.image_token_id]
        for id in (config.pad_id, config.bos_id):
            logits[:, id] = -torch.inf
        return logits

    def _seen_window(self, i: int) -> int | None:
        return self._window if i % 2 == 0 else None

    @torch.inference_mode()
    def prefill(self, slot: int, images: torch.Tensor, ids: list[int], after: list[int]) -> torch.Tensor:
        """Scores [V] after image tokens [N, P, D] and ids, which see one another, and the tokens after them."""
        text = self._embed(torch.tensor(ids + after, device=self.device))
        x = torch.cat([images.flatten(0, 1), text]).unsqueeze(0)
        rows, prefix = x.shape[1], x.shape[1] - len(after)
        at = torch.arange(rows, device=self.device)
        q, k = at[:, None], at[None]
        for i in range(self.config.layers):
            seen = k <= q
            if window := self._seen_window(i):
                seen = seen & (k > q - window)
            hidden = ~(seen | ((q < prefix) & (k < prefix)))

            def attend(query, key, value):
                self._keys[i, slot, :, :rows] = key[0].transpose(0, 1).to(self._dtype)
                self._values[i, slot, :, :rows] = value[0].transpose(0, 1).to(self._dtype)
                own = self._keys[i, slot : slot + 1, :, :rows], self._values[i, slot : slot + 1, :, :rows]
                first = rows - 1 if i == self.config.layers - 1 else 0  # of the last layer, nobody asks for more
                return self._mix(query[:, first:], *own, hidden[None, None, None, first:])

            x = self._block(i, x, at[None], attend)
        return self._logits(x)[0]

    @torch.inference_mode()
    def step(self, sequences: dict[int, tuple[int, int]]) -> torch.Tensor:
        """
        Scores [B, V] after one more token in each of some slots: id and position by slot. Of other slots they mean
        nothing. The number of slots and of positions looked at are rounded up to powers of two, so that there are few
        CUDA graphs.
        """
        slots = min(self.slots, _power(max(sequences) + 1, 1))
        length = min(self.positions, _power(max(at for _, at in sequences.values()) + 1, 256))
        ids, positions = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        for slot, (id, at) in sequences.items():
            ids[slot], positions[slot] = id, at
        self._ids[:slots].copy_(torch.from_numpy(ids))
        self._at[:slots].copy_(torch.from_numpy(positions))
        if self.device == "cpu":
            return self._step(slots, length)
        if (slots, length) not in self._graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step(slots, length)  # what is allocated once must be before the capture
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = self._step(slots, length)
            self._graphs[slots, length] = graph, logits
        graph, logits = self._graphs[slots, length]
        graph.replay()
        return logits

    def _step(self, slots: int, length: int) -> torch.Tensor:
        at = self._at[:slots]
        x = self._embed(self._ids[:slots, None])
        each = torch.arange(slots, device=self.device)[:, None]
        heads = torch.arange(self.config.kv_heads, device=self.device)[None]
        k = torch.arange(length, device=self.device)
        for i in range(self.config.layers):
            hidden = k > at[:, None]
            if window := self._seen_window(i):
                hidden = hidden | (k <= at[:, None] - window)

            def attend(query, key, value):
                self._keys[i][each, heads, at[:, None]] = key[:, 0].to(self._dtype)
                self._values[i][each, heads, at[:, None]] = value[:, 0].to(self._dtype)
                own = self._keys[i, :slots, :, :length], self._values[i, :slots, :, :length]
                return self._mix(query, *own, hidden[:, None, None, None])

            x = self._block(i, x, at[:, None], attend)
        return self._logits(x)


def _power(value: int, least: int) -> int:
    return max(least, 1 << (value - 1).bit_length())
