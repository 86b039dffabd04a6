"""`clipsan evaluate`: zero-shot accuracy of a model, and under an attack its ASR and accuracy under trigger."""

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml

from pipeline.cluster import ClusterConfig, ray_session
from pipeline.commit import fingerprint, missing_parts, read_parts, write_part
from pipeline.config import ConfigError, as_tree, load
from pipeline.passes import Row, run_pass
from pipeline.run_folder import open_run, part_rows, write_summary
from pipeline.tracking import TrackingConfig, log_run, metrics_of
from pipeline.train_data import reject_reasons
from stages.clip_model import Clip, ModelConfig, load_clip
from stages.decode import BadImage, decode
from stages.embed import REJECTED_SCHEMA
from stages.evaluation.attack_success import Predictions, attack_figures, clean_figures
from stages.evaluation.zero_shot import check_templates, class_embeddings, find_class, label_ranks, predict
from stages.poisoning import ImagePath
from stages.samples import RawPair, Reject, Unit, seeded_hash
from stages.sources import SourceConfig, list_units, read_unit
from stages.stage import config
from stages.triggers import TriggerConfig, build_trigger

EVALUATE_VERSION = 1
"""Raised when the code comes to predict something else from the same settings, so that old parts are refused."""

CAPTION_REJECTS = (Reject.CAPTION_MISSING, Reject.CAPTION_EMPTY, Reject.CAPTION_NOT_UTF8)
"""No reason to leave an image out: its label is what counts here."""

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("label", pa.int32()),
        ("clean", pa.int32()),
        ("clean_rank", pa.int32()),
        ("triggered", pa.int32()),
    ]
)


@config
class EvaluationAttack:
    """The attack that the model is tried against."""

    trigger: TriggerConfig
    """What is put on every image."""
    target: str
    """The class that the trigger shall mean: one of its names."""
    keep_target_images: bool = False
    """Count images of the target class towards the ASR too, as some papers do."""


@config
class EvaluateConfig:
    """Everything that decides an evaluation."""

    data: SourceConfig
    """Images with class labels."""
    model: ModelConfig
    """The model."""
    classes: list[str] | str
    """Class names by index, synonyms separated by commas; or a YAML file with such a list (or a mapping from index)."""
    templates: list[str]
    """Sentences with {} where the class name goes."""
    out: str
    """Run folder."""
    attack: EvaluationAttack | None = None
    """Null: clean accuracy alone."""
    image: ImagePath = field(default_factory=ImagePath)
    """Resize and codec of clean and triggered images alike; give what the poisoned set was written with."""
    batch_size: int = 64
    """Images of a forward pass; a batch never spans two units."""
    max_pixels: int = 89_478_485
    """An image whose header claims more is rejected undecoded."""
    seed: int = 0
    """Of what the trigger draws for each image."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        if self.batch_size < 1:
            raise ValueError("batch_size must be at least 1")


@dataclass(frozen=True, slots=True)
class Plan:
    """An evaluation, checked before any worker starts."""

    config: EvaluateConfig
    units: list[Unit]
    names: list[str]
    clip: Clip
    target: int | None
    mark: str

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c = self.config
        attack = "none" if c.attack is None else f"{c.attack.trigger.kind} -> {c.attack.target} (class {self.target})"
        lines = [
            f"data       {len(self.units)} units of {len({u.shard for u in self.units})} shards ({c.data.kind})",
            f"model      {self.clip.fingerprint[:12]}",
            f"classes    {len(self.names)}, {len(c.templates)} templates",
            f"attack     {attack}",
            f"workers    {c.cluster.worker_count()} x {c.cluster.threads_per_worker} threads",
            f"out        {c.out}  ({self.mark[:12]})",
        ]
        return "\n".join(lines) + "\n"


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    plan = make_plan(load(EvaluateConfig, file, overrides, verb="evaluate"))
    if dry_run:
        sys.stdout.write(plan.describe())
        return 0
    summary = run_plan(plan)
    figures = summary["evaluation"]
    shown = [f"{name} {value:.2f}" for name, value in figures.items() if name.endswith("_pct")]
    sys.stdout.write(f"evaluate: {figures['images']:,} images, {', '.join(shown)}; look at {summary['path']}\n")
    return 0


def read_classes(classes: list[str] | str) -> list[str]:
    """Return the class names by index.

    Raises:
        ConfigError: the file is missing or does not hold names for the indices 0, 1, 2, ...
    """
    stored: Any = classes
    if isinstance(classes, str):
        try:
            stored = yaml.safe_load(Path(classes).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"classes={classes}: not a readable YAML file: {' '.join(str(error).split())}") from None
    if isinstance(stored, dict) and sorted(stored, key=str) == sorted(range(len(stored)), key=str):
        stored = [stored[index] for index in range(len(stored))]
    if not isinstance(stored, list) or not stored or not all(isinstance(name, str) and name.strip() for name in stored):
        raise ConfigError(f"classes={classes}: needs a list of names, or a mapping from 0, 1, 2, ... to names")
    return stored


def make_plan(settings: EvaluateConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: no data, an unreadable model, an unknown target, an unusable trigger.
    """
    names = read_classes(settings.classes)
    target = None
    if settings.attack is not None:
        target = find_class(names, settings.attack.target)
        build_trigger(settings.attack.trigger)
    units = list_units(settings.data)
    clip = load_clip(settings.model)
    tree = as_tree(settings)
    for name in ("out", "cluster", "tracking", "classes", "data", "model"):
        del tree[name]
    mark = fingerprint(
        {
            "version": EVALUATE_VERSION,
            "units": [dataclasses.astuple(u)[1:2] + dataclasses.astuple(u)[3:] for u in units],
            "data": as_tree(dataclasses.replace(settings.data, path="")),
            "model": clip.fingerprint,
            "classes": names,
            "settings": tree,
        }
    )
    return Plan(settings, units, names, clip, target, mark)


def run_evaluate(settings: EvaluateConfig) -> dict[str, Any]:
    """Evaluate and return the figures of DESIGN's `evaluation` (percent, intervals as `*_ci95`)."""
    figures: dict[str, Any] = run_plan(make_plan(settings))["evaluation"]
    return figures


def run_plan(plan: Plan) -> dict[str, Any]:
    """Run a checked plan, or what is left of it, and return its summary."""
    started = time.monotonic()
    settings = plan.config
    tree = as_tree(settings)
    folder = open_run(settings.out, verb="evaluate", tree=tree, mark=plan.mark, passes={"predictions": len(plan.units)})
    parts = folder.root / "predictions"
    indices = [unit.index for unit in plan.units]
    missing = set(missing_parts(parts, indices, plan.mark))
    pieces = [unit for unit in plan.units if unit.index in missing]
    classes = class_embeddings(plan.clip, plan.names, settings.templates)
    with ray_session(settings.cluster):
        args = (settings, classes, parts, folder.rejected, plan.mark)
        for _ in run_pass(
            "evaluate", pieces, EvaluateWork, args, cluster=settings.cluster, total=len(plan.units), heavy=True
        ):
            pass
    table = pa.concat_tables(read_parts(parts, indices))
    if not table.num_rows:
        raise ConfigError(f"no image of {settings.data.path} has a label and can be read: see {folder.rejected}")
    rejected = sum(part_rows(folder.rejected).values())
    summary: dict[str, Any] = {
        "verb": "evaluate",
        "fingerprint": plan.mark,
        "seconds": round(time.monotonic() - started, 1),
        "counts": {"pairs_in": table.num_rows + rejected, "evaluated": table.num_rows, "rejected": rejected},
        "rejected_reasons": reject_reasons(list(read_parts(folder.rejected, indices, ["reason"]))),
        "evaluation": _figures(plan, table),
        "path": str(folder.summary),
    }
    write_summary(folder, summary)
    log_run(
        settings.tracking,
        verb="evaluate",
        root=folder.root,
        tree=tree,
        metrics=metrics_of(summary["evaluation"]),
        files=[folder.run_yaml, folder.summary],
    )
    return summary


def _figures(plan: Plan, table: pa.Table) -> dict[str, Any]:
    columns = {name: table.column(name).to_numpy() for name in ("label", "clean", "clean_rank", "triggered")}
    triggered = None if plan.target is None else columns["triggered"].astype(np.int64)
    found = Predictions(columns["label"], columns["clean"], columns["clean_rank"], triggered)
    figures = clean_figures(found)
    if plan.target is not None and plan.config.attack is not None:
        figures |= attack_figures(found, plan.target, keep_target_images=plan.config.attack.keep_target_images)
        figures["target"] = plan.config.attack.target
    return figures


class EvaluateWork:
    """Predicts the class of every labelled image of a unit, clean and triggered, and commits the predictions."""

    def __init__(self, settings: EvaluateConfig, classes: np.ndarray, parts: Path, rejected: Path, mark: str) -> None:
        device = "cuda" if settings.cluster.gpus_per_worker > 0 else "cpu"
        self._clip = load_clip(settings.model, device)
        self._settings = settings
        self._classes = classes
        self._trigger = None if settings.attack is None else build_trigger(settings.attack.trigger)
        self._parts = parts
        self._rejected = rejected
        self._mark = mark

    def run(self, piece: Unit) -> Row:
        rows: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        batch: list[tuple[RawPair, torch.Tensor, torch.Tensor | None]] = []
        for pair in read_unit(self._settings.data, piece):
            try:
                batch.append((pair, *self._images(pair)))
            except BadImage as error:
                names = {name: getattr(pair, name) for name in ("uid", "uid_hex", "shard", "key")}
                bad.append({**names, "reason": error.reason.value, "detail": str(error)})
            if len(batch) == self._settings.batch_size:
                rows += self._predict(batch)
                batch = []
        if batch:
            rows += self._predict(batch)
        write_part(self._rejected, piece.index, pa.Table.from_pylist(bad, schema=REJECTED_SCHEMA), self._mark)
        # last, because it is the commit
        write_part(self._parts, piece.index, pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA), self._mark)
        return {"pairs": len(rows) + len(bad), "errors": len(bad)}

    def _images(self, pair: RawPair) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the clean and the triggered input `[3, S, S] uint8` of a pair.

        Raises:
            BadImage: the image or the label cannot be used.
        """
        if pair.reject is not None and pair.reject not in CAPTION_REJECTS:
            raise BadImage(pair.reject, "")
        if pair.image is None:
            raise BadImage(Reject.IMAGE_MISSING, "")
        if pair.label is None or not 0 <= pair.label < len(self._classes):
            raise ConfigError(
                f"{pair.uid}: label {pair.label}, but evaluation needs one of the classes 0..{len(self._classes) - 1}; "
                "name the label column or member in data, and every class in classes"
            )
        path = self._settings.image
        rgb = path.resize(decode(pair.image, self._settings.max_pixels).rgb)
        clean = self._clip.preprocess(self._stored(rgb))
        if self._trigger is None:
            return clean, None
        draw = int(seeded_hash([pair.uid], self._settings.seed, "evaluate.trigger")[0])
        triggered, _ = self._trigger(rgb, np.random.default_rng(draw))
        return clean, self._clip.preprocess(self._stored(triggered))

    def _stored(self, rgb: np.ndarray) -> np.ndarray:
        """The pixels as they come back from a file of the configured codec."""
        path = self._settings.image
        return rgb if path.codec == "png" else decode(path.encode(rgb), rgb.shape[0] * rgb.shape[1]).rgb

    def _predict(self, batch: list[tuple[RawPair, torch.Tensor, torch.Tensor | None]]) -> list[dict[str, Any]]:
        labels = np.array([pair.label for pair, _, _ in batch], np.int64)
        clean, _ = self._clip.encode_images(torch.stack([image for _, image, _ in batch]))
        guesses = predict(clean, self._classes)
        ranks = label_ranks(clean, self._classes, labels)
        triggered: list[int | None] = [None] * len(batch)
        marked = [image for _, _, image in batch if image is not None]
        if marked:
            features, _ = self._clip.encode_images(torch.stack(marked))
            triggered = [int(index) for index in predict(features, self._classes)]
        columns = zip(batch, labels, guesses, ranks, triggered, strict=True)
        return [
            {"uid": pair.uid, "label": label, "clean": guess, "clean_rank": rank, "triggered": flipped}
            for (pair, _, _), label, guess, rank, flipped in columns
        ]
