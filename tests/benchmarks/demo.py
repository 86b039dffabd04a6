"""The figures of `clipsan demo`, stored for RESULTS.md and the README.

    python -m tests.benchmarks.demo

Runs the demo into runs/demo, unless it has finished there before.
"""

import subprocess
import sys
from pathlib import Path

import yaml

from clipsan.pipeline.core.run_folder import read_summary
from tests.benchmarks.figures import WHOLE_SCAN, attack_row, detector_rows, scan_row
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.demo"
ROOT = Path(__file__).resolve().parents[2]
OUT = Path("runs/demo")


def rows_of(home: Path) -> list[Row]:
    """Return the rows of a finished demo: the suspect model and its clean twin with their scans, the repair, every detector."""
    settings = yaml.safe_load((home / "run.yaml").read_text(encoding="utf-8"))["config"]
    summary = read_summary(home)
    training = settings["training"]
    architecture = training["model"]["config"] or training["model"]["name"]
    common: Row = {"data": settings["data"]["kind"], "model": Path(architecture).stem, "seed": training["seed"]}
    attacked: Row = {**common, "attack": settings["attack"]["trigger"]["kind"]}
    twin: Row = {**common, "attack": "clean"}
    found, clean = read_summary(home / "story" / "scan"), read_summary(home / "scan-twin")
    whole: Row = {"seconds": summary["seconds"]}
    suspect_row = {**scan_row(attacked, found, summary["target"]), **attack_row({}, summary["evaluation"]), **whole}
    twin_row = {**scan_row(twin, clean, None), **attack_row({}, summary["twin"]["evaluation"]), **whole}
    repaired: list[Row] = []
    if summary["after"]:
        name = f"{attacked['attack']}, repaired by {summary['method']}"
        repaired = [{**attack_row({**common, "attack": name}, summary["after"]), "detector": WHOLE_SCAN}]
    return [suspect_row, *repaired, twin_row, *detector_rows(attacked, found)]


def main() -> int:
    """Run the demo where it has not finished, and store its figures."""
    if not (ROOT / OUT / "summary.json").is_file():
        subprocess.run([sys.executable, "-m", "clipsan.pipeline", "demo", f"out={OUT}"], cwd=ROOT, check=True)
    record("demo", rows_of(ROOT / OUT), command=COMMAND)
    return 0


if __name__ == "__main__":
    sys.exit(main())
