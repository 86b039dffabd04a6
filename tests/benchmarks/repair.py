"""Repair x attack: what each method leaves of the accuracy and of the backdoor, and what comes back after benign steps.

    python -m tests.benchmarks.repair                          every method on every model that has been scanned
    python -m tests.benchmarks.repair patch-s0 sig-s0          on some
    python -m tests.benchmarks.repair patch-s0 --methods par   with some
    python -m tests.benchmarks.repair vit/patch-s0 --methods none finetune par rvpt    on a ViT, which RVPT needs
    python -m tests.benchmarks.repair --choose patch-s0        choose rates on the development split, for the attacks to come
    python -m tests.benchmarks.repair --commands               the commands alone
    python -m tests.benchmarks.repair --store                  store the figures of what has run

The suspect models are those of `python -m tests.benchmarks.zoo common vit`, the scans those of `python -m
tests.benchmarks.proof`; both come first. The rows are fair in this:

- All methods have the same 2,500 clean pairs of the 10,000 (a defender seldom has all), none of them the original of a poisoned pair,
  and make the same 114 steps of 128 rows (six epochs), whatever that takes of seconds, which are told. RVPT has 125 shots of each of
  20 classes, which are as many images. EftCLIP, unlearn, tbar and project have the scan besides, which knows nothing of the attack,
  and of the last three only unlearn sees a clean pair; project trains nothing.
- Rates are chosen on a development attack by a sweep that knows neither the test photos nor the true trigger: it is asked for a
  planted canary and for the accuracy on 1,500 photos that are in no other part (`--choose`). Where the folder of
  such a sweep is not there a row has the rate of repair_variants.py, PAR's from the sweep that was made, the others' found by hand on
  `patch-s0`; `settings` says which.
- The papers' own settings stand beside the tuned ones (`-published`: their rates, batches and epochs, on the same pairs), PAR's tau of
  2.15 beside the automatic one (`par-2.15`), and live batch normalisation beside the frozen one (`par-live`).

Each repair and each evaluation is a command of clipsan with a run folder below runs/repair/; what has finished is not run again.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipsan.pipeline.core.run_folder import read_summary
from tests.benchmarks import photos
from tests.benchmarks.figures import REPAIR_COMMANDS, rounded
from tests.benchmarks.repair_variants import CHOSEN, DEV_PHOTOS, MOST_LOST_POINTS, PAIRS, SAME, VARIANTS
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

PRECISION = "precision=bf16"
"""As the suspects were trained."""

VIT = "vit"
FROM_SCAN = ("eftclip", "unlearn", "tbar", "project")
"""These learn from the scan."""
NEED_A_PROOF = ("eftclip", "tbar", "project")
"""These learn from its compact set, which a proven trigger makes."""

CLASSES = (f"classes={photos.RUNS}/classes.yaml", f"templates={photos.TEMPLATES}")
TEST = ("data=labelled-parquet", "data.path=$CLIPSAN_ASSETS/tiny-imagenet20-val.parquet", *CLASSES)
TRAIN = "tiny-imagenet20-train-*.parquet"


def draw_parts(cell: str, folder: Path) -> None:
    """Write a cell's clean pairs and its development photos, where they are not there: no pair is in both, no victim in either.

    A pair's place depends on the hash of its photo alone, so that cells differ by their victims only.
    """
    home = photos.ROOT / RUNS / cell
    if (home / "dev.parquet").exists():
        return
    manifest = photos.ROOT / cell_home(cell) / "poison" / "manifest.parquet"
    victims = set(pq.read_table(manifest).column("sha256_before").to_pylist()) if manifest.exists() else set()
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(TRAIN))])
    hashes = np.array([hashlib.sha256(image).hexdigest() for image in table.column("image").to_pylist()])
    order = [row for row in np.argsort(hashes).tolist() if hashes[row] not in victims]
    home.mkdir(parents=True, exist_ok=True)
    for name, rows in (("clean", order[:PAIRS]), ("dev", order[PAIRS : PAIRS + DEV_PHOTOS])):
        pq.write_table(table.take(rows), home / f"{name}.parquet")


def part(cell: str, name: str) -> str:
    """Return the path of a cell's clean pairs or development photos."""
    return str(RUNS / cell / f"{name}.parquet")


def choice(method: str) -> Path:
    """Return the folder of the sweep that chooses a row's rate."""
    return RUNS / "choice" / method


def rate(name: str) -> tuple[list[str], str]:
    """Return the overrides that give a row its rate, and where that is from."""
    variant = VARIANTS[name]
    found = photos.ROOT / choice(name) / "summary.json"
    if variant.lr is not None and found.exists():
        best = read_summary(found.parent)["recommended"]
        if best is not None:
            return [f"{key}={value}" for key, value in best["settings"].items()], CHOSEN
    if variant.lr is not None:
        return [f"method.lr={variant.lr:g}"], variant.lr_from
    return [], "as published" if name.endswith("-published") else "the method's own"


def choosing(cell: str, name: str) -> tuple[Path, list[str]]:
    """Return (run folder, arguments of clipsan) of the sweep over a row's rate on a development attack."""
    variant, out = VARIANTS[name], choice(name)
    rates = ", ".join(f"{rate:g}" for rate in variant.rates)
    space = "{method.lr: {kind: choice, values: [" + rates + "]}}"
    given = [*SAME, *variant.settings]
    scan = [f"repair.scan={SCANS / cell}"] if variant.method in FROM_SCAN else []
    return out, [
        *("sweep", f"repair.model.path={cell_home(cell) / 'train' / 'checkpoint'}", f"repair.method={variant.method}"),
        *(f"repair.{one}" for one in given),
        *("repair.data=labelled-parquet", f"repair.data.path={part(cell, 'clean')}", *scan),
        *(f"repair.classes={photos.RUNS}/classes.yaml", f"templates={photos.TEMPLATES}"),
        *(f"space={space}", "search={kind: grid}", "halving=null", "objective=canary", "canary={}"),
        *("held_out.data=labelled-parquet", f"held_out.data.path={part(cell, 'dev')}"),
        *(
            f"max_accuracy_loss_points={MOST_LOST_POINTS:g}",
            f"out={out}",
            "register=null",
            "concurrent=1",
            "cluster.workers=1",
        ),
    ]


def cells() -> list[str]:
    """Return the cells whose models have been measured and whose scans have finished, the clean one with them."""
    scanned = (path.parent.name for path in sorted((photos.ROOT / SCANS).glob("*/summary.json")))
    return [cell for cell in scanned if (photos.ROOT / cell_home(cell) / "evaluate" / "summary.json").exists()]


def fits(cell: str, method: str) -> bool:
    """Tell whether a method can be tried: RVPT needs a ViT, and EftCLIP a trigger that the scan has proven."""
    scan = photos.ROOT / SCANS / cell
    name = method if method == NONE else VARIANTS[method].method
    if name in NEED_A_PROOF and (scan / "summary.json").exists():
        return bool(read_summary(scan)["proof"]["triggers"])
    return name != "rvpt" or cell.startswith(VIT)


def steps(cell: str, method: str) -> Iterator[tuple[Path, list[str]]]:
    """Yield (run folder, arguments of clipsan) of one row, in order."""
    if method == NONE:  # the zoo has measured it
        return
    out, variant = RUNS / cell / method, VARIANTS[method]
    model = cell_home(cell) / "train" / "checkpoint"
    scan = [f"scan={SCANS / cell}"] if variant.method in FROM_SCAN else []
    data = [] if variant.method in NEED_A_PROOF else ["data=labelled-parquet", f"data.path={part(cell, 'clean')}"]
    given = [*(SAME if variant.same else ()), *variant.settings, *rate(method)[0]]
    yield (
        out / "repair",
        [
            *("repair", f"model.path={model}", f"method={variant.method}", *data, *scan, *CLASSES, *given),
            *(f"out={out}/repair", PRECISION, "register=null", "cluster.workers=1"),
        ],
    )
    repaired = [f"model.path={out}/repair/checkpoint"]
    if variant.method == "rvpt":
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
        "trained_parameters": summary["parameters"]["trained"],
        "settings": rate(method)[1],
        "seconds": summary["training_seconds"],
        "clean_accuracy_change_points": round(
            evaluation["clean_accuracy_pct"] - read_summary(before)["evaluation"]["clean_accuracy_pct"], 1
        ),
    }


def main() -> int:
    """Run the repairs, print their commands, or store their figures."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help="default: all that have been scanned")
    parser.add_argument("--methods", nargs="+", choices=[NONE, *VARIANTS], default=[NONE, *VARIANTS])
    parser.add_argument("--commands", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--store", action="store_true", help="store the figures of what has run and run nothing")
    parser.add_argument("--choose", metavar="CELL", help="choose rates on a development attack, and run nothing else")
    options = parser.parse_args()
    chosen = [(cell, method) for cell in options.cells or cells() for method in options.methods if fits(cell, method)]
    sweeps = [
        choosing(options.choose, method)
        for method in options.methods
        if options.choose and method in VARIANTS and VARIANTS[method].lr is not None and fits(options.choose, method)
    ]
    if options.commands:
        rows = [step for cell, method in chosen for step in steps(cell, method)]
        for _, arguments in sweeps or rows:
            sys.stdout.write(photos.as_shell(arguments) + "\n")
        return 0
    folder = photos.found_assets()
    if folder is None:
        return 0
    if options.choose:
        draw_parts(options.choose, folder)
        for out, arguments in sweeps:
            photos.run(out, arguments, folder)
        return 0
    for cell, method in chosen:
        if not options.store:
            draw_parts(cell, folder)
            for out, arguments in steps(cell, method):
                photos.run(out, arguments, folder)
        row = row_of(cell, method)
        if row is not None:
            record("repair", [row], command=REPAIR_COMMANDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
