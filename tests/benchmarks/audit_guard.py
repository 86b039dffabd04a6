"""`clipsan.guard` on the small models that an audit has proven something of: what does it flag, and what wrongly?

    python -m tests.benchmarks.audit          first: its audits have the triggers
    python -m tests.benchmarks.audit_guard    guards every backdoored model of which one is proven

The guard knows the inverted triggers and clean scenes. Flagged wrongly is counted on clean scenes that it has not seen; caught, on
scenes of other things than the target with the true trigger, which it has never seen.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipsan import guard
from clipsan.stages.audit.guard import Guard
from clipsan.stages.dossier.dossier import Rate, rate_of
from clipsan.stages.dossier.files import read_dossiers
from tests.benchmarks.audit import ROOT, likeness
from tests.benchmarks.audit_models import cells
from tests.benchmarks.audit_packing import CHECKPOINT, TRUTH
from tests.benchmarks.audit_training import NAMES, Scenes, build_trigger
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.audit_guard"
CLEAN_A_TRIGGER = 400
"""Clean scenes that a guard is given, times the triggers: what its documentation asks for."""
FRESH = 500
"""Clean scenes that it has not seen; those of other things than the target are shown again with the true trigger."""
GIVEN_SEED, FRESH_SEED = 31, 32


def row(home: Path, out: Path) -> Row | None:
    """Guard one model; None where its audit has proven nothing."""
    truth = json.loads((home / TRUTH).read_text(encoding="utf-8"))
    count = len(read_dossiers(out / "triggers")) if (out / "triggers").is_dir() else 0
    if not count:
        return None
    given = Scenes.draw(CLEAN_A_TRIGGER * count, GIVEN_SEED).pixels
    watching = guard(home / CHECKPOINT, out, list(given))
    fresh = Scenes.draw(FRESH, FRESH_SEED)
    trigger, rng = build_trigger(truth["attack"], home), np.random.default_rng(truth["seed"])
    others = fresh.pixels[fresh.labels != NAMES.index(truth["target"])]
    wrong = flagged(watching, list(fresh.pixels))
    caught = flagged(watching, [trigger(image, rng)[0] for image in others])
    return {
        "model": truth["arch"],
        "attack": truth["attack"],
        "seed": truth["seed"],
        "asr_pct": truth["asr_pct"],
        "triggers": count,
        "likeness": likeness(out, truth["attack"], home),
        "given": len(given),
        "measured_pct": watching.false_alarms.pct,
        "false_alarms_pct": wrong.pct,
        "false_alarms_pct_ci95": [wrong.low_pct, wrong.high_pct],
        "caught_pct": caught.pct,
        "caught_pct_ci95": [caught.low_pct, caught.high_pct],
        "clean": wrong.trials,
        "triggered": caught.trials,
    }


def flagged(watching: Guard, pictures: Sequence[np.ndarray]) -> Rate:
    """Return how many of some pictures a guard flags."""
    return rate_of(sum(alarm.flagged for alarm in watching.many(pictures)), len(pictures))


def main(arguments: Sequence[str] | None = None) -> None:
    """Guard the models, store the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="some models")
    parser.add_argument("--root", type=Path, default=ROOT, help="where models and audits lie")
    given = parser.parse_args(arguments)
    backdoored = [cell.name for cell in cells() if cell.attack is not None]
    for name in [name for name in backdoored if not given.names or name in given.names]:
        found = row(given.root / name, given.root / "audits" / name)
        if found is None:
            sys.stdout.write(f"{name}: nothing is proven\n")
            continue
        record("audit_guard", [found], command=COMMAND)
        sys.stdout.write(" ".join(f"{key}={value}" for key, value in found.items()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
