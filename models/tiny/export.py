"""Writes a trained model as a directory in Hugging Face layout (f32), and reads one, quantised or not, back."""

import json
import os

import numpy as np
import torch

VISION = "vision_tower.vision_model."
TEXT = "language_model.model."


def tensors(model):
    """{published name: f32 tensor}."""
    c, out = model.c, {}

    def both(name, module):
        out[name + ".weight"] = module.weight
        if getattr(module, "bias", None) is not None:
            out[name + ".bias"] = module.bias

    v = model.vision
    out[VISION + "embeddings.patch_embedding.weight"] = v.embed.weight.view(-1, 3, c["patch"], c["patch"])
    out[VISION + "embeddings.patch_embedding.bias"] = v.embed.bias
    out[VISION + "embeddings.position_embedding.weight"] = v.position
    for i, layer in enumerate(v.layers):
        at = f"{VISION}encoder.layers.{i}."
        both(at + "layer_norm1", layer.norm1)
        both(at + "layer_norm2", layer.norm2)
        for name, w, b in zip("qkv", layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)):
            out[f"{at}self_attn.{name}_proj.weight"], out[f"{at}self_attn.{name}_proj.bias"] = w, b
        both(at + "self_attn.out_proj", layer.out)
        both(at + "mlp.fc1", layer.fc1)
        both(at + "mlp.fc2", layer.fc2)
    both(VISION + "post_layernorm", v.norm)
    both("multi_modal_projector.linear", v.project)
    out[TEXT + "embed_tokens.weight"] = model.embedding
    for i, layer in enumerate(model.layers):
        at = f"{TEXT}layers.{i}."
        out[at + "input_layernorm.weight"] = layer.norm1.weight
        out[at + "post_attention_layernorm.weight"] = layer.norm2.weight
        for name, w in zip("qkv", layer.qkv.weight.split([layer.heads * layer.dim, layer.dim, layer.dim])):
            out[f"{at}self_attn.{name}_proj.weight"] = w
        both(at + "self_attn.o_proj", layer.out)
        for name, w in zip(("gate_proj", "up_proj"), layer.gate_up.weight.chunk(2)):
            out[f"{at}mlp.{name}.weight"] = w
        both(at + "mlp.down_proj", layer.down)
    out[TEXT + "norm.weight"] = model.norm.weight
    return {k: t.detach().float().contiguous().clone() for k, t in out.items()}


def export(model, tokenizer, out):
    from safetensors.torch import save_file

    c = model.c
    count = (c["image"] // c["patch"]) ** 2
    config = {
        "architectures": ["PaliGemmaForConditionalGeneration"], "model_type": "paligemma",
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "hidden_size": c["width"],
        "image_token_index": tokenizer.image, "projection_dim": c["width"], "vocab_size": model.rows,
        "torch_dtype": "float32",
        "text_config": {
            "model_type": "gemma", "hidden_size": c["width"], "intermediate_size": c["mlp"],
            "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"], "num_key_value_heads": 1,
            "head_dim": c["head_dim"], "vocab_size": model.rows, "max_position_embeddings": 1024,
            "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": c["eps"], "rope_theta": c["theta"],
            "num_image_tokens": count,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": c["v_width"], "intermediate_size": c["v_mlp"],
            "num_hidden_layers": c["v_layers"], "num_attention_heads": c["v_heads"], "image_size": c["image"],
            "patch_size": c["patch"], "num_image_tokens": count, "projection_dim": c["width"],
            "layer_norm_eps": c["v_eps"], "hidden_act": "gelu_pytorch_tanh", "vision_use_head": False,
        },
    }
    preprocessor = {
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor", "image_seq_length": count,
        "processor_class": "PaliGemmaProcessor", "resample": 3, "rescale_factor": 1 / 255,
        "size": {"height": c["image"], "width": c["image"]},
    }
    os.makedirs(out, exist_ok=True)
    for name, data in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        with open(os.path.join(out, name), "w") as f:
            f.write(json.dumps(data, indent=1) + "\n")
    with open(os.path.join(out, "tokenizer.model"), "wb") as f:
        f.write(tokenizer.model())
    with torch.no_grad():
        save_file(tensors(model), os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters")


def _matrix(data, scale, shape):
    """`int8-p8-s4` or `int4-g32-p8` of lib/backend/layout.ts as f32 [N, K]."""
    n, k = shape
    if data.dtype == np.int8:
        whole = data.reshape(n // 8, k // 4, 8, 4).transpose(0, 2, 1, 3).reshape(n, k)
        return whole * scale[:, None]
    groups = data.reshape(n // 8, k // 32, 144)
    steps = np.ascontiguousarray(groups[:, :, :16]).view("<i2").astype(np.float32)  # [N / 8, K / 32, 8]
    nibbles = groups[:, :, 16:].reshape(n // 8, k // 32, 8, 4, 4)  # four k, column, k
    whole = np.stack([nibbles & 15, nibbles >> 4], 3).astype(np.float32) - 8  # [.., four k, half, column, k]
    whole = whole.transpose(0, 3, 4, 1, 2, 5).reshape(n // 8, 8, k // 32, 32) * steps.transpose(0, 2, 1)[..., None]
    return whole.reshape(n, k) * scale[:, None]


@torch.no_grad()
def read(model, directory):
    """Fills the model from `model.safetensors` of a directory; quantised matrices become what they stand for. Its rows of
    the embedding are as many as the file has. -> the pieces of the directory's tokenizer, which name them."""
    from safetensors.numpy import load_file
    from sentencepiece import SentencePieceProcessor

    stored = load_file(os.path.join(directory, "model.safetensors"))
    table = TEXT + "embed_tokens.weight"
    rows = (stored[table] if table in stored else stored[table + ".scale"]).shape[0]
    model.embedding = torch.nn.Parameter(torch.zeros(rows, model.c["width"]))
    shapes = {k: tuple(t.shape) for k, t in tensors(model).items()}
    found = {}
    for name, shape in shapes.items():
        values = stored[name] if name in stored else _matrix(stored[name + ".q"], stored[name + ".scale"], shape)
        found[name] = torch.from_numpy(np.ascontiguousarray(values.reshape(shape), dtype=np.float32))

    v = model.vision
    v.embed.weight.copy_(found[VISION + "embeddings.patch_embedding.weight"].flatten(1))
    v.embed.bias.copy_(found[VISION + "embeddings.patch_embedding.bias"])
    v.position.copy_(found[VISION + "embeddings.position_embedding.weight"])

    def fill(module, *names):
        module.weight.copy_(torch.cat([found[n + ".weight"] for n in names]))
        if getattr(module, "bias", None) is not None:
            module.bias.copy_(torch.cat([found[n + ".bias"] for n in names]))

    for i, layer in enumerate(v.layers):
        at = f"{VISION}encoder.layers.{i}."
        fill(layer.norm1, at + "layer_norm1")
        fill(layer.norm2, at + "layer_norm2")
        fill(layer.qkv, *(f"{at}self_attn.{n}_proj" for n in "qkv"))
        fill(layer.out, at + "self_attn.out_proj")
        fill(layer.fc1, at + "mlp.fc1")
        fill(layer.fc2, at + "mlp.fc2")
    fill(v.norm, VISION + "post_layernorm")
    fill(v.project, "multi_modal_projector.linear")
    model.embedding.copy_(found[TEXT + "embed_tokens.weight"])
    for i, layer in enumerate(model.layers):
        at = f"{TEXT}layers.{i}."
        fill(layer.norm1, at + "input_layernorm")
        fill(layer.norm2, at + "post_attention_layernorm")
        fill(layer.qkv, *(f"{at}self_attn.{n}_proj" for n in "qkv"))
        fill(layer.out, at + "self_attn.o_proj")
        fill(layer.gate_up, at + "mlp.gate_proj", at + "mlp.up_proj")
        fill(layer.down, at + "mlp.down_proj")
    fill(model.norm, TEXT + "norm")
    words = SentencePieceProcessor(model_file=os.path.join(directory, "tokenizer.model"))
    return [words.id_to_piece(i) for i in range(words.get_piece_size())]


@torch.no_grad()
def carry(state, model, pieces, tokenizer):
    """Makes the state of a model with other words and another picture size fit: rows of the embedding go by the names of
    their pieces, new ones keep what the model has; places of patches are stretched (bicubic)."""
    table = model.embedding.detach().clone()
    at = {p: i for i, p in enumerate(pieces)}
    for i, piece in enumerate(tokenizer.pieces):
        if piece in at:
            table[i] = state["embedding"][at[piece]]
    place = state["vision.position"]
    old, new = round(len(place) ** 0.5), round(len(model.vision.position) ** 0.5)
    if old != new:
        grid = place.view(1, old, old, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        place = grid.permute(0, 2, 3, 1).reshape(new * new, -1)
    return {**state, "embedding": table, "vision.position": place}
