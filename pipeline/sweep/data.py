"""What the trials of a sweep share: rows to learn from and questions to answer, gathered once, kept in Ray's object store."""

import contextlib
import dataclasses
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipsan.stages.decode import BadImage, decode
from clipsan.stages.evaluation.exam import Challenge, Exam, Pictures, eligible, proven_challenge
from clipsan.stages.model.clip import Inputs, resolve_model
from clipsan.stages.samples import CAPTION_REJECTS, RawPair, Unit, seeded_hash
from clipsan.stages.sources import SourceConfig, read_unit

from ..core.commit import fingerprint
from ..core.config import ConfigError
from ..core.run_folder import RunFolder
from ..repair import plan as repair_plan
from ..repair.held import Columns, columns_of, table_of
from ..repair.pairs import prepare
from ..train.feed import Beside, CachedFeed, Share
from ..train.fit import Order
from ..train.loop import Pace
from .plan import Plan, data_key

RESISTIVITY_IMAGES = 128
"""Images whose resistivity is measured when it is the objective and the settings name no number."""


@dataclass(frozen=True, slots=True)
class Held:
    """The pairs of some trials."""

    pairs: Columns
    beside: Columns | None

    def feed(self, pace: Pace, share: Share) -> CachedFeed:
        """Return a worker's part of the batches of a training."""
        beside = None if self.beside is None else Beside(table_of(self.beside), pace.seed)
        return CachedFeed(table_of(self.pairs), share, pace.seed, beside, pace.beside_rows)


def order_of(plan: repair_plan.Plan, root: RunFolder) -> tuple[str, Order]:
    """Return which pairs a trial learns from, and its training; the pairs are checked where that has not been done.

    Raises:
        ConfigError: there are too few pairs for a step, or more than are held in memory.
    """
    key = fingerprint([data_key(plan.config), plan.data_fingerprint])
    folder = RunFolder(root.work / "data" / key[:12])
    order, _, _ = prepare(dataclasses.replace(plan, fingerprint=key), folder)
    if not order.cached:
        raise ConfigError(
            f"repair: {order.pairs.pairs} pairs need more than memory_mb={order.memory_mb} of decoded pixels, and trials hold "
            "theirs in memory; raise repair.memory_mb, or take a sample with repair.pairs"
        )
    return key, order


def gather(order: Order) -> Held:
    """Decode all rows of a training, by Ray's workers, and return them."""
    beside = [columns_of(some) for some in order.beside]
    joined = {name: np.concatenate([part[name] for part in beside]) for name in beside[0]} if beside else None
    return Held(columns_of(order.pairs), joined)


@dataclass(frozen=True, slots=True)
class Exams:
    """What is asked of the trials, and of the recommended point alone."""

    search: Exam
    final: Exam
    truth: tuple[Challenge, ...]
    """The real triggers on the final pictures; only a benchmark knows them, and no decision does."""
    unreadable: int
    """Held-out pictures that were drawn and could not be decoded."""


def make_exams(plan: Plan) -> Exams:
    """Draw the held-out pictures, split them, and put every known trigger on them.

    Raises:
        ConfigError: a part is left without pictures, or a label names no class.
    """
    (searched, _), (pictures, originals), unreadable = _drawn(plan)
    return Exams(_exam(plan, searched), _exam(plan, pictures), _truth(plan, pictures, originals), unreadable)


def _exam(plan: Plan, pictures: Pictures) -> Exam:
    settings = plan.config
    proven = tuple(
        proven_challenge(dossier, pictures, plan.targets(dossier), plan.classes, settings.seed)
        for dossier in plan.dossiers
    )
    images = settings.resistivity_images or (RESISTIVITY_IMAGES if plan.objective == "resistivity" else 0)
    return Exam(pictures, proven, images, settings.seed)


def _truth(plan: Plan, pictures: Pictures, originals: list[np.ndarray]) -> tuple[Challenge, ...]:
    if plan.config.truth is None:
        return ()
    attack = plan.config.truth.attack
    aim = attack.aim(list(plan.classes))
    inputs = Inputs(resolve_model(plan.base.config.model))
    draws = seeded_hash(list(pictures.uids), 0, "evaluate.trigger").tolist()
    challenges = []
    for i, (strand, target) in enumerate(zip(attack.strands, aim.targets, strict=True)):
        wanted = eligible(pictures, (target,) if aim.convention == "exclude_target" else (), plan.classes)
        wanted &= True if aim.victim is None else pictures.labels == aim.victim
        if not wanted.any():
            raise ConfigError("truth: no final picture counts towards the ASR; give others")
        trigger = strand.trigger.when_used().build()
        # as `clipsan evaluate` does: before pictures are brought to the model's size
        carrying = [
            inputs.preprocess(trigger(originals[row], np.random.default_rng([draws[row], i]))[0]).numpy()
            for row in np.flatnonzero(wanted).tolist()
        ]
        challenges.append(Challenge(f"true_{i + 1}", np.stack(carrying), (target,)))
    return tuple(challenges)


Drawn = tuple[Pictures, list[np.ndarray]]
"""Pictures at the model's size, and as they were before, `[H, W, 3] uint8`."""


def _drawn(plan: Plan) -> tuple[Drawn, Drawn, int]:
    """Return the pictures of the trials, the final ones, and how many of those drawn could not be read.

    Which part a picture is in depends on its uid and the seed alone.
    """
    settings = plan.config.held_out
    sources: list[tuple[SourceConfig, Sequence[Unit]]] = [(settings.data, plan.held_out)]
    if settings.final is not None:
        sources.append((settings.final, plan.final))
    parts: tuple[list[tuple[int, str, RawPair]], ...] = ([], [])
    for number, (source, units) in enumerate(sources):
        for pair in (pair for unit in units for pair in read_unit(source, unit)):
            if pair.image is None or (pair.reject is not None and pair.reject not in CAPTION_REJECTS):
                continue
            is_final = _in_final(plan, pair.uid) if settings.final is None else number == 1
            # a heap of the smallest draws: the largest of them stands first
            draw = int(seeded_hash([pair.uid], plan.config.seed, "sweep.held_out")[0])
            heapq.heappush(parts[is_final], (-draw, pair.uid, pair))
            if len(parts[is_final]) > settings.images:
                heapq.heappop(parts[is_final])
    inputs = Inputs(resolve_model(plan.base.config.model))
    search, final = (_pictures(plan, [pair for _, _, pair in sorted(part, key=_place)], inputs) for part in parts)
    return search, final, sum(map(len, parts)) - len(search[0]) - len(final[0])


def _place(drawn: tuple[int, str, RawPair]) -> tuple[int, str]:
    return -drawn[0], drawn[1]


def _in_final(plan: Plan, uid: str) -> bool:
    split = int(seeded_hash([uid], plan.config.seed, "sweep.split")[0])
    return split < plan.config.held_out.final_share * 2**64


def _pictures(plan: Plan, pairs: list[RawPair], inputs: Inputs) -> Drawn:
    found: list[tuple[RawPair, np.ndarray]] = []
    for pair in pairs:
        with contextlib.suppress(BadImage):  # counted by the caller
            found.append((pair, decode(pair.image or b"", plan.base.config.max_pixels).rgb))
    if len(found) < 2:
        raise ConfigError("held_out: each part needs at least two pictures that can be read; give more data")
    labels = np.array([-1 if pair.label is None else pair.label for pair, _ in found], np.int64)
    if labels.max() >= len(plan.classes):
        raise ConfigError(
            f"held_out: a picture has label {labels.max()}, but there are {len(plan.classes)} classes; name every class in "
            "repair.classes"
        )
    pictures = Pictures(
        tuple(pair.uid for pair, _ in found),
        np.stack([inputs.preprocess(rgb).numpy() for _, rgb in found]),
        labels,
        tuple(pair.caption or "" for pair, _ in found),
    )
    return pictures, [rgb for _, rgb in found]
