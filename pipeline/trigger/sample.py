"""The pairs that a trigger is made from: a seeded draw over one reading of the data."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clipsan.stages.captions import contains_word
from clipsan.stages.decode import BadImage, decode
from clipsan.stages.model.clip import Clip
from clipsan.stages.samples import RawPair, Unit, seeded_hash
from clipsan.stages.sources import read_unit

from ..core.progress import Progress
from .plan import TriggerRunConfig


@dataclass(frozen=True, slots=True)
class Sampled:
    """The drawn pairs, undecoded."""

    others: list[RawPair]
    """Without the target, in the order of their draws."""
    target: list[RawPair]
    """With the target."""
    seen: int
    """Usable pairs that the draw was made from."""


def sample_pairs(settings: TriggerRunConfig, units: Sequence[Unit]) -> Sampled:
    """Stream the units and keep, of each kind, the pairs with the smallest draws; only those are in memory."""
    sample = settings.sample
    if sample.max_units is not None:
        names = [f"{u.shard}:{u.start}" for u in units]
        order = np.argsort(seeded_hash(names, sample.seed, "trigger.units"), kind="stable")
        units = [units[i] for i in order[: sample.max_units]]
    others = _Smallest(sample.pairs + sample.held_out)
    target = _Smallest(sample.target_pairs)
    seen = 0
    with Progress("sample", total=len(units)) as progress:
        for unit in units:
            before = seen
            for pair in read_unit(settings.data, unit):
                if pair.reject is not None or pair.caption is None or pair.image is None:
                    continue
                seen += 1
                draw = int(seeded_hash([pair.uid], sample.seed, "trigger.sample")[0])
                (target if contains_word(pair.caption, settings.target) else others).add(draw, pair)
            progress.advance(pairs=seen - before)
    return Sampled(others.sorted(), target.sorted(), seen)


class _Smallest:
    """Keeps the pairs with the smallest draws; ties go by uid."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[int, str, RawPair]] = []

    def add(self, draw: int, pair: RawPair) -> None:
        entry = (-draw, pair.uid, pair)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def sorted(self) -> list[RawPair]:
        return [pair for _, _, pair in sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Pairs as the model takes them."""

    images: list[torch.Tensor]
    """`[3, S, S] uint8` each."""
    captions: list[str]
    rejected: int
    """Pairs whose image cannot be read."""


def decoded(pairs: Sequence[RawPair], clip: Clip, max_pixels: int) -> Inputs:
    """Decode the pairs and leave out those whose image cannot be read."""
    images: list[torch.Tensor] = []
    captions: list[str] = []
    for pair in pairs:
        try:
            images.append(clip.preprocess(decode(pair.image or b"", max_pixels).rgb))
        except BadImage:
            continue
        captions.append(pair.caption or "")
    return Inputs(images, captions, len(pairs) - len(images))
