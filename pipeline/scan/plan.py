"""What a scan is asked to do, checked and resolved before any worker starts."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from clipsan.stages.detectors import DetectorsConfig, build_suite
from clipsan.stages.embed import CACHE_COLUMNS, REFERENCE_COLUMN, EmbedConfig, Precision
from clipsan.stages.model.checkpoints import activation_said
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.model.reference import reference_fingerprint
from clipsan.stages.oracle import OracleConfig
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, identity, list_pieces
from clipsan.stages.stage import check_chain, config
from clipsan.stages.verdicts import Decision, Judge, OddLimits, Reason

from ..core.cluster import ClusterConfig, check_private
from ..core.commit import FingerprintError, fingerprint, missing_parts
from ..core.config import ConfigError, as_tree
from ..core.kept import kept_clip
from ..core.place import AnyPath, place_of
from ..core.run_folder import RunFolder
from ..proof.inquiry import ProofConfig, labeller_fingerprint, oracle_fingerprint, proof_fingerprint
from ..proof.views import Views
from ..tracking.record import TrackingConfig

EMBED_VERSION = 4
SCORE_VERSION = 19
VERDICT_VERSION = 4
"""Raised when the code of a pass comes to give another result, so that old parts are refused and not mixed in."""


@config
class ScanConfig:
    """Everything that decides a scan."""

    data: SourceConfig
    """The pairs."""
    model: ModelConfig
    """The suspect model, trained on them."""
    out: str
    """Run folder."""
    decision: Decision
    """Where the cut lies."""
    odd: OddLimits = field(default_factory=OddLimits)
    """From which figure on a pair is set apart as odd, which accuses nobody."""
    oracle: OracleConfig | None = None
    """What segments the pictures of suspicious pairs; null stops after the statistics, and nothing is proven."""
    proof: ProofConfig = field(default_factory=ProofConfig)
    """How suspicion is turned into proof; plays no part without an oracle."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """How pairs are embedded."""
    detectors: DetectorsConfig = field(default_factory=DetectorsConfig)
    """Which scores are computed, and how."""
    embeddings: str | None = None
    """An earlier run's folder, to use its embeddings again."""
    trusted: SourceConfig | None = None
    """Pairs known to be clean, of the same kind: enables LoREx."""
    write: list[Literal["clean", "quarantine"]] = field(default_factory=list)
    """Copies of the data set to write, in its own format."""
    quarantine: list[Reason] = field(default_factory=lambda: [Reason.POISON_SUSPECT])
    """Reasons that keep a pair out of the clean copy; a pair with a proven trigger never is in it, nor one that shares its uid with
    a pair that is kept out."""
    max_lost_shards_pct: Annotated[float, Field(ge=0, le=100)] | None = None
    """Percentage of shards that may be unreadable, at all or from some place on; with more the run ends with status 1. null: any."""
    manifest: str | None = None
    """Ground truth of `clipsan poison`, to measure the detectors with."""
    seed: int = 0
    """Of every random draw that the detectors leave open."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Pairs as a scan embeds them."""

    source: SourceConfig
    units: list[Unit]
    fingerprint: str
    """Of their embeddings: where they lie does not matter, what is there does."""

    @classmethod
    def of(cls, source: SourceConfig, units: list[Unit], model_fingerprint: str, embed: EmbedConfig) -> "DataSet":
        """Return a data set, as this model embeds it in a precision that is settled."""
        tree = {
            "version": EMBED_VERSION,
            **identity(source, units),
            "model": model_fingerprint,
            "embed": _told(embed),
        }
        return cls(source=source, units=units, fingerprint=fingerprint(tree))


def _told(embed: EmbedConfig) -> dict[str, Any]:
    """Return what decides the vectors: of a second encoder what it is, not where it lies.

    How long a decoder may take, and how many there are, is of the machine.
    """
    tree = as_tree(replace(embed, decode_threads=None, reference=None))
    del tree["reference"], tree["decode_timeout_s"]
    return tree if embed.reference is None else {**tree, "reference": reference_fingerprint(embed.reference)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A scan, checked and resolved before any worker starts."""

    config: ScanConfig
    pairs: DataSet
    trusted: DataSet | None
    model_fingerprint: str
    activation: str
    embed: EmbedConfig
    """With the precision that this scan's machine, or the earlier run, has."""
    layers: list[str]
    scale: float
    """The model's exp(logit_scale)."""
    columns: frozenset[str]
    offered: frozenset[str]
    """Columns of the cache that not every scan has."""
    score_fingerprint: str
    proof_fingerprint: str | None
    """None without an oracle."""
    verdict_fingerprint: str

    @property
    def fingerprint(self) -> str:
        """Of the run folder: of the verdicts and of all that is made of them."""
        c = self.config
        made = {"write": c.write, "quarantine": as_tree(c.quarantine), "manifest": c.manifest}
        return fingerprint({"verdict": self.verdict_fingerprint, **made})

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c, units = self.config, self.pairs.units
        size = sum({u.shard: u.size_bytes for u in units}.values())
        lines = [
            f"data       {len(units)} units of {len({u.shard for u in units})} shards, {size / 2**20:,.1f} MiB ({c.data.kind})",
            f"model      {self.model_fingerprint[:12]}, {self.activation}, layers {', '.join(self.layers)}",
            f"out        {c.out}",
            f"workers    {c.cluster.describe()}",
            f"embed      {len(units)} parts in {self._embedding} -> embeddings/, rejected/  ({self.pairs.fingerprint[:12]})",
            f"score      {len(units)} parts -> scores/  ({self.score_fingerprint[:12]})",
            *self._proof_lines(),
            f"verdict    {len(units)} parts -> verdicts/  ({self.verdict_fingerprint[:12]})",
            f"write      {', '.join(c.write) or 'no copy of the data'}",
            f"columns    {', '.join(sorted(self.columns))}",
        ]
        return "\n".join(lines) + "\n"

    @property
    def _embedding(self) -> str:
        cluster, embed = self.config.cluster, self.embed
        apart = ", decoders and encoders apart" if cluster.apart is not None else ""
        return f"{embed.precision}, batches of {embed.batch_on(cluster.device)}{apart}"

    def _proof_lines(self) -> list[str]:
        oracle, proof = self.config.oracle, self.config.proof
        if oracle is None or self.proof_fingerprint is None:
            return ["oracle     none: nothing is proven"]
        on = f", on nodes with {', '.join(proof.pool.resources)}" if proof.pool.resources else ""
        return [
            f"oracle     {oracle.kind} on {100 * proof.budget:g} % of the pairs, {proof.held_out} held-out pictures{on}"
            f" -> evidence/, triggers/  ({self.proof_fingerprint[:12]})"
        ]


def make_plan(settings: ScanConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: no data, an unreadable model, an unknown layer, an absent manifest.
    """
    units = list_pieces(settings.data)
    trusted_units = list_pieces(settings.trusted) if settings.trusted is not None else []
    if settings.manifest is not None and not Path(settings.manifest).exists():
        raise ConfigError(
            f"manifest={settings.manifest}: no such file; give the manifest.parquet that `clipsan poison` wrote, or null"
        )
    clip = kept_clip(settings.model)
    layers = clip.layers(settings.embed.layers)
    pairs, embed = _as_embedded(settings, units, clip.fingerprint)
    trusted = None
    if settings.trusted is not None:
        trusted = DataSet.of(settings.trusted, trusted_units, clip.fingerprint, embed)
    offered = frozenset({REFERENCE_COLUMN} if settings.embed.reference is not None else ())
    suite = build_suite(settings.detectors, pairs=0, trusted=None, offered=offered)
    scored = fingerprint(
        {
            "version": SCORE_VERSION,
            "embed": pairs.fingerprint,
            "detectors": as_tree(settings.detectors),
            "trusted": trusted and trusted.fingerprint,
        }
    )
    judged = {"version": VERDICT_VERSION, "score": scored, "decision": as_tree(settings.decision)}
    judged["odd"] = as_tree(settings.odd)
    proven = None
    if settings.oracle is not None:
        check_private(settings.proof.pool, settings.cluster)
        made: dict[str, Any] = {"score": scored, "decision": as_tree(settings.decision), "seed": settings.seed}
        if weights := oracle_fingerprint(settings.oracle):
            made["oracle"] = sorted(weights.values())
        if settings.proof.labeller is not None:
            made["labeller"] = labeller_fingerprint(settings.proof.labeller)
        proven = judged["proof"] = proof_fingerprint(settings.proof, settings.oracle, made)
    return Plan(
        config=settings,
        pairs=pairs,
        trusted=trusted,
        model_fingerprint=clip.fingerprint,
        activation=activation_said(settings.model, clip.model_cfg),
        embed=embed,
        layers=layers,
        scale=clip.scale,
        columns=check_chain(CACHE_COLUMNS | offered, [*suite.chain, Views, Judge]),
        offered=offered,
        score_fingerprint=scored,
        proof_fingerprint=proven,
        verdict_fingerprint=fingerprint(judged),
    )


def _as_embedded(settings: ScanConfig, units: list[Unit], model_fingerprint: str) -> tuple[DataSet, EmbedConfig]:
    """Return the pairs, and how they are embedded: in the precision of the machine, or in that of the earlier run.

    A scan that takes embeddings which a GPU made may run where there is none.
    """
    device = settings.cluster.device
    made = settings.embed.precision_on(device)
    choices: list[Precision] = [made]
    if settings.embeddings is not None and settings.embed.precision == "auto":
        choices.append("f32" if made == "bf16" else "bf16")
    found = [replace(settings.embed, precision=precision) for precision in choices]
    sets = [DataSet.of(settings.data, units, model_fingerprint, embed) for embed in found]
    earlier = 0
    if len(sets) > 1:
        folder = RunFolder(place_of(str(settings.embeddings))).embeddings
        earlier = next((i for i, one in enumerate(sets) if _has_part(folder, one)), 0)
    return sets[earlier], found[earlier]


def _has_part(folder: AnyPath, pairs: DataSet) -> bool:
    try:
        return bool(pairs.units) and not missing_parts(folder, [pairs.units[0].index], pairs.fingerprint)
    except FingerprintError:
        return False
