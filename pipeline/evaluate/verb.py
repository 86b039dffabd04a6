"""`clipsan evaluate`: what a model can do, and what an attack makes of it.

Zero-shot accuracy, ASR and accuracy under trigger; on request retrieval, a linear probe, perturbation resistivity, and
all of the attack's figures again after benign fine-tuning.
"""

from ..core.parts import Parts
from ..core.verb import Job, Result, Summary, Verb
from ..tracking.record import data_input
from .output import nested, write_figures
from .passes import fitted_probe, perturbed, predicted, probe_figures, rebounded, retrieved, zero_shot_figures
from .plan import Plan, make_plan
from .settings import EvaluateConfig


def run(plan: Plan, job: Job) -> Result:
    """Evaluate, or do what is left of it.

    Raises:
        ConfigError: no image, no pair, or too few images of the probe can be used; a label names no class.
    """
    folder = job.folder
    probe = fitted_probe(plan, folder)
    table = predicted(plan, folder, probe)
    figures = zero_shot_figures(plan, table)
    figures += retrieved(plan, folder)
    figures += [] if probe is None else probe_figures(plan, table)
    figures += perturbed(plan, folder, table)
    figures += rebounded(plan, folder)
    rejected = Parts.of(folder.rejected)
    evaluation = nested(plan, figures) | ({} if probe is None else {"probe_c": probe.c})
    return Result(
        summary={
            "counts": {
                "pairs_in": table.num_rows + rejected.total,
                "evaluated": table.num_rows,
                "rejected": rejected.total,
            },
            "rejected_reasons": rejected.counts("reason"),
            "evaluation": evaluation,
            "path": str(folder.summary),
        },
        metrics=evaluation,
        files=write_figures(folder.root, figures),
        inputs=[data_input(plan.config.data, plan.units, "evaluation")],
    )


def closing(summary: Summary) -> str:
    """Return the last line of an evaluation."""
    figures = summary["evaluation"]
    shown = [f"{name} {value:.2f}" for name, value in figures.items() if name.endswith("_pct")]
    return f"evaluate: {figures['images']:,} images, {', '.join(shown)}; look at {summary['path']}"


VERB = Verb(name="evaluate", config=EvaluateConfig, plan=make_plan, run=run, closing=closing, on_stores=True)
