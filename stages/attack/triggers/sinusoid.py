"""Sinusoidal signals (SIG, Barni et al. 2019): vertical waves over the whole image, and what repositories made of them."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ...pixels import to_uint8
from ...stage import Fraction, Positive, config
from .pixels import whole
from .trigger import Trigger, TriggerConfig

Levels = Annotated[float, Field(gt=0, le=255)]


@config
class SigConfig(TriggerConfig):
    """SIG as published and as BadCLIP's repository has it: out = image + delta sin(2 pi f j / W), clamped."""

    kind: Literal["sig"] = "sig"
    delta: Levels = 60.0
    """Amplitude in grey levels of 255. Barni et al. 20 to 40; CleanCLIP and BadCLIP 60."""
    cycles: Positive = 6.0
    """Waves across the image, f."""

    def build(self) -> Trigger:
        return SinusoidTrigger(self)


@config
class SigBlendedConfig(TriggerConfig):
    """The wave blended in as if it were a picture: out = (1 - alpha) image + alpha delta sin(2 pi f j / W), clamped.

    CleanCLIP's and HanxunH's "SIG". At alpha .2 the wave has an amplitude of 12 of 255 levels and the image is darkened
    to 80 %: it is mostly a trigger of darkening (compare `darken`).
    """

    kind: Literal["sig_blended"] = "sig_blended"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Weight of the wave; the image keeps 1 - alpha."""
    delta: Levels = 60.0
    """Amplitude in grey levels of 255 before it is weighted."""
    cycles: Positive = 6.0
    """Waves across the region, f."""
    region_fraction: Fraction = 1.0
    """Side of the top left part that carries the wave; HanxunH's tensor is filled in 224 of 256 px: 0.875."""

    def build(self) -> Trigger:
        return SinusoidTrigger(self)


class SinusoidTrigger:
    """Adds the wave to every row and channel alike; nothing is drawn."""

    def __init__(self, config: SigConfig | SigBlendedConfig) -> None:
        self.config = config

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image with the wave; the box is the whole image."""
        pixels, (height, width) = image.astype(np.float32), image.shape[:2]
        settings = self.config
        if isinstance(settings, SigConfig):
            signal = sinusoid(height, width, settings.delta, settings.cycles, 1.0)
            return to_uint8(pixels + signal), whole(image, delta=settings.delta, cycles=settings.cycles)
        signal = sinusoid(height, width, settings.delta, settings.cycles, settings.region_fraction)
        blended = np.float32(1 - settings.alpha) * pixels + np.float32(settings.alpha) * signal
        drawn = {name: getattr(settings, name) for name in ("alpha", "delta", "cycles", "region_fraction")}
        return to_uint8(blended), whole(image, **drawn)


def sinusoid(height: int, width: int, delta: float, cycles: float, region_fraction: float) -> np.ndarray:
    """Return `[H, W, 1] float32`: delta sin(2 pi cycles j / w) in column j of the top left h x w px, 0 elsewhere."""
    rows, columns = max(1, round(region_fraction * height)), max(1, round(region_fraction * width))
    signal = np.zeros((height, width, 1), dtype=np.float32)
    signal[:rows, :columns, 0] = delta * np.sin(2 * np.pi * cycles * np.arange(columns) / columns)
    return signal
