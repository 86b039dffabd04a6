"""`clipsan sweep`: Ray Tune over the settings of a repair, by what can be known without knowing the attack.

The same `out` and settings go on where a kill left off: trials that have ended are not run again, one that was in its middle
goes on from its last measurement, and one that had failed is tried again.
"""

from ..core.cluster import start_ray
from ..core.run_folder import read_summary
from ..core.verb import Job, Result, Summary, Verb
from .plan import Plan, make_plan
from .settings import SweepConfig


def run(plan: Plan, job: Job) -> Result:
    """Run what is left of the trials, weigh them, and publish what was found; table.parquet and table.json have a row a trial."""
    start_ray()
    # Ray and Tune take seconds to import
    from .output import publish
    from .run import search

    return publish(plan, job.folder, search(plan, job.folder))


def closing(summary: Summary) -> str:
    """Return the last lines on the screen."""
    counts, compute, best = summary["counts"], summary["compute"], summary["recommended"]
    share = 100 * compute["steps"] / max(1, compute["steps_of_full_trials"])
    told = f"{counts['finished']} finished, {counts['stopped']} stopped early, {counts['failed']} failed"
    lines = [
        f"sweep: {counts['trials']} trials: {told}; {compute['steps']:,} steps, {share:.0f} % of what whole trials take, "
        f"in {summary['seconds']:.0f} s"
    ]
    lines += [
        f"  trial {row['trial']} failed: {row['error']}; the same command tries again"
        for row in summary["rows"]
        if row["state"] == "failed"
    ]
    if best is None:
        lines.append(f"sweep: none is recommended: no trial keeps the accuracy; rule: {summary['rule']}")
    else:
        point = ", ".join(f"{name}={value}" for name, value in best["settings"].items())
        after = best["final_after"]
        figures = ", ".join(
            f"{name} {best['final_before'][name]:.2f} -> {value:.2f}" for name, value in after.items() if name != "loss"
        )
        lines.append(f"sweep: trial {best['trial']} is recommended ({point}); on data no trial saw: {figures}")
    lines.append(f"look at {summary['report']}" + (f" and {summary['checkpoint']}" if summary["checkpoint"] else ""))
    return "\n".join(lines)


VERB = Verb(
    name="sweep",
    config=SweepConfig,
    plan=make_plan,
    run=run,
    closing=closing,
    status=lambda summary: 1 if summary["counts"]["failed"] or summary["recommended"] is None else 0,
    is_whole=lambda plan, folder: not read_summary(folder.root)["counts"]["failed"],
)
