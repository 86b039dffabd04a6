"""`clipsan audit` on small models with and without a known backdoor: is the verdict right, the label, the trigger, and at what cost?

    python -m tests.benchmarks.audit_models runs/audit      first, makes the models (or --unpack)
    python -m tests.benchmarks.audit                        audits those of the benchmark
    python -m tests.benchmarks.audit --development          those on which constants may be chosen
    python -m tests.benchmarks.audit --reference            each beside the clean model that it was tuned from

Models and audits lie below runs/audit/; what has finished is not done again. Figures go to tests/benchmarks/results/, but for those of the
development models. `likeness` is the largest correlation, over the proven triggers, of the mean changes that they and the true one make;
`excess` how much further the best label's trigger takes images in the suspect than in the reference, as a cosine.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipsan.pipeline.audit import verb as audit
from clipsan.pipeline.audit.settings import AuditConfig
from clipsan.pipeline.core.config import load
from clipsan.stages.dossier.files import read_dossiers
from tests.benchmarks.audit_models import cells, development_cells
from tests.benchmarks.audit_packing import CHECKPOINT, TRUTH
from tests.benchmarks.audit_tables import finding
from tests.benchmarks.audit_training import Scenes, build_trigger
from tests.benchmarks.results import Row, record

ROOT = Path("runs/audit")
COMMAND = "python -m tests.benchmarks.audit [--reference]"
LIKENED_ON = 32
"""Scenes on which an inverted trigger is compared with the true one."""


def row(home: Path, root: Path, *, reference: bool) -> Row:
    """Audit one model, unless that is done, and compare what is found with the truth."""
    truth = json.loads((home / TRUTH).read_text(encoding="utf-8"))
    out = root / "audits" / (home.name + ("-reference" if reference else ""))
    given = [f"model.path={home / CHECKPOINT}", f"out={out}", "seed=5"]
    given += [f"reference.path={root / truth['base'] / CHECKPOINT}"] if reference else []
    summary = audit.VERB.start(load(AuditConfig, None, [*given, "tracking.enabled=false"], verb="audit"))
    first = max(summary["candidates"], key=score)
    return {
        "model": truth["arch"],
        "attack": truth["attack"] or "clean",
        "seed": truth["seed"],
        "reference": reference,
        "clean_accuracy_pct": truth["clean_accuracy_pct"],
        "asr_pct": truth.get("asr_pct"),
        "verdict": summary["verdict"],
        "score": score(first),
        "target": truth["target"],
        "label": first["targets"][0],
        "likeness": None if truth["attack"] is None else likeness(out, truth["attack"], home),
        "excess": excess(out) if reference else None,
        "decree": summary["decree"],
        "seconds": summary["seconds"],
    }


def score(candidate: Mapping[str, Any]) -> float:
    """Return how far a label stands out, -log10 of its p value."""
    return -math.log10(max(float(candidate["p"]), 1e-300))


def excess(out: Path) -> float:
    """Return the largest lead over the reference that a screened trigger has."""
    parts = sorted((out / "screening").glob("part-*.parquet"))
    rows = pa.concat_tables([pq.read_table(part, columns=["cosine", "genuine"]) for part in parts]).to_pylist()
    return max(float(row["cosine"] - row["genuine"]) for row in rows)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit the models, store the figures, say what they show."""
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
    rows = []
    for home in homes:
        rows.append(row(home, given.root, reference=given.reference))
        if not given.development:
            record("audit", rows[-1:], command=COMMAND)
        sys.stdout.write(" ".join(f"{name}={value}" for name, value in rows[-1].items()) + "\n")
        sys.stdout.flush()
    sys.stdout.write(finding(rows) + "\n")


if __name__ == "__main__":
    main()
