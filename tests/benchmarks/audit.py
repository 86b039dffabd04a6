"""`clipsan audit` on small models with and without a known backdoor: is the verdict right, the label, the trigger, and at what cost?

    python -m tests.benchmarks.audit_models runs/audit      first, makes the models (or --unpack)
    python -m tests.benchmarks.audit                        audits those of the benchmark
    python -m tests.benchmarks.audit --development          those on which constants may be chosen
    python -m tests.benchmarks.audit --reference            each beside the clean model that it was tuned from

Models and audits lie below runs/audit/; what has finished is not done again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from clipsan.pipeline.audit import verb as audit
from clipsan.pipeline.audit.settings import AuditConfig
from clipsan.pipeline.core.config import load
from clipsan.stages.dossier.files import read_dossiers
from tests.benchmarks.audit_models import cells, development_cells
from tests.benchmarks.audit_packing import CHECKPOINT, TRUTH
from tests.benchmarks.audit_training import Scenes, build_trigger

ROOT = Path("runs/audit")
LIKENED_ON = 32
"""Scenes on which an inverted trigger is compared with the true one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One audited model."""

    name: str
    attack: str | None
    asr_pct: float | None
    verdict: str
    score: float
    """Minus the logarithm of the smallest p."""
    right: bool | None
    """Whether the label that stands out most is the target; None of a clean model."""
    likeness: float | None
    """Correlation of what the inverted trigger changes with what the true one does; None where no trigger is proven."""
    decree: float
    seconds: float


def line(home: Path, root: Path, *, reference: bool) -> Line:
    """Audit one model, unless that is done, and compare what is found with the truth."""
    truth = json.loads((home / TRUTH).read_text(encoding="utf-8"))
    out = root / "audits" / (home.name + ("-reference" if reference else ""))
    given = [f"model.path={home / CHECKPOINT}", f"out={out}", "seed=5"]
    given += [f"reference.path={root / truth['base'] / CHECKPOINT}"] if reference else []
    summary = audit.VERB.start(load(AuditConfig, None, [*given, "tracking.enabled=false"], verb="audit"))
    first = min(summary["candidates"], key=lambda found: found["p"])
    return Line(
        name=home.name,
        attack=truth["attack"],
        asr_pct=truth.get("asr_pct"),
        verdict=summary["verdict"],
        score=-float(np.log10(max(first["p"], 1e-12))),
        right=None if truth["attack"] is None else first["targets"][0] == truth["target"],
        likeness=None if truth["attack"] is None else likeness(out, truth["attack"], home),
        decree=summary["decree"],
        seconds=summary["seconds"],
    )


def likeness(out: Path, attack: str, home: Path) -> float | None:
    """Return the largest correlation, over the proven triggers, of the mean changes that they and the true one make."""
    scenes = Scenes.draw(LIKENED_ON, 99).pixels
    rng = np.random.default_rng(0)
    trigger = build_trigger(attack, home)
    true = np.mean([trigger(image, rng)[0].astype(float) - image for image in scenes], axis=0)
    found = [
        np.mean([dossier.apply(image, rng).astype(float) - image for image in scenes], axis=0)
        for dossier in read_dossiers(out / "triggers")
    ]
    return max((float(np.corrcoef(true.ravel(), one.ravel())[0, 1]) for one in found), default=None)


def table(lines: Sequence[Line]) -> str:
    """Return the lines and what follows from them as text."""
    rows = [
        f"{'model':<28}{'ASR %':>7}  {'verdict':<12}{'-log p':>7}  {'label':<7}{'likeness':>9}{'DECREE':>8}{'s':>7}"
    ]
    for one in lines:
        asr = "" if one.asr_pct is None else f"{one.asr_pct:.1f}"
        label = "" if one.right is None else "right" if one.right else "wrong"
        like = "" if one.likeness is None else f"{one.likeness:.2f}"
        rows.append(
            f"{one.name:<28}{asr:>7}  {one.verdict:<12}{one.score:>7.2f}  {label:<7}{like:>9}{one.decree:>8.3f}{one.seconds:>7.0f}"
        )
    poisoned = np.array([one.attack is not None for one in lines])
    if poisoned.any() and not poisoned.all():
        scores, decree = (np.array([getattr(one, name) for one in lines]) for name in ("score", "decree"))
        right = [one.right for one in lines if one.right is not None]
        rows += [
            f"AUROC of the verdict's score {roc_auc_score(poisoned, scores):.3f}, of DECREE {roc_auc_score(poisoned, -decree):.3f}",
            f"{poisoned.sum()} backdoored: {sum(right)} right labels, "
            f"{sum(one.verdict == 'backdoored' for one in lines if one.attack)} called backdoored",
            f"{(~poisoned).sum()} clean: {sum(one.verdict == 'backdoored' for one in lines if not one.attack)} called backdoored, "
            f"{sum(one.verdict == 'suspicious' for one in lines if not one.attack)} suspicious",
        ]
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit the models, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="some models")
    parser.add_argument("--root", type=Path, default=ROOT, help="where models and audits lie")
    parser.add_argument("--development", action="store_true", help="the models on which constants may be chosen")
    parser.add_argument(
        "--reference", action="store_true", help="audit beside the clean model that each was tuned from"
    )
    given = parser.parse_args(arguments)
    wanted = [cell.name for cell in (development_cells() if given.development else cells())]
    homes = [given.root / name for name in wanted if not given.names or name in given.names]
    homes = [home for home in homes if (home / TRUTH).is_file()]
    if not homes:
        parser.error(f"no model below {given.root}: python -m tests.benchmarks.audit_models {given.root}")
    sys.stdout.write(table([line(home, given.root, reference=given.reference) for home in homes]))


if __name__ == "__main__":
    main()
