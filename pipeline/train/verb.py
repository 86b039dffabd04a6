"""`clipsan train`: contrastive training or fine-tuning of a CLIP model on pairs, on Ray Train.

With batch normalisation the statistics of a step are those of a worker's own rows, and the stored ones those of the first worker.
The run folder must lie where all nodes see it.
"""

from ..core.config import ConfigError
from ..core.pass_ import Pass
from ..core.place import written
from ..core.run_folder import RunFolder
from ..core.verb import Job, Result, Summary, Verb
from ..tracking.record import data_input
from .data import Reading
from .fit import Checked, Order, PairSet, check, fit
from .plan import Plan, TrainConfig, make_plan

CHECKPOINT = "checkpoint"


def run(plan: Plan, job: Job) -> Result:
    """Train, or go on training where a kill left off.

    Raises:
        ConfigError: too few pairs can be used for a batch.
    """
    settings, folder = plan.config, job.folder
    pairs, found = _check(plan, folder)
    state = fit(_order(plan, pairs), folder)
    trained = plan.task.objective()
    trained.load_state_dict(state["weights"])
    with written(folder.root / CHECKPOINT) as there:
        trained.export(there)
    return Result(
        summary={
            "counts": found.counts,
            "rejected_reasons": found.reasons,
            "checkpoint": str(folder.root / CHECKPOINT),
            "history": state["history"],
        },
        metrics={"counts": found.counts, "loss": state["history"][-1]["loss"]},
        inputs=[data_input(settings.data, plan.units, "training")],
    )


def _check(plan: Plan, folder: RunFolder) -> tuple[PairSet, Checked]:
    settings = plan.config
    reading = Reading(settings.data, settings.model, settings.max_pixels, settings.seed)
    checking = Pass(
        name="check",
        cluster=settings.cluster,
        run=folder,
        folder="checked",
        rejected="rejected",
        fingerprint=plan.fingerprint,
    )
    found = check(checking, plan.units, reading)
    if found.used < settings.batch_size:
        raise ConfigError(
            f"batch_size={settings.batch_size}: the data hold only {found.used} usable pairs "
            f"({found.rejected} are in {folder.rejected})"
        )
    return PairSet(plan.units, reading, found.used), found


def _order(plan: Plan, pairs: PairSet) -> Order:
    settings = plan.config
    return Order(
        name="train",
        task=plan.task,
        pairs=pairs,
        image_size=plan.image_size,
        epochs=settings.epochs,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        checkpoint_every_epochs=settings.checkpoint_every_epochs,
        retries=settings.retries,
        memory_mb=settings.memory_mb,
        cluster=settings.cluster,
    )


def closing(summary: Summary) -> str:
    """Return the last line of a training."""
    counts, history = summary["counts"], summary["history"]
    return (
        f"train: {counts['used']:,} pairs, {counts['rejected']:,} rejected, loss {history[-1]['loss']:.4f} "
        f"after {len(history)} epochs in {summary['seconds']:.0f} s; look at {summary['checkpoint']}"
    )


VERB = Verb(
    name="train",
    config=TrainConfig,
    plan=make_plan,
    run=run,
    closing=closing,
    on_stores=True,
    is_whole=lambda plan, folder: (folder.root / CHECKPOINT).is_dir(),
)
