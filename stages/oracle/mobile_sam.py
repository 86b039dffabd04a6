"""MobileSAM as an oracle: SAM's mask decoder behind a TinyViT image encoder, loaded from the published layout.

Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications", 2023, arXiv:2306.14289. The
encoder is put together from timm's TinyViT-5M blocks under MobileSAM's names, with its two differences: a stride of 1
before the last stage, so that 1024 px give an embedding of 64 x 64, and SAM's neck behind it.

Names, shapes and outputs were checked against the published code with random weights. The published file,
mobile_sam.pt, could not be had here: that it loads, and what its masks are worth, is not measured.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import ConvNorm, tiny_vit_5m_224
from torch import nn

from ..model.checkpoints import ModelError
from ..stage import config
from .regions import Oracle, OracleConfig
from .sam import MaskOracle, MaskSettings
from .sam_layout import DecoderLayout, assemble, load_strictly, read_weights

SIDE_PX = 1024
GRID = 64
CHANNELS = 256
"""Input, embedding and channels of the published model; there is one size."""

CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
"""TinyViT's ImageNet head: it stands in the published file, and no mask depends on it."""

REMEDY = "take mobile_sam.pt as its authors publish it, or a plain state dict of the same layout"


@config
class MobileSamConfig(MaskSettings, OracleConfig):
    """MobileSAM with a TinyViT-5M encoder at 1024 px (vit_t)."""

    kind: Literal["mobile_sam"] = "mobile_sam"

    def build(self, device: str = "cpu") -> Oracle:
        return MaskOracle(load_mobile_sam(Path(self.path)), self, device)


class _Stem(nn.Module):
    """Two convolutions that halve the image twice."""

    def __init__(self, first: nn.Module, activation: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.seq = nn.Sequential(first, activation, second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.seq(x)
        return out


class _Layer(nn.Module):
    """One stage and what leads to the next; timm counts that to the next stage, MobileSAM to this one."""

    def __init__(self, blocks: nn.Module, downsample: nn.Module | None, channels_last: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.downsample = downsample
        self.channels_last = channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.channels_last else self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class TinyVitEncoder(nn.Module):
    """MobileSAM's image encoder: `[N, 3, 1024, 1024] float32` -> `[N, 256, 64, 64] float32`."""

    img_size = SIDE_PX

    def __init__(self) -> None:
        super().__init__()
        body = tiny_vit_5m_224(pretrained=False)
        body.stages[3].downsample.conv2.conv.stride = (1, 1)
        _rename_convolutions(body)
        stem, stages = body.patch_embed, list(body.stages)
        following = [stage.downsample for stage in stages[1:]] + [None]
        self.patch_embed = _Stem(stem.conv1, stem.act, stem.conv2)
        self.layers = nn.ModuleList(
            _Layer(stage.blocks, downsample, channels_last=number > 0)
            for number, (stage, downsample) in enumerate(zip(stages, following, strict=True))
        )
        self.neck = nn.Sequential(
            nn.Conv2d(body.num_features, CHANNELS, kernel_size=1, bias=False),
            LayerNorm2d(CHANNELS),
            nn.Conv2d(CHANNELS, CHANNELS, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(CHANNELS),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the image embedding of normalised and padded images."""
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = self.neck(x)
        return out


def _rename_convolutions(module: nn.Module) -> None:
    """Give convolutions with their batch norm the names c and bn that MobileSAM's file has."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, nn.Sequential(OrderedDict(c=child.conv, bn=child.bn)))
        else:
            _rename_convolutions(child)


def build_mobile_sam() -> Sam:
    """Return MobileSAM with fresh weights from torch's global generator."""
    return assemble(TinyVitEncoder(), DecoderLayout(channels=CHANNELS), GRID, SIDE_PX)


def load_mobile_sam(path: Path) -> Sam:
    """Load MobileSAM from a checkpoint (.pt or .safetensors), on the CPU.

    Raises:
        ModelError: the file is missing, holds code, or is not of MobileSAM's layout; the message names the first
            tensors that do not fit.
    """
    weights = {name: tensor for name, tensor in read_weights(path).items() if not name.startswith(CLASSIFIER)}
    if "image_encoder.pos_embed" in weights:
        raise ModelError(f"{path} has segment-anything's own image encoder; use kind: sam")
    # The fresh weights are all replaced, so the caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        model = build_mobile_sam()
    load_strictly(model, weights, path, REMEDY)
    return model
