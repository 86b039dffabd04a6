"""One trial of a sweep of detectors: the cache scored anew with settings of its own, measured by the proven pairs."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipsan.stages.search.space import Point

from ..core.parts import Parts
from ..core.pass_ import in_this_process
from ..core.run_folder import RunFolder
from ..scan import verb as scan
from ..scan.output import detection_summary, manifest_uids, truth_mask
from ..scan.plan import ScanConfig

FIGURES = "figures.json"
ERROR = "error.txt"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rescan:
    """One scan of the cache with settings of its own; picklable."""

    number: int
    point: Point
    scan: ScanConfig
    folder: Path
    fingerprint: str

    @property
    def figures(self) -> Row | None:
        """What it found; None until it has finished."""
        path = self.folder / FIGURES
        found: Row | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return found if found is not None and found["fingerprint"] == self.fingerprint else None

    @property
    def error(self) -> str | None:
        path = self.folder / ERROR
        return path.read_text(encoding="utf-8") if path.is_file() else None


def measure(trial: Rescan, proven: tuple[str, ...], manifest: str | None) -> Row:
    """Scan the cache with a trial's settings in this process; return its figures.

    `average_precision` is the ensemble's for the proven pairs against all others, `detectors` has every detector's; with the
    manifest `true_average_precision` says the same of the truth.
    """
    started = time.monotonic()
    with in_this_process():
        summary = scan.VERB.start(trial.scan)
    folder = RunFolder(Path(trial.scan.out))
    scores = Parts.of(folder.scores)
    found = detection_summary(scores, truth_mask(scores, pa.array(proven)))
    figures: Row = {
        "fingerprint": trial.fingerprint,
        "seconds": round(time.monotonic() - started, 1),
        "average_precision": found["ensemble"]["average_precision"],
        "recall_at_1_pct": 100 * found["ensemble"]["recall_at"]["0.01"],
        "detectors": {name: own["average_precision"] for name, own in found.items()},
        "named": summary["targets"],
        "flagged": summary["counts"]["flagged"],
    }
    if manifest is not None:
        truth = truth_mask(scores, manifest_uids(manifest))
        true = detection_summary(scores, truth)
        figures["true_average_precision"] = true["ensemble"]["average_precision"]
    # the scores can be made again from the settings in seconds; a hundred copies of them need not lie there
    shutil.rmtree(folder.local, ignore_errors=True)
    return figures
