"""`clipsan scan`: from pairs and a suspect model to verdicts, a report and a clean copy."""

import dataclasses
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline import scan_passes
from pipeline.cluster import ClusterConfig, ray_session
from pipeline.commit import FingerprintError, fingerprint, missing_parts, read_parts, write_text
from pipeline.config import ConfigError, as_tree, load
from pipeline.passes import run_pass
from pipeline.rewrite import rewrite
from pipeline.run_folder import RunFolder, open_run, part_rows, write_summary
from pipeline.scan_output import column, count_pairs, detection_summary, manifest_uids, save_uid_lists, truth_mask
from pipeline.scan_report import build_report
from pipeline.tracking import TrackingConfig, log_run, metrics_of
from stages.clip_model import ModelConfig, load_clip
from stages.detectors import DetectorsConfig, Findings, build_suite
from stages.detectors.whitening import TrustedMoments, trusted_moments
from stages.embed import CACHE_COLUMNS, EmbedConfig
from stages.report.page import render
from stages.samples import Unit
from stages.sources import SourceConfig, identity, list_units
from stages.stage import check_chain, config
from stages.verdicts import Cut, Decision, Judge, Reason, place_cut

EMBED_VERSION = 1
SCORE_VERSION = 6
VERDICT_VERSION = 1
"""Raised when the code of a pass comes to give another result, so that old parts are refused and not mixed in."""

CONCEPTS_IN_SUMMARY = 20


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
    """Reasons that keep a pair out of the clean copy."""
    manifest: str | None = None
    """Ground truth of `clipsan poison`, to measure the detectors with."""
    seed: int = 0
    """Of every random draw that the detectors leave open."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A scan, checked and resolved before any worker starts."""

    config: ScanConfig
    units: list[Unit]
    trusted_units: list[Unit]
    model_fingerprint: str
    layers: list[str]
    columns: frozenset[str]
    embed_mark: str
    score_mark: str
    verdict_mark: str

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c = self.config
        size = sum({u.shard: u.size_bytes for u in self.units}.values())
        lines = [
            f"data       {len(self.units)} units of {len({u.shard for u in self.units})} shards, {size / 2**20:,.1f} MiB ({c.data.kind})",
            f"model      {self.model_fingerprint[:12]}, layers {', '.join(self.layers)}",
            f"out        {c.out}",
            f"workers    {c.cluster.worker_count()} x {c.cluster.threads_per_worker} threads, {c.cluster.gpus_per_worker:g} GPU each, "
            + (f"Ray at {c.cluster.address}" if c.cluster.address else "a private Ray on this machine"),
            f"embed      {len(self.units)} parts -> embeddings/, rejected/  ({self.embed_mark[:12]})",
            f"score      {len(self.units)} parts -> scores/  ({self.score_mark[:12]})",
            f"verdict    {len(self.units)} parts -> verdicts/  ({self.verdict_mark[:12]})",
            f"write      {', '.join(c.write) or 'no copy of the data'}",
            f"columns    {', '.join(sorted(self.columns))}",
        ]
        return "\n".join(lines) + "\n"


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    settings = load(ScanConfig, file, overrides, verb="scan")
    plan = make_plan(settings)
    if dry_run:
        sys.stdout.write(plan.describe())
        return 0
    summary = run_scan(plan)
    sys.stdout.write(closing_line(summary) + "\n")
    return 0


def closing_line(summary: dict[str, Any]) -> str:
    """Return the last line of a scan: what happened, and what to look at."""
    counts = summary["counts"]
    named = ", ".join(summary["targets"]) or "none"
    return (
        f"scan: {counts['pairs_in']:,} pairs, {counts['flagged']:,} flagged, {counts['rejected']:,} rejected "
        f"in {summary['seconds']:.0f} s; "
        f"target concept: {named}; look at {summary['report']}"
    )


def make_plan(settings: ScanConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: no data, an unreadable model, an unknown layer, an absent manifest.
    """
    units = list_units(settings.data)
    trusted_units = list_units(settings.trusted) if settings.trusted is not None else []
    if settings.manifest is not None and not Path(settings.manifest).exists():
        raise ConfigError(
            f"manifest={settings.manifest}: no such file; give the manifest.parquet that `clipsan poison` wrote, or null"
        )
    clip = load_clip(settings.model, "cpu")
    layers = clip.layers(settings.embed.layers)
    suite = build_suite(settings.detectors, pairs=0, trusted=None)
    columns = check_chain(CACHE_COLUMNS, [*suite.chain, Judge])
    embed_mark = _embed_mark(settings.data, units, clip.fingerprint, settings.embed)
    trusted = settings.trusted
    score_tree = {
        "version": SCORE_VERSION,
        "embed": embed_mark,
        "detectors": as_tree(settings.detectors),
        "trusted": trusted and _embed_mark(trusted, trusted_units, clip.fingerprint, settings.embed),
    }
    score_mark = fingerprint(score_tree)
    verdict_mark = fingerprint(
        {"version": VERDICT_VERSION, "score": score_mark, "decision": as_tree(settings.decision)}
    )
    return Plan(settings, units, trusted_units, clip.fingerprint, layers, columns, embed_mark, score_mark, verdict_mark)


def _embed_mark(source: SourceConfig, units: list[Unit], model_fingerprint: str, settings: EmbedConfig) -> str:
    """Return the fingerprint of the embeddings of a data set; where it lies does not matter, what is there does."""
    tree = {
        "version": EMBED_VERSION,
        **identity(source, units),
        "model": model_fingerprint,
        "embed": as_tree(dataclasses.replace(settings, decode_threads=None)),
    }
    return fingerprint(tree)


def run_scan(plan: Plan) -> dict[str, Any]:
    """Run the scan, or what is left of it, and return its summary."""
    started = time.monotonic()
    settings = plan.config
    folder = _open(plan)
    parts = [unit.index for unit in plan.units]
    quarantine = frozenset(reason.value for reason in settings.quarantine)
    with ray_session(settings.cluster):
        embeddings = _embeddings(plan, folder)
        rows = part_rows(embeddings)
        if not sum(rows.values()):
            raise ConfigError(f"data: none of the pairs could be read; {folder.rejected} says why")
        findings = _score(plan, folder, embeddings, rows)
        cut = _judge(plan, folder, embeddings, parts, findings)
        for kind in settings.write:
            rewrite(
                settings.data,
                plan.units,
                kind,
                quarantine=quarantine,
                verdicts=folder.verdicts,
                out=folder.root / kind,
                done=folder.work / f"write-{kind}",
                mark=plan.verdict_mark,
                cluster=settings.cluster,
            )
        save_uid_lists(folder, parts, quarantine)
        counts = count_pairs(folder, parts)
        truth = truth_mask(folder.scores, parts, manifest_uids(settings.manifest)) if settings.manifest else None
        if truth is not None and not truth.any():
            sys.stderr.write(
                f"manifest={settings.manifest}: it names none of the scanned pairs, so nothing is measured\n"
            )
        measurable = truth is not None and truth.any() and not truth.all()
        detection = detection_summary(folder.scores, parts, truth) if truth is not None and measurable else None
        page = build_report(
            source=settings.data,
            units=plan.units,
            folder=folder,
            embeddings=embeddings,
            counts=counts,
            findings=findings,
            cut=cut,
            detection=detection,
            truth=truth,
            settings=settings,
            mark=plan.verdict_mark,
            max_pixels=settings.embed.max_pixels,
            seed=settings.detectors.density.seed,
            cluster=settings.cluster,
        )
    seconds = round(time.monotonic() - started, 1)
    write_text(folder.report, render(dataclasses.replace(page, seconds=seconds)))
    summary = {
        "verb": "scan",
        "fingerprint": plan.verdict_mark,
        "seconds": seconds,
        "counts": counts.tree(),
        "targets": list(findings.targets),
        "cut": {"value": cut.value, "meaning": cut.meaning},
        "concepts": findings.concepts[:CONCEPTS_IN_SUMMARY],
        "detectors": findings.detectors,
        "report": str(folder.report),
    }
    if detection is not None:
        summary["detection"] = detection
    if truth is not None:
        summary["poisoned"] = int(truth.sum())
        summary["poisoned_flagged"] = int((truth & (column(folder.scores, parts, "ensemble") >= cut.value)).sum())
    write_summary(folder, summary)
    files = [folder.report, folder.run_yaml, folder.summary]
    log_run(
        settings.tracking,
        verb="scan",
        root=folder.root,
        tree=as_tree(settings),
        metrics=metrics_of(summary),
        files=files,
    )
    return summary


def _open(plan: Plan) -> RunFolder:
    settings, count = plan.config, len(plan.units)
    passes = {
        "embed": count,
        "density": count * settings.detectors.density.permutations,
        "score": count,
        "verdict": count,
    }
    mark = fingerprint(
        {
            "verdict": plan.verdict_mark,
            "write": settings.write,
            "quarantine": as_tree(settings.quarantine),
            "manifest": settings.manifest,
        }
    )
    return open_run(settings.out, verb="scan", tree=as_tree(settings), mark=mark, passes=passes)


def _embeddings(plan: Plan, folder: RunFolder) -> Path:
    """Return the folder with the embeddings of all units, after making what is missing or checking an earlier run's."""
    settings = plan.config
    if settings.embeddings is None:
        scan_passes.embed(
            settings.data,
            plan.units,
            settings.model,
            settings.embed,
            embeddings=folder.embeddings,
            rejected=folder.rejected,
            mark=plan.embed_mark,
            cluster=settings.cluster,
        )
        return folder.embeddings
    earlier = RunFolder(Path(settings.embeddings).expanduser().resolve())
    try:
        missing = missing_parts(earlier.embeddings, [u.index for u in plan.units], plan.embed_mark)
    except FingerprintError:
        raise FingerprintError(
            f"embeddings={settings.embeddings}: they were made of other data, by another model or with other `embed` settings; "
            "leave `embeddings` out to embed again"
        ) from None
    if missing:
        raise ConfigError(
            f"embeddings={settings.embeddings}: {len(missing)} of {len(plan.units)} parts are missing; finish that run first"
        )
    shutil.copytree(earlier.rejected, folder.rejected, dirs_exist_ok=True)
    return earlier.embeddings


def _trusted_moments(plan: Plan, folder: RunFolder) -> TrustedMoments | None:
    settings = plan.config
    if settings.trusted is None:
        return None
    home = folder.work / "trusted"
    mark = _embed_mark(settings.trusted, plan.trusted_units, plan.model_fingerprint, settings.embed)
    scan_passes.embed(
        settings.trusted,
        plan.trusted_units,
        settings.model,
        settings.embed,
        embeddings=home / "embeddings",
        rejected=home / "rejected",
        mark=mark,
        cluster=settings.cluster,
    )
    return trusted_moments(read_parts(home / "embeddings", [u.index for u in plan.trusted_units], ["image"]))


def _score(plan: Plan, folder: RunFolder, embeddings: Path, rows: dict[int, int]) -> Findings:
    """Learn, score and combine; return what the detectors say of the data set as a whole."""
    settings, cluster = plan.config, plan.config.cluster
    suite = build_suite(settings.detectors, pairs=sum(rows.values()), trusted=_trusted_moments(plan, folder))
    mark = plan.score_mark
    density = folder.work / "density"
    raw = folder.work / "scores"
    scan_passes.density(
        settings.detectors.density, rows, embeddings=embeddings, folder=density, mark=mark, cluster=cluster
    )
    states = scan_passes.learn(suite.detectors, rows, embeddings, cluster=cluster)
    todo = missing_parts(raw, rows, mark)
    args: tuple[Any, ...] = (
        suite.detectors,
        states,
        settings.detectors.density.permutations,
        embeddings,
        density,
        raw,
        mark,
    )
    for _ in run_pass("score", todo, scan_passes.ScoreWork, args, cluster=cluster, total=len(rows)):
        pass
    ensemble = suite.ensemble(states)
    (state,) = scan_passes.learn([ensemble], rows, raw, cluster=cluster, name="weigh")
    todo = missing_parts(folder.scores, rows, mark)
    combine = (ensemble, state, raw, folder.scores, mark)
    for _ in run_pass("combine", todo, scan_passes.CombineWork, combine, cluster=cluster, total=len(rows)):
        pass
    return suite.findings(states, ensemble, state)


def _judge(plan: Plan, folder: RunFolder, embeddings: Path, parts: list[int], findings: Findings) -> Cut:
    """Place the cut and write the verdicts."""
    ensemble = column(folder.scores, parts, "ensemble")
    cut = place_cut(ensemble, plan.config.decision, findings.threshold, findings.calibration)
    judge = Judge(cut.value, frozenset(findings.targets), findings.mixture_speaks)
    todo = missing_parts(folder.verdicts, parts, plan.verdict_mark)
    args = (judge, embeddings, folder.scores, folder.verdicts, plan.verdict_mark)
    for _ in run_pass("verdict", todo, scan_passes.JudgeWork, args, cluster=plan.config.cluster, total=len(parts)):
        pass
    return cut
