"""Processor seconds that the passes which score take, a thousand pairs: density, learning rounds, scores, ensemble.

    python -m tests.benchmarks.scoring                                    20,000 made pairs, vectors 128 wide
    python -m tests.benchmarks.scoring --pairs 4000 --width 768
    python -m tests.benchmarks.scoring --wordless                         each caption a word of its own; the text vectors stay
    python -m tests.benchmarks.scoring --scan runs/demo/story/scan        the cached embeddings of a scan

The works are those of `clipsan scan`, one after the other in this process on one thread; processor time says the same on a machine that
others use. Imports are made before the clock starts. Of a round, what does not grow with the pairs (the update of the state) stands apart.
Below stands what each detector took of it; the rest is reading and writing.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.stats  # noqa: F401 - imported before the clock starts
import sklearn.tree  # noqa: F401 - the same
from threadpoolctl import threadpool_limits

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.scan.work import CombineWork, DensityWork, ScoreWork, SummaryWork, density_pieces, merge_all
from clipsan.stages.detectors import DetectorsConfig, Findings, StreamingDetector, build_suite
from clipsan.stages.detectors.claim import DEFAULT_SCALE
from clipsan.stages.samples import seeded_hash

COMMAND = "python -m tests.benchmarks.scoring"
PART_ROWS = 4096
CLASSES, ADJECTIVES, PLACES = 400, 60, 40
"""Words of the made captions; how often a class comes falls off as 1 / rank."""


def made_pairs(count: int, width: int, layers: int) -> pa.Table:
    """Return a made embedding cache: clusters, one a class, as wide in every layer, and captions that name them."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, CLASSES + 1)
    own = rng.choice(CLASSES, count, p=share / share.sum())
    adjective, place = rng.integers(ADJECTIVES, size=count), rng.integers(PLACES, size=count)
    said = zip(adjective, own, place, strict=True)
    columns: dict[str, Any] = {
        "uid": [f"made/{i:08d}" for i in range(count)],
        "caption": [f"a photo of a {_word('a', a)} {_word('c', c)} in the {_word('p', p)}" for a, c, p in said],
        "image_sha256": [f"{value:016x}" + 48 * "0" for value in range(count)],
        "dhash": pa.array(rng.integers(2**63, size=count).astype(np.uint64)),
    }
    for name in ("image", "text", *(f"layer.{i}" for i in range(layers))):
        centres = rng.standard_normal((CLASSES, width))
        spread = rng.standard_normal((width, width)) / np.sqrt(width)
        vectors = centres[own] + 1.2 * rng.standard_normal((count, width)) @ spread
        if name == "text":  # equal captions have equal vectors
            vectors = centres[own] + 0.3 * (centres[adjective] + centres[ADJECTIVES + place])
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
    return pa.table(columns)


def _word(first: str, number: int) -> str:
    return first + "".join("bdfgklmnrt"[int(digit)] + "o" for digit in f"{number:03d}")


def without_words(embeddings: Parts, home: Path) -> tuple[Parts, dict[str, str]]:
    """Write the embeddings anew, each pair with a caption that no other has; return them, and what the captions were."""
    were: dict[str, str] = {}
    for number in embeddings.numbers:
        table = embeddings.read(number)
        fresh = [f"q{value:016x}" for value in seeded_hash(table.column("uid").to_pylist(), 0, "captions").tolist()]
        were |= dict(zip(fresh, table.column("caption").to_pylist(), strict=True))
        table = table.set_column(table.schema.get_field_index("caption"), "caption", pa.array(fresh, pa.string()))
        write_part(home, number, table, "")
    return Parts.of(home), were


STEPS = {"learn": ("summarise", "merge"), "updates": ("update",), "score": ("tell", "score", "tallies")}
"""What a detector does -> the methods that do it."""


class Clock:
    """Processor time by the name of what took it."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.own: dict[str, Counter[str]] = {}
        """Detector -> the same of it alone, by what it does."""
        self._inside = False

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        began = time.process_time()
        yield
        self.spent[name] += time.process_time() - began

    def watch(self, detector: StreamingDetector) -> None:
        """Count what a detector does."""
        own = self.own.setdefault(detector.name, Counter())
        for step, methods in STEPS.items():
            for method in methods:
                setattr(detector, method, self._watched(own, step, getattr(detector, method)))

    def _watched(self, own: Counter[str], step: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            if self._inside:  # one of its methods may call another
                return method(*args)
            self._inside, began = True, time.process_time()
            try:
                return method(*args)
            finally:
                self._inside = False
                own[step] += time.process_time() - began

        return counted


def learn(name: str, detectors: Sequence[StreamingDetector], table: Parts, clock: Clock) -> list[Any]:
    """Return the final states of the detectors, as the scan learns them."""
    states = [detector.start() for detector in detectors]
    for number in range(max(d.rounds for d in detectors)):
        active = [i for i, d in enumerate(detectors) if d.rounds > number]
        work = SummaryWork([detectors[i] for i in active], [states[i] for i in active], table)
        merged: list[Any] = []
        with clock(f"{name} {number + 1}"):
            for chunk in table.chunks():
                fresh = work.do(chunk, None).record
                merged = merge_all(work.detectors, merged, fresh) if merged else fresh
        with clock("updates"):
            for i, summary in zip(active, merged, strict=True):
                states[i] = detectors[i].update(states[i], summary)
    return states


def score(
    embeddings: Parts, home: Path, settings: DetectorsConfig, scale: float = DEFAULT_SCALE
) -> tuple[Clock, Findings]:
    """Score the pairs of a cache as `clipsan scan` does, into `home`/scores; return processor seconds by pass, and what was found."""
    clock = Clock()
    suite = build_suite(settings, pairs=embeddings.total, trusted=None, scale=scale)
    for detector in suite.detectors:
        clock.watch(detector)
    with clock("density"):
        work = DensityWork(settings.density, embeddings)
        for keys, piece in density_pieces(embeddings.rows, settings.density).items():
            for key, table in zip(keys, work.do(piece, None).parts, strict=True):
                write_part(home / "density", key, table, "")
    states = learn("learn", suite.detectors, embeddings, clock)
    with clock("score"):
        scoring = ScoreWork(
            detectors=suite.detectors,
            states=states,
            embeddings=embeddings,
            density=home / "density",
            permutations=settings.density.permutations,
        )
        for number in embeddings.pieces:
            write_part(home / "raw", number, scoring.do(number, None).parts[0], "")
    raw = embeddings.beside(home / "raw")
    ensemble = suite.ensemble(states)
    clock.watch(ensemble)
    (state,) = learn("weigh", [ensemble], raw, clock)
    with clock("combine"):
        for number in embeddings.pieces:
            write_part(home / "scores", number, CombineWork(ensemble, state, raw).do(number, None).parts[0], "")
    return clock, suite.findings(states, ensemble, state)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--scan", type=Path, help="run folder of a scan, whose embeddings are scored")
    parser.add_argument(
        "--wordless", action="store_true", help="give each pair a caption that shares no word with another"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipsan-scoring-") as folder, threadpool_limits(1):
        home = Path(folder)
        if options.scan is None:
            table = made_pairs(options.pairs, options.width, options.layers)
            for number, start in enumerate(range(0, table.num_rows, PART_ROWS)):
                write_part(home / "embeddings", number, table.slice(start, PART_ROWS), "")
        embeddings = Parts.of((options.scan or home) / "embeddings")
        if options.wordless:
            embeddings, _ = without_words(embeddings, home / "wordless")
        clock, _ = score(embeddings, home, DetectorsConfig())
    spent = clock.spent
    for name, seconds in spent.items():
        sys.stdout.write(f"{name:10}{1000 * seconds / embeddings.total:8.4f} CPU s a thousand pairs\n")
    whole = sum(spent.values())
    sys.stdout.write(
        f"{'all':10}{1000 * whole / embeddings.total:8.4f} CPU s a thousand of {embeddings.total:,} pairs, "
        f"{1000 * (whole - spent['updates']) / embeddings.total:.4f} without the updates, which do not grow with them\n"
    )
    for detector, own in clock.own.items():
        steps = "  ".join(f"{step}{1000 * own[step] / embeddings.total:8.4f}" for step in STEPS)
        sys.stdout.write(f"{detector:20}{steps}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
