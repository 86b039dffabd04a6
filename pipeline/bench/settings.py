"""Settings of `clipsan bench`."""

from dataclasses import field
from typing import Annotated, Any

from pydantic import Field

from clipsan.stages.attack.poisoning import ImagePath
from clipsan.stages.sources import SourceConfig
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig
from ..core.config import refuse_filled_in
from ..tracking.record import TrackingConfig

CLEAN = "clean"
"""The control without any change: the model trained on it must stay silent."""
FILLED_IN = {
    "train": ("data", "out", "seed", "cluster", "tracking"),
    "evaluate": ("model", "image", "out", "seed", "cluster", "tracking"),
    "scan": ("data", "model", "manifest", "out", "cluster", "tracking"),
}
"""Settings of a section that each cell has its own value for."""


@config
class BenchConfig:
    """Everything that decides a bench."""

    data: SourceConfig
    """Clean pairs; every attack poisons them on the fly, no cell has a copy."""
    attacks: dict[str, dict[str, Any]]
    """Name -> settings of the attack that differ from conf/attack/NAME.yaml. `attack: OTHER` starts from conf/attack/OTHER.yaml,
    `seeds: [..]` replaces the bench's seeds for this one."""
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same for the controls; `clean` is the one without any change."""
    target: str | None = None
    """Target of the attacks and controls that do not name their own."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Each is one cell: seed of the poisoning, of the model's weights and order, and of the evaluation's triggers."""
    min_asr_pct: Annotated[float, Field(ge=0, le=100)] = 90.0
    """An attack whose measured ASR is lower is refused: a detector has nothing to find in a model that did not learn it."""
    image: ImagePath = field(default_factory=ImagePath)
    """What every image goes through, in poisoning and in evaluation."""
    train: dict[str, Any]
    """Settings of `clipsan train`: model (an architecture, or a clean checkpoint to poison), epochs, batch_size, lr, ..."""
    evaluate: dict[str, Any]
    """Settings of `clipsan evaluate`: data (labelled images), classes, templates, ...; of `attack` only the convention.
    `rebound` takes the bench's own pairs unless it names others."""
    scan: dict[str, Any]
    """Settings of `clipsan scan`: decision, detectors, ..."""
    cells: Annotated[int, Field(ge=1)] = 1
    """Cells at a time. Each has the workers that `cluster` says, so this many times as many run at once."""
    out: str
    """Run folder."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads and GPUs of one cell; workers: null shares the CPUs out among the cells."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if self.data.on_the_fly:
            raise ValueError("data must be the clean data set itself, not a plan: every cell makes its own")
        if not self.attacks and not self.controls:
            raise ValueError("attacks: name at least one attack or control")
        both = sorted(self.attacks.keys() & self.controls.keys() | ({CLEAN} & self.attacks.keys()))
        if both:
            raise ValueError(f"attacks: {', '.join(both)} is a control; give the attack another name")
        for section, names in FILLED_IN.items():
            refuse_filled_in(getattr(self, section), names, section=section, by="for each cell")
