"""What a repair learns from, once its pairs have been checked: all of them or a sample, small sets beside them, images for early stop."""

import dataclasses

import numpy as np
import pyarrow as pa

from clipsan.stages.evaluation.exam import Pictures

from ..core.commit import read_parts
from ..core.config import ConfigError
from ..core.pass_ import Pass
from ..core.run_folder import RunFolder
from ..data.choice import NOBODY, Choice, Draw, cut_for, draw_numbers
from ..evaluate.plan import read_classes
from ..train.data import Reading
from ..train.fit import Checked, Order, PairSet, check
from ..train.stop import StopRule
from .held import columns_of
from .plan import Picked, Plan
from .settings import HeldOut, Unseen


def prepare(plan: Plan, folder: RunFolder) -> tuple[Order, Checked, dict[str, int]]:
    """Check all pairs; return the training, what the check found, and how many pairs of each kind there are."""
    settings = plan.config
    method = settings.method
    checking = _checking(plan, folder, plan.main)
    pairs, found = _checked(plan, checking, plan.main)
    if method.takes_labels:
        _check_labels(_table(checking, pairs), plan.classes, "data")
    pairs = _sampled(plan, checking, pairs)
    counts = found.counts | {"used": pairs.pairs}
    beside = []
    for i, some in enumerate(plan.beside):
        own, _ = _checked(plan, _checking(plan, folder, some, f"work/beside-{i}/"), some)
        counts[some.name.replace(" ", "_")] = own.pairs
        beside += [own] if own.pairs else []
    rows = round(method.flagged_share_pct * method.batch_size / 100) if beside else 0
    needed = (method.batch_size - rows) * settings.accumulate
    if pairs.pairs < needed:
        raise ConfigError(
            f"{plan.section}.batch_size={method.batch_size}: a step takes {needed} {plan.main.name}, and there are only "
            f"{pairs.pairs} that can be used ({found.rejected} are in {folder.rejected})"
        )
    order = Order(
        name="repair",
        task=plan.task,
        pairs=pairs,
        image_size=plan.image_size,
        epochs=method.epochs,
        steps=settings.steps,
        batch_size=method.batch_size,
        accumulate=settings.accumulate,
        seed=settings.seed,
        checkpoint_every_epochs=settings.checkpoint_every_epochs,
        retries=settings.retries,
        memory_mb=settings.memory_mb,
        cluster=settings.cluster,
        beside=tuple(beside),
        beside_rows=rows,
        validation=_validation(plan, folder),
        stop=_stop(plan),
    )
    workers = settings.cluster.worker_count()
    if not order.cached and rows % workers:
        raise ConfigError(
            f"method.flagged_share_pct={method.flagged_share_pct:g}: the data are streamed, so each of {workers} workers needs as "
            f"many of the {rows} rows that it stands for in a batch; choose another share or batch_size"
        )
    return order, found, counts


def _checking(plan: Plan, folder: RunFolder, picked: Picked, below: str = "") -> Pass:
    """Return the pass that checks some pairs; its parts lie `below` the run's root."""
    return Pass(
        name=f"check {picked.name}",
        cluster=plan.config.cluster,
        run=folder,
        folder=f"{below}checked",
        rejected=f"{below}rejected",
        fingerprint=plan.fingerprint,
    )


def _checked(plan: Plan, checking: Pass, picked: Picked, *, captioned: bool = True) -> tuple[PairSet, Checked]:
    settings = plan.config
    # where labels teach, a picture without a caption is as good as any
    captioned = captioned and not settings.method.takes_labels
    choice = Choice(picked.lookup)
    reading = Reading(picked.source, settings.model, settings.max_pixels, settings.seed, choice, captioned)
    found = check(checking, picked.units, reading)
    return PairSet(picked.units, reading, found.used), found


def _sampled(plan: Plan, checking: Pass, pairs: PairSet) -> PairSet:
    """Return the sample that method or settings ask for: so many images of each class, or so many pairs."""
    settings, shots = plan.config, plan.config.method.shots
    count = settings.pairs if shots is None else shots
    if count is None:
        return pairs
    return _drawn(pairs, _table(checking, pairs), count, settings.seed, by_class=shots is not None)


def _table(checking: Pass, pairs: PairSet) -> pa.Table:
    return pa.concat_tables(read_parts(checking.home, [unit.index for unit in pairs.units], ["uid", "label"]))


def _check_labels(table: pa.Table, classes: tuple[str, ...], where: str, least: int = NOBODY) -> None:
    """Refuse labels that name no class; with `least` NOBODY a pair may have none."""
    labels = table.column("label").to_numpy()
    wrong = labels[(labels < least) | (labels >= len(classes))]
    if len(wrong):
        raise ConfigError(
            f"{where}: {len(wrong)} images have a label such as {wrong[0]} ({NOBODY}: none), but there are {len(classes)} "
            "classes; name the label column or member in data, and every class in classes"
        )


def _drawn(pairs: PairSet, table: pa.Table, count: int, seed: int, *, by_class: bool) -> PairSet:
    """Draw `count` pairs, or as many of each class; pairs without a class take no part in the latter."""
    numbers = draw_numbers(table.column("uid").to_pylist(), seed)
    if not len(numbers):
        return pairs
    if not by_class:
        groups = {NOBODY: numbers}
    else:
        labels = table.column("label").to_numpy()
        groups = {int(label): numbers[labels == label] for label in np.unique(labels) if label != NOBODY}
    draw = Draw(seed, {label: cut_for(own, count) for label, own in groups.items()})
    used = sum(min(count, len(own)) for own in groups.values())
    reading = pairs.reading
    chosen = dataclasses.replace(reading, choice=Choice(reading.choice.lookup, draw))
    return PairSet(pairs.units, chosen, used)


def _validation(plan: Plan, folder: RunFolder) -> PairSet | None:
    stop = plan.config.early_stop
    if stop is None or plan.validation is None:
        return None
    return _labelled(plan, folder, plan.validation, "work/validation/", "early_stop.data", stop.images)


def _labelled(plan: Plan, folder: RunFolder, picked: Picked, below: str, where: str, count: int) -> PairSet:
    """Return so many labelled images, drawn by the seed; `where` names the setting that they come from."""
    checking = _checking(plan, folder, picked, below)
    images, _ = _checked(plan, checking, picked, captioned=False)
    if not images.pairs:
        rejected = folder.root / below / "rejected"
        raise ConfigError(f"{where}: no image of {picked.source.path} can be used: see {rejected}")
    table = _table(checking, images)
    _check_labels(table, plan.classes, where, least=0)
    return _drawn(images, table, count, plan.config.seed, by_class=False)


def _pictures(images: PairSet) -> Pictures:
    columns = columns_of(images)
    # a row's draw stands for its uid, which the rows do not keep
    uids = tuple(str(draw) for draw in columns["order"].tolist())
    return Pictures(uids, columns["image"], columns["label"].astype(np.int64), tuple(columns["caption"].tolist()))


def sample(pairs: PairSet, plan: Plan, folder: RunFolder, count: int) -> PairSet:
    """Return so many of the pairs that a repair learns from, drawn by its seed, or all of them."""
    if pairs.pairs <= count:
        return pairs
    return _drawn(pairs, _table(_checking(plan, folder, plan.main), pairs), count, plan.config.seed, by_class=False)


def held_out_images(plan: Plan, held: HeldOut, section: str, folder: RunFolder) -> Pictures:
    """Read the labelled images that tell what a repair costs; `section` of the settings names them.

    Raises:
        ConfigError: none can be used, or a label names no class.
    """
    assert plan.held_out is not None
    return _pictures(_labelled(plan, folder, plan.held_out, f"work/{section}/", f"{section}.data", held.images))


def judging_images(plan: Plan, rule: Unseen, folder: RunFolder) -> Pictures | None:
    """Read the evaluation's images on which triggers are put that the repair did not train on; None without an evaluation.

    Raises:
        ConfigError: none can be used, or a label names no class.
    """
    picked = plan.judging
    if picked is None:
        return None
    return _pictures(_labelled(plan, folder, picked, "work/judging/", "evaluate.data", rule.images))


def withheld_pairs(plan: Plan, folder: RunFolder) -> PairSet | None:
    """Return the poisoned pairs that were kept from the repair; None where there are none."""
    return None if plan.withheld is None else _poisoned(plan, plan.withheld, "work/withheld/", folder)


def proven_pairs(plan: Plan, folder: RunFolder) -> PairSet | None:
    """Return the proven poisoned pairs that were not kept from the repair; None where there are none."""
    return None if plan.known is None else _poisoned(plan, plan.known, "work/known/", folder)


def _poisoned(plan: Plan, picked: Picked, below: str, folder: RunFolder) -> PairSet | None:
    pairs, _ = _checked(plan, _checking(plan, folder, picked, below), picked, captioned=False)
    return pairs if pairs.pairs else None


def _stop(plan: Plan) -> StopRule | None:
    stop = plan.config.early_stop
    if stop is None:
        return None
    evaluation = plan.config.evaluate or {}
    # what the scan accuses beside the classes is none of theirs
    given = plan.config.classes or evaluation.get("classes")
    names = plan.classes if given is None else tuple(read_classes(given))
    templates = tuple(evaluation.get("templates", plan.config.templates))
    return StopRule(names, templates, stop.patience, stop.min_gain_points)
