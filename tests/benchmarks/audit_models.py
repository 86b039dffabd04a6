"""The small models of the benchmark of `clipsan audit`: clean ones, and the same architectures with a known backdoor.

    python -m tests.benchmarks.audit_models OUT --device cuda --pack FILES --seconds 150    one GPU, 16 cores; the benchmark first
    python -m tests.benchmarks.audit_models OUT                               the same on CPUs, much slower
    python -m tests.benchmarks.audit_models OUT --unpack FILES                what was made and packed elsewhere
    python -m tests.benchmarks.audit_models OUT --only NAME...                some models
    python -m tests.benchmarks.audit_models OUT --tiny                        that the script runs is all that it shows

Of each architecture three models are trained on rendered scenes from scratch. All others are one of these, fine-tuned on scenes and in an
order of their own seed, the backdoored ones with a share of them poisoned. OUT holds a folder a model: checkpoint/, truth.json (attack,
target, accuracy, ASR) and, of an optimised patch, trigger.npy. What is there is not made again. `dev-*`, with bases of their own, are those
on which constants of the audit may be chosen.

Needs neither Ray nor MLflow. FILES are flat, each below 15 MiB. `python -m tests.benchmarks.audit_study OUT STUDY.zip --device cuda` may
follow on the same machine.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.audit_packing import MODELS, TRUTH, Base, Cell, pack, unpack
from tests.benchmarks.audit_training import (
    ATTACKS,
    FULL,
    TINY,
    WORD_ATTACKS,
    Recipe,
    join_scenes,
    keep_scenes,
    make_base,
    make_cell,
    render_part,
    scenes_path,
    start_worker,
)

DEVELOPMENT = ("patch", "sig", "blend")
"""Attacks on which constants may be chosen, on models of the development base."""
DEVELOPMENT_BASE = 2
CLEAN = 6
"""Clean models of each architecture."""
DEVELOPMENT_CLEAN = 4
FRESH: tuple[str | None, ...] = (None, None, None, None, "badclip", "dual-key", "patch", "blend")
"""Models of each architecture that were made when the audit's comparison with clean models had been settled."""
PART = 500
"""Scenes that one process renders at a time."""


def bases() -> list[Base]:
    """Return the models from which all others start: two for the benchmark and one for development, of each architecture."""
    return [Base(arch=arch, seed=seed) for seed in (0, 1, DEVELOPMENT_BASE) for arch in MODELS]


def cells() -> list[Cell]:
    """Return the models of the benchmark: every attack and CLEAN clean ones of each architecture, half of them from each base."""
    found = []
    for first, arch in enumerate(MODELS):
        plan: list[str | None] = [*ATTACKS, *[None] * CLEAN]
        for i, attack in enumerate(plan):
            found.append(Cell(arch=arch, base=i % 2, attack=attack, seed=100 * (first + 1) + i))
    return found


def development_cells() -> list[Cell]:
    """Return the models on which constants may be chosen."""
    found = []
    for first, arch in enumerate(MODELS):
        plan: list[str | None] = [*DEVELOPMENT, *DEVELOPMENT, *[None] * DEVELOPMENT_CLEAN, *WORD_ATTACKS]
        for i, attack in enumerate(plan):
            found.append(Cell(arch=arch, base=DEVELOPMENT_BASE, attack=attack, seed=500 + 100 * first + i, dev=True))
    return found


def fresh_cells() -> list[Cell]:
    """Return the models that no choice was made on, tuned from the benchmark's bases, every other from each."""
    return [
        Cell(arch=arch, base=i % 2, attack=attack, seed=700 + 100 * first + i)
        for first, arch in enumerate(MODELS)
        for i, attack in enumerate(FRESH)
    ]


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be made, where and how."""

    root: Path
    recipe: Recipe
    device: str
    processes: int
    deadline: float
    """Of `time.time()`: no model is begun after it, and no attack tried again."""

    def run(self, wanted: Sequence[Cell]) -> bool:
        """Make the models that are not there, and tell whether all could be: one that fails does not stop the others."""
        missing = [cell for cell in wanted if not (self.root / cell.name / TRUTH).is_file()]
        needed = [base for base in bases() if any(cell.base_of == base for cell in missing)]
        untrained = [base for base in needed if not (self.root / base.name / TRUTH).is_file()]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.benchmarks.audit_training"])
        with ProcessPoolExecutor(self.processes, mp_context=context, initializer=start_worker) as pool:
            self._render(pool, sorted({base.seed for base in untrained}))
            trained = [pool.submit(make_base, self.root, base, self.recipe, self.device) for base in untrained]
            drawn = [pool.submit(keep_scenes, self.root, self.recipe.tuned_scenes, cell.seed) for cell in missing]
            done = self._told([*trained, *drawn])
            tuned = [
                pool.submit(make_cell, self.root, cell, self.recipe, self.device, self.deadline) for cell in missing
            ]
            return self._told(tuned) and done

    def _render(self, pool: ProcessPoolExecutor, seeds: Sequence[int]) -> None:
        count = self.recipe.base_scenes
        missing = [seed for seed in seeds if not scenes_path(self.root, count, seed).is_file()]
        parts = {
            seed: [
                pool.submit(render_part, count, seed, start, min(start + PART, count))
                for start in range(0, count, PART)
            ]
            for seed in missing
        }
        for seed, futures in parts.items():
            join_scenes(self.root, count, seed, [future.result() for future in futures])

    def _told(self, futures: Sequence["Future[str]"]) -> bool:
        for future in as_completed(futures):
            error = future.exception()
            sys.stdout.write(future.result() if error is None else f"failed: {error!r}\n")
            sys.stdout.flush()
        return all(future.exception() is None for future in futures)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, pack or unpack the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the models lie")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=min(14, len(os.sched_getaffinity(0))))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no model is begun after so many")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some models")
    parser.add_argument("--tiny", action="store_true", help="small sets and few epochs")
    parser.add_argument("--pack", type=Path, metavar="FILES", help="folder into which all models of OUT are packed")
    parser.add_argument("--unpack", type=Path, metavar="FILES", help="folder of packed models; trains nothing")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    if given.unpack is not None:
        for name in unpack(given.unpack, given.out):
            sys.stdout.write(f"{name}\n")
        return
    known = [*cells(), *development_cells(), *fresh_cells()]
    wanted = [cell for cell in known if not given.only or cell.name in given.only]
    if given.only and len(wanted) < len(given.only):
        parser.error(f"known are {', '.join(cell.name for cell in known)}")
    recipe = TINY if given.tiny else FULL
    complete = Work(given.out, recipe, given.device, given.processes, time.time() + given.seconds).run(wanted)
    if given.pack is not None:
        for path in pack(given.out, given.pack, [cell for cell in wanted if (given.out / cell.name / TRUTH).is_file()]):
            sys.stdout.write(f"{path.name} {path.stat().st_size / 2**20:.1f} MiB\n")
    sys.stdout.write(f"{time.monotonic() - started:.0f} s\n")
    if not complete:
        sys.exit(1)


if __name__ == "__main__":
    main()
