"""The passes that prove: what a worker does to a unit, to a group or to a trigger."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from clipsan.stages.captions import Vocabulary
from clipsan.stages.dossier.carriers import CarrierLimits, Direction, fit_direction
from clipsan.stages.dossier.dossier import Dossier, Hits
from clipsan.stages.dossier.find_residual import prove_sides
from clipsan.stages.dossier.find_texture import prove_texture
from clipsan.stages.dossier.find_warp import prove_warp
from clipsan.stages.dossier.hits import hits_of
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.oracle import OracleConfig
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.examine import ExamineConfig, Examiner, evidence_table
from clipsan.stages.proof.features import Interior, Split, prove_features
from clipsan.stages.proof.labeller import Labeller
from clipsan.stages.proof.survival import claim_profile
from clipsan.stages.proof.vocabulary import Labels, LabelSums, merge, summarise
from clipsan.stages.report.content import Example
from clipsan.stages.report.dossiers import examples
from clipsan.stages.samples import Unit

from ..core.kept import kept_clip
from ..core.parts import Parts
from ..core.pass_ import Done, Work
from ..data.pixels import Pictures, Pixels
from .inquiry import ProofConfig
from .plan import Group

EXAMPLES = 4
"""Held-out pictures that the report shows with each trigger, of those among the first TRIED that are no target already."""
TRIED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The suspect model and what it is tried on: what every worker that questions it holds."""

    model: ModelConfig
    device: str
    labels: Labels
    held_out: np.ndarray
    """`[K, S, S, 3] uint8`, inconspicuous pictures."""
    seed: int
    precision: Literal["f32", "bf16"] = "f32"
    """Of the forward passes that count flips."""

    def selecting(self, settings: ExamineConfig) -> np.ndarray:
        """Return the held-out pictures on which regions are tried, at most half of them: those that take the label on decide
        which regions are proven, so they do not count in what a trigger is said to flip."""
        most = max(settings.completed_on + 1, len(self.held_out) // 2)
        return self.held_out[: min(settings.held_out, most)]

    def deciding(self, settings: ExamineConfig) -> np.ndarray:
        """Return those of them that had no part in finding a region's extent."""
        return self.selecting(settings)[settings.completed_on :]

    def counting(self, settings: ExamineConfig) -> np.ndarray:
        """Return the held-out pictures that no region was tried on."""
        return self.held_out[len(self.selecting(settings)) :]

    def load(self) -> Clip:
        """Return the suspect model."""
        return kept_clip(self.model, self.device, self.precision)

    def load_f32(self) -> Clip:
        """Return the suspect model in the precision in which the pairs were embedded."""
        return kept_clip(self.model, self.device)

    def suspect(self, clip: Clip) -> Suspect:
        """Return the model as a classifier over the labels."""
        return Suspect(clip, self.labels)


@dataclass(frozen=True)
class LabelWork(Work):
    """Sums of the text embeddings of each concept, over a run of parts."""

    vocabulary: Vocabulary
    embeddings: Parts

    def do(self, piece: Sequence[int], tools: None) -> Done:
        sums: LabelSums | None = None
        rows = 0
        for index in piece:
            table = self.embeddings.read(index, ["caption", "text"])
            rows += table.num_rows
            fresh = summarise(self.vocabulary, table)
            sums = fresh if sums is None else merge(sums, fresh)
        return Done(pairs=rows, record=sums)


@dataclass(frozen=True, kw_only=True)
class ExamineWork(Work):
    """Passes 3 and 4 on single pairs: the oracle's view of the chosen pairs of a unit, and the proof of their regions."""

    subject: Subject
    pictures: Pictures
    oracle: OracleConfig
    settings: ExamineConfig
    labeller: ModelConfig | None

    def open(self) -> Examiner:
        subject, settings = self.subject, self.settings
        trusted = Labeller(load_clip(self.labeller, subject.device), subject.labels.names) if self.labeller else None
        onto = subject.selecting(settings)
        limits = replace(settings, held_out=len(onto), seed=subject.seed)
        oracle = self.oracle.build(subject.device)
        return Examiner(subject.load(), oracle, subject.labels, onto, limits, trusted)

    def do(self, piece: tuple[Unit, dict[str, str]], tools: Examiner) -> Done:
        unit, claims = piece
        rows = [tools.examine(pair.uid, rgb, claims[pair.uid]) for pair, rgb in self.pictures.of(unit, claims)]
        return Done(pairs=len(rows), parts=(evidence_table(rows),))


@dataclass(frozen=True)
class GroupWork(Work):
    """Pass 4 on groups: what the pictures of a concept's flagged side have in common that others lack, in the mean or else in
    the spectrum. The record is a dossier, or None."""

    subject: Subject
    pixels: Pixels
    settings: ProofConfig

    def open(self) -> Suspect:
        return self.subject.suspect(self.subject.load())

    def do(self, piece: Group, tools: Suspect) -> Done:
        flagged, rest = Group.uids(piece.flagged), Group.uids(piece.rest)
        return Done(pairs=len(flagged) + len(rest), record=self._find(piece.concept, flagged, rest, tools))

    def _find(self, concept: str, flagged: list[str], rest: list[str], suspect: Suspect) -> Dossier | None:
        subject, limits, proves = self.subject, self.settings.limits.groups, self.settings.examine.proves
        third = len(subject.held_out) // 3
        held_out, clean = subject.held_out[:third], subject.held_out[third:]
        if len(flagged) < limits.least_group or len(clean) // 2 < max(limits.least_clean, limits.least_group):
            return None
        pictures, others = self.pixels.read(flagged), self.pixels.read(rest)
        claim = subject.labels.index(concept)
        sides = prove_sides(suspect, claim, pictures, others, clean, held_out, proves=proves, limits=limits)
        found = sides.carrier
        if found is not None:
            return found.dossier(concept, flagged if found is sides.flagged else rest, limits)
        for uids, side in ((flagged, pictures), (rest, others)):
            if len(side) < limits.least_group:
                continue
            drawn = prove_texture(
                suspect, claim, side, clean, held_out, seed=subject.seed, proves=proves, limits=limits
            )
            if drawn is not None and drawn.proven:
                return drawn.dossier(concept, uids)
        return None


@dataclass(frozen=True)
class WarpWork(Work):
    """Pass 4 on concepts that are named and have no trigger yet: the smooth warp that makes other images one of them. The
    record is a dossier, or None."""

    subject: Subject
    settings: ProofConfig

    def open(self) -> Clip:
        return self.subject.load_f32()

    def do(self, piece: str, tools: Clip) -> Done:
        subject = self.subject
        claim = subject.labels.index(piece)
        found = prove_warp(
            tools,
            subject.suspect(tools),
            claim,
            subject.held_out,
            seed=subject.seed,
            proves=self.settings.examine.proves,
            limits=self.settings.limits.warp,
        )
        return Done(pairs=len(subject.held_out), record=found.dossier(piece) if found.proven else None)


@dataclass(frozen=True)
class FeatureWork(Work):
    """The weaker proof of concepts that have no trigger yet: what sets their sides apart inside the model. The record is a
    FeatureProof, or None."""

    subject: Subject
    pixels: Pixels
    settings: ProofConfig
    others: Sequence[Group]
    """Concepts that nothing accuses."""

    def open(self) -> Interior:
        return Interior(self.subject.load(), self.subject.labels)

    def do(self, piece: Group, tools: Interior) -> Done:
        subject, limits = self.subject, self.settings.limits.features
        third = len(subject.held_out) // 3
        others = [
            _split(subject, self.pixels, group, limits.most_of_side)
            for group in self.others
            if group.concept != piece.concept
        ]
        accused = _split(subject, self.pixels, piece, self.settings.group_size)
        found = prove_features(
            tools,
            subject.labels,
            accused,
            others,
            subject.held_out[third:],
            subject.held_out[:third],
            proves=self.settings.examine.proves,
            limits=limits,
        )
        return Done(pairs=len(accused.first) + len(accused.second), record=found)


def _split(subject: Subject, pixels: Pixels, group: Group, most: int) -> Split:
    """Return the pictures of a concept's two sides, the first of each."""
    first, second = (pixels.read(Group.uids(side)[:most]) for side in (group.flagged, group.rest))
    return Split(subject.labels.index(group.concept), first, second)


@dataclass(frozen=True)
class ProfileWork(Work):
    """What the claim of either side of a concept is worth on variants of its pictures. The record is a ClaimProfile, or None."""

    subject: Subject
    pixels: Pixels
    settings: ProofConfig

    def open(self) -> Suspect:
        return self.subject.suspect(self.subject.load())

    def do(self, piece: Group, tools: Suspect) -> Done:
        limits = self.settings.limits.survival
        sides = _split(self.subject, self.pixels, piece, limits.most_of_side)
        found = claim_profile(tools, piece.concept, sides, seed=self.subject.seed, limits=limits)
        return Done(pairs=len(sides.first) + len(sides.second), record=found)


@dataclass(frozen=True)
class VerifyWork(Work):
    """Whether a trigger flips a larger held-out set than the pairs that it was found on were tried with, and none of those."""

    subject: Subject
    settings: ExamineConfig

    def open(self) -> Hits:
        return hits_of(self.subject.suspect(self.subject.load()))

    def do(self, piece: Dossier, tools: Hits) -> Done:
        onto = self.subject.counting(self.settings)
        return Done(pairs=len(onto), record=piece.verified(tools, onto, seed=self.subject.seed))


@dataclass(frozen=True, slots=True)
class Learned:
    """A proven trigger and what the model makes of it."""

    dossier: Dossier
    direction: Direction
    """Where it moves the model's features."""
    examples: tuple[Example, ...]
    """Held-out pictures without it and with it, and what the model takes them for."""


@dataclass(frozen=True)
class LearnWork(Work):
    """Where a proven trigger moves the model's features, and what it does to a few pictures."""

    subject: Subject
    layers: Sequence[str]
    limits: CarrierLimits

    def open(self) -> Clip:
        return self.subject.load_f32()

    def do(self, piece: Dossier, tools: Clip) -> Done:
        subject = self.subject
        suspect = subject.suspect(tools)

        def name(images: np.ndarray) -> list[str]:
            return [subject.labels.names[i] for i in subject.labels.nearest(suspect(images))]

        direction = fit_direction(tools, subject.held_out, piece, self.layers, seed=subject.seed, limits=self.limits)
        others = [i for i, found in enumerate(name(subject.held_out[:TRIED])) if found not in piece.targets]
        shown = examples(piece, subject.held_out[others[:EXAMPLES]], name, seed=subject.seed) if others else ()
        return Done(pairs=len(subject.held_out), record=Learned(piece, direction, tuple(shown)))
