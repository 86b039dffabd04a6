"""The detectors of the scan: which there are, how they are set, and what they say together of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..captions import NO_WORDS, Vocabulary
from ..stage import Columns, config
from .claim import DEFAULT_SCALE, Claim, ClaimConfig
from .clip_score import ClipMixture, ClipMixtureConfig, ClipScore
from .concept_sides import ConceptSides, ConceptSidesConfig, ConceptSplit
from .concept_spectral import ConceptSpectral, ConceptSpectralConfig
from .density import DensityConfig
from .detector import DetectorConfig, RowDetector, TrustedMoments
from .duplicates import DuplicatesConfig
from .ensemble import Ensemble, EnsembleConfig, EnsembleState
from .reference import ReferenceReaderConfig
from .saturation import Saturation
from .streaming import Column, StreamingDetector
from .trigger_words import TriggerWord
from .whitening import LorexConfig

__all__ = [
    "OPTIONAL",
    "Accusation",
    "Column",
    "ConceptSplit",
    "DetectorConfig",
    "DetectorsConfig",
    "Findings",
    "RowDetector",
    "StreamingDetector",
    "Suite",
    "TrustedMoments",
    "build_suite",
]


@config
class DetectorsConfig:
    """Settings of all detectors."""

    concept_spectral: ConceptSpectralConfig = field(default_factory=ConceptSpectralConfig)
    """Concept-whitened spectral scores of the intermediate layers."""
    clip_mixture: ClipMixtureConfig = field(default_factory=ClipMixtureConfig)
    """Two-component mixture of the CLIP score."""
    concept_sides: ConceptSidesConfig = field(default_factory=ConceptSidesConfig)
    """Two sides of every concept, whatever the share of poison in it."""
    claim: ClaimConfig = field(default_factory=ClaimConfig)
    """How surely the model reads a pair's own caption off its picture."""
    reference: ReferenceReaderConfig = field(default_factory=ReferenceReaderConfig)
    """Disagreement with a second encoder, where there is one (`embed.reference`)."""
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    """How often a caption or an image occurs."""
    density: DensityConfig = field(default_factory=DensityConfig)
    """k-distance, SLOF, DAO, LID and isolation forest in random blocks."""
    lorex: LorexConfig = field(default_factory=LorexConfig)
    """Whitening by a trusted set; runs when one is named."""
    more: list[DetectorConfig] = field(default_factory=list)
    """Further detectors, each with its kind and settings, of an extension or of this package; their columns join the ensemble as
    they declare."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """How they are combined."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """What the ensemble reads and adds, for the check of the chain."""

    reads: frozenset[str]
    adds: frozenset[str]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the detectors say of a data set as a whole."""

    targets: tuple[str, ...]
    """Concepts named as targets of a backdoor, the most striking first."""
    concepts: list[dict[str, Any]]
    """Every concept with its statistic, by falling statistic."""
    concept_threshold: float
    """Statistic above which a concept is named."""
    threshold: float
    """The ensemble's calibrated threshold."""
    calibration: str
    """What that threshold means, one sentence."""
    mixture_speaks: bool
    """Whether the CLIP score falls into two separate groups."""
    detectors: dict[str, Any]
    """The findings of each detector, as it gives them."""
    vocabulary: Vocabulary
    """Which captions hold which concept; that of the column `concept`, and `beyond`. Where a neighbourhood of captions is named, the
    others are there by their most typical caption, so that a picture can be taken for something else."""
    saturated: dict[str, int] = field(default_factory=dict)
    """Columns of the cache that cannot hold every pair's features (see saturation.py) -> such pairs."""
    splits: tuple[ConceptSplit, ...] = ()
    """Concepts that may be targets, named or not, with the pairs of their two sides; which is poison, a proof can tell."""
    beyond: Vocabulary = NO_WORDS
    """Named concepts that the column `concept` does not know: concept_sides looks at rarer ones."""
    guests: tuple[str, ...] = ()
    """Rarer ones that nothing names: the vocabulary has them so that their own pairs can be tried, and no other pair is held against a
    concept for being rare."""
    trigger_words: Mapping[str, tuple[TriggerWord, ...]] = field(default_factory=dict)
    """Named concept -> words that the captions of its accused pairs have and the others have not."""


OPTIONAL = frozenset({"reference"})
"""Columns that not every cache has."""
RESERVED = ("uid", "caption", "ensemble")
"""Columns of the scores that no detector may have."""
CALIBRATION = (
    "From 1 on, a pair stands out within a concept that is itself named as the target of a backdoor: by a gap between its pairs, or "
    "by their two sides at a false discovery rate of {rate_pct:g} % over {concepts:,} concepts; "
    "where no concept is named, no pair reaches 1."
)


@dataclass(frozen=True, slots=True)
class Suite:
    """The detectors of one scan.

    Raises:
        ValueError: two of them have a column of the same name.
    """

    settings: DetectorsConfig
    spectral: ConceptSpectral
    mixture: ClipMixture
    claim: Claim
    sides: ConceptSides
    saturation: Saturation
    others: tuple[StreamingDetector, ...]

    def __post_init__(self) -> None:
        names = [*RESERVED, *self.settings.density.columns]
        for detector in self.detectors:
            if taken := sorted(detector.adds & set(names)):
                raise ValueError(f"detectors.more: there is a column {taken[0]} beside that of {detector.name}")
            names += detector.adds

    @property
    def detectors(self) -> list[StreamingDetector]:
        """All detectors that read the cache, in the order of their columns."""
        return [self.spectral, self.mixture, self.claim, self.sides, *self.others, self.saturation]

    @property
    def columns(self) -> dict[str, Column]:
        """The score columns that the ensemble combines, by name."""
        every = [self.settings.density.columns, *(d.columns for d in self.detectors)]
        return dict(sorted((name, column) for columns in every for name, column in columns.items()))

    @property
    def chain(self) -> list[Columns]:
        """The steps from the cache to the ensemble, in order."""
        combined = Accusation(frozenset(self.columns), frozenset({"ensemble"}))
        return [*self.detectors, self.settings.density, combined]

    def ensemble(self, states: list[Any]) -> Ensemble:
        """Build the combiner from the final states of `detectors`: it speaks of the same concepts as the first."""
        vocabulary = states[0].vocabulary
        return Ensemble(self.settings.ensemble, self.columns, vocabulary)

    def findings(self, states: list[Any], ensemble: Ensemble, combined: EnsembleState) -> Findings:
        """Gather what the final states say; `states` in the order of `detectors`."""
        said = {d.name: dict(d.findings(s)) for d, s in zip(self.detectors, states, strict=True)}
        spectral = said.pop(self.spectral.name)
        own, sides = states[0].vocabulary, states[self.detectors.index(self.sides)]
        known, groups = self.sides.vocabulary(sides), sides.neighbourhoods.names
        splits = self.sides.splits(sides)
        rarer = [split for split in splits if split.concept not in own.names]
        beyond = NO_WORDS.including(known, [split.concept for split in rarer if split.named])
        # a neighbourhood that is not named is no label: its captions are not known
        words = [split.concept for split in rarer if split.named or split.concept not in groups]
        labels = [*words, *groups] if set(beyond.names) & set(groups) else words
        concepts = with_splits(spectral.pop("concepts"), [s for s in splits if s.named or s.concept not in groups])
        voices = dict(ensemble.findings(combined))
        named = [c["name"] for c in concepts if c["named"]]
        heard = [v["concept"] for v in voices["voices"].values() if v["concept"] not in named]
        return Findings(
            targets=tuple(dict.fromkeys(named + heard)),
            concepts=concepts,
            concept_threshold=spectral["threshold"],
            threshold=ensemble.threshold,
            calibration=CALIBRATION.format(
                rate_pct=100 * self.settings.concept_sides.false_discovery_rate,
                concepts=said[self.sides.name]["concepts_divided"],
            ),
            mixture_speaks=said[self.mixture.name]["separation"] >= self.settings.clip_mixture.separate_from,
            saturated=said.pop(self.saturation.name),
            detectors=said | {self.spectral.name: spectral, ensemble.name: voices},
            vocabulary=own.including(known, labels),
            beyond=beyond,
            guests=tuple(split.concept for split in rarer if not split.named and split.concept in words),
            splits=splits,
        )


def with_splits(concepts: list[dict[str, Any]], splits: Sequence[ConceptSplit]) -> list[dict[str, Any]]:
    """Return the concepts of the spectral scores, those that are named by their two sides marked as named and first.

    A concept that the spectral scores do not look at is added, without a gap; the last ones are those that nothing names.
    """
    named = {split.concept: split for split in splits if split.named}
    known = {concept["name"] for concept in concepts}
    unseen: dict[str, Any] = {"statistic": 0.0, "beyond_gap": 0, "cut": None, "layers": {}}
    added = [
        {"name": split.concept, **unseen, "n": split.poison.pairs + split.genuine.pairs, "flagged": 0, "named": False}
        for split in splits
        if split.concept not in known
    ]
    marked = [
        concept
        if (split := named.get(concept["name"])) is None
        else {**concept, "n": split.poison.pairs + split.genuine.pairs, "flagged": split.poison.pairs, "named": True}
        for concept in (*(one for one in added if one["name"] in named), *concepts)
    ]
    others = [one for one in added if one["name"] not in named]
    return sorted([*marked, *others], key=lambda concept: not concept["named"])


def build_suite(
    settings: DetectorsConfig,
    *,
    pairs: int,
    trusted: TrustedMoments | None,
    scale: float = DEFAULT_SCALE,
    offered: frozenset[str] = frozenset(),
) -> Suite:
    """Build the detectors; `pairs` sizes the sketches, LoREx needs the moments of a trusted set, `scale` is the model's.

    Those that read a column of OPTIONAL are left out where the cache does not offer it.

    Raises:
        ValueError: two of them have a column of the same name.
    """
    wanted: list[DetectorConfig] = [
        *(ClipScore(), settings.duplicates, settings.lorex, settings.reference),
        *settings.more,
    ]
    built = [detector.build(pairs, trusted) for detector in wanted]
    others = tuple(d for d in built if d is not None and d.reads & OPTIONAL <= offered)
    return Suite(
        settings=settings,
        spectral=ConceptSpectral(settings.concept_spectral),
        mixture=ClipMixture(settings.clip_mixture),
        claim=Claim(settings.claim, scale),
        sides=ConceptSides(settings.concept_sides),
        saturation=Saturation(),
        others=others,
    )
