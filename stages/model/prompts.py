"""Deep visual prompts (Jia et al. 2022): learned tokens at the input of the later blocks of a frozen ViT.

They are attached with hooks, so the network keeps its structure: every block's output has the tokens that it had, layer
features are read as before, and the only new entry of the state dict is `visual.prompts.tokens`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from .checkpoints import ModelError, put_in_place, read_state_dict

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
STORED = "visual.prompts.tokens"
"""The prompts' name in the state dict of a whole model."""
SCHEMA = 1
PROMPT_SD = 0.02
"""Of the first values; the usual one for tokens of a ViT. The paper says Gaussian and no more."""


class DeepPrompts(nn.Module):
    """Prompts of the blocks from `first_block` on; what they become in a block is dropped behind it.

    Attributes:
        tokens: `[blocks, count, width] float32`.
        active: without it the network computes what it did before.
        class_tokens: when a list, each prompted block appends its class token `[n, width]`.
    """

    def __init__(self, blocks: int, count: int, width: int, first_block: int, seed: int) -> None:
        super().__init__()
        drawn = np.random.default_rng(seed).standard_normal((blocks, count, width), np.float32)
        self.tokens = nn.Parameter(torch.from_numpy(PROMPT_SD * drawn))
        self.first_block = first_block
        self.active = True
        self.class_tokens: list[torch.Tensor] | None = None

    def enter(self, block: int, tokens: torch.Tensor) -> torch.Tensor:
        """Return a block's input `[n, T, width]` with the prompts behind its own tokens."""
        if not self.active:
            return tokens
        added = self.tokens[block].to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([tokens, added], dim=1)

    def leave(self, block: int, tokens: torch.Tensor) -> torch.Tensor:
        """Return a block's output without the prompts."""
        if self.class_tokens is not None:
            self.class_tokens.append(tokens[:, 0])
        return tokens[:, : tokens.shape[1] - self.tokens.shape[1]] if self.active else tokens

    @contextmanager
    def watched(self, *, active: bool) -> Iterator[list[torch.Tensor]]:
        """Collect the class tokens behind the prompted blocks of one forward pass, with the prompts or without."""
        self.class_tokens, self.active = [], active
        try:
            yield self.class_tokens
        finally:
            self.class_tokens, self.active = None, True


class _Enter:
    def __init__(self, prompts: DeepPrompts, block: int) -> None:
        self._prompts, self._block = prompts, block

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._prompts.enter(self._block, inputs[0]), *inputs[1:])


class _Leave:
    def __init__(self, prompts: DeepPrompts, block: int) -> None:
        self._prompts, self._block = prompts, block

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return self._prompts.leave(self._block, output)


def attach(model: Any, first_block: int, count: int, seed: int) -> DeepPrompts:
    """Add prompts to the blocks `first_block` (from 0) to the last of a CLIP network's image tower.

    Raises:
        ModelError: the tower is no plain ViT with a class token, has prompts already, or has too few blocks.
    """
    if hasattr(model.visual, "prompts"):
        raise ModelError("the image tower has prompts already")
    blocks, width = _blocks(model.visual)
    if not 0 <= first_block < len(blocks):
        raise ModelError(f"first_block is {first_block}; the image tower has blocks 0 to {len(blocks) - 1}")
    prompts = DeepPrompts(len(blocks) - first_block, count, width, first_block, seed)
    prompts.to(next(model.visual.parameters()).device)
    model.visual.add_module("prompts", prompts)
    for place, block in enumerate(blocks[first_block:]):
        block.register_forward_pre_hook(_Enter(prompts, place))
        block.register_forward_hook(_Leave(prompts, place))
    return prompts


def attach_shaped(model: Any, tokens: torch.Tensor) -> DeepPrompts:
    """Add prompts of the shape of `tokens`, `[blocks, count, width]`, to the last blocks, for weights that hold some.

    Raises:
        ModelError: see attach.
    """
    return attach(model, len(_blocks(model.visual)[0]) - tokens.shape[0], tokens.shape[1], seed=0)


def _blocks(visual: Any) -> tuple[list[nn.Module], int]:
    """Return the blocks of a ViT whose first token is the class token, and their width."""
    if hasattr(visual, "transformer") and hasattr(visual, "class_embedding"):
        if not visual.transformer.batch_first:
            raise ModelError("prompts need an image tower that runs batch first")
        return list(visual.transformer.resblocks), int(visual.class_embedding.shape[0])
    trunk = getattr(visual, "trunk", None)
    # rotary positions are tied to the patches' places and leave no room for further tokens
    if getattr(trunk, "cls_token", None) is not None and getattr(trunk, "rope", None) is None:
        assert trunk is not None
        return list(trunk.blocks), int(trunk.embed_dim)
    raise ModelError(f"prompts need a ViT with a class token; the image tower is {type(trunk or visual).__name__}")


def save_adapter(prompts: DeepPrompts, base: str, folder: Path) -> None:
    """Write the prompts as a folder that appears whole or not at all: a JSON file and one tensor.

    Args:
        prompts: to be saved.
        base: fingerprint of the checkpoint that they were trained on.
        folder: one that is already there is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    save_file({"tokens": prompts.tokens.detach().cpu().contiguous()}, fresh / ADAPTER_WEIGHTS)
    blocks, count, width = prompts.tokens.shape
    stored = {
        "schema": SCHEMA,
        "kind": "deep_prompts",
        "base": base,
        "first_block": prompts.first_block,
        "blocks": blocks,
        "tokens": count,
        "width": width,
    }
    (fresh / ADAPTER_CONFIG).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    put_in_place(fresh, folder)


def load_adapter(network: nn.Module, base: str, folder: Path) -> DeepPrompts:
    """Put saved prompts into the network of the checkpoint that they belong to.

    Args:
        network: an open_clip model.
        base: fingerprint of its checkpoint.
        folder: what save_adapter wrote.

    Raises:
        ModelError: no such folder, another schema, another base checkpoint, or tensors of another shape.
    """
    try:
        stored = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        first_block, shape = int(stored["first_block"]), [int(stored[key]) for key in ("blocks", "tokens", "width")]
        schema, own = stored["schema"], stored["base"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} is not a readable adapter: {error}") from error
    if schema != SCHEMA:
        raise ModelError(f"{folder} has adapter schema {schema}; this version reads {SCHEMA}")
    if own != base:
        raise ModelError(f"{folder} was trained on the checkpoint {own}, not on {base}")
    weights = read_state_dict(folder / ADAPTER_WEIGHTS)
    if list(weights) != ["tokens"] or list(weights["tokens"].shape) != shape:
        raise ModelError(f"{folder}: the weights are not the {shape} tokens that {ADAPTER_CONFIG} tells of")
    prompts = attach(network, first_block, shape[1], seed=0)
    if list(prompts.tokens.shape) != shape:
        raise ModelError(f"{folder} holds prompts {shape}, the image tower takes {list(prompts.tokens.shape)}")
    with torch.no_grad():
        prompts.tokens.copy_(weights["tokens"])
    return prompts
