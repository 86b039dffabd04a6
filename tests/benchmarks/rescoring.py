"""What the detectors of this checkout make of pairs that are embedded already: a table to hold two versions of them together.

    python -m tests.benchmarks.rescoring runs/zoo/rare/cells/*/scan                       the figures, one line a scan
    python -m tests.benchmarks.rescoring runs/zoo/rare/cells/*/scan --json after.json     and all of them in a file
    python -m tests.benchmarks.rescoring runs/zoo/rare/cells/*/scan --wordless            captions that share no word, text vectors kept
    python -m tests.benchmarks.rescoring --compare before.json after.json                 average precision and naming, before and after

A scan is the run folder of `clipsan scan`, finished or stopped after its embeddings, or any folder with embeddings/, manifest.parquet and
a file `scale` that holds the model's exp(logit_scale). Nothing is encoded again and nothing is written into it. The truth is the
manifest that the scan was given; without one the pairs are clean, and only the naming is of interest. The last line says how far the
ensemble falls behind the best single column. One process, one thread.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from threadpoolctl import threadpool_limits

from clipsan.pipeline.bench.table import is_target
from clipsan.pipeline.core.commit import write_text
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.scan.output import manifest_uids, score_names, truth_mask
from clipsan.stages.detectors import DetectorsConfig
from clipsan.stages.evaluation.detection import auroc, average_precision
from clipsan.stages.model.clip import ModelConfig, load_clip
from tests.benchmarks.scoring import score, without_words

COMMAND = "python -m tests.benchmarks.rescoring"

Row = dict[str, Any]


def truth_of(scan: Path) -> Path | None:
    """Return the manifest that a scan was given."""
    if (scan / "run.yaml").is_file():
        given = yaml.safe_load((scan / "run.yaml").read_text(encoding="utf-8"))["config"]["manifest"]
        return None if given is None else Path(given)
    return scan / "manifest.parquet" if (scan / "manifest.parquet").is_file() else None


def scale_of(scan: Path) -> float:
    """Return exp(logit_scale) of the model that a scan embedded with."""
    if (scan / "scale").is_file():
        return float((scan / "scale").read_text(encoding="utf-8"))
    model = yaml.safe_load((scan / "run.yaml").read_text(encoding="utf-8"))["config"]["model"]
    return load_clip(ModelConfig(**model)).scale


def figures(scan: Path, settings: DetectorsConfig, *, wordless: bool = False) -> Row:
    """Return what the detectors make of one scan's pairs; `wordless`: with captions that share no word, named by what they were."""
    embeddings, manifest = Parts.of(scan / "embeddings"), truth_of(scan)
    with tempfile.TemporaryDirectory(prefix="clipsan-rescoring-") as folder:
        home = Path(folder)
        were: dict[str, str] = {}
        if wordless:
            embeddings, were = without_words(embeddings, home / "embeddings")
        _, findings = score(embeddings, home, settings, scale_of(scan))
        scores = embeddings.beside(home / "scores")
        columns = {name: scores.column(name).astype(np.float64) for name in score_names(scores)}
        poisoned = np.zeros(scores.total, bool)
        targets: list[str] = []
        if manifest is not None:
            poisoned = truth_mask(scores, manifest_uids(str(manifest)))
            names = pq.read_table(manifest, columns=["target"]).column("target").to_pylist()
            targets = sorted({name for name in names if name is not None})
    named = [were.get(name, name) for name in findings.targets]
    accused = columns["ensemble"] >= findings.threshold
    row: Row = {
        "scan": str(scan),
        "pairs": len(poisoned),
        "poisoned": int(poisoned.sum()),
        "named": named,
        "right": sorted(name for name in named if any(is_target(name, t) for t in targets)),
        "accused": int(accused.sum()),
        "accused_poisoned": int((accused & poisoned).sum()),
    }
    if poisoned.any():
        row["average_precision"] = {n: round(average_precision(v, poisoned), 4) for n, v in columns.items()}
        row["auroc"] = {n: round(auroc(v, poisoned), 4) for n, v in columns.items()}
        row["fpr_at_full_recall"] = {n: round(full_recall(v, poisoned), 4) for n, v in columns.items()}
    return row


def full_recall(scores: np.ndarray, poisoned: np.ndarray) -> float:
    """Return the share of clean pairs at or above the lowest poisoned one."""
    return float((scores[~poisoned] >= scores[poisoned].min()).mean())


def line(row: Row) -> str:
    """Return one scan as a line: the ensemble, the best single columns, and what was named."""
    said = f"{row['scan']}: named {', '.join(row['named']) or 'nothing'}; accused {row['accused']}, poison {row['accused_poisoned']}"
    if "average_precision" not in row:
        return said
    single = sorted(((v, n) for n, v in row["average_precision"].items() if n != "ensemble"), reverse=True)[:3]
    best = ", ".join(f"{name} {value:.3f}" for value, name in single)
    whole, rate = row["average_precision"]["ensemble"], row["fpr_at_full_recall"]["ensemble"]
    return (
        f"{said} of {row['poisoned']}; AP {whole:.3f}, {whole - single[0][0]:+.3f} beside the best single column, "
        f"FPR at full recall {100 * rate:.2f} % ({best})"
    )


def beside_the_best(rows: Sequence[Row]) -> str:
    """Return by how much the ensemble falls short of the best single column of each scan, in average precision, at most."""
    short = [
        max(value for name, value in found.items() if name != "ensemble") - found["ensemble"]
        for row in rows
        if (found := row.get("average_precision")) is not None
    ]
    if not short:
        return "no scan has poison to measure the ensemble by"
    return (
        f"{len(short)} scans: the ensemble's AP is at most {max(0.0, *short):.3f} below that of the best single column"
    )


def compare(before: Path, after: Path) -> str:
    """Return two files of figures as one table."""
    old = {row["scan"]: row for row in json.loads(before.read_text(encoding="utf-8"))}
    lines = [
        "| scan | poisoned | AP before | AP | best column | AP beside it | FPR at full recall | named before | named |",
        "|" + "---|" * 9,
    ]
    for row in json.loads(after.read_text(encoding="utf-8")):
        found, known = row.get("average_precision"), old.get(row["scan"], {})
        was = known.get("average_precision", {}).get("ensemble")
        cells = [row["scan"], str(row["poisoned"]), "" if was is None else f"{was:.3f}"]
        if found is None:
            cells += [""] * 4
        else:
            value, name = max((v, n) for n, v in found.items() if n != "ensemble")
            cells += [
                f"{found['ensemble']:.3f}",
                f"{name} {value:.3f}",
                f"{found['ensemble'] - value:+.3f}",
                f"{100 * row['fpr_at_full_recall']['ensemble']:.2f} %",
            ]
        cells += [", ".join(known.get("named", [])), ", ".join(row["named"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Score and print, or compare."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scans", nargs="*", type=Path, metavar="SCAN")
    parser.add_argument(
        "--wordless", action="store_true", help="give each pair a caption that shares no word with another"
    )
    parser.add_argument("--json", type=Path, help="file that all figures are written to")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    if options.compare:
        sys.stdout.write(compare(*options.compare) + "\n")
        return 0
    rows: list[Row] = []
    with threadpool_limits(1):
        for scan in options.scans:
            rows.append(figures(scan, DetectorsConfig(), wordless=options.wordless))
            sys.stdout.write(line(rows[-1]) + "\n")
            sys.stdout.flush()
            if options.json:
                write_text(options.json, json.dumps(rows, indent=1) + "\n")
    sys.stdout.write(beside_the_best(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
