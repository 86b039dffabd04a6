"""Settings of `clipsan sweep`."""

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from clipsan.stages.evaluation.zero_shot import check_templates
from clipsan.stages.search.space import Dimension, Point, Space, grid_points, random_points
from clipsan.stages.sources import SourceConfig
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig
from ..core.config import refuse_filled_in
from ..evaluate.settings import EvaluationAttack, without_poisoning
from ..repair.settings import CanaryConfig
from ..tracking.record import TrackingConfig

FIXED = (
    *(
        "model",
        "data",
        "scan",
        "classes",
        "templates",
        "max_pixels",
        "memory_mb",
        "evaluate",
        "early_stop",
        "blind",
        "gentle",
        "unseen",
        "out",
    ),
    *("register", "cluster", "tracking", "retries", "checkpoint_every_epochs"),
)
"""Settings of a repair that are the same in all trials: what they learn from is shared, the rest the sweep has its own."""
FILLED_IN = (
    "evaluate",
    "early_stop",
    "blind",
    "gentle",
    "unseen",
    "out",
    "register",
    "cluster",
    "tracking",
    "retries",
    "checkpoint_every_epochs",
)
"""Settings of the repair that the sweep has its own values for: a trial goes its whole way and is judged by the sweep's objective."""


Points = tuple[Point, ...]
"""Of all trials."""


@config
class RandomSearch:
    """Points drawn from the space, independent of each other."""

    kind: Literal["random"] = "random"
    trials: Annotated[int, Field(ge=1)] = 16
    """How many."""

    def points(self, space: Space, seed: int, *, first: Sequence[Point] = (), shuffled: bool = False) -> Points:
        """Return `first` and the points that the seed draws; their order is as good as any."""
        return (*first, *random_points(space, self.trials, seed))

    def waits_for(self, number: int) -> int:
        """Return how many of the first trials must have ended before this one can be made."""
        return 0


@config
class GridSearch:
    """Every combination of the values; all settings must be lists of values."""

    kind: Literal["grid"] = "grid"

    def points(self, space: Space, seed: int, *, first: Sequence[Point] = (), shuffled: bool = False) -> Points:
        """Return all combinations, in their own order or in one that the seed draws.

        Raises:
            ValueError: a setting is no list of values.
        """
        return tuple(grid_points(space, seed if shuffled else None))

    def waits_for(self, number: int) -> int:
        """Return how many of the first trials must have ended before this one can be made."""
        return 0


@config
class OptunaSearch:
    """Optuna's tree of Parzen estimators on both counts at once: the objective, and the clean accuracy.

    Proposals are made in batches, each from the results of all batches before and with a seed of its own. So neither the
    number of trials at a time nor a restart changes what is proposed.
    """

    kind: Literal["optuna"] = "optuna"
    trials: Annotated[int, Field(ge=1)] = 16
    """How many."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Trials that are proposed together."""
    startup: Annotated[int, Field(ge=1)] = 8
    """Trials drawn at random before the first model is made."""

    def points(self, space: Space, seed: int, *, first: Sequence[Point] = (), shuffled: bool = False) -> None:
        """Return nothing: a point depends on the results of others."""

    def waits_for(self, number: int) -> int:
        """Return how many of the first trials must have ended before this one can be proposed."""
        return 0 if number < self.startup else number - (number - self.startup) % self.batch


SearchConfig = Annotated[RandomSearch | GridSearch | OptunaSearch, pydantic.Discriminator("kind")]


@config
class HalvingConfig:
    """ASHA (Li et al. 2018): a trial that is not among the best of those measured at the same point of their course is stopped.

    Trials are compared by stages.search.pareto.badness. Which are stopped depends on the order in which they report: with one trial at
    a time that order is always the same, with several it is the machine's. The default is one early cut, and what survives
    it runs to its end: a repair that perturbs first and recovers then (PAR) shows early whether its learning rate is right,
    and not before its end which of three good settings is the best (tests/benchmarks/sweep).
    """

    reduction: Annotated[int, Field(ge=2)] = 3
    """The best 1 / reduction of those measured at a rung go on."""
    rungs: Annotated[int, Field(ge=2)] = 2
    """Measurements of a whole trial, the last at its end."""
    first_share: Annotated[float, Field(gt=0, lt=1)] = 0.125
    """Share of a trial's steps at the first rung; from there the rungs grow by one factor to the end."""


@config
class HeldOutConfig:
    """What every trial is measured on, and what only the recommended point is."""

    data: SourceConfig
    """Labelled images, or pairs, that no repair learns from: clean accuracy of the former, retrieval R@1 of the latter."""
    final: SourceConfig | None = None
    """Data for the last word on the recommended point; null: `final_share` of `data`, by a seeded hash of the uid."""
    final_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of `data` that no trial sees."""
    images: Annotated[int, Field(ge=2)] = 512
    """Images of either part at most, drawn by the seed."""


@config
class TruthConfig:
    """The real attack, for benchmarks alone: its ASR is written down for every trial and enters no decision."""

    attack: Annotated[EvaluationAttack, pydantic.BeforeValidator(without_poisoning)]
    """As for `clipsan evaluate`."""


Objective = Literal["auto", "proven", "canary", "resistivity"]


@config
class SweepConfig:
    """Everything that decides a sweep."""

    repair: dict[str, Any]
    """Settings of `clipsan repair` that all trials share; a trial's own replace some of them."""
    space: dict[str, Dimension]
    """Setting of the repair, as a dotted path (method.lr) -> what it may be."""
    search: SearchConfig = field(default_factory=RandomSearch)
    """How points are chosen."""
    halving: HalvingConfig | None = None
    """Early stopping of trials that are no good; null: every trial is run to its end."""
    held_out: HeldOutConfig
    """What is measured on."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Sentences with {} where the class name goes, for the measurements."""
    objective: Objective = "auto"
    """What is to become low: the mean ASR of the scan's proven triggers, that of the canary, or what small perturbations
    destroy of the features. auto: the first of these that there is."""
    canary: CanaryConfig | None = None
    """Null: no canary is planted."""
    resistivity_images: Annotated[int, Field(ge=0)] = 128
    """Images whose perturbation resistivity is measured; 0: it is not, unless it is the objective."""
    max_accuracy_loss_points: Annotated[float, Field(ge=0)] = 2.0
    """The rule: the lowest objective among the trials that lose at most this much accuracy, in percentage points."""
    truth: TruthConfig | None = None
    """For benchmarks alone."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; null: as many as the cluster has CPUs (or GPUs) for."""
    workers_per_trial: Annotated[int, Field(ge=1)] = 1
    """Workers that share each batch of a trial. With several a trial is a run of Ray Train, on one node or many; with one it is
    a single process, which saves the half minute that a run of Ray Train takes to start."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Times that a trial is tried again after an error, from its last measurement on."""
    seed: int = 0
    """Of points, samples, splits and proposals."""
    out: str
    """Run folder; the recommended model ends in OUT/checkpoint, or as an adapter in OUT/adapter."""
    register: str | None = "clipsan"
    """Name under which MLflow registers the recommended model as a new version; null: it is not registered."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Each worker of a trial takes threads_per_worker CPUs and gpus_per_worker GPUs (a fraction shares one)."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        if not self.space:
            raise ValueError("space needs at least one setting")
        if (self.cluster.workers or self.workers_per_trial) < self.workers_per_trial:
            raise ValueError(
                f"workers_per_trial={self.workers_per_trial}: cluster.workers={self.cluster.workers} are fewer; raise them"
            )
        if self.objective == "canary" and self.canary is None:
            raise ValueError("objective: canary needs the section canary")
        fixed = sorted(name for name in self.space if name.partition(".")[0] in FIXED)
        if fixed:
            raise ValueError(f"space: {', '.join(fixed)} is the same in all trials; set it in repair")
        refuse_filled_in(self.repair, FILLED_IN, section="repair", by="by the sweep")
