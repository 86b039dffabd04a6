"""What a scan asks to have proven, and how: the settings, and everything that the passes which prove work on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from clipsan.stages.detectors import Findings
from clipsan.stages.dossier.limits import ProofLimits
from clipsan.stages.dossier.repair_set import RepairSetConfig
from clipsan.stages.files import digest
from clipsan.stages.model.checkpoints import ModelError
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.oracle import OracleConfig
from clipsan.stages.proof.examine import ExamineConfig
from clipsan.stages.samples import Unit
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig, PoolConfig
from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree
from ..core.parts import Parts
from ..core.pass_ import Pass
from ..core.run_folder import RunFolder
from ..data.pixels import Pictures

PROOF_VERSION = 14
"""Raised when the code comes to give another result at the same settings, so that old parts are refused and not mixed in; another
limit is another setting."""


@config
class ProofConfig:
    """How suspicion is turned into proof; plays no part without an oracle."""

    budget: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the scanned pairs that the oracle examines, the most suspicious first; 1 examines all. Where regions are
    proven it goes on with the same claim, up to as many pairs again."""
    examine: ExamineConfig = field(default_factory=ExamineConfig)
    """How a pair is examined."""
    labeller: ModelConfig | None = None
    """A second, trusted CLIP that says what a region shows; null asks the suspect model what it rests on."""
    held_out: Annotated[int, Field(ge=2)] = 384
    """Inconspicuous pictures of the data set on which triggers are tried, and with which groups are compared."""
    groups: Annotated[int, Field(ge=0)] = 5
    """Concepts, the most accused first, whose pictures are searched for a trigger that covers the whole image."""
    group_size: Annotated[int, Field(ge=2)] = 256
    """Pictures of each side of such a concept."""
    precision: Literal["f32", "bf16"] = "f32"
    """Of the suspect model's forward passes, which are nearly all of the cost. bf16 halves it on processors and GPUs that have
    it, others compute in f32; what features a trigger moves is learned in f32, as they were embedded."""
    limits: ProofLimits = field(default_factory=ProofLimits)
    """What is looked for, and from which figure on something counts; the defaults are those of every published figure."""
    repair_set: RepairSetConfig = field(default_factory=RepairSetConfig)
    """The compact set for `clipsan repair`, written to OUT/repair/ when a trigger is proven."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Where the oracle's workers run."""


def labeller_fingerprint(labeller: ModelConfig) -> str:
    """Return the fingerprint of the trusted model, once it is known to load: another one at the same path is another proof.

    Raises:
        ConfigError: its weights are missing, are no checkpoint, or hold numbers that are no numbers.
    """
    try:
        return load_clip(labeller, "cpu").fingerprint
    except (ModelError, OSError) as error:
        raise ConfigError(f"proof.labeller: {' '.join(str(error).split())}") from None


def oracle_fingerprint(oracle: OracleConfig) -> dict[str, str]:
    """Return the SHA-256 of each file of weights, once the oracle is known to be built: other weights are another proof.

    Raises:
        ConfigError: a file is missing, is not of its kind, runs code, or holds numbers that are no numbers.
    """
    try:
        oracle.build("cpu")
        return {name: digest(name) for name in oracle.files}
    except (ModelError, OSError) as error:
        raise ConfigError(f"oracle: {' '.join(str(error).split())}") from None


def proof_fingerprint(settings: ProofConfig, oracle: OracleConfig, before: Mapping[str, Any]) -> str:
    """Return the fingerprint of everything that decides the proof; where it runs does not matter.

    Args:
        settings: of the proof.
        oracle: what segments.
        before: what decides which pairs are looked at: the scores, where they are cut, the seed of the draws.
    """
    tree = {name: value for name, value in as_tree(settings).items() if name != "pool"}
    return fingerprint({"version": PROOF_VERSION, **before, "oracle": as_tree(oracle), "settings": tree})


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """One question put to the passes that prove: which of these pairs rest on a trigger, in the eyes of this model."""

    pictures: Pictures
    units: list[Unit]
    model: ModelConfig
    """The suspect."""
    layers: list[str]
    """Blocks of its image tower that the embeddings hold."""
    embeddings: Parts
    findings: Findings
    """What the statistics say."""
    cut: float
    """Ensemble score from which a pair is flagged."""
    oracle: OracleConfig
    settings: ProofConfig
    seed: int
    cluster: ClusterConfig
    folder: RunFolder
    fingerprint: str

    @property
    def scores(self) -> Parts:
        """The score of every pair by every detector."""
        return self.embeddings.beside(self.folder.scores)

    @property
    def device(self) -> str:
        """Where the suspect model runs."""
        gpus = self.settings.pool.gpus_per_worker
        return "cuda" if (self.cluster.gpus_per_worker if gpus is None else gpus) else "cpu"

    def on_model(self, name: str, folder: str | None = None) -> Pass:
        """Return a pass whose workers hold the suspect model."""
        return replace(self.on_tables(name, folder), loads_model=True, pool=self.settings.pool)

    def on_tables(self, name: str, folder: str | None = None) -> Pass:
        """Return a pass over the pairs or their tables, whose records come in the order of the data set."""
        return Pass(
            name=name,
            cluster=self.cluster,
            run=self.folder,
            folder=folder,
            fingerprint=self.fingerprint,
            pairs=self.embeddings.total,
            ordered=True,
        )
