"""Repair x attack: what each method leaves of the accuracy and of the backdoor, and what comes back after benign steps.

    python -m tests.benchmarks.repair                          every method on every model that has been scanned
    python -m tests.benchmarks.repair patch-s0 sig-s0          on some
    python -m tests.benchmarks.repair patch-s0 --methods par   with some
    python -m tests.benchmarks.repair vit/patch-s0 --methods none finetune par rvpt    on a ViT, which RVPT needs
    python -m tests.benchmarks.repair --commands               the commands alone
    python -m tests.benchmarks.repair --store                  store the figures of what has run

The suspect models are those of `python -m tests.benchmarks.zoo common vit`, the scans those of `python -m
tests.benchmarks.proof`; both come first. All methods have the same 2,500 clean pairs of the 10,000 (a quarter: a defender
seldom has all) and the settings below, found on `patch-s0` (unlearn's weight of labels and its epochs on `sig-s0`); EftCLIP
and unlearn have the scan besides, which knows nothing of the attack. Each repair and each evaluation is a command of clipsan
with a run folder below runs/repair/; what has finished is not run again.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from clipsan.pipeline.core.run_folder import read_summary
from tests.benchmarks import photos
from tests.benchmarks.figures import rounded
from tests.benchmarks.results import Row, record, this_machine
from tests.benchmarks.zoo import cell_home, cell_names

SCANS = Path("runs/proof")
RUNS = Path("runs/repair")
COMMAND = "python -m tests.benchmarks.repair"
SHOWN = (
    "clean_accuracy_pct",
    "asr_pct",
    "accuracy_under_trigger_pct",
    "false_target_pct",
    "rebound_asr_pct",
    "rebound_clean_accuracy_pct",
    "text_to_image_r10_pct",
    "resistivity",
)
NONE = "none"

PAIRS = "pairs=2500"
PRECISION = "precision=bf16"
"""As the suspects were trained."""
METHODS: dict[str, list[str]] = {
    "finetune": [PAIRS, "method.epochs=6", "method.batch_size=128", "method.lr=3e-3"],
    "cleanclip": [PAIRS, "method.epochs=6", "method.batch_size=128", "method.lr=3e-3"],
    "cleanclip-supervised": [
        PAIRS,
        *("method.epochs=6", "method.batch_size=128", "method.lr=3e-3"),
        "method.schedule={kind: cosine, warmup_steps: 10}",
    ],
    "par": [PAIRS, "method.epochs=6", "method.batch_size=128", "method.lr=3e-4", "method.tau=auto"],
    "rvpt": ["method.epochs=16", "method.shots=125", "method.first_block=1", "method.tokens=50", "method.lr=0.1"],
    "eftclip": ["method.epochs=6", "method.batch_size=64", "method.lr=1e-3"],
    "unlearn": [
        PAIRS,
        "method.epochs=15",
        # where the scan accuses nothing it does what PAR does, with PAR's settings
        *("method.blind.epochs=6", "method.blind.batch_size=128", "method.blind.lr=3e-4"),
    ],
}
"""Method -> what differs from conf/repair/. The published rates are those of pretrained models that a small one, trained with
2e-3, hardly notices (see `clipsan evaluate`'s rebound)."""
VIT = "vit/"
FROM_SCAN = ("eftclip", "unlearn")
"""These learn from the scan."""

CLASSES = (f"classes={photos.RUNS}/classes.yaml", f"templates={photos.TEMPLATES}")
TEST = ("data=labelled-parquet", "data.path=$CLIPSAN_ASSETS/tiny-imagenet20-val.parquet", *CLASSES)
TRAIN = ("data=labelled-parquet", "data.path=$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet")


def cells() -> list[str]:
    """Return the cells whose models have been measured and whose scans have finished, the clean one with them."""
    scanned = (path.parent.name for path in sorted((photos.ROOT / SCANS).glob("*/summary.json")))
    return [cell for cell in scanned if (photos.ROOT / cell_home(cell) / "evaluate" / "summary.json").exists()]


def fits(cell: str, method: str) -> bool:
    """Tell whether a method can be tried: RVPT needs a ViT, and EftCLIP a trigger that the scan has proven."""
    scan = photos.ROOT / SCANS / cell
    if method == "eftclip" and (scan / "summary.json").exists():
        return bool(read_summary(scan)["proof"]["triggers"])
    return method != "rvpt" or cell.startswith(VIT)


def steps(cell: str, method: str) -> Iterator[tuple[Path, list[str]]]:
    """Yield (run folder, arguments of clipsan) of one row, in order."""
    if method == NONE:  # the zoo has measured it
        return
    out = RUNS / cell / method
    model = cell_home(cell) / "train" / "checkpoint"
    scan = [f"scan={SCANS / cell}"] if method in FROM_SCAN else []
    data = [] if method == "eftclip" else TRAIN
    yield (
        out / "repair",
        [
            *("repair", f"model.path={model}", f"method={method}", *data, *scan, *CLASSES, *METHODS[method]),
            *(f"out={out}/repair", PRECISION, "register=null", "cluster.workers=1"),
        ],
    )
    repaired = [f"model.path={out}/repair/checkpoint"]
    if method == "rvpt":
        repaired = [f"model.path={model}", f"model.adapter={out}/repair/adapter"]
    yield (
        out / "evaluate",
        ["evaluate", *TEST, *repaired, *_as_before(cell), f"out={out}/evaluate", "cluster.workers=1"],
    )


def _as_before(cell: str) -> list[str]:
    """Return the attack, if there was one, and the other measurements with which the zoo met the suspect model."""
    record = yaml.safe_load((photos.ROOT / cell_home(cell) / "evaluate" / "run.yaml").read_text(encoding="utf-8"))
    found = []
    for part in ("attack", "retrieval", "resistivity", "rebound"):
        settings = record["config"][part]
        if settings is None:
            continue
        if "data" in settings:
            settings["data"]["path"] = "$CLIPSAN_ASSETS/" + Path(settings["data"]["path"]).name
        found.append(f"{part}={json.dumps(settings)}")
    return found


def row_of(cell: str, method: str) -> Row | None:
    """Return the figures of one row; None where it has not been measured."""
    home = photos.ROOT / RUNS / cell / method
    before = photos.ROOT / cell_home(cell) / "evaluate"
    measured = before if method == NONE else home / "evaluate"
    if not (measured / "summary.json").exists():
        return None
    evaluation = read_summary(measured)["evaluation"]
    shown = {name: value for name, value in rounded(evaluation).items() if name.removesuffix("_ci95") in SHOWN}
    row: Row = {**cell_names(cell), "method": method, "cpu": this_machine().cpu, **shown}
    if evaluation.get("resistivity") is not None:
        row["resistivity"] = round(evaluation["resistivity"], 3)
    if method == NONE:
        return row
    summary = read_summary(home / "repair")
    return {
        **row,
        "pairs": summary["counts"]["used"],
        "steps": summary["steps"],
        "seconds": summary["training_seconds"],
        "clean_accuracy_change_points": round(
            evaluation["clean_accuracy_pct"] - read_summary(before)["evaluation"]["clean_accuracy_pct"], 1
        ),
    }


def main() -> int:
    """Run the repairs, print their commands, or store their figures."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help="default: all that have been scanned")
    parser.add_argument("--methods", nargs="+", choices=[NONE, *METHODS], default=[NONE, *METHODS])
    parser.add_argument("--commands", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--store", action="store_true", help="store the figures of what has run and run nothing")
    options = parser.parse_args()
    chosen = [(cell, method) for cell in options.cells or cells() for method in options.methods if fits(cell, method)]
    if options.commands:
        for cell, method in chosen:
            for _, arguments in steps(cell, method):
                sys.stdout.write(photos.as_shell(arguments) + "\n")
        return 0
    folder = photos.assets()
    if folder is None:
        sys.stdout.write("skipped: the photos are not on this machine; CLIPSAN_ASSETS names their folder\n")
        return 0
    for cell, method in chosen:
        if not options.store:
            for out, arguments in steps(cell, method):
                photos.run(out, arguments, folder)
        row = row_of(cell, method)
        if row is not None:
            record("repair", [row], command=COMMAND)
    return 0


if __name__ == "__main__":
    sys.exit(main())
