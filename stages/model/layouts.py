"""Checkpoints as other software writes them, brought to open_clip's layout: wrappers, prefixes, transformers' CLIPModel."""

import re
from typing import Any

import torch

ENTRIES = ("state_dict", "model_state_dict", "model", "module")
"""Where training checkpoints keep the weights: open_clip and Lightning, PyTorch's tutorials, many scripts, DeepSpeed."""
PREFIXES = ("_orig_mod.", "module.", "model.")
"""Of torch.compile, data parallel, and Lightning modules."""
ANCHOR = "logit_scale"
"""A parameter that every CLIP has at its top."""
TRANSFORMERS = "vision_model.embeddings.class_embedding"
"""A parameter that transformers' CLIPModel has, and open_clip's has not."""
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
"""Integers that only OpenAI's own archives hold beside the weights."""
CLIP_VOCABULARY = 49408

VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": CLIP_VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""What transformers' CLIPVisionConfig and CLIPTextConfig take where config.json says nothing."""
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers in preprocessor_config.json."""

_TOWER_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
}
_BLOCK_NAMES = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}
_QUERY = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")


class LayoutError(ValueError):
    """A checkpoint of a kind that cannot be converted; the message says what to do."""


def unwrapped(stored: Any) -> Any:
    """Return the state dict of a training checkpoint, its names without what wrappers put before them."""
    for _ in ENTRIES:
        inner = next((stored[e] for e in ENTRIES if isinstance(stored, dict) and isinstance(stored.get(e), dict)), None)
        if inner is None:
            break
        stored = inner
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        return stored
    # torch.compile of one tower leaves its mark in the middle
    named = {name.replace("._orig_mod.", "."): value for name, value in stored.items()}
    while prefix := _prefix(named):
        named = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    return named


def _prefix(named: dict[str, Any]) -> str | None:
    """Return what stands before every name; or, of a training module that holds a CLIP and more, before those of the CLIP."""
    if ANCHOR in named or not named:
        return None
    return next(
        (
            prefix
            for prefix in PREFIXES
            if all(name.startswith(prefix) for name in named)
            or any(name.startswith(prefix) and name.endswith(f".{ANCHOR}") for name in named)
        ),
        None,
    )


def is_transformers(weights: dict[str, torch.Tensor]) -> bool:
    """Whether weights have the names of transformers' CLIPModel."""
    return TRANSFORMERS in weights


def from_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of transformers' CLIPModel under open_clip's names; what is not known keeps its name.

    Query, key and value of a block, three matrices there, are one here; the projections are transposed.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        query = _QUERY.fullmatch(name)
        if query is not None:
            block, kind = query.groups()
            parts = [weights.get(f"{block}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            if all(part is not None for part in parts):
                found[_renamed(f"{block}.attn.in_proj_{kind}")] = torch.cat([p for p in parts if p is not None])
        elif re.search(r"\.self_attn\.[kv]_proj\.", name) or name.endswith("position_ids"):
            continue
        elif name in ("text_projection.weight", "visual_projection.weight"):
            found["text_projection" if name.startswith("text") else "visual.proj"] = tensor.T.contiguous()
        else:
            found[_renamed(name)] = tensor
    return found


def _renamed(name: str) -> str:
    for old, new in (*_TOWER_NAMES.items(), *_BLOCK_NAMES.items()):
        name = name.replace(old, new)
    return name


def transformers_cfg(stored: dict[str, Any]) -> dict[str, Any]:
    """Return open_clip's configuration of the model that transformers' config.json describes.

    Raises:
        LayoutError: it is no CLIPModel, or one that open_clip does not have.
    """
    kind = stored.get("model_type")
    if kind != "clip":
        raise LayoutError(
            f"a model of transformers of the type {kind!r}; only clip and siglip are converted to open_clip's layout"
        )
    vision = VISION_DEFAULTS | section(stored, "vision_config")
    text = TEXT_DEFAULTS | section(stored, "text_config")
    activations = {vision["hidden_act"], text["hidden_act"]}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        raise LayoutError(
            f"hidden_act {', '.join(sorted(map(str, activations)))}: open_clip has quick_gelu or gelu, in both towers"
        )
    if text["vocab_size"] != CLIP_VOCABULARY:
        raise LayoutError(f"vocab_size {text['vocab_size']}: only CLIP's own vocabulary of {CLIP_VOCABULARY} is read")
    if {vision["layer_norm_eps"], text["layer_norm_eps"]} != {1e-5}:
        raise LayoutError("layer_norm_eps: open_clip's layers have 1e-05")
    try:
        return {
            "embed_dim": int(stored.get("projection_dim", 512)),
            "quick_gelu": activations == {"quick_gelu"},
            "vision_cfg": {
                "image_size": int(vision["image_size"]),
                "patch_size": int(vision["patch_size"]),
                "width": int(vision["hidden_size"]),
                "layers": int(vision["num_hidden_layers"]),
                "head_width": int(vision["hidden_size"]) // int(vision["num_attention_heads"]),
                "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            },
            "text_cfg": {
                "context_length": int(text["max_position_embeddings"]),
                "vocab_size": int(text["vocab_size"]),
                "width": int(text["hidden_size"]),
                "heads": int(text["num_attention_heads"]),
                "layers": int(text["num_hidden_layers"]),
                "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            },
        }
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise LayoutError(f"sizes that make no model: {error}") from error


def section(stored: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part of config.json, empty where there is none.

    Raises:
        LayoutError: it is no mapping.
    """
    found = stored.get(name) or stored.get(f"{name}_dict") or {}
    if not isinstance(found, dict):
        raise LayoutError(f"{name} is no mapping")
    return found


def transformers_preprocess(stored: dict[str, Any]) -> dict[str, Any]:
    """Return open_clip's preprocessing for transformers' preprocessor_config.json; what it leaves open is left out.

    An image processor that resizes to a height and a width, and crops nothing, squashes.
    """
    size = stored.get("size")
    squashes = isinstance(size, dict) and "height" in size and not stored.get("do_center_crop")
    known = {
        "mean": stored.get("image_mean"),
        "std": stored.get("image_std"),
        "interpolation": INTERPOLATIONS.get(stored.get("resample", -1)),
        "resize_mode": "squash" if squashes or stored.get("do_center_crop") is False else None,
    }
    return {name: value for name, value in known.items() if value is not None}
