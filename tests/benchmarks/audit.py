"""`clipsan audit` on small models with and without a known backdoor: is the verdict right, the label, the trigger, and at what cost?

    python -m tests.benchmarks.audit_models runs/audit      first, makes the models (or --unpack)
    python -m tests.benchmarks.audit                        audits those of the benchmark
    python -m tests.benchmarks.audit --development          those on which constants may be chosen
    python -m tests.benchmarks.audit --reference            each beside the clean model that it was tuned from
    python -m tests.benchmarks.audit --reference --fresh    models that were made after all choices
    python -m tests.benchmarks.audit --peers [--reference] [--fresh]    each beside the other clean models tuned from the same one, too

`--peers` takes the finished audits of the benchmark's and the fresh clean models, all but the model's own, so that both kinds come first.

Models and audits lie below runs/audit/; what has finished is not done again. Figures go to tests/benchmarks/results/, but for those of the
development models. `likeness` is the largest correlation, over the proven triggers, of the mean changes that they and the true one make;
`excess` how much further the best label's trigger takes images in the suspect than in the reference, as a cosine.
"""

import argparse
import json
import math
import shutil
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
from clipsan.stages.audit.peers import LEAST_PEERS
from clipsan.stages.dossier.files import read_dossiers
from tests.benchmarks.audit_models import cells, development_cells, fresh_cells
from tests.benchmarks.audit_packing import CHECKPOINT, TRUTH
from tests.benchmarks.audit_tables import finding, finding_beside
from tests.benchmarks.audit_training import Scenes, build_trigger
from tests.benchmarks.results import Row, record

ROOT = Path("runs/audit")
COMMAND = "python -m tests.benchmarks.audit [--reference]"
COMMAND_PEERS = "python -m tests.benchmarks.audit --peers"
LIKENED_ON = 32
"""Scenes on which an inverted trigger is compared with the true one."""


def audit_of(name: str, root: Path, *, reference: bool) -> Path:
    """Return the folder of a model's audit."""
    return root / "audits" / (name + ("-reference" if reference else ""))


def row(home: Path, root: Path, *, reference: bool) -> Row:
    """Audit one model, unless that is done, and compare what is found with the truth."""
    truth = json.loads((home / TRUTH).read_text(encoding="utf-8"))
    out = audit_of(home.name, root, reference=reference)
    summary = audited(home, root, out, reference=reference)
    return told(truth, summary, reference=reference) | {
        "clean_accuracy_pct": truth["clean_accuracy_pct"],
        "likeness": None if truth["attack"] is None else likeness(out, truth["attack"], home),
        "excess": excess(out) if reference else None,
        "decree": summary["decree"],
        "seconds": summary["seconds"],
    }


def row_beside(home: Path, root: Path, *, reference: bool) -> Row | None:
    """Tell one model's finished audit its peers, and compare what is found with the truth; None where it has too few."""
    truth = json.loads((home / TRUTH).read_text(encoding="utf-8"))
    clean = [
        audit_of(cell.name, root, reference=reference)
        for cell in (*cells(), *fresh_cells())
        if cell.attack is None and cell.base_of.name == truth["base"] and cell.name != home.name
    ]
    peers = [folder for folder in clean if (folder / "summary.json").is_file()]
    if len(peers) < LEAST_PEERS:
        return None
    alone = audit_of(home.name, root, reference=reference)
    out = alone.with_name(alone.name + "-peers")
    if not out.is_dir():
        begun = out.with_name(out.name + "-begun")
        shutil.rmtree(begun, ignore_errors=True)
        shutil.copytree(alone, begun).rename(out)
    summary = audited(home, root, out, reference=reference, peers=peers)
    return told(truth, summary, reference=reference) | {
        "base": truth["base"],
        "fresh": home.name in {cell.name for cell in fresh_cells()},
        "peers": len(peers),
        "clean_accuracy_pct": truth["clean_accuracy_pct"],
        "beyond": max(summary["candidates"], key=score)["beyond"],
    }


def audited(home: Path, root: Path, out: Path, *, reference: bool, peers: Sequence[Path] = ()) -> Mapping[str, Any]:
    """Audit a model, or what is left of that, and return the summary."""
    truth = json.loads((home / TRUTH).read_text(encoding="utf-8"))
    given = [f"model.path={home / CHECKPOINT}", f"out={out}", "seed=5", f"peers=[{','.join(map(str, peers))}]"]
    given += [f"reference.path={root / truth['base'] / CHECKPOINT}"] if reference else []
    return audit.VERB.start(load(AuditConfig, None, [*given, "tracking.enabled=false"], verb="audit"))


def told(truth: Mapping[str, Any], summary: Mapping[str, Any], *, reference: bool) -> Row:
    """Return the truth about a model and what was said of it."""
    first = max(summary["candidates"], key=score)
    return {
        "model": truth["arch"],
        "attack": truth["attack"] or "clean",
        "seed": truth["seed"],
        "reference": reference,
        "asr_pct": truth.get("asr_pct"),
        "verdict": summary["verdict"],
        "score": score(first),
        "target": truth["target"],
        "label": first["targets"][0],
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
    parser.add_argument("--fresh", action="store_true", help="the models that were made after all choices")
    parser.add_argument(
        "--peers",
        action="store_true",
        help="tell finished audits those of the other clean models tuned from the same one",
    )
    given = parser.parse_args(arguments)
    chosen = development_cells() if given.development else fresh_cells() if given.fresh else cells()
    wanted = [cell.name for cell in chosen]
    homes = [given.root / name for name in wanted if not given.names or name in given.names]
    homes = [home for home in homes if (home / TRUTH).is_file()]
    if not homes:
        parser.error(f"no model below {given.root}: python -m tests.benchmarks.audit_models {given.root}")
    rows = []
    for home in homes:
        found = (row_beside if given.peers else row)(home, given.root, reference=given.reference)
        if found is None:
            sys.stdout.write(
                f"{home.name}: fewer than {LEAST_PEERS} finished audits of other clean models of its base\n"
            )
            continue
        rows.append(found)
        if not given.development:
            record(
                "audit_peers" if given.peers else "audit", [found], command=COMMAND_PEERS if given.peers else COMMAND
            )
        sys.stdout.write(" ".join(f"{name}={value}" for name, value in found.items()) + "\n")
        sys.stdout.flush()
    sys.stdout.write((finding_beside if given.peers else finding)(rows) + "\n")


if __name__ == "__main__":
    main()
