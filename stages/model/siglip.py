"""transformers' SiglipModel in open_clip's layout: an image tower of timm with a pooling head, a text tower of open_clip.

What is converted is run and saved by open_clip alone; only the tokenizer in the folder is transformers' own. timm's towers compute the
exact GELU where transformers computes its tanh approximation, as in open_clip's own conversions of the published checkpoints: at
the size of ViT-B-16, with random weights, no number of a vector differs by more than 3e-5.
"""

import re
from typing import Any

import timm
import torch

from .layouts import LayoutError, section

ANCHOR = "vision_model.head.probe"
"""A parameter that transformers' SiglipModel has, and its CLIPModel has not."""
LOGIT_BIAS = -10.0
"""What the sigmoid loss starts from (Zhai et al. 2023, section 3.2); the weights bring their own."""
EPS = 1e-6
TOKENIZER = "the one of the folder"
"""Name of a tokenizer that is read from beside the weights whatever its name."""

VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": EPS,
    "vision_use_head": True,
}
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": EPS,
}
"""What transformers' SiglipVisionConfig and SiglipTextConfig take where config.json says nothing."""
TOWERS = {
    (768, 12, 12, 3072): "base",
    (1024, 24, 16, 4096): "large",
    (1152, 27, 16, 4304): "so400m",
    (1536, 40, 16, 6144): "giantopt",
}
"""timm's word for an image tower of some width, depth, heads and width of the hidden layer."""
ACTIVATIONS: dict[str, dict[str, str] | None] = {"gelu_pytorch_tanh": {"approximate": "tanh"}, "gelu": None}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
"""SigLIP's own, where the folder says nothing."""

_NAMES = {
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.final_layer_norm.": "text.ln_final.",
    "text_model.head.": "text.text_projection.",
    "text_model.encoder.layers.": "text.transformer.resblocks.",
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
}
_TEXT_BLOCK = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}
_IMAGE_BLOCK = {".layer_norm1.": ".norm1.", ".layer_norm2.": ".norm2.", ".self_attn.out_proj.": ".attn.proj."}
_QUERY = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")
_POOL = re.compile(r"vision_model\.head\.attention\.in_proj_(weight|bias)")


def is_siglip(weights: dict[str, torch.Tensor]) -> bool:
    """Whether weights have the names of transformers' SiglipModel."""
    return ANCHOR in weights


def siglip_cfg(stored: dict[str, Any]) -> dict[str, Any]:
    """Return open_clip's configuration of the model that transformers' config.json describes.

    Raises:
        LayoutError: it is one that open_clip and timm do not have.
    """
    if stored.get("model_type") != "siglip":
        raise LayoutError(
            "a SigLIP 2 with images of any shape (NaFlex), which open_clip does not have; take one of a fixed size, such as "
            "google/siglip2-base-patch16-224"
        )
    vision = VISION_DEFAULTS | section(stored, "vision_config")
    text = TEXT_DEFAULTS | section(stored, "text_config")
    for name, tower in (("vision_config", vision), ("text_config", text)):
        if tower["hidden_act"] not in ACTIVATIONS:
            raise LayoutError(
                f"{name}.hidden_act {tower['hidden_act']!r}: only {' and '.join(ACTIVATIONS)} are converted"
            )
        if tower["layer_norm_eps"] != EPS:
            raise LayoutError(f"{name}.layer_norm_eps {tower['layer_norm_eps']}: the layers of a SigLIP have {EPS}")
    if not vision["vision_use_head"]:
        raise LayoutError("vision_use_head is false: a SigLIP without its pooling head makes no vector of an image")
    try:
        width, hidden = int(text["hidden_size"]), int(text["intermediate_size"])
        embed_dim = int(text.get("projection_size") or vision["hidden_size"])
        return {
            "embed_dim": embed_dim,
            "init_logit_bias": LOGIT_BIAS,
            "custom_text": True,
            "vision_cfg": {
                "image_size": int(vision["image_size"]),
                "timm_model_name": _timm_name(vision, embed_dim),
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                "context_length": int(text["max_position_embeddings"]),
                "vocab_size": int(text["vocab_size"]),
                "hf_tokenizer_name": TOKENIZER,
                "tokenizer_kwargs": {"clean": "canonicalize"},
                "width": width,
                "heads": int(text["num_attention_heads"]),
                "layers": int(text["num_hidden_layers"]),
                # open_clip cuts the product to a whole number
                "mlp_ratio": hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width,
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
                "norm_kwargs": {"eps": EPS},
                "act_kwargs": ACTIVATIONS[text["hidden_act"]],
            },
        }
    except (TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, LayoutError):
            raise
        raise LayoutError(f"sizes that make no model: {error}") from error


def _timm_name(vision: dict[str, Any], embed_dim: int) -> str:
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    width, layers, heads, hidden = (int(vision[key]) for key in keys)
    shape = (width, layers, heads, hidden)
    name = f"vit_{TOWERS.get(shape, '')}_patch{int(vision['patch_size'])}_siglip_{int(vision['image_size'])}"
    if shape not in TOWERS or not timm.is_model(name):
        raise LayoutError(
            f"an image tower of width {width}, {layers} layers, patches of {vision['patch_size']} at {vision['image_size']} px: "
            "timm has no SigLIP of these sizes, so it is not converted"
        )
    if embed_dim != width:
        raise LayoutError(f"projection_size {embed_dim}: an image tower of width {width} has vectors of that width")
    return name


def from_siglip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of transformers' SiglipModel under the names of open_clip and timm; what is not known keeps its name.

    Query, key and value of a block, three matrices there, are one here; those of the pooling head, one there, are two here.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        query, pool = _QUERY.fullmatch(name), _POOL.fullmatch(name)
        if query is not None:
            block, kind = query.groups()
            parts = [weights.get(f"{block}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            merged = f".attn.in_proj_{kind}" if name.startswith("text_model.") else f".attn.qkv.{kind}"
            if all(part is not None for part in parts):
                found[_renamed(block + ".")[:-1] + merged] = torch.cat([part for part in parts if part is not None])
        elif pool is not None:
            of_query, of_others = tensor[: len(tensor) // 3], tensor[len(tensor) // 3 :]
            found[f"visual.trunk.attn_pool.q.{pool[1]}"] = of_query.contiguous()
            found[f"visual.trunk.attn_pool.kv.{pool[1]}"] = of_others.contiguous()
        elif re.search(r"\.self_attn\.[kv]_proj\.", name) or name.endswith("position_ids"):
            continue
        elif name == "vision_model.embeddings.position_embedding.weight":
            found[_renamed(name)] = tensor[None]
        else:
            found[_renamed(name)] = tensor
    return found


def _renamed(name: str) -> str:
    block = _TEXT_BLOCK if name.startswith("text_model.") else _IMAGE_BLOCK
    for old, new in (*_NAMES.items(), *block.items()):
        name = name.replace(old, new)
    return name
