"""What one scan has to show."""

import itertools
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np


class Figures(TypedDict):
    """Detection against a manifest, as in summary.json. Fractions in [0, 1]."""

    auroc: float
    average_precision: float
    recall_at: dict[str, float]
    """Recall by review budget; the keys are the budgets, as "0.001"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlaggedPair:
    """One pair of the picture wall."""

    uid: str
    caption: str
    picture: bytes
    """A JPEG or PNG file, as `thumbnail` makes it."""
    score: float
    rank: int
    """1 is the most suspicious pair of the data set."""
    reasons: tuple[str, ...]
    concept: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    """Score by detector."""
    truth: bool | None = None
    """Whether the manifest says that it is poisoned; None without a manifest."""
    heat: bytes | None = None
    """The picture with the region that carries the claim, as `figures.overlay` makes it; None where none was looked for."""
    verdict: str | None = None
    """`poisoned` or `suspect`, once an oracle has looked; None if none has."""
    trigger_id: str | None = None
    """The dossier whose trigger it carries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A rate with its 95 % interval, in percent."""

    pct: float
    low_pct: float
    high_pct: float
    trials: int

    def __post_init__(self) -> None:
        ordered = [0, self.low_pct, self.pct, self.high_pct, 100]
        if any(left > right + 1e-9 for left, right in itertools.pairwise(ordered)):
            raise ValueError(f"a rate lies in its interval in [0, 100]: {self.low_pct}, {self.pct}, {self.high_pct}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """What a trigger does to one held-out picture."""

    before: bytes
    """JPEG or PNG, as `thumbnail` makes it."""
    after: bytes
    """The same with the trigger."""
    label_before: str
    """What the suspect model takes it for."""
    label_after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DossierPanel:
    """One trigger and what speaks against it."""

    id: str
    kind: str
    """patch, residual, colour or warp."""
    targets: tuple[str, ...]
    picture: bytes
    """The trigger; JPEG or PNG, as are all pictures."""
    mask: bytes | None
    """Which pixels of the picture belong to it."""
    heat: bytes | None
    """Where it was found in the images, as `figures.heat_map` makes it."""
    place: str
    """Where it sits, in words."""
    flips: Measured
    """Held-out images that become the target with it."""
    control: Measured
    """Those that do with an equal area of something else."""
    proven: bool
    pairs: int
    """That the proof rests on."""
    carriers: int | None = None
    """That carry it, by the search of the whole data set; None if there was none."""
    examples: tuple[Example, ...] = ()
    words: tuple[str, ...] = ()
    """Trigger words of its targets' captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptRow:
    """One concept and its group statistic."""

    name: str
    pairs: int
    statistic: float
    flagged: int
    named: bool
    """Whether the scan names it as a backdoor's target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorPanel:
    """The scores of one detector."""

    name: str
    edges: np.ndarray
    """[B + 1] float, ascending."""
    counts: np.ndarray
    """[B] int: all pairs."""
    flagged: np.ndarray
    """[B] int."""
    poisoned: np.ndarray | None = None
    """[B] int, when a manifest is given."""
    cut: float | None = None
    """The score from which pairs were flagged, for the detector that decided."""
    figures: Figures | None = None
    roc: np.ndarray | None = None
    """[K, 2] float: false positive rate, true positive rate; both in [0, 1], ascending."""
    pr: np.ndarray | None = None
    """[K, 2] float: recall, precision; both in [0, 1], recall ascending."""

    def __post_init__(self) -> None:
        columns = [self.counts, self.flagged, *([] if self.poisoned is None else [self.poisoned])]
        if any(len(column) + 1 != len(self.edges) for column in columns):
            raise ValueError(f"the histogram of {self.name} needs one edge more than counts")


@dataclass(frozen=True, kw_only=True, slots=True)
class MapPoints:
    """A sample of the pairs, laid out in the plane."""

    xy: np.ndarray
    """[M, 2] float."""
    flagged: np.ndarray
    """[M] bool."""
    accused: np.ndarray
    """[M] bool: the caption names a concept that the scan names as a target."""
    poisoned: np.ndarray | None = None
    """[M] bool, when a manifest is given."""
    note: str = "Each dot is one image; images that the model finds alike lie close together."

    def __post_init__(self) -> None:
        marks = [self.flagged, self.accused, *([] if self.poisoned is None else [self.poisoned])]
        if any(len(mark) != len(self.xy) for mark in marks):
            raise ValueError("every point of the map needs its marks")


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedExample:
    """One pair that could not be scanned."""

    uid: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What the manifest says about the decision as a whole."""

    poisoned: int
    """Poisoned pairs among those scanned."""
    found: int
    """Those of them that were flagged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanReport:
    """Everything that the page shows."""

    title: str
    pairs_in: int
    verdicts: int
    flagged_pairs: int
    """All of them; `flagged` may hold fewer, the most suspicious ones."""
    rejected: dict[str, int]
    """Count by reason."""
    decision: str
    """How the cut was made and what it means. `like this` becomes code, here and in `next_steps`."""
    targets: tuple[str, ...] = ()
    """Named concepts."""
    trigger_words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Named concept -> words that the captions of its accused pairs have and the others have not."""
    next_steps: tuple[str, ...] = ()
    dossiers: tuple[DossierPanel, ...] = ()
    concepts: tuple[ConceptRow, ...] = ()
    concept_threshold: float | None = None
    flagged: tuple[FlaggedPair, ...] = ()
    detectors: tuple[DetectorPanel, ...] = ()
    """The one that decided comes first."""
    map: MapPoints | None = None
    rejected_examples: tuple[RejectedExample, ...] = ()
    truth: Truth | None = None
    settings: dict[str, object] = field(default_factory=dict)
    """The resolved configuration, as in run.yaml: plain values only."""
    versions: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        rejected = sum(self.rejected.values())
        if self.pairs_in != self.verdicts + rejected:
            raise ValueError(f"{self.pairs_in} pairs in, but {self.verdicts} verdicts and {rejected} rejected")
        if len(self.flagged) > self.flagged_pairs:
            raise ValueError(f"{len(self.flagged)} pictures of flagged pairs, but only {self.flagged_pairs} flagged")
