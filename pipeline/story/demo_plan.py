"""A demo, checked before anything starts."""

from dataclasses import dataclass, field
from typing import Any

from clipsan.stages.attack.poisoning import AttackConfig
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.oracle import OracleConfig
from clipsan.stages.stage import config
from clipsan.stages.verdicts import Decision

from ..core.cluster import ClusterConfig
from ..core.commit import fingerprint
from ..core.config import as_tree
from ..proof.inquiry import ProofConfig
from ..tracking.record import TrackingConfig
from .demo_data import DemoData

DECIDES = ("data", "attack", "training", "templates", "decision", "oracle", "proof", "repair")
"""Settings that decide the result."""


@config
class DemoTraining:
    """How the demo's two models are trained."""

    model: ModelConfig
    """Architecture."""
    epochs: int
    """Passes over the pairs."""
    batch_size: int
    """Pairs of a global batch."""
    lr: float
    """Peak learning rate."""
    seed: int = 0
    """Of weights and order."""


@config
class DemoConfig:
    """Everything that decides the demo."""

    data: DemoData
    """Rendered scenes, or CIFAR-10."""
    attack: AttackConfig
    """The attack that the scan shall find."""
    training: DemoTraining
    """The suspect model and its clean twin."""
    templates: list[str]
    """Sentences for zero-shot classification."""
    decision: Decision
    """Where the scan cuts."""
    oracle: OracleConfig
    """What segments the pictures of suspicious pairs, to prove the trigger."""
    proof: ProofConfig
    """How far the proof goes."""
    repair: dict[str, Any]
    """How the suspect model is repaired: settings of `clipsan repair`."""
    out: str
    """Run folder; each verb has its own folder in it."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked demo."""

    config: DemoConfig
    fingerprint: str

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        settings = self.config
        rate = settings.attack.count_of(settings.data.pairs)
        return (
            f"data       {settings.data.kind}: {settings.data.pairs:,} pairs, {settings.data.test_pairs:,} held out\n"
            f"attack     {settings.attack.trigger.kind} on {rate} pairs towards {settings.attack.target!r}\n"
            f"training   twice {settings.training.epochs} epochs, batch {settings.training.batch_size}\n"
            "steps      data, poison, train suspect, train twin, evaluate both, scan twin; then the story: scan suspect, "
            "repair, evaluate\n"
            f"out        {settings.out}\n"
        )


def make_plan(settings: DemoConfig) -> Plan:
    """Say what the demo will do; each of its steps is checked where it begins, on what the steps before it made."""
    tree = as_tree(settings)
    return Plan(settings, fingerprint({name: tree[name] for name in DECIDES}))
