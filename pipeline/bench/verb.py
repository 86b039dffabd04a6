"""`clipsan bench`: attacks x detectors in one table; each cell poisons, trains, measures and scans, and can be resumed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clipsan.stages.report.bench import render

from ..core.cluster import ClusterConfig
from ..core.config import as_tree
from ..core.verb import Child, Job, Result, Verb
from . import table
from .plan import Plan, make_plan
from .report import bench_report
from .settings import BenchConfig
from .watch import run_cells


def run(plan: Plan, job: Job) -> Result:
    """Run the matrix, or what is left of it; table.parquet and table.json have the rows."""
    pending = plan.pending
    ends = run_cells(plan, pending) if pending else []
    errors = {end.cell: end.error for end in ends if end.error is not None}
    rows = table.rows(plan, errors)
    table.write(job.folder.local, rows)
    summary = table.summary(plan, rows, errors) | {"report": str(job.folder.report)}
    return Result(
        summary=summary,
        page=lambda told: render(bench_report(plan, rows, told)),
        metrics={"cells": summary["counts"]},
        files=[job.folder.local / name for name in table.FILES],
        children=_children(plan, rows, summary["cells"]),
    )


def _children(plan: Plan, rows: Sequence[table.Row], told: Sequence[Mapping[str, object]]) -> list[Child]:
    """Return each cell as a run below the bench's."""
    return [
        Child(
            verb="bench-cell",
            root=plan.root / "cells" / cell.name,
            tree={"attack": as_tree(cell.attack), "seed": cell.seed, "state": of["state"]},
            metrics=table.metrics([r for r in rows if (r["attack"], r["seed"]) == (cell.attack_name, cell.seed)]),
            files=[Path(str(of["scan_report"]))] if of["scan_report"] else [],
        )
        for cell, of in zip(plan.cells, told, strict=True)
    ]


def session(plan: Plan) -> ClusterConfig | None:
    """Return what all cells at a time need, None where nothing is left to do.

    Each cell keeps one CPU free for the tasks that Ray Data starts beside its workers.
    """
    if not plan.pending:
        return None
    settings, cluster = plan.config, plan.config.cluster
    if cluster.address is None:
        # Ray warns on the terminal of every dozen processes more than it expects; a cell has a handful by design.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "64")
    workers = cluster.workers or max(1, cluster.worker_count() // settings.cells)
    threads = cluster.threads_per_worker
    return replace(
        cluster,
        workers=-(-settings.cells * (workers * threads + 1) // threads),
        object_store_mb=settings.cells * cluster.object_store_mb,
    )


VERB = Verb(
    name="bench",
    config=BenchConfig,
    plan=make_plan,
    run=run,
    closing=table.screen,
    status=lambda summary: 1 if summary["counts"]["failed"] else 0,
    cluster=session,
)
