"""The attack zoo on photos: every attack against every detector, with a target that is common and with one that is rare.

    python -m tests.benchmarks.zoo common              20 concepts, 500 photos of the target
    python -m tests.benchmarks.zoo rare                200 concepts, 74 photos of the target
    python -m tests.benchmarks.zoo vit                 common, with a ViT
    python -m tests.benchmarks.zoo vit-pretrained      common, with a larger ViT that has learned from 200 concepts
    python -m tests.benchmarks.zoo common --precision f32    trained in float32: faster on some processors
    python -m tests.benchmarks.zoo common --commands   the commands alone
    python -m tests.benchmarks.zoo common --store      store the figures of what has run

A clean model is trained first, and BadCLIP's patch made on it; then `clipsan bench` poisons copies of it with each attack of
tests/benchmarks/matrices/NAME.yaml. Everything is a command of clipsan with a run folder below runs/, and what has finished
is not run again. The photos are no part of the project: CLIPSAN_ASSETS names their folder.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipsan.pipeline.bench import table as bench_table
from clipsan.pipeline.bench.plan import make_plan
from clipsan.pipeline.bench.settings import BenchConfig
from clipsan.pipeline.core.config import load
from tests.benchmarks import photos
from tests.benchmarks.figures import PHOTO_COMMANDS, WHOLE_SCAN
from tests.benchmarks.regimes import REGIMES, Regime, write_classes
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.zoo"


def cell_home(cell: str) -> Path:
    """Return the folder of a cell, named ATTACK-sSEED, which is one of common, or REGIME/ATTACK-sSEED."""
    regime, _, name = cell.rpartition("/")
    return REGIMES[regime or "common"].out / "cells" / name


def cell_names(cell: str) -> Row:
    """Return what names a cell in a table."""
    regime, _, name = cell.rpartition("/")
    attack, _, seed = name.rpartition("-s")
    chosen = REGIMES[regime or "common"]
    return {"data": chosen.data, "attack": attack, "seed": int(seed), "model": chosen.shown}


def steps(regime: Regime, precision: str = "bf16") -> Iterator[tuple[Path, list[str]]]:
    """Yield (run folder, arguments of clipsan), in order."""
    given = (f"model.config=conf/model/{regime.model}.json", f"epochs={regime.base_epochs}")
    kept = (argument for argument in photos.TRAINING if not argument.startswith(("model.", "epochs=", "precision=")))
    model = [*given, *kept, f"precision={precision}"]
    yield (
        regime.base_run,
        ["train", "data=labelled-parquet", f"data.path={regime.base}", *model, f"out={regime.base_run}"],
    )
    if regime.patch is not None:
        yield (
            regime.patch,
            [
                *("trigger", "data=labelled-parquet", f"data.path={regime.train}"),
                *(f"model.path={regime.base_run}/checkpoint", f"target={photos.TARGET}"),
                *("badclip.size_fraction=0.14", f"out={regime.patch}"),
            ],
        )
    if regime.name == "rare":
        # the clean model on its clean pairs: with 200 concepts there is more to name wrongly
        scan = regime.base_run.with_name("scan")
        yield (
            scan,
            [
                *("scan", "data=labelled-parquet", f"data.path={regime.train}"),
                *(f"model.path={regime.base_run}/checkpoint", f"out={scan}", "cluster.workers=1"),
            ],
        )
    yield regime.out, bench(regime, precision)


def bench(regime: Regime, precision: str = "bf16") -> list[str]:
    """Return the arguments of the matrix."""
    matrix = f"tests/benchmarks/matrices/{regime.name}.yaml"
    captioned = [] if regime.name == "rare" else [f"evaluate.retrieval.data.path={regime.test}"]
    trained = []
    if precision != "bf16":
        trained = [f"train.precision={precision}"]
        trained += [] if regime.name == "rare" else [f"evaluate.rebound.precision={precision}"]
    return ["bench", matrix, f"data.path={regime.train}", f"evaluate.data.path={regime.test}", *captioned, *trained]


def run(regime: Regime, precision: str, folder: Path) -> None:
    """Run what is left of a regime and store its figures."""
    write_classes(folder / Path(regime.test).name, photos.ROOT / regime.classes)
    *before, (_, matrix) = steps(regime, precision)
    for out, arguments in before:
        photos.run(out, arguments, folder)
    photos.execute(matrix, folder)  # it knows itself what is left of it
    store(regime, precision, folder)


def store(regime: Regime, precision: str, folder: Path) -> None:
    """Store the figures of the cells that have finished, whether or not the others have."""
    _, file, *overrides = [argument.replace("$CLIPSAN_ASSETS", str(folder)) for argument in bench(regime, precision)]
    with contextlib.chdir(photos.ROOT):
        plan = make_plan(load(BenchConfig, file, overrides, verb="bench"))
        rows = bench_table.rows(plan, {})
    cells = {(row["attack"], row["seed"]): row for row in rows if row.get("clean_accuracy_pct") is not None}
    record("attacks", [attack_row(regime, row) for row in cells.values()], command=PHOTO_COMMANDS)
    detection = [scan_row(regime, row) for row in cells.values() if row.get("flagged") is not None]
    detection += [detector_row(regime, row) for row in rows if row["detector"] is not None]
    record("detection", detection, command=PHOTO_COMMANDS)


def cell(regime: Regime, row: Mapping[str, Any]) -> Row:
    """Return what names a cell."""
    return {
        "data": regime.data,
        "attack": row["attack"],
        "rate_pct": row["rate_pct"] or 0.0,
        "model": regime.shown,
        "seed": row["seed"],
        "control": row["control"],
        "admitted": bool(row["admitted"]),
    }


def attack_row(regime: Regime, row: Mapping[str, Any]) -> Row:
    """Return the row of attacks.json."""
    figures: Row = {"clean_model_asr_pct": rounded(row["clean_model_asr_pct"])}
    for name in (
        "clean_accuracy",
        "asr",
        "false_target",
        "accuracy_under_trigger",
        "rebound_asr",
        "rebound_clean_accuracy",
    ):
        if row.get(f"{name}_pct") is not None:
            figures[f"{name}_pct"] = rounded(row[f"{name}_pct"])
            figures[f"{name}_pct_ci95"] = [rounded(row[f"{name}_low_pct"]), rounded(row[f"{name}_high_pct"])]  # type: ignore[list-item]
    figures["resistivity"] = rounded(row.get("resistivity"), 4)
    trigger = row["trigger"] or "none"
    return {**cell(regime, row), "trigger": trigger, "pairs": row["pairs"], "poisoned": row["poisoned"], **figures}


def scan_row(regime: Regime, row: Mapping[str, Any]) -> Row:
    """Return the row of detection.json that says what the scan decided."""
    named = ("pairs", "poisoned", "flagged", "flagged_poisoned", "target_named", "wrong_targets")
    return {**cell(regime, row), "detector": WHOLE_SCAN, "targets": row["named"], **{n: row[n] for n in named}}


def detector_row(regime: Regime, row: Mapping[str, Any]) -> Row:
    """Return the row of detection.json for one detector."""
    figures = {
        name: rounded(row[name], 4 if name in ("auroc", "average_precision", "fpr95") else 2)
        for name in row
        if name in ("auroc", "average_precision", "fpr95") or name.startswith(("recall_at_", "precision_at_"))
    }
    return {**cell(regime, row), "detector": row["detector"], **figures}


def rounded(value: float | None, digits: int = 2) -> float | None:
    """Return the figure as it is stored."""
    return None if value is None else round(float(value), digits)


def main() -> int:
    """Run the regimes, print their commands, or store their figures."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("regimes", nargs="*", metavar="REGIME", help=f"of {', '.join(REGIMES)}; default: all")
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16", help="of the trainings")
    parser.add_argument("--commands", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--store", action="store_true", help="store the figures of what has run and run nothing")
    options = parser.parse_args()
    unknown = [name for name in options.regimes if name not in REGIMES]
    if unknown:
        parser.error(f"no regime {', '.join(unknown)}; there are {', '.join(REGIMES)}")
    chosen = [REGIMES[name] for name in options.regimes or REGIMES]
    if options.commands:
        for regime in chosen:
            for _, arguments in steps(regime, options.precision):
                sys.stdout.write(photos.as_shell(arguments) + "\n")
        return 0
    folder = photos.found_assets()
    if folder is None:
        return 0
    for regime in chosen:
        if options.store:
            store(regime, options.precision, folder)
        else:
            run(regime, options.precision, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
