"""`clipsan sweep`: Ray Tune over the settings of a repair, by what can be known without knowing the attack."""

import sys
import time
from typing import Any

from ..core.cluster import ray_session
from ..core.config import load
from ..core.run_folder import open_run, read_summary
from .plan import Plan, make_plan
from .settings import SweepConfig

__all__ = ["SweepConfig", "command", "make_plan", "run_plan", "run_sweep"]


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line; 1 when a trial failed or the rule recommends none."""
    plan = make_plan(load(SweepConfig, file, overrides, verb="sweep"))
    if dry_run:
        sys.stdout.write(plan.describe())
        return 0
    from .output import screen

    summary = run_plan(plan)
    sys.stdout.write(screen(summary))
    return 1 if summary["counts"]["failed"] or summary["recommended"] is None else 0


def run_sweep(settings: SweepConfig) -> dict[str, Any]:
    """Run the sweep, or what is left of it, and return its summary; table.parquet and table.json have a row a trial.

    The same `out` and settings go on where a kill left off: trials that have ended are not run again, one that was in its
    middle goes on from its last measurement, and one that had failed is tried again.
    """
    return run_plan(make_plan(settings))


def run_plan(plan: Plan) -> dict[str, Any]:
    """Run a checked plan, or what is left of it; see run_sweep."""
    started = time.monotonic()
    folder = open_run(plan.config.out, verb="sweep", tree=plan.tree, fingerprint=plan.mark)
    if folder.summary.is_file() and not (summary := read_summary(folder.root))["counts"]["failed"]:
        return summary
    with ray_session(plan.config.cluster):
        # Ray and Tune take seconds to import
        from .output import publish
        from .run import run

        return publish(plan, folder, run(plan, folder), started)
