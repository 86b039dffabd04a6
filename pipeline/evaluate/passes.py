"""The parts of an evaluation: passes over images, and what the driver makes of their rows.

Each pass commits its rows unit by unit below the run's folder, so that a rerun does only what is missing; the figures are
made anew from the rows each time.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from clipsan.stages.evaluation.attack_success import Predictions, attack_figures, clean_figures
from clipsan.stages.evaluation.figures import Figure, rate
from clipsan.stages.evaluation.linear_probe import Probe, few_shots, fit_probe
from clipsan.stages.evaluation.resistivity import resistivity_figures
from clipsan.stages.evaluation.retrieval import Gallery, retrieval_attack_figures, retrieval_figures
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.samples import Unit, seeded_hash

from ..core.commit import read_parts
from ..core.config import ConfigError
from ..core.pass_ import Pass
from ..core.run_folder import RunFolder
from ..tracking.record import TrackingConfig
from ..train import verb as train
from ..train.plan import TrainConfig
from .plan import Plan
from .work import FeatureWork, PredictWork, ResistivityWork, RetrievalWork, UnitWork, resistivity_draws


def predicted(plan: Plan, folder: RunFolder, probe: Probe | None) -> pa.Table:
    """Return the predictions of the model for the labelled images (PREDICTIONS_SCHEMA).

    Raises:
        ConfigError: no image can be used.
    """
    table = _rows(plan, folder, "predictions", _predicting(plan, plan.clip, plan.config.model, probe), plan.units)
    if not table.num_rows:
        rejected = folder.root / _rejected("predictions")
        raise ConfigError(f"no image of {plan.config.data.path} has a label and can be read: see {rejected}")
    return table


def zero_shot_figures(plan: Plan, table: pa.Table, *, prefix: str = "", set: str = "test") -> list[Figure]:
    """Return the figures of zero-shot classification and of the attack on it."""
    labels, clean, ranks = (table.column(name).to_numpy() for name in ("label", "clean", "clean_rank"))
    strands = (_classes(table, name) for name in ("triggered", "image_key", "text_key"))
    found = Predictions(labels, clean, ranks, *strands)
    figures = clean_figures(found, prefix=prefix, set=set)
    return figures + ([] if plan.aim is None else attack_figures(found, plan.aim, prefix=prefix, set=set))


def fitted_probe(plan: Plan, folder: RunFolder) -> Probe | None:
    """Return the linear probe, fitted on its own images; None when none is asked for.

    Raises:
        ConfigError: its images are too few.
    """
    settings = plan.config.probe
    if settings is None:
        return None
    work = FeatureWork(settings=plan.config, data=settings.data, model=plan.config.model, classes=len(plan.names))
    table = _rows(plan, folder, "probe", work, plan.probe_units)
    labels = table.column("label").to_numpy().astype(np.int64)
    features = _floats(table, "image").reshape(len(labels), -1)
    draws = seeded_hash(table.column("uid").to_pylist(), plan.config.seed, "evaluate.probe")
    if settings.shots is not None:
        keep = few_shots(labels, draws, settings.shots)
        labels, features, draws = labels[keep], features[keep], draws[keep]
    try:
        return fit_probe(features, labels, draws, grid=settings.c, held_out=settings.held_out)
    except ValueError as error:
        raise ConfigError(f"probe: {error}") from None


def probe_figures(plan: Plan, table: pa.Table) -> list[Figure]:
    """Return probe_clean_accuracy_pct and, with an attack, the attack's figures on the probe, from the predictions."""
    labels, clean = (table.column(name).to_numpy() for name in ("label", "probe_clean"))
    figures = [rate("probe_clean_accuracy", clean == labels, set="probe")]
    if plan.aim is not None:
        found = Predictions(labels, clean, np.zeros_like(labels), _classes(table, "probe_triggered"))
        figures += attack_figures(found, plan.aim, prefix="probe_", set="probe")
    return figures


def retrieved(plan: Plan, folder: RunFolder) -> list[Figure]:
    """Return the figures of retrieval; none when it is not asked for.

    Raises:
        ConfigError: no pair can be used.
    """
    settings, attack = plan.config.retrieval, plan.config.attack
    if settings is None:
        return []
    work = RetrievalWork(settings=plan.config, data=settings.data, model=plan.config.model)
    table = _rows(plan, folder, "retrieval", work, plan.retrieval_units)
    if not table.num_rows:
        rejected = folder.root / _rejected("retrieval")
        raise ConfigError(f"retrieval: no pair of {settings.data.path} can be used: see {rejected}")
    captions = table.column("captions").to_pylist()
    images = _floats(table, "image").reshape(len(captions), -1)
    width = images.shape[1]
    owners = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    texts = _floats(table, "texts").reshape(len(owners), width)
    gallery = Gallery(images, texts, owners, [text for own in captions for text in own])
    figures = retrieval_figures(gallery)
    if attack is not None:
        triggered = _floats(table, "triggered").reshape(len(captions), len(attack.strands), width)
        targets = [strand.target for strand in attack.strands]
        exclude = attack.convention == "exclude_target"
        figures += retrieval_attack_figures(
            gallery, triggered, targets, attack.names, k=settings.k, exclude_target=exclude
        )
    return figures


def perturbed(plan: Plan, folder: RunFolder, table: pa.Table) -> list[Figure]:
    """Return perturbation resistivity on a sample of the images that have predictions; none when it is not asked for."""
    settings = plan.config.resistivity
    if settings is None:
        return []
    draws = np.sort(resistivity_draws(table.column("uid").to_pylist(), plan.config.seed))
    cut = int(draws[: settings.images][-1])
    work = ResistivityWork(
        settings=plan.config, data=plan.config.data, model=plan.config.model, cut=cut, layers=plan.layers
    )
    rows = _rows(plan, folder, "resistivity", work, plan.units)
    names = [] if plan.config.attack is None else plan.config.attack.names
    found: dict[str, dict[str, np.ndarray]] = {}
    probes, layers = (np.array(rows.column(name).to_pylist()) for name in ("probe", "layer"))
    values = rows.column("cosine").to_numpy()
    for probe in dict.fromkeys(probes.tolist()):
        own = probes == probe
        found[probe] = {layer: values[own & (layers == layer)] for layer in dict.fromkeys(layers.tolist())}
    return resistivity_figures(found, names)


def rebounded(plan: Plan, folder: RunFolder) -> list[Figure]:
    """Fine-tune the model benignly in OUT/rebound and return its figures, `rebound_` before each name; see ReboundConfig."""
    settings = plan.config.rebound
    if settings is None:
        return []
    trained = train.VERB.start(
        TrainConfig(
            data=settings.data,
            model=plan.config.model,
            out=str(folder.root / "rebound"),
            steps=settings.steps,
            batch_size=settings.batch_size,
            lr=settings.lr,
            schedule=settings.schedule,
            augment=settings.augment,
            precision=settings.precision,
            seed=settings.seed,
            cluster=plan.config.cluster,
            tracking=TrackingConfig(enabled=False),
        )
    )
    model = ModelConfig(path=trained["checkpoint"])
    work = _predicting(plan, load_clip(model), model, None)
    table = _rows(plan, folder, "rebound-predictions", work, plan.units)
    return zero_shot_figures(plan, table, prefix="rebound_", set="rebound")


def _rows(plan: Plan, folder: RunFolder, name: str, work: UnitWork, units: Sequence[Unit]) -> pa.Table:
    """Do what is missing of a pass and return all of its rows."""
    measuring = Pass(
        name=name,
        cluster=plan.config.cluster,
        run=folder,
        folder=name,
        rejected=_rejected(name),
        fingerprint=plan.fingerprint,
        loads_model=True,
        pairs=work.data.about_pairs(units),
    )
    measuring.do({unit.index: unit for unit in units}, work)
    return pa.concat_tables(read_parts(measuring.home, [unit.index for unit in units]))


def _rejected(name: str) -> str:
    """Where a pass names the pairs that it could not use: those of the labelled images are the run's own."""
    return "rejected" if name == "predictions" else f"work/rejected-{name}"


def _predicting(plan: Plan, clip: Clip, model: ModelConfig, probe: Probe | None) -> PredictWork:
    """Return the prediction of the labelled images by a model, `clip`, that workers load as `model`."""
    settings = plan.config
    keyed = None
    if settings.attack is not None and settings.attack.text_key is not None:
        templates = [f"{settings.attack.text_key} {template}" for template in settings.templates]
        keyed = class_embeddings(clip, plan.names, templates)
    return PredictWork(
        settings=settings,
        data=settings.data,
        model=model,
        classes=class_embeddings(clip, plan.names, settings.templates),
        keyed=keyed,
        probe=probe,
    )


def _classes(table: pa.Table, name: str) -> np.ndarray | None:
    """Return a column of class indices, `[N]` or `[N, S] int64`; None where the evaluation has no such thing."""
    values = table.column(name)
    return None if values.null_count else np.array(values.to_pylist(), np.int64)


def _floats(table: pa.Table, name: str) -> np.ndarray:
    """Return the numbers of a column of lists, end to end."""
    chunks = [chunk.flatten().to_numpy() for chunk in table.column(name).chunks]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
