"""The detectors of the scan: which there are, how they are set, and what they say together of a data set."""

from dataclasses import dataclass, field
from typing import Any

from ..captions import Vocabulary
from ..stage import Columns, config
from .clip_score import ClipMixture, ClipScore
from .concept_spectral import ConceptSpectral, ConceptSpectralConfig
from .density import DensityConfig
from .duplicates import CaptionDuplicates
from .ensemble import Ensemble, EnsembleConfig, EnsembleState
from .streaming import StreamingDetector
from .whitening import Lorex, LorexConfig, TrustedMoments

SEPARATE = 2.0
"""Distance of the two components of the CLIP score, in deviations, from which the lower one is a group of its own."""


@config
class DetectorsConfig:
    """Settings of all detectors."""

    concept_spectral: ConceptSpectralConfig = field(default_factory=ConceptSpectralConfig)
    """Concept-whitened spectral scores of the intermediate layers."""
    density: DensityConfig = field(default_factory=DensityConfig)
    """k-distance, SLOF, DAO, LID and isolation forest in random blocks."""
    lorex: LorexConfig = field(default_factory=LorexConfig)
    """Whitening by a trusted set; runs when one is named."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """How they are combined."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """What joins the score columns beside the detectors' own, for the check of the chain."""

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
    """Which captions hold which concept."""


CALIBRATION = (
    "From 1 on, a pair stands out within a concept that is itself named as the target of a backdoor; "
    "where no concept is named, no pair reaches 1."
)


@dataclass(frozen=True, slots=True)
class Suite:
    """The detectors of one scan."""

    settings: DetectorsConfig
    spectral: ConceptSpectral
    mixture: ClipMixture
    others: tuple[StreamingDetector, ...]

    @property
    def detectors(self) -> list[StreamingDetector]:
        """All detectors that read the cache, in the order of their columns."""
        return [self.spectral, self.mixture, *self.others]

    @property
    def columns(self) -> list[str]:
        """The score columns that the ensemble combines."""
        return sorted(self.settings.density.adds.union(*(d.adds for d in self.detectors)))

    @property
    def chain(self) -> list[Columns]:
        """The steps from the cache to the ensemble, in order."""
        accused = Accusation(self.spectral.adds, frozenset({"concept"}))
        combined = Accusation(frozenset(self.columns), frozenset({"ensemble"}))
        return [*self.detectors, self.settings.density, accused, combined]

    def ensemble(self, states: list[Any]) -> Ensemble:
        """Build the combiner from the final states of `detectors`: it speaks of the same concepts as the first."""
        vocabulary = states[0].vocabulary
        return Ensemble(self.settings.ensemble, self.columns, vocabulary)

    def findings(self, states: list[Any], ensemble: Ensemble, combined: EnsembleState) -> Findings:
        """Gather what the final states say; `states` in the order of `detectors`."""
        said = {type(d).__name__: dict(d.findings(s)) for d, s in zip(self.detectors, states, strict=True)}
        spectral = said.pop(ConceptSpectral.__name__)
        concepts = spectral.pop("concepts")
        voices = dict(ensemble.findings(combined))
        named = [c["name"] for c in concepts if c["named"]]
        heard = [v["concept"] for v in voices["voices"].values() if v["concept"] not in named]
        return Findings(
            targets=tuple(dict.fromkeys(named + heard)),
            concepts=concepts,
            concept_threshold=spectral["threshold"],
            threshold=ensemble.threshold,
            calibration=CALIBRATION,
            mixture_speaks=said[ClipMixture.__name__]["separation"] >= SEPARATE,
            detectors=said | {ConceptSpectral.__name__: spectral, Ensemble.__name__: voices},
            vocabulary=states[0].vocabulary,
        )


def build_suite(settings: DetectorsConfig, *, pairs: int, trusted: TrustedMoments | None) -> Suite:
    """Build the detectors; `pairs` sizes the sketches, LoREx needs the moments of a trusted set."""
    others: list[StreamingDetector] = [ClipScore(), CaptionDuplicates(pairs)]
    if trusted is not None:
        others.append(Lorex(settings.lorex, trusted))
    return Suite(settings, ConceptSpectral(settings.concept_spectral), ClipMixture(), tuple(others))
