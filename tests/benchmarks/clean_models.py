"""What is named of clean pairs under clean models: nothing may be, but for the stated rate.

    python -m tests.benchmarks.clean_models OUT --model NAME CHECKPOINT FORMAT PATH --model ...

Each model scans its pairs (`data=FORMAT data.path=PATH`) without an oracle into OUT/NAME; a finished scan is not run again. A row a model
goes to tests/benchmarks/results/. The null of concept_sides is the data itself, so of C clean concepts the smallest chance is about
1 / C: their product is the last figure, and far below 1 it says that chances are too small.

Once the code scores pairs anew, the folders of an earlier OUT are refused: with `--embeddings EARLIER` a new OUT takes the embeddings of
each model that EARLIER has, and embeds for the others.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipsan.pipeline.core.config import load
from clipsan.pipeline.scan import verb as scan
from clipsan.pipeline.scan.plan import ScanConfig
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.clean_models OUT --model NAME CHECKPOINT FORMAT PATH"


def settings_of(out: Path, name: str, checkpoint: str, form: str, path: str, earlier: Path | None = None) -> ScanConfig:
    """Return the settings of one model's scan: the defaults, without an oracle, on the embeddings that an earlier `out` has of it."""
    given = [f"data={form}", f"data.path={path}", f"model.path={checkpoint}", f"out={out / name}", "oracle=null"]
    if earlier is not None and (earlier / name / "embeddings").is_dir():
        given.append(f"embeddings={earlier / name}")
    return load(ScanConfig, None, [*given, "cluster.workers=1", "tracking.enabled=false"], verb="scan")


def row_of(name: str, path: str, summary: Mapping[str, Any]) -> Row:
    """Return one model's row from the summary of its scan."""
    sides = summary["detectors"]["ConceptSides"]
    chances = [concept["chance"] for concept in sides["concepts"]]
    return {
        "model": name,
        "data": Path(path).name,
        "pairs": sum(summary["counts"]["verdicts"].values()),
        "concepts": sides["concepts_divided"],
        "rate_pct": 100 * sides["false_discovery_rate"],
        "named": len(summary["targets"]),
        "names": ", ".join(summary["targets"]) or None,
        "flagged": summary["counts"]["flagged"],
        "least_chance_times_concepts": round(min(chances) * sides["concepts_divided"], 3) if chances else None,
    }


def main() -> int:
    """Scan with every model, store and print what was named."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    metavar = ("NAME", "CHECKPOINT", "FORMAT", "PATH")
    parser.add_argument("--model", nargs=4, action="append", required=True, metavar=metavar)
    parser.add_argument("--embeddings", type=Path, metavar="EARLIER", help="OUT of an earlier run of this command")
    options = parser.parse_args()
    named = 0
    for name, checkpoint, form, path in options.model:
        summary = scan.VERB.start(settings_of(options.out, name, checkpoint, form, path, options.embeddings))
        row = row_of(name, path, summary)
        record("clean_models", [row], command=COMMAND)
        named += len(summary["targets"])
        sys.stdout.write(f"{name}: {row['concepts']} concepts, named: {row['names'] or 'none'}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(options.model)} clean models, {named} concepts named\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
