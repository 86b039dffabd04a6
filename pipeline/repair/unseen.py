"""By what a repair is judged where nobody knows the attack: triggers that it did not train on.

A repair that unlearns the triggers of a scan is bound to do well on them. What it has not seen: poisoned pairs of the scan that were
kept from it, on which the attacker's own trigger sits where the attacker put it; a proven patch at other places than those it
was proven and unlearned at; and dossiers from elsewhere, such as triggers inverted from the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipsan.stages.dossier.dossier import Dossier
from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.evaluation.exam import Challenge, eligible, proven_challenge, success_pct
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.clip import ModelConfig, load_clip

from ..core.place import read_here
from ..core.run_folder import RunFolder
from ..data.choice import class_index
from ..train.fit import PairSet
from .held import columns_of
from .pairs import judging_images, withheld_pairs
from .plan import TRIGGERS, Plan
from .settings import Unseen


@dataclass(frozen=True, slots=True)
class Judge:
    """One trigger that the repair has not trained on."""

    name: str
    challenge: Challenge


def unseen(plan: Plan, rule: Unseen, folder: RunFolder, models: Sequence[ModelConfig]) -> list[dict[str, Any]]:
    """Return what each judge found of the suspect and of the repaired model, given in this order."""
    judges = [*_withheld(plan, folder), *_triggers(plan, rule, folder)]
    found: list[dict[str, Any]] = [
        {
            "name": judge.name,
            "targets": [plan.classes[target] for target in judge.challenge.targets],
            "images": len(judge.challenge.pixels),
        }
        for judge in judges
    ]
    for when, model in zip(("before_pct", "after_pct"), models, strict=True):
        clip = load_clip(model)
        vectors = (
            class_embeddings(clip, plan.classes, plan.config.templates) if judges else np.zeros((0, clip.embed_dim))
        )
        for judge, record in zip(judges, found, strict=True):
            record[when] = success_pct(clip, judge.challenge, vectors)
    for record in found:
        record["counts"] = record["before_pct"] >= rule.min_before_pct
    return found


def worst(found: Sequence[Mapping[str, Any]] | None) -> Mapping[str, Any] | None:
    """Return the record of the judge that counts and of which most is left; None where no judge counts."""
    counted = [record for record in found or () if record["counts"]]
    return max(counted, key=lambda record: float(record["after_pct"]), default=None)


def _withheld(plan: Plan, folder: RunFolder) -> list[Judge]:
    """Return the poisoned pairs that were kept from the repair, one judge for each label that they were to plant."""
    return [Judge("withheld poisoned pairs", found) for found in carriers(withheld_pairs(plan, folder), "withheld")]


def carriers(pairs: PairSet | None, name: str) -> list[Challenge]:
    """Return poisoned pairs as challenges, NAME_TARGET for each label that they were to plant."""
    if pairs is None:
        return []
    columns = columns_of(pairs)
    return [
        Challenge(f"{name}_{target}", columns["image"][columns["accused"] == target], (target,))
        for target in np.unique(columns["accused"]).tolist()
    ]


def _triggers(plan: Plan, rule: Unseen, folder: RunFolder) -> list[Judge]:
    assert plan.scan is not None
    with read_here(plan.scan.root / TRIGGERS) as proven:
        own = [(f"{d.id} at other places", moved) for d in read_dossiers(proven) if (moved := d.elsewhere())]
    given = [(f"{where}/{d.id}", d) for where in rule.judges for d in read_dossiers(Path(where))]
    pictures = judging_images(plan, rule, folder) if own or given else None
    if pictures is None:
        return []
    judges = []
    for name, dossier in (*own, *given):
        targets = targets_of(dossier, plan.classes)
        if targets and eligible(pictures, targets, plan.classes).any():
            judges.append(Judge(name, proven_challenge(dossier, pictures, targets, plan.classes, plan.config.seed)))
    return judges


def targets_of(dossier: Dossier, classes: tuple[str, ...]) -> tuple[int, ...]:
    """Return the classes that a trigger means."""
    known = class_index(classes)
    return tuple(dict.fromkeys(known[name.casefold()] for name in dossier.targets if name.casefold() in known))
