"""What a sweep recommends that does not know the attack, against the best trial of all, and what early stopping saves.

    python -m tests.benchmarks.sweep                          PAR on every attack that has been proven
    python -m tests.benchmarks.sweep patch-s0 sig-s0          on some
    python -m tests.benchmarks.sweep patch-s0 --method finetune
    python -m tests.benchmarks.sweep --commands               the commands alone
    python -m tests.benchmarks.sweep --store                  store the figures of what has run

Each attack has two sweeps over the same grid: one that runs every trial to its end, and one with ASHA. Both decide by the
ASR of the scan's proven triggers and by clean accuracy on half of the test photos; the true ASR, on the other half, is
written down and enters no decision. The suspect models are those of `python -m tests.benchmarks.zoo common`, the scans those of
`python -m tests.benchmarks.proof`; both come first. A sweep is a command of clipsan with a run folder below runs/sweep/; what has
finished is not run again, and what was killed goes on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clipsan.pipeline.core.run_folder import read_summary
from tests.benchmarks import photos
from tests.benchmarks.repair import SCANS, cells
from tests.benchmarks.results import Row, record
from tests.benchmarks.zoo import cell_home, cell_names

RUNS = Path("runs/sweep")
COMMAND = "python -m tests.benchmarks.sweep"
TRAIN = "$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet"
TEST = "$CLIPSAN_ASSETS/tiny-imagenet20-val.parquet"
STEPS = 60
PAIRS = 2500
MAX_LOSS = 3.0
HALVING = "{reduction: 3, rungs: 2, first_share: 0.125}"
KINDS = {"grid": "null", "asha": HALVING}
"""Name of each sweep's folder -> its early stopping."""

SPACES = {
    "par": {"method.lr": [1e-4, 3e-4, 1e-3], "method.tau": ["auto", 0.5, 1.0]},
    "finetune": {"method.lr": [1e-4, 3e-4, 1e-3], "method.weight_decay": [0.01, 0.1, 1.0]},
    "cleanclip": {"method.lr": [3e-4, 1e-3, 3e-3], "method.inmodal_weight": [0.5, 1.0, 4.0]},
    "unlearn": {"method.lr": [1e-4, 3e-4, 1e-3], "method.keep_weight": [1.0, 5.0, 20.0]},
}


def steps(cell: str, method: str, seed: int) -> list[tuple[Path, list[str]]]:
    """Return (run folder, arguments of clipsan) of both sweeps of an attack."""
    space = {name: {"kind": "grid", "values": values} for name, values in SPACES[method].items()}
    attack = _attack(cell)
    found = []
    for kind, halving in KINDS.items():
        out = home(cell, method, seed) / kind
        found.append(
            (
                out,
                [
                    *(
                        "sweep",
                        f"repair.model.path={cell_home(cell) / 'train' / 'checkpoint'}",
                        f"repair.method={method}",
                    ),
                    *("repair.method.batch_size=128", f"repair.steps={STEPS}", f"repair.pairs={PAIRS}"),
                    *("repair.data=labelled-parquet", f"repair.data.path={TRAIN}", f"repair.scan={SCANS / cell}"),
                    *(f"repair.classes={photos.RUNS}/classes.yaml", f"templates={photos.TEMPLATES}"),
                    *(f"space={json.dumps(space)}", "search={kind: grid}", f"halving={halving}"),
                    *("held_out.data=labelled-parquet", f"held_out.data.path={TEST}", f"seed={seed}"),
                    *(f"max_accuracy_loss_points={MAX_LOSS:g}", "resistivity_images=64", "objective=proven"),
                    *(f"truth={json.dumps({'attack': attack})}", f"out={out}", "register=null"),
                    *("concurrent=1", "cluster.workers=1"),
                ],
            )
        )
    return found


def home(cell: str, method: str, seed: int) -> Path:
    """Return the folder of an attack's two sweeps."""
    return RUNS / f"{cell}-{method}-{seed}"


def _attack(cell: str) -> dict[str, Any]:
    """Return the attack as the zoo measured it."""
    path = photos.ROOT / cell_home(cell) / "evaluate" / "run.yaml"
    attack: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["config"]["attack"]
    return attack


def chosen_cells() -> list[str]:
    """Return the attacks that have been proven, without the one whose trigger is half text, which no picture shows."""
    return [cell for cell in cells() if _attack(cell).get("text_key") is None]


def row_of(cell: str, method: str, seed: int) -> Row | None:
    """Return the row of an attack; None until both sweeps have finished."""
    folders = [photos.ROOT / home(cell, method, seed) / kind for kind in KINDS]
    if not all((folder / "summary.json").exists() for folder in folders):
        return None
    grid, asha = (read_summary(folder) for folder in folders)
    names = cell_names(cell)
    whole = [row for row in grid["rows"] if row["state"] == "finished"]
    kept = [row["true_asr_pct"] for row in whole if row["accuracy_loss_points"] <= MAX_LOSS]
    found, of_grid = _recommended(asha), _recommended(grid)
    best = min(kept, default=None)
    asr = None if found is None else found["true_asr_pct"]
    return {
        **names,
        "model_seed": names["seed"],
        "method": method,
        "seed": seed,
        "trials": len(grid["rows"]),
        "steps": STEPS,
        "failed": grid["counts"]["failed"] + asha["counts"]["failed"],
        "stopped_early": asha["counts"]["stopped"],
        "before_asr_pct": _rounded(grid["before"]["true_asr_pct"]),
        "before_accuracy_pct": _rounded(grid["before"]["accuracy_pct"]),
        "recommended_asr_pct": _rounded(asr),
        "recommended_accuracy_pct": None if found is None else _rounded(found["accuracy_pct"]),
        "recommended_proven_asr_pct": None if found is None else _rounded(found["objective_pct"]),
        "recommended_of_grid_asr_pct": None if of_grid is None else _rounded(of_grid["true_asr_pct"]),
        "best_asr_pct": _rounded(best),
        "gap_points": None if asr is None or best is None else round(asr - best, 1),
        "lowest_asr_pct": _rounded(min((row["true_asr_pct"] for row in whole), default=None)),
        "compute_ratio": round(asha["compute"]["steps"] / max(1, grid["compute"]["steps"]), 3),
        "seconds_ratio": round(asha["compute"]["trial_seconds"] / max(0.1, grid["compute"]["trial_seconds"]), 3),
        "seconds": grid["compute"]["trial_seconds"],
    }


def _recommended(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    found = [row for row in summary["rows"] if row["recommended"]]
    return found[0] if found else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _run(out: Path, arguments: list[str], folder: Path) -> None:
    """Run a sweep; that a trial failed, or that none is recommended, is a result like another."""
    try:
        photos.run(out, arguments, folder)
    except subprocess.CalledProcessError:
        if not (photos.ROOT / out / "summary.json").is_file():
            raise


def main() -> int:
    """Run the sweeps, print their commands, or store their figures."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help="default: all whose scan has proven a trigger")
    parser.add_argument("--method", choices=list(SPACES), default="par")
    parser.add_argument("--seed", type=int, default=0, help="of the sweep: its sample, its split of the test photos")
    parser.add_argument("--commands", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--store", action="store_true", help="store the figures of what has run and run nothing")
    options = parser.parse_args()
    chosen = options.cells or chosen_cells()
    if options.commands:
        for cell in chosen:
            for _, arguments in steps(cell, options.method, options.seed):
                sys.stdout.write(photos.as_shell(arguments) + "\n")
        return 0
    folder = photos.found_assets()
    if folder is None:
        return 0
    for cell in chosen:
        if not options.store:
            for out, arguments in steps(cell, options.method, options.seed):
                _run(out, arguments, folder)
        row = row_of(cell, options.method, options.seed)
        if row is not None:
            record("sweep", [row], command=COMMAND)
    return 0


if __name__ == "__main__":
    sys.exit(main())
