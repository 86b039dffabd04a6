"""Settings of `clipsan run`."""

from dataclasses import field
from typing import Annotated, Any

from pydantic import Field

from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.sources import SourceConfig
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig
from ..core.config import refuse_filled_in
from ..tracking.record import TrackingConfig
from ..tracking.registry import MAX_ASR_PCT, MAX_LOSS_POINTS

FILLED_IN = {
    "scan": ("data", "model", "out", "cluster", "tracking"),
    "repair": ("model", "scan", "evaluate", "out", "register", "max_asr_pct", "max_loss_points", "cluster", "tracking"),
    "evaluate": ("model", "out", "cluster", "tracking"),
}
"""Settings of a section that the story has its own values for."""


@config
class RunConfig:
    """Everything that decides a run."""

    data: SourceConfig
    """The suspect pairs."""
    model: ModelConfig
    """The suspect checkpoint that learned from them; it is read, never written to."""
    scan: dict[str, Any]
    """Settings of `clipsan scan`: decision, oracle, proof, write (clean, quarantine), ..."""
    repair: dict[str, Any]
    """Settings of `clipsan repair`: method, data (clean pairs; else those that the scan calls clean), seed, ..."""
    evaluate: dict[str, Any] | None = None
    """Settings of `clipsan evaluate`: labelled images, classes, templates, ...; measured of the suspect and of the repaired
    model. Without an `attack` the ASR that is shown is that of the triggers that the scan has proven, and the repair is judged by
    triggers that it did not train on (`repair.unseen`). Null: nothing is measured."""
    max_asr_pct: Annotated[float, Field(ge=0, le=100)] | None = MAX_ASR_PCT
    """The ASR that a repaired model may have at most; above it, or not measured, the run ends with status 3. Null: no such
    demand."""
    max_loss_points: Annotated[float, Field(ge=0, le=100)] | None = MAX_LOSS_POINTS
    """Percentage points of clean accuracy that the repair may cost at most, else status 3. Null: no such demand."""
    force: bool = False
    """True repairs even where the scan proves nothing: what it names is repaired all the same, and a model that it does not accuse at all
    as far as `repair.blind` allows."""
    out: str
    """Run folder; each step has a folder of its own in it."""
    register: str | None = "clipsan"
    """Name under which MLflow registers the repaired model as a new version; null: it is not registered."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs of every step."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow: one run, with the steps below it."""

    @property
    def attack_known(self) -> bool:
        """Whether the evaluation names the attack, so that nothing that the scan found has to stand for it."""
        return self.evaluate is not None and self.evaluate.get("attack") is not None

    def __post_init__(self) -> None:
        for section, names in FILLED_IN.items():
            refuse_filled_in(getattr(self, section), names, section=section, by="by the run")
        if "method" not in self.repair:
            raise ValueError("repair: needs a method, a file of conf/repair")
        if self.force and not self.repair.get("blind"):
            raise ValueError(
                "force: a model that nothing accuses is repaired only as far as its accuracy allows; give repair.blind.data, labelled "
                "images"
            )
        if self.evaluate is not None and not {"data", "classes"} <= self.evaluate.keys():
            raise ValueError("evaluate: needs data, labelled images, and classes, the names of the labels")
        if self.evaluate is None and self.max_asr_pct is not None:
            raise ValueError("max_asr_pct: nothing is measured without evaluate; give evaluate, or max_asr_pct: null")
