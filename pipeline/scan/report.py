"""What report.html shows of a scan, gathered from the run folder."""

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from shlex import quote

import numpy as np
import pyarrow as pa

from clipsan.stages.detectors import Findings
from clipsan.stages.detectors.streaming import vectors
from clipsan.stages.evaluation.detection import pr_points, roc_points
from clipsan.stages.report.content import (
    ConceptRow,
    DetectorPanel,
    MapPoints,
    RejectedExample,
    ScanReport,
    Truth,
)
from clipsan.stages.report.figures import MAP_LIMIT, embedding_map
from clipsan.stages.samples import seeded_hash
from clipsan.stages.verdicts import Cut, Reason

from ..core.config import public_tree
from ..core.parts import Parts, has_any, value_counts
from ..core.run_folder import RunFolder, versions
from ..proof.report import dossier_panels
from .output import Counts, Measured, accused_mask, score_names
from .passes import Judgement, Scan
from .wall import wall

HISTOGRAM_BINS = 60
TAIL_SHARE = 0.0005
"""Share of the scores at each end that goes into the outermost bins, so that a few extreme ones do not flatten the rest."""
FLAGGED_ON_MAP = MAP_LIMIT // 4
EXAMPLES = 20


def build_report(scan: Scan, judgement: Judgement, counts: Counts, measured: Measured | None) -> ScanReport:
    """Gather everything that the page shows; pictures are read from the source again."""
    settings, findings = scan.plan.config, judgement.findings
    names = score_names(scan.scores)
    panels = _Panels(scan.scores, judgement.cut, measured)
    truth = measured.truth if measured is not None else None
    return ScanReport(
        title=f"clipsan scan of {_short(settings.data.path)}",
        pairs_in=counts.pairs_in,
        verdicts=counts.verdicts,
        flagged_pairs=counts.accused,
        rejected=counts.rejected,
        decision=judgement.cut.meaning,
        targets=judgement.targets,
        trigger_words={c: tuple(one.word for one in found) for c, found in findings.trigger_words.items() if found},
        next_steps=(
            *([f"{saturation_warning(findings.saturated, counts.verdicts)}."] if findings.saturated else []),
            *next_steps(scan.folder, counts, judgement.targets, settings.embeddings, judgement.proof.triggers),
        ),
        dossiers=dossier_panels(judgement.proof),
        concepts=_concepts(findings, scan.verdicts),
        concept_threshold=findings.concept_threshold,
        flagged=wall(scan, names, judgement.proof, truth),
        detectors=tuple(panels.panel(name) for name in names),
        map=_map(scan, judgement, truth),
        rejected_examples=_rejected_examples(Parts.of(scan.folder.rejected)),
        truth=None
        if truth is None
        else Truth(poisoned=int(truth.sum()), found=int((truth & accused_mask(scan.verdicts)).sum())),
        settings=public_tree(settings),
        versions=versions(),
        fingerprint=scan.plan.verdict_fingerprint,
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
        targets: concepts that are named.
        embeddings: the earlier run whose embeddings the scan took.
        triggers: target of each proven trigger.
    """
    cached = quote(f"embeddings={embeddings or folder.root}")
    rewrite = f"`clipsan scan {quote(str(folder.run_yaml))} out=NEW {cached} --write clean,quarantine`"
    steps = []
    if triggers:
        steps.append("Look at the triggers below, and at the pairs that carry them.")
        steps.append(f"Write the data set without those pairs: {rewrite}, or give `flagged.npy` to your resharder.")
        steps.append(
            f"Do not deploy the model: repair it with `clipsan repair {quote(f'scan={folder.root}')} model.path=SUSPECT method=unlearn "
            "out=NEW`, or train it again on the clean copy."
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
    if counts.losses.hint is not None:
        steps.append(f"Read more of the data: {counts.losses.hint}.")
    if counts.losses.unread:
        unread, named = counts.losses.unread, ", ".join(counts.losses.unread[:EXAMPLES])
        why = f" ({counts.losses.why_unread})" if counts.losses.why_unread else ""
        steps.insert(
            0,
            f"Run the same command again: {len(unread):,} of {counts.losses.of:,} shards could not be read{why}, among them {named}. "
            "Nothing here speaks of their pairs.",
        )
    if counts.losses.shards:
        lost, named = counts.losses.shards, ", ".join(counts.losses.shards[:EXAMPLES])
        steps.append(
            f"{len(lost):,} of {counts.losses.of:,} shards could not be read to their end, among them {named}."
        )
    return tuple(steps)


def saturation_warning(saturated: Mapping[str, int], pairs: int) -> str:
    """Return what a reader must know of features that the cache could not hold, and what helps; `pairs` were embedded."""
    told = ", ".join(f"{count:,} of {pairs:,} pairs in {name}" for name, count in saturated.items())
    return (
        f"Features do not fit float16 ({told}): they stand at the end of its range, are zero or no numbers there, and scores that "
        "read them can be blind, so that nothing found is no all-clear; name other layers with embed.layers, or mend the weights"
    )


def _short(path: str | list[str]) -> str:
    first = path if isinstance(path, str) else path[0]
    return first.rstrip("/").rpartition("/")[2] or first


def _rejected_examples(rejected: Parts) -> tuple[RejectedExample, ...]:
    """Return the first rejected pairs, in the order of the data set."""
    rows = (row for table in rejected.tables(["uid", "reason"]) for row in table.slice(0, EXAMPLES).to_pylist())
    return tuple(RejectedExample(uid=row["uid"], reason=row["reason"]) for row in islice(rows, EXAMPLES))


def _concepts(findings: Findings, verdicts: Parts) -> tuple[ConceptRow, ...]:
    flagged: Counter[str] = Counter()
    for table in verdicts.tables(["concept", "reasons"]):
        suspects = has_any(table.column("reasons"), frozenset({Reason.POISON_SUSPECT.value}))
        flagged.update(value_counts(table.column("concept").filter(pa.array(suspects)).drop_null()))
    return tuple(
        ConceptRow(name=c["name"], pairs=c["n"], statistic=c["statistic"], flagged=flagged[c["name"]], named=c["named"])
        for c in findings.concepts
    )


class _Panels:
    """Draws the panel of each detector; holds no column of scores but the ensemble's."""

    def __init__(self, scores: Parts, cut: Cut, measured: Measured | None) -> None:
        self._scores = scores
        self._cut = cut.value
        self._flags = scores.column("ensemble") >= cut.value
        self._measured = measured

    def panel(self, name: str) -> DetectorPanel:
        scores, flags = self._scores.column(name), self._flags
        cut = self._cut if name == "ensemble" and np.isfinite(self._cut) else None
        finite = scores[np.isfinite(scores)].astype(np.float64)
        low, high = np.quantile(finite, [TAIL_SHARE, 1 - TAIL_SHARE]) if len(finite) else (0.0, 1.0)
        if cut is not None:
            high = max(high, cut * 1.1)
        edges = np.linspace(low, high if high > low else low + 1, HISTOGRAM_BINS + 1)
        clipped = np.nan_to_num(scores.astype(np.float64), nan=low, posinf=high, neginf=low)
        clipped = np.clip(clipped, edges[0], edges[-1])
        truth = self._measured.truth if self._measured is not None else None
        detection = self._measured.detection if self._measured is not None else None
        measured = truth if detection is not None else None
        return DetectorPanel(
            name=name,
            edges=edges,
            counts=np.histogram(clipped, edges)[0],
            flagged=np.histogram(clipped[flags], edges)[0],
            poisoned=np.histogram(clipped[truth], edges)[0] if truth is not None else None,
            cut=cut,
            figures=detection[name] if detection is not None else None,
            roc=roc_points(scores, measured) if measured is not None else None,
            pr=pr_points(scores, measured) if measured is not None else None,
        )


def _map(scan: Scan, judgement: Judgement, truth: np.ndarray | None) -> MapPoints:
    """Lay out a seeded sample of the pairs: up to FLAGGED_ON_MAP flagged ones, the rest drawn from all others."""
    seed = scan.plan.config.detectors.density.seed
    uids = (table.column("uid").to_pylist() for table in scan.scores.tables(["uid"]))
    draws = [seeded_hash(own, seed, "report.map") for own in uids]
    flags = scan.scores.column("ensemble") >= judgement.cut.value
    order = np.argsort(np.concatenate(draws), kind="stable")
    chosen = np.concatenate([order[flags[order]][:FLAGGED_ON_MAP], order[~flags[order]][: MAP_LIMIT - FLAGGED_ON_MAP]])
    chosen.sort()
    points: list[np.ndarray] = []
    concepts: list[str | None] = []
    start = 0
    for index, count in scan.embeddings.rows.items():
        rows = chosen[(chosen >= start) & (chosen < start + count)] - start
        if len(rows):
            points.append(vectors(scan.embeddings.read(index, ["image"]).take(rows), "image"))
            concepts += scan.verdicts.read(index, ["concept"]).take(rows).column("concept").to_pylist()
        start += count
    return MapPoints(
        xy=embedding_map(np.concatenate(points), seed),
        flagged=flags[chosen],
        accused=np.array([c in judgement.targets for c in concepts], bool),
        poisoned=truth[chosen] if truth is not None else None,
    )
