"""Passes 1 and 2 of the scan: the embeddings of all pairs, and what the detectors make of them."""

import shutil
from pathlib import Path
from typing import Any

from clipsan.stages.detectors import Findings, TrustedMoments, build_suite
from clipsan.stages.detectors.whitening import trusted_moments

from ..core.commit import FingerprintError, missing_parts, read_parts
from ..core.config import ConfigError
from ..core.pass_old import run_pass
from ..core.run_folder import RunFolder
from . import work as scan_passes
from .plan import Plan, embed_mark_of


def embed_pairs(plan: Plan, folder: RunFolder) -> Path:
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
    mark = embed_mark_of(settings.trusted, plan.trusted_units, plan.model_fingerprint, settings.embed)
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
    tables = read_parts(home / "embeddings", [u.index for u in plan.trusted_units], ["image"])
    return trusted_moments(tables, sample_rows=plan.config.detectors.lorex.sample_rows)


def score_pairs(plan: Plan, folder: RunFolder, embeddings: Path, rows: dict[int, int]) -> Findings:
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
