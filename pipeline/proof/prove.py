"""Passes 3 to 5 of the scan: from what the statistics suspect to triggers that are proven, and the pairs that carry them."""

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from clipsan.stages.detectors import Findings
from clipsan.stages.dossier.carriers import Direction
from clipsan.stages.dossier.cluster import cluster
from clipsan.stages.dossier.dossier import Dossier, number
from clipsan.stages.dossier.files import write_dossiers
from clipsan.stages.dossier.repair_set import RepairSetConfig
from clipsan.stages.dossier.rivals import settle
from clipsan.stages.dossier.warp import LEAST_IMAGES
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.oracle import OracleConfig
from clipsan.stages.proof.affected import LabelEvidence, affected_labels
from clipsan.stages.proof.examine import EVIDENCE_SCHEMA, ExamineConfig
from clipsan.stages.proof.vocabulary import Labels, finish, merge
from clipsan.stages.report.content import Example
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig, PoolConfig, check_pool
from ..core.commit import fingerprint, missing_parts, part_path, read_part, write_part
from ..core.config import ConfigError, as_tree
from ..core.pass_old import run_pass
from ..core.run_folder import RunFolder
from ..data.pixels import fetch_pixels, read_pixels
from ..scan.work import chunk
from .plan import FOLLOWED, Group, Selection, follow, paying, plan_proof
from .work import (
    Bench,
    ConfirmWork,
    DirectionWork,
    ExamineWork,
    GroupWork,
    Hits,
    LabelWork,
    SweepWork,
    VerifyWork,
    WarpWork,
)

PROOF_VERSION = 7
"""Raised when the code comes to give another result, so that old parts are refused and not mixed in."""


@config
class ProofConfig:
    """How suspicion is turned into proof; plays no part without an oracle."""

    budget: float = 0.05
    """Share of the scanned pairs that the oracle examines, the most suspicious first; 1 examines all. Where regions are
    proven it goes on with the same claim, up to as many pairs again."""
    examine: ExamineConfig = field(default_factory=ExamineConfig)
    """How a pair is examined."""
    labeller: ModelConfig | None = None
    """A second, trusted CLIP that says what a region shows; null asks the suspect model what it rests on."""
    held_out: int = 384
    """Inconspicuous pictures of the data set on which triggers are tried, and with which groups are compared."""
    groups: int = 5
    """Concepts, the most accused first, whose pictures are searched for a trigger that covers the whole image."""
    group_size: int = 256
    """Pictures of each side of such a concept."""
    precision: Literal["f32", "bf16"] = "f32"
    """Of the suspect model's forward passes, which are nearly all of the cost. bf16 halves it on processors and GPUs that have
    it; what features a trigger moves is learned in f32, as they were embedded."""
    repair_set: RepairSetConfig = field(default_factory=RepairSetConfig)
    """The compact set for `clipsan repair`, written to OUT/repair/ when a trigger is proven."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """Where the oracle's workers run."""

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError("budget is a fraction of the pairs, above 0 and at most 1")
        if self.held_out < 2 or self.group_size < 2 or self.groups < 0:
            raise ValueError("held_out and group_size must be at least 2, groups at least 0")


@dataclass(frozen=True, slots=True)
class Task:
    """What the passes work on; put together by the scan."""

    data: SourceConfig
    units: list[Unit]
    model: ModelConfig
    layers: list[str]
    max_pixels: int
    oracle: OracleConfig
    settings: ProofConfig
    seed: int
    cluster: ClusterConfig
    folder: RunFolder
    embeddings: Path
    rows: dict[int, int]
    mark: str

    @property
    def parts(self) -> list[int]:
        return [unit.index for unit in self.units]

    @property
    def work(self) -> Path:
        return self.folder.work / "proof"

    @property
    def device(self) -> str:
        gpus = self.settings.pool.gpus_per_worker
        return "cuda" if (self.cluster.gpus_per_worker if gpus is None else gpus) else "cpu"

    def run(self, name: str, pieces: Sequence[Any], work: Any, args: tuple[Any, ...], total: int | None = None) -> Any:
        """Run a pass of workers that hold the suspect model."""
        pool = self.settings.pool
        return run_pass(
            name, pieces, work, args, cluster=self.cluster, total=total, heavy=True, ordered=True, pool=pool
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proven."""

    dossiers: tuple[Dossier, ...] = ()
    affected: tuple[LabelEvidence, ...] = ()
    examined: int = 0
    """Pairs that the oracle has looked at."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each step."""
    oracle_nodes: int = 0
    """Machines that the oracle ran on."""
    examples: dict[str, tuple[Example, ...]] = field(default_factory=dict)
    """Trigger id -> held-out pictures without it and with it, and what the model takes them for."""
    evidence: Path | None = None
    swept: Path | None = None
    bench: Bench | None = None
    """What the workers held, for passes that come after the verdicts."""

    @property
    def triggers(self) -> dict[str, str]:
        """Trigger id -> target."""
        return {dossier.id: dossier.targets[0] for dossier in self.dossiers}

    def figures(self) -> dict[str, Any]:
        """Return what summary.json says of the proof."""
        return {
            "examined": self.examined,
            "affected_labels": [e.label for e in self.affected if e.affected],
            "seconds": self.seconds,
            "oracle_nodes": self.oracle_nodes,
            "triggers": [
                {
                    "id": d.id,
                    "kind": d.kind,
                    "targets": list(d.targets),
                    "pairs_before_sweep": d.pairs,
                    "pairs": d.pairs_swept,
                    "flip_rate_pct": d.flips.pct,
                    "flip_rate_pct_ci95": [d.flips.low_pct, d.flips.high_pct],
                    "control_flip_rate_pct": d.control.pct,
                }
                for d in self.dossiers
            ],
        }


def proof_mark(settings: ProofConfig, oracle: OracleConfig, scored: str, decision: Any) -> str:
    """Return the fingerprint of everything that decides the proof; where it runs does not matter."""
    tree = {name: value for name, value in as_tree(settings).items() if name != "pool"}
    return fingerprint(
        {
            "version": PROOF_VERSION,
            "score": scored,
            "decision": as_tree(decision),
            "oracle": as_tree(oracle),
            "settings": tree,
        }
    )


def prove(task: Task, findings: Findings, cut: float) -> Proof:
    """Run the passes, or what is left of them.

    Raises:
        ConfigError: the oracle's pool asks for what no node of the cluster has.
    """
    settings = task.settings
    check_pool(settings.pool)
    selection = plan_proof(
        task.folder.scores,
        task.parts,
        findings,
        cut,
        budget=settings.budget,
        held_out=settings.held_out,
        groups=settings.groups,
        group_size=settings.group_size,
        seed=task.seed,
    )
    if not selection.examined or len(Group.uids(selection.held_out)) < 2:
        return Proof()
    clock = _Clock()
    bench = _bench(task, findings, selection)
    clock.stop("prepare")
    evidence, nodes = _examine(task, bench, selection, findings)
    clock.stop("examine")
    candidates = cluster(evidence, seed=task.seed) + _groups(task, bench, selection)
    candidates += _warps(task, bench, findings, candidates)
    proven, examples = _verify(task, bench, candidates, findings.targets)
    clock.stop("prove")
    swept, dossiers = _sweep(task, bench, proven, findings, _own_proofs(evidence))
    clock.stop("sweep")
    shutil.rmtree(task.folder.root / "triggers", ignore_errors=True)
    write_dossiers(task.folder.root / "triggers", dossiers)
    affected = affected_labels(evidence, bench.labels.names)
    return Proof(
        dossiers,
        affected,
        evidence.num_rows,
        clock.seconds,
        nodes,
        examples,
        task.folder.root / "evidence",
        swept,
        bench,
    )


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stop(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step] = round(now - self._last, 1)
        self._last = now


def _bench(task: Task, findings: Findings, selection: Selection) -> Bench:
    """Learn the labels and fetch the pictures."""
    sums = None
    args = (findings.vocabulary, task.embeddings)
    for record in run_pass("labels", chunk(task.rows), LabelWork, args, cluster=task.cluster, ordered=True):
        sums = record["sums"] if sums is None else merge(sums, record["sums"])
    if sums is None:
        raise ConfigError("data: there is no pair to learn labels from")
    clip = load_clip(task.model, "cpu")
    labels: Labels = finish(findings.vocabulary.names, sums, clip.model.logit_scale.exp().item())
    pixels = task.work / "pixels"
    fetch_pixels(
        task.data,
        task.units,
        selection.pictures,
        model=task.model,
        max_pixels=task.max_pixels,
        folder=pixels,
        mark=task.mark,
        cluster=task.cluster,
    )
    held_out = read_pixels(pixels, Group.uids(selection.held_out), clip.image_size, task.parts)
    return Bench(task.model, task.device, labels, held_out, task.seed, task.settings.precision)


def _examine(task: Task, bench: Bench, selection: Selection, findings: Findings) -> tuple[pa.Table, int]:
    """Return the evidence of all examined pairs, and on how many nodes it was made; 0 if it was there already.

    A claim of which pairs are proven is followed, in rounds, while that pays; all rounds together look at twice the budget at
    most. Each round has a folder of its own, so that a stopped scan goes on with the same ones.
    """
    claims, left = selection.claims, selection.examined
    rounds: list[pa.Table] = []
    nodes: set[str | None] = set()
    while claims and left >= 0:
        table, used = _round(task, bench, claims, len(rounds))
        rounds.append(table)
        nodes |= used
        worth = paying(table.column("claim").to_pylist(), table.column("proven").to_pylist())
        examined = {uid for done in rounds for uid in done.column("uid").to_pylist()}
        count = max(FOLLOWED, selection.examined // 8)
        claims = follow(task.folder.scores, task.parts, findings, worth, examined, count=count) if worth else {}
        left -= sum(len(uids) for uids in claims.values())
    _write_evidence(task, len(rounds))
    return pa.concat_tables(rounds), len(nodes)


def _round(
    task: Task, bench: Bench, claims: Mapping[int, dict[str, str]], number: int
) -> tuple[pa.Table, set[str | None]]:
    settings, folder = task.settings, _round_folder(task, number)
    todo = set(missing_parts(folder, claims, task.mark))
    pieces = [(unit, claims[unit.index]) for unit in task.units if unit.index in todo]
    args = (bench, task.oracle, settings.examine, settings.labeller, task.data, task.max_pixels, folder, task.mark)
    name = f"oracle, round {number + 1}" if number else "oracle"
    nodes = {record.get("node") for record in task.run(name, pieces, ExamineWork, args, total=len(claims))}
    tables = [read_part(folder, index, EVIDENCE_SCHEMA.names) for index in sorted(claims)]
    return pa.concat_tables(tables), nodes


def _round_folder(task: Task, number: int) -> Path:
    return task.work / f"oracle-{number}"


def _write_evidence(task: Task, rounds: int) -> None:
    """Write the evidence of all rounds as one part a unit."""
    for index in task.parts:
        folders = [_round_folder(task, number) for number in range(rounds)]
        found = [read_part(folder, index) for folder in folders if part_path(folder, index).exists()]
        if found:
            write_part(task.folder.root / "evidence", index, pa.concat_tables(found), task.mark)


def _groups(task: Task, bench: Bench, selection: Selection) -> list[Dossier]:
    args = (bench, task.work / "pixels", task.parts)
    return [d for record in task.run("groups", selection.groups, GroupWork, args) for d in record["dossiers"]]


def _warps(task: Task, bench: Bench, findings: Findings, found: Sequence[Dossier]) -> list[Dossier]:
    """Look for a warp where the statistics name a concept and neither a patch nor a residual says why."""
    explained = {target for dossier in found for target in dossier.targets}
    known = set(bench.labels.names)
    open_ = [name for name in findings.targets if name in known and name not in explained]
    if len(bench.held_out) < LEAST_IMAGES:
        return []
    return [d for record in task.run("warps", open_, WarpWork, (bench,)) for d in record["dossiers"]]


def _verify(
    task: Task, bench: Bench, candidates: Sequence[Dossier], named: Sequence[str]
) -> tuple[list[tuple[Dossier, Direction]], dict[str, tuple[Example, ...]]]:
    """Return the candidates that flip a larger held-out set, numbered, each with its direction; and examples of each."""
    verified = [record["dossier"] for record in task.run("verify", candidates, VerifyWork, (bench,))]
    proven = number(settle([dossier for dossier in verified if dossier.stands(named)]))
    records = list(task.run("learn triggers", proven, DirectionWork, (bench, task.layers)))
    directions = [record["direction"] for record in records]
    examples = {dossier.id: record["examples"] for dossier, record in zip(proven, records, strict=True)}
    return list(zip(proven, directions, strict=True)), examples


def _own_proofs(evidence: pa.Table) -> set[str]:
    return set(evidence.filter(evidence.column("proven")).column("uid").to_pylist())


def _sweep(
    task: Task,
    bench: Bench,
    triggers: Sequence[tuple[Dossier, Direction]],
    findings: Findings,
    own: set[str],
) -> tuple[Path | None, tuple[Dossier, ...]]:
    """Search the whole cache for the triggers; return the folder of what was found, and the dossiers with their pairs."""
    if not triggers:
        return None, ()
    folder = task.folder.root / "evidence" / "swept"
    found: dict[int, dict[str, Hits]] = {}
    args = (triggers, findings.vocabulary, task.embeddings)
    for record in run_pass("sweep", task.parts, SweepWork, args, cluster=task.cluster, ordered=True):
        if record["candidates"]:
            found[record["part"]] = record["candidates"]
    dossiers = [dossier for dossier, _ in triggers]
    todo = set(missing_parts(folder, found, task.mark))
    pieces = [(unit, found[unit.index]) for unit in task.units if unit.index in todo]
    confirm = (bench, dossiers, task.settings.examine, task.data, task.max_pixels, folder, task.mark)
    for _ in task.run("confirm", pieces, ConfirmWork, confirm, total=len(found)):
        pass
    carriers: dict[str, set[str]] = {d.id: {uid for uid in d.uids if uid in own} for d in dossiers}
    for index in found:
        table = read_part(folder, index, ["uid", "trigger_id", "confirmed"])
        for row in table.filter(table.column("confirmed")).to_pylist():
            carriers[row["trigger_id"]].add(row["uid"])
    return folder, tuple(dataclasses.replace(d, pairs_swept=len(carriers[d.id])) for d in dossiers)
