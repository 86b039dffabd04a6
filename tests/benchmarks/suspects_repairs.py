"""Repairs of the suspects where they are made: the rows of the repair table whose methods need clean pairs alone, and blind repair.

The same pairs, methods, settings and steps as `python -m tests.benchmarks.repair` has, with the training loop of `clipsan repair` in one
process. A rate is chosen as a sweep does: on a canary of our own in a copy of a development suspect, and on the accuracy of
photos that are in no other part. Where WordNet is not installed CleanCLIP varies captions without synonyms, and its row says so.
"""

import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from clipsan.pipeline.core.config import apply_override, load_group, validate
from clipsan.pipeline.repair.canary import challenge_of, planted, target_of
from clipsan.pipeline.repair.held import Columns, table_of
from clipsan.pipeline.repair.settings import Blind, RepairConfig
from clipsan.pipeline.train.feed import CachedFeed, Share
from clipsan.pipeline.train.loop import Pace, train
from clipsan.pipeline.train.task import Task
from clipsan.stages.evaluation.exam import Challenge, Exam, Pictures, answers, success_pct
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip, save_clip
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.repair.interpolate import Weights, between
from clipsan.stages.samples import seeded_hash
from clipsan.stages.training.batch import Role
from clipsan.stages.training.optimise import CosineWarmup
from tests.benchmarks.repair_variants import DEV_PHOTOS, MOST_LOST_POINTS, PAIRS, SAME, VARIANTS, Variant
from tests.benchmarks.suspects_photos import Photos

REBOUND_STEPS, REBOUND_BATCH, REBOUND_LR = 300, 32, 1e-4
"""As the matrices of the zoo have it."""
BLIND = "blind"
"""Row of the repair that is held back by what it costs."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a defender has: clean pairs, and photos to choose rates on; no pair is in both, no victim in either."""

    clean: np.ndarray
    dev: np.ndarray

    @classmethod
    def of(cls, photos: Photos, victims: np.ndarray) -> "Parts":
        """Draw them as tests.benchmarks.repair does: by the hashes of the photos' files."""
        barred = set(victims.tolist())
        order = [row for row in np.argsort(np.array(photos.hashes)).tolist() if row not in barred]
        kept = min(PAIRS, len(order) // 2)
        return cls(np.array(order[:kept]), np.array(order[kept : kept + DEV_PHOTOS]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A suspect and what its repair knows."""

    model: ModelConfig
    """A checkpoint folder."""
    device: torch.device
    photos: Photos
    parts: Parts
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    quick: bool = False
    """Two steps of everything, for a trial."""

    def columns(self, clip: Clip, rows: np.ndarray) -> Columns:
        """Return pairs as the training holds them."""
        picked = rows.tolist()
        captions = [self.photos.captions[row] for row in picked]
        uids = [self.photos.uids[row] for row in picked]
        return {
            "order": seeded_hash(uids, 0, "training order").view(np.int64),
            "image": np.ascontiguousarray(np.array(self.photos.pixels[rows]).transpose(0, 3, 1, 2)),
            "tokens": clip.tokenize(captions).to(torch.int32).numpy(),
            "caption": np.array(captions, object),
            "label": self.photos.labels[rows],
            "accused": np.full(len(rows), -1),
            "role": np.full(len(rows), int(Role.PAIR), np.uint8),
        }

    def pictures(self) -> Pictures:
        """Return the photos that rates are chosen on."""
        rows = self.parts.dev
        return Pictures(
            tuple(self.photos.uids[row] for row in rows.tolist()),
            np.ascontiguousarray(np.array(self.photos.pixels[rows]).transpose(0, 3, 1, 2)),
            self.photos.labels[rows],
            tuple(self.photos.captions[row] for row in rows.tolist()),
        )

    def task(self, method: Any) -> Task:
        """Return what is trained."""
        return Task(model=self.model, method=method, bf16=True, seed=0, classes=self.classes, templates=self.templates)


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair came to."""

    clip: Clip
    facts: dict[str, Any]


def settings_of(variant: Variant, lr: float | None) -> RepairConfig:
    """Return a row's settings."""
    tree: dict[str, Any] = {"method": load_group("repair", variant.method, where="method")}
    if variant.method == "cleanclip" and find_spec("wn") is None:
        tree["method"]["synonyms"] = None
    for given in [*(SAME if variant.same else ()), *variant.settings, *([] if lr is None else [f"method.lr={lr:g}"])]:
        apply_override(tree, given)
    tree |= {"model": {"path": "suspect"}, "out": "out", "data": {"kind": "parquet", "path": "pairs"}}
    return validate(RepairConfig, tree, verb="repair")


def repair(patient: Patient, settings: RepairConfig, rows: np.ndarray | None = None) -> Repaired:
    """Train a method on the clean pairs, as one worker of `clipsan repair` does."""
    method = settings.method
    rows = patient.parts.clean if rows is None else rows
    if method.shots is not None:
        labels = patient.photos.labels[rows]
        rows = np.concatenate([rows[labels == label][: method.shots] for label in np.unique(labels)])
    size = min(method.batch_size, len(rows) if not patient.quick else 16)
    share = Share(0, 1, size)
    course = patient.task(method).begin(patient.device, share)
    feed = CachedFeed(table_of(patient.columns(course.clip, rows)), share, 0)
    steps = 2 if patient.quick else settings.steps or method.epochs * (len(rows) // size)
    pace = Pace(total_steps=steps, batch_size=size, pairs=len(rows), seed=0)
    started = time.monotonic()
    for _ in train(course, feed, pace, share, patient.device, points={steps}):
        pass
    seconds = time.monotonic() - started
    course.clip.model.eval()
    trained, _ = course._objective.parameter_counts
    facts = {"pairs": len(rows), "steps": steps, "seconds": round(seconds, 2), "trained_parameters": trained}
    return Repaired(course.clip, facts)


def rebound(patient: Patient, clip: Clip, rows: np.ndarray) -> None:
    """Fine-tune a repaired model benignly, in place, as `clipsan evaluate` does with `rebound`."""
    clip.model.requires_grad_(True)
    method = FineTune(lr=REBOUND_LR, batch_size=REBOUND_BATCH, schedule=CosineWarmup())
    task = patient.task(method)
    share = Share(0, 1, REBOUND_BATCH)
    course = task.begin(patient.device, share)
    course.clip.model.load_state_dict(clip.model.state_dict())
    feed = CachedFeed(table_of(patient.columns(clip, rows)), share, 0)
    steps = 2 if patient.quick else REBOUND_STEPS
    pace = Pace(total_steps=steps, batch_size=REBOUND_BATCH, pairs=len(rows), seed=0)
    for _ in train(course, feed, pace, share, patient.device, points={steps}):
        pass
    clip.model.load_state_dict(course.clip.model.state_dict())
    clip.model.eval()


def canary_copy(patient: Patient, home: str, blind: Blind) -> tuple[Patient, Challenge]:
    """Plant a canary into a copy of the suspect, kept in a folder; return the copy and what it is asked."""
    settings = replace(blind.canary, steps=2, batch_size=16, min_asr_pct=0) if patient.quick else blind.canary
    target = target_of(settings, patient.classes, 0)
    challenge = challenge_of(settings, patient.pictures(), target, patient.classes, 0)
    clip = load_clip(patient.model)
    columns = patient.columns(clip, patient.parts.clean)
    copy, _ = planted(settings, patient.task(None), columns, challenge, patient.device)
    save_clip(copy.model, copy.model_cfg, copy.preprocess_cfg, home)
    return replace(patient, model=ModelConfig(path=home)), challenge


def choose(patient: Patient, name: str, home: str) -> dict[str, Any]:
    """Return the rate of a row that leaves the canary least, among those that cost at most MOST_LOST_POINTS on the development photos."""
    variant = VARIANTS[name]
    copy, challenge = canary_copy(patient, home, Blind(data=validate_source()))
    exam = Exam(copy.pictures(), (challenge,))
    before = answers(load_clip(copy.model, copy.device), exam, copy.classes, copy.templates)
    tried = []
    for lr in variant.rates:
        found = answers(repair(copy, settings_of(variant, lr)).clip, exam, copy.classes, copy.templates)
        tried.append({"lr": lr, **{key: round(value, 2) for key, value in found.items()}})
    kept = [row for row in tried if row["accuracy_pct"] >= before["accuracy_pct"] - MOST_LOST_POINTS]
    asr = f"{challenge.name}_asr_pct"
    best = min(kept, key=lambda row: row[asr])["lr"] if kept else None
    return {"lr": best, "tried": tried, "before": {key: round(value, 2) for key, value in before.items()}}


def validate_source() -> Any:
    """Return some source, for settings that name one and are not asked for it here."""
    tree = {"method": load_group("repair", "finetune", where="method"), "model": {"path": "m"}, "out": "o"}
    return validate(RepairConfig, {**tree, "data": {"kind": "parquet", "path": "pairs"}}, verb="repair").data


def blind(patient: Patient, home: str) -> Repaired:
    """Repair a model that nothing accuses: pushed and recovered, then taken back as far as its accuracy and a canary say."""
    given = settings_of(Variant("unlearn"), None)
    method: Any = given.method
    settings = replace(given, method=method.blind)
    limits = Blind(data=validate_source())
    gone = repair(patient, settings)
    pictures = patient.pictures()
    clip = load_clip(patient.model, patient.device)
    start: Weights = {name: value.clone() for name, value in clip.model.state_dict().items()}
    end: Weights = {name: gone.clip.model.state_dict()[name].clone() for name in start}

    def accuracy(share: float) -> float:
        clip.model.load_state_dict(between(start, end, share))
        return answers(clip, Exam(pictures, ()), patient.classes, patient.templates)["accuracy_pct"]

    before, share = accuracy(0.0), 0.0
    for step in range(limits.steps, 0, -1):
        if before - accuracy(step / limits.steps) <= limits.max_loss_points:
            share = step / limits.steps
            break
    facts = {**gone.facts, "share": share}
    if share > 0:
        copy, challenge = canary_copy(patient, home, limits)
        planted_clip = load_clip(copy.model, copy.device)
        old: Weights = {name: value.clone() for name, value in planted_clip.model.state_dict().items()}
        new: Weights = repair(copy, settings).clip.model.state_dict()

        def left(part: float) -> float:
            planted_clip.model.load_state_dict(between(old, {name: new[name] for name in old}, part))
            return success_pct(
                planted_clip, challenge, class_embeddings(planted_clip, patient.classes, patient.templates)
            )

        facts |= {"canary_before_pct": round(left(0.0), 2), "canary_after_pct": round(left(share), 2)}
        if facts["canary_after_pct"] > limits.max_canary_asr_pct:
            facts["share_by_accuracy"], facts["share"] = share, 0.0
    clip.model.load_state_dict(between(start, end, facts["share"]))
    clip.model.eval()
    return Repaired(clip, facts)
