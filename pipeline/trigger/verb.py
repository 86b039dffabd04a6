"""`clipsan trigger`: the optimised patch of BadCLIP, from the attacker's own clean model and a sample of pairs.

One process without Ray: the loop is sequential, and small by default (2,000 pairs, 10 epochs). It goes on after a stop from
the last finished epoch, to the same bytes.
"""

import heapq
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from clipsan.stages.attack.badclip import BadClipConfig, PatchOptimiser, box, encode_pairs, encode_target, measure
from clipsan.stages.attack.poisoning import contains_word
from clipsan.stages.decode import BadImage, decode
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.samples import RawPair, Unit, seeded_hash
from clipsan.stages.sources import SourceConfig, identity, list_units, read_unit
from clipsan.stages.stage import config

from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree, load
from ..core.progress import Progress
from ..core.run_folder import RunFolder, open_run, read_summary, write_summary
from ..tracking.record import TrackingConfig, metrics_of
from ..tracking.send import log_run

TRIGGER_VERSION = 1
"""Raised when the code comes to make another patch from the same settings."""


@config
class SampleConfig:
    """The pairs that the patch is made from; a seeded draw, the same whatever the order of reading."""

    pairs: int = 2000
    """Pairs without the target, for the optimisation; the paper takes 10,000."""
    held_out: int = 500
    """Further pairs without the target, for the figures alone."""
    target_pairs: int = 500
    """Pairs that name the target: what the patch is drawn to."""
    max_units: int | None = None
    """Read only so many units, drawn by the seed; null reads the whole set once."""
    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        if min(self.pairs, self.held_out, self.target_pairs) < 1:
            raise ValueError("pairs, held_out and target_pairs must each be at least 1")
        if self.max_units is not None and self.max_units < 1:
            raise ValueError(f"max_units must be at least 1, not {self.max_units}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")


@config
class TriggerRunConfig:
    """Everything that decides an optimised trigger."""

    data: SourceConfig
    """Clean pairs, among them genuine ones of the target."""
    model: ModelConfig
    """The attacker's own clean model."""
    target: str
    """Word or phrase that the trigger shall mean, as it stands in captions (whole words)."""
    out: str
    """Run folder; the trigger is its patch.png."""
    badclip: BadClipConfig = field(default_factory=BadClipConfig)
    """The optimisation."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """The pairs that are used."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs."""
    threads: int = 1
    """Torch threads; the last bits of the patch may depend on them."""
    max_pixels: int = 89_478_485
    """An image whose header claims more is left out undecoded."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if not self.target.strip():
            raise ValueError("target must be a word or phrase")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")


@dataclass(frozen=True, slots=True)
class Sampled:
    """The drawn pairs, undecoded."""

    others: list[RawPair]
    """Without the target, in the order of their draws."""
    target: list[RawPair]
    """With the target."""
    seen: int
    """Usable pairs that the draw was made from."""


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    settings = load(TriggerRunConfig, file, overrides, verb="trigger")
    units = list_units(settings.data)
    if dry_run:
        sys.stdout.write(describe(settings, units))
        return 0
    summary = run_trigger(settings, units)
    before, after = summary["start"]["flip_pct"], summary["patch"]["flip_pct"]
    sys.stdout.write(
        f"trigger: {summary['picture']} turns {after:.1f} % of held-out images into {settings.target!r} on the clean model "
        f"(random start {before:.1f} %, no patch {summary['no_patch']['flip_pct']:.1f} %)\n"
    )
    return 0


def describe(settings: TriggerRunConfig, units: list[Unit]) -> str:
    """Return the plan as text.

    Raises:
        ModelError: the model cannot be read.
    """
    clip = load_clip(settings.model)
    start, size = box(clip.image_size, settings.badclip.size_fraction)
    sample, options = settings.sample, settings.badclip
    read = len(units) if sample.max_units is None else min(len(units), sample.max_units)
    return (
        f"data       {read} of {len(units)} units of {len({u.shard for u in units})} shards ({settings.data.kind})\n"
        f"model      {clip.fingerprint[:12]}, {clip.image_size} px\n"
        f"patch      {size} x {size} px from row and column {start}, towards {settings.target!r}\n"
        f"sample     {sample.pairs:,} pairs, {sample.target_pairs:,} of the target, {sample.held_out:,} held out\n"
        f"steps      {options.epochs} epochs of {sample.pairs // options.batch_size}, on {settings.device}\n"
        f"out        {settings.out}/patch.png\n"
    )


def run_trigger(settings: TriggerRunConfig, units: list[Unit]) -> dict[str, Any]:
    """Make the patch, or what is left of it, and return the summary.

    Raises:
        ConfigError: too few usable pairs with or without the target.
        ModelError: the model cannot be read.
    """
    started = time.monotonic()
    torch.set_num_threads(settings.threads)
    clip = load_clip(settings.model, settings.device)
    tree = as_tree(settings)
    mark = _mark(settings, units, clip)
    folder = open_run(settings.out, verb="trigger", tree=tree, fingerprint=mark)
    picture = folder.root / "patch.png"
    if folder.summary.is_file() and picture.is_file():
        return read_summary(folder.root)
    sampled = sample_pairs(settings, units)
    images, captions, rejected = _decoded(settings, clip, sampled.others)
    target_images, target_captions, rejected_target = _decoded(settings, clip, sampled.target)
    kept = len(images) - settings.sample.held_out
    _check_counts(settings, kept, len(target_images))
    pairs = encode_pairs(clip, images[:kept], captions[:kept])
    held_out = encode_pairs(clip, images[kept:], captions[kept:])
    target = encode_target(clip, target_images, target_captions)
    optimiser = PatchOptimiser(clip, pairs, target, settings.badclip)
    start = optimiser.pixels()
    _optimise(settings, folder, optimiser, kept)
    _write_picture(picture, optimiser.pixels())
    summary: dict[str, Any] = {
        "verb": "trigger",
        "fingerprint": mark,
        "settings": tree,
        "seconds": round(time.monotonic() - started, 1),
        "counts": {
            "pairs_in": sampled.seen,
            "pairs": kept,
            "held_out": len(held_out.images),
            "target_pairs": len(target_images),
            "rejected": rejected + rejected_target,
        },
        "no_patch": measure(clip, held_out, target, None, settings.badclip),
        "start": measure(clip, held_out, target, start, settings.badclip),
        "patch": measure(clip, held_out, target, optimiser.pixels(), settings.badclip),
        "epochs": optimiser.losses,
        "size_px": len(start),
        "image_size_px": clip.image_size,
        "picture": str(picture),
        "path": str(folder.summary),
    }
    write_summary(folder, summary)
    figures = {name: summary[name] for name in ("seconds", "counts", "no_patch", "start", "patch")}
    files = [folder.run_yaml, folder.summary, picture]
    log_run(settings.tracking, verb="trigger", root=folder.root, tree=tree, metrics=metrics_of(figures), files=files)
    return summary


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


def _decoded(settings: TriggerRunConfig, clip: Clip, pairs: list[RawPair]) -> tuple[list[torch.Tensor], list[str], int]:
    """Return the inputs `[3, S, S] uint8` and captions of the pairs whose image can be read, and how many cannot."""
    images: list[torch.Tensor] = []
    captions: list[str] = []
    for pair in pairs:
        try:
            images.append(clip.preprocess(decode(pair.image or b"", settings.max_pixels).rgb))
        except BadImage:
            continue
        captions.append(pair.caption or "")
    return images, captions, len(pairs) - len(images)


def _check_counts(settings: TriggerRunConfig, pairs: int, target_pairs: int) -> None:
    if target_pairs == 0:
        raise ConfigError(f"target={settings.target}: no usable pair of the data has it in its caption as whole words")
    if pairs < settings.badclip.batch_size:
        raise ConfigError(
            f"sample: only {max(pairs, 0)} usable pairs without {settings.target!r} are left beside the "
            f"{settings.sample.held_out} held out; badclip.batch_size needs {settings.badclip.batch_size}"
        )


def _optimise(settings: TriggerRunConfig, folder: RunFolder, optimiser: PatchOptimiser, pairs: int) -> None:
    """Run the epochs that are left; each commits its state."""
    path = folder.work / "state.pt"
    if path.is_file():
        optimiser.restore(torch.load(path, map_location=settings.device, weights_only=True))
    done, total = len(optimiser.losses), settings.badclip.epochs
    folder.work.mkdir(parents=True, exist_ok=True)
    with Progress("epochs", total=total, done=done) as progress:
        for _ in range(done, total):
            optimiser.run_epoch()
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            torch.save(optimiser.state(), temporary)
            temporary.replace(path)
            progress.advance(pairs=pairs)


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(pixels).save(temporary, "PNG")
    temporary.replace(path)


def _mark(settings: TriggerRunConfig, units: list[Unit], clip: Clip) -> str:
    return fingerprint(
        {
            "version": TRIGGER_VERSION,
            **identity(settings.data, units),
            "model": clip.fingerprint,
            "target": settings.target,
            "badclip": as_tree(settings.badclip),
            "sample": as_tree(settings.sample),
            "max_pixels": settings.max_pixels,
        }
    )
