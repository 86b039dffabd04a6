"""What report.html shows of a scan, gathered from the run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipsan.stages.detectors import Findings
from clipsan.stages.detectors.streaming import vectors
from clipsan.stages.evaluation.detection import pr_points, roc_points
from clipsan.stages.report.content import (
    ConceptRow,
    DetectorPanel,
    FlaggedPair,
    MapPoints,
    RejectedExample,
    ScanReport,
    Truth,
)
from clipsan.stages.report.figures import MAP_LIMIT, embedding_map
from clipsan.stages.samples import Unit, seeded_hash
from clipsan.stages.sources import SourceConfig
from clipsan.stages.verdicts import Cut, Reason

from ..core.commit import read_part
from ..core.config import public_tree
from ..core.run_folder import RunFolder, versions
from ..proof.prove import Proof
from ..proof.report import dossier_panels, masks_of
from . import output as scan_output
from .output import Counts, column, score_names
from .plan import ScanConfig

HISTOGRAM_BINS = 60
TAIL_SHARE = 0.0005
"""Share of the scores at each end that goes into the outermost bins, so that a few extreme ones do not flatten the rest."""
FLAGGED_ON_MAP = MAP_LIMIT // 4
EXAMPLES = 20


def build_report(
    *,
    source: SourceConfig,
    units: list[Unit],
    folder: RunFolder,
    embeddings: Path,
    counts: Counts,
    findings: Findings,
    cut: Cut,
    detection: Mapping[str, Any] | None,
    truth: np.ndarray | None,
    proof: Proof,
    settings: ScanConfig,
    mark: str,
) -> ScanReport:
    """Gather everything that the page shows; pictures are read from the source again."""
    parts = [u.index for u in units]
    names = score_names(folder.scores, parts)
    best = scan_output.most_suspicious(folder, parts, names)
    by_part: dict[int, list[str]] = {}
    for pair in best:
        by_part.setdefault(pair.part, []).append(pair.uid)
    pictures = scan_output.fetch_pictures(
        source,
        units,
        best,
        max_pixels=settings.embed.max_pixels,
        model=settings.model,
        masks=masks_of(proof, by_part),
        cluster=settings.cluster,
    )
    poisoned = set(_poisoned_uids(folder, parts, truth)) if truth is not None else None
    wall = tuple(
        FlaggedPair(
            uid=pair.uid,
            caption=pair.caption,
            picture=pictures[pair.uid][0],
            heat=pictures[pair.uid][1],
            verdict=pair.verdict if settings.oracle is not None else None,
            trigger_id=pair.trigger_id,
            score=pair.score,
            rank=rank,
            reasons=pair.reasons,
            concept=pair.concept,
            scores=pair.scores,
            truth=None if poisoned is None else pair.uid in poisoned,
        )
        for rank, pair in enumerate(best, 1)
        if pair.uid in pictures
    )
    flags = column(folder.scores, parts, "ensemble") >= cut.value
    accused = scan_output.accused_mask(folder.verdicts, parts)
    targets = findings.targets
    return ScanReport(
        title=f"clipsan scan of {_short(source.path)}",
        pairs_in=counts.pairs_in,
        verdicts=counts.verdicts,
        flagged_pairs=counts.accused,
        rejected=counts.rejected,
        decision=cut.meaning,
        targets=targets,
        next_steps=next_steps(folder, counts, targets, settings.embeddings, proof.triggers),
        dossiers=dossier_panels(proof),
        concepts=_concepts(findings, folder, parts),
        concept_threshold=findings.concept_threshold,
        flagged=wall,
        detectors=tuple(
            _panel(name, column(folder.scores, parts, name), flags, truth, detection, cut) for name in names
        ),
        map=_map(folder, embeddings, parts, targets, truth, cut, settings.detectors.density.seed),
        rejected_examples=tuple(
            RejectedExample(uid=r["uid"], reason=r["reason"]) for r in scan_output.rejected_examples(folder, EXAMPLES)
        ),
        truth=None if truth is None else Truth(poisoned=int(truth.sum()), found=int((truth & accused).sum())),
        settings=public_tree(settings),
        versions=versions(),
        fingerprint=mark,
    )


def next_steps(
    folder: RunFolder,
    counts: Counts,
    targets: tuple[str, ...],
    embeddings: str | None = None,
    triggers: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return what the reader should do now, commands included.

    Args:
        folder: of the scan.
        counts: of its verdicts.
        targets: concepts that the statistics name.
        embeddings: the earlier run whose embeddings the scan took.
        triggers: target of each proven trigger.
    """
    cached = f"embeddings={embeddings or folder.root}"
    rewrite = f"`clipsan scan {folder.run_yaml} out=NEW {cached} --write clean,quarantine`"
    steps = []
    if triggers:
        steps.append("Look at the triggers below, and at the pairs that carry them.")
        steps.append(f"Write the data set without those pairs: {rewrite}, or give `flagged.npy` to your resharder.")
        steps.append(
            f"Do not deploy the model: repair it with `clipsan repair scan={folder.root} model.path=SUSPECT method=unlearn out=NEW`, "
            "or train it again on the clean copy."
        )
    elif targets:
        steps.append(
            f"Look at the pictures below: what do the pairs that claim “{'”, “'.join(targets)}” have in common?"
        )
        steps.append(f"Write the data set without them: {rewrite}, or give `flagged.npy` to your resharder.")
        steps.append("Do not deploy a model trained on these pairs: train it again on the clean copy, or repair it.")
    elif counts.flagged:
        steps.append(
            "No concept stands out as the target of a backdoor. "
            "The flagged pairs are the oddest of this data set, and every data set has some."
        )
        steps.append(f"Look through them; if they do not belong, write the data set without them: {rewrite}.")
    else:
        steps.append("Nothing stands out: no concept is accused and no pair lies above the threshold.")
    if sum(counts.rejected.values()):
        steps.append("The rejected pairs below could not be scanned: a clean copy leaves them out.")
    return tuple(steps)


def _short(path: str | list[str]) -> str:
    first = path if isinstance(path, str) else path[0]
    return first.rstrip("/").rpartition("/")[2] or first


def _poisoned_uids(folder: RunFolder, parts: list[int], truth: np.ndarray) -> list[str]:
    uids: list[str] = []
    start = 0
    for index in parts:
        table = read_part(folder.scores, index, ["uid"])
        mask = truth[start : start + table.num_rows]
        uids += table.filter(mask).column("uid").to_pylist()
        start += table.num_rows
    return uids


def _concepts(findings: Findings, folder: RunFolder, parts: list[int]) -> tuple[ConceptRow, ...]:
    flagged: dict[str, int] = {}
    for index in parts:
        table = read_part(folder.verdicts, index, ["concept", "reasons"])
        for concept, reasons in zip(
            table.column("concept").to_pylist(), table.column("reasons").to_pylist(), strict=True
        ):
            if concept is not None and Reason.POISON_SUSPECT.value in reasons:
                flagged[concept] = flagged.get(concept, 0) + 1
    return tuple(
        ConceptRow(
            name=c["name"], pairs=c["n"], statistic=c["statistic"], flagged=flagged.get(c["name"], 0), named=c["named"]
        )
        for c in findings.concepts
    )


def _panel(
    name: str,
    scores: np.ndarray,
    flags: np.ndarray,
    truth: np.ndarray | None,
    detection: Mapping[str, Any] | None,
    cut: Cut,
) -> DetectorPanel:
    finite = scores[np.isfinite(scores)].astype(np.float64)
    low, high = np.quantile(finite, [TAIL_SHARE, 1 - TAIL_SHARE]) if len(finite) else (0.0, 1.0)
    if name == "ensemble" and np.isfinite(cut.value):
        high = max(high, cut.value * 1.1)
    edges = np.linspace(low, high if high > low else low + 1, HISTOGRAM_BINS + 1)
    clipped = np.clip(np.nan_to_num(scores.astype(np.float64), nan=low, posinf=high, neginf=low), edges[0], edges[-1])
    measured = detection is not None and truth is not None and truth.any() and not truth.all()
    return DetectorPanel(
        name=name,
        edges=edges,
        counts=np.histogram(clipped, edges)[0],
        flagged=np.histogram(clipped[flags], edges)[0],
        poisoned=np.histogram(clipped[truth], edges)[0] if truth is not None else None,
        cut=cut.value if name == "ensemble" and np.isfinite(cut.value) else None,
        figures=detection[name] if measured and detection is not None else None,
        roc=roc_points(scores, truth) if measured and truth is not None else None,
        pr=pr_points(scores, truth) if measured and truth is not None else None,
    )


def _map(
    folder: RunFolder,
    embeddings: Path,
    parts: list[int],
    targets: tuple[str, ...],
    truth: np.ndarray | None,
    cut: Cut,
    seed: int,
) -> MapPoints:
    """Lay out a seeded sample of the pairs: up to FLAGGED_ON_MAP flagged ones, the rest drawn from all others."""
    draws = [
        seeded_hash(read_part(folder.scores, i, ["uid"]).column("uid").to_pylist(), seed, "report.map") for i in parts
    ]
    draw = np.concatenate(draws)
    flags = column(folder.scores, parts, "ensemble") >= cut.value
    order = np.argsort(draw, kind="stable")
    chosen = np.concatenate([order[flags[order]][:FLAGGED_ON_MAP], order[~flags[order]][: MAP_LIMIT - FLAGGED_ON_MAP]])
    chosen.sort()
    points: list[np.ndarray] = []
    concepts: list[str | None] = []
    start = 0
    for index, block in zip(parts, draws, strict=True):
        rows = chosen[(chosen >= start) & (chosen < start + len(block))] - start
        if len(rows):
            points.append(vectors(read_part(embeddings, index, ["image"]).take(rows), "image"))
            concepts += read_part(folder.verdicts, index, ["concept"]).take(rows).column("concept").to_pylist()
        start += len(block)
    return MapPoints(
        xy=embedding_map(np.concatenate(points), seed),
        flagged=flags[chosen],
        accused=np.array([c in targets for c in concepts], bool),
        poisoned=truth[chosen] if truth is not None else None,
    )
