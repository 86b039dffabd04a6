"""The layout of segment-anything checkpoints: a model of the right sizes is built from the shapes of its tensors.

The official package builds vit_b, vit_l and vit_h at 1024 px only. All sizes but one follow from the shapes, so those
three and smaller ones of the same layout load by path alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from ..model.checkpoints import ModelError, load_weights, read_state_dict

DECODER_HEADS = 8
"""Attention heads of the mask decoder: 8 in every published model, and no tensor's shape tells."""

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Of pixels 0 to 255, red, green, blue; not stored in checkpoints."""

REMEDY = (
    "take an official file (sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth) "
    "or a plain state dict of segment_anything's own modules"
)


@dataclass(frozen=True, slots=True)
class EncoderLayout:
    """Sizes of SAM's image encoder."""

    grid: int
    """Patches along a side."""
    patch_px: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    window: int
    """Patches along the side of an attention window; 0 when every block attends globally."""
    global_blocks: tuple[int, ...]
    """Numbers of the blocks that attend globally."""
    channels: int
    """Channels of the image embedding."""

    @property
    def side_px(self) -> int:
        """Height and width of the input."""
        return self.grid * self.patch_px


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    """Sizes of SAM's prompt encoder and mask decoder."""

    channels: int = 256
    mask_channels: int = 16
    depth: int = 2
    mlp_width: int = 2048
    masks: int = 3
    """Masks a point."""
    quality_depth: int = 3
    quality_width: int = 256


def encoder_layout(weights: Mapping[str, torch.Tensor]) -> EncoderLayout:
    """Return the sizes that the shapes of `image_encoder.*` imply.

    A block whose relative positions span the grid attends globally; one of a window as wide as the grid does the same.

    Raises:
        ModelError: a tensor that tells a size is missing, or the sizes contradict each other.
    """
    position = _shape(weights, "image_encoder.pos_embed", 4)
    patch = _shape(weights, "image_encoder.patch_embed.proj.weight", 4)
    depth = _count(weights, r"image_encoder\.blocks\.(\d+)\.")
    spans, head_widths = [], set()
    for number in range(depth):
        table = _shape(weights, f"image_encoder.blocks.{number}.attn.rel_pos_h", 2)
        spans.append((table[0] + 1) // 2)
        head_widths.add(table[1])
    grid, width = position[1], position[3]
    windows = {span for span in spans if span != grid}
    if len(windows) > 1 or len(head_widths) != 1 or width % min(head_widths):
        raise ModelError(
            f"an image encoder of width {width} with windows {sorted(windows)} and heads of {sorted(head_widths)} "
            f"is none that segment-anything builds; {REMEDY}"
        )
    return EncoderLayout(
        grid=grid,
        patch_px=patch[2],
        width=width,
        depth=depth,
        heads=width // min(head_widths),
        mlp_width=_shape(weights, "image_encoder.blocks.0.mlp.lin1.weight", 2)[0],
        window=max(windows, default=0),
        global_blocks=tuple(number for number, span in enumerate(spans) if span == grid),
        channels=_shape(weights, "image_encoder.neck.0.weight", 4)[0],
    )


def decoder_layout(weights: Mapping[str, torch.Tensor]) -> DecoderLayout:
    """Return the sizes that the shapes of `prompt_encoder.*` and `mask_decoder.*` imply.

    Raises:
        ModelError: a tensor that tells a size is missing.
    """
    tokens = _shape(weights, "mask_decoder.mask_tokens.weight", 2)
    return DecoderLayout(
        channels=tokens[1],
        mask_channels=_shape(weights, "prompt_encoder.mask_downscaling.3.weight", 4)[0],
        depth=_count(weights, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        mlp_width=_shape(weights, "mask_decoder.transformer.layers.0.mlp.lin1.weight", 2)[0],
        masks=tokens[0] - 1,
        quality_depth=_count(weights, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        quality_width=_shape(weights, "mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
    )


def _shape(weights: Mapping[str, torch.Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in weights:
        raise ModelError(f"these are no segment-anything weights: {name} is missing; {REMEDY}")
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions:
        raise ModelError(f"{name} has shape {list(shape)}, but segment-anything has {dimensions} dimensions; {REMEDY}")
    return shape


def _count(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    """Return how many blocks are numbered from 0 on."""
    found = (re.match(pattern, name) for name in weights)
    numbers = {int(match.group(1)) for match in found if match}
    if not numbers or numbers != set(range(len(numbers))):
        raise ModelError(f"blocks {pattern} are not numbered from 0 on: {sorted(numbers)}; {REMEDY}")
    return len(numbers)


def build_encoder(layout: EncoderLayout) -> ImageEncoderViT:
    """Return SAM's image encoder with fresh weights from torch's global generator."""
    return ImageEncoderViT(
        img_size=layout.side_px,
        patch_size=layout.patch_px,
        embed_dim=layout.width,
        depth=layout.depth,
        num_heads=layout.heads,
        mlp_ratio=layout.mlp_width / layout.width,
        out_chans=layout.channels,
        qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=layout.window,
        global_attn_indexes=layout.global_blocks,
    )


def assemble(encoder: torch.nn.Module, layout: DecoderLayout, grid: int, side_px: int) -> Sam:
    """Return an image encoder with SAM's prompt encoder and mask decoder, these with fresh weights.

    Args:
        encoder: `[N, 3, side_px, side_px] float32` -> `[N, channels, grid, grid] float32`, with an attribute `img_size`.
        layout: sizes of the rest.
        grid: height and width of the image embedding.
        side_px: height and width of the input.
    """
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=layout.channels,
            image_embedding_size=(grid, grid),
            input_image_size=(side_px, side_px),
            mask_in_chans=layout.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=layout.masks,
            transformer=TwoWayTransformer(
                depth=layout.depth,
                embedding_dim=layout.channels,
                num_heads=DECODER_HEADS,
                mlp_dim=layout.mlp_width,
            ),
            transformer_dim=layout.channels,
            iou_head_depth=layout.quality_depth,
            iou_head_hidden_dim=layout.quality_width,
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )


def build_sam(encoder: EncoderLayout, decoder: DecoderLayout) -> Sam:
    """Return a SAM of these sizes with fresh weights from torch's global generator."""
    return assemble(build_encoder(encoder), decoder, encoder.grid, encoder.side_px)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict of SAM's or MobileSAM's layout on the CPU; nothing in the file is run.

    Raises:
        ModelError: no such file, a pickle with code in it, a damaged file.
    """
    if not path.is_file():
        raise ModelError(f"path: no such file: {path}")
    return read_state_dict(path)


def load_sam(path: Path) -> Sam:
    """Build a segment-anything model from a checkpoint (.pth or .safetensors) alone, on the CPU.

    Raises:
        ModelError: the file is missing, holds code, or is not of segment-anything's layout; the message names the
            first tensors that do not fit.
    """
    weights = read_weights(path)
    if any(name.startswith("image_encoder.layers.") for name in weights):
        raise ModelError(f"{path} has MobileSAM's image encoder (TinyViT); use kind: mobile_sam")
    try:
        encoder, decoder = encoder_layout(weights), decoder_layout(weights)
        # The fresh weights are all replaced, so the caller's generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            model = build_sam(encoder, decoder)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: segment-anything cannot build a model of these shapes: {error}; {REMEDY}") from error
    load_strictly(model, weights, path, REMEDY)
    return model


def load_strictly(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path, remedy: str) -> None:
    """Load every tensor of a state dict, or none, and put the model in evaluation mode.

    Raises:
        ModelError: naming the first missing and unexpected keys and the first shapes that differ, and the remedy.
    """
    try:
        load_weights(model, weights, str(path))
    except ModelError as error:
        raise ModelError(f"{error}; {remedy}") from None
    model.eval()
