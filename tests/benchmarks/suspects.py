"""The zoo's suspects, made fast on one GPU and brought back as finished trainings of its matrices.

    python -m tests.benchmarks.suspects make WORK --device cuda --processes 6 --seconds 215
    python -m tests.benchmarks.suspects send WORK OUT          on the GPU, after it; again, as long as it says that results are left
    python -m tests.benchmarks.suspects restore WORK FOLDER... put what was sent back into WORK, from which `make` goes on
    python -m tests.benchmarks.suspects unpack FOLDER...       here: what `send` gave, as run folders of the zoo
    python -m tests.benchmarks.suspects cells rare [CELL...]   evaluate and scan what was unpacked, and store the figures
    python -m tests.benchmarks.suspects make WORK --device cpu --tiny --processes 1 --regime rare --cells patch-s0       a trial

`make` needs torch, timm, safetensors, pyarrow, pillow, scipy, PyYAML, regex, huggingface_hub, and as wheels where they are missing
pydantic (pydantic_core, annotated_types, typing_inspection), ftfy (wcwidth) and open_clip_torch; neither Ray nor MLflow. A bare
checkout wants

    make links
    export PYTHONPATH=$PWD/build/links:$PYTHONPATH CLIPSAN_ASSETS=FOLDER

where FOLDER has tiny-imagenet-train-*, tiny-imagenet20-train-* and both -val, 89 MiB in all. 6 processes share the GPU. One of them
pretrains the ViT (`--vit-seconds`, 110); the others retrain the clean ResNets and then fine-tune cell after cell of the matrices,
those that teach most first. `make` ends about half a minute after `--seconds` at the latest. Photos are decoded once, training is
bf16 in a plain loop (suspects_training.py), poisoning is that of `clipsan poison` (suspects_photos.py). An attack that does not
reach 90 % is made again with 1.5 and 2.2 times the pairs; the matrix here then needs that rate, or `unpack` leaves the cell out and
says so. Each result is in WORK/made as soon as it is there; one that fails stands in WORK/failed with its traceback and stops no
other. A model's figures are measured after it was packed and unpacked. Repairs that need clean pairs alone are made there, too
(suspects_repairs.py), with rates chosen on a development split; `unpack` stores their rows. A killed `make` goes on where it was,
but for what was then in work (WORK/claims). On an H100 the ViT beside five other processes had 742 steps in 85 s, ten epochs, and
stayed weak (4.6 % of 200 classes): make it alone first (`--regime vit-pretrained --cells patch-s0 --processes 1`).

`send` copies what has not been sent to files of at most 15 MiB, at most 60 MiB in all: about 18 models a call.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clipsan.pipeline.core.commit import whole, write_text
from clipsan.pipeline.core.config import as_tree
from tests.benchmarks.regimes import REGIMES, ROOT, write_classes
from tests.benchmarks.suspects_packing import Packed
from tests.benchmarks.suspects_photos import Photos, read
from tests.benchmarks.suspects_tasks import TAUGHT_BY, Task, real, sets, tasks
from tests.benchmarks.suspects_worker import CLAIMS, FAILED, MADE, Options, Worker, say

COMMAND = "python -m tests.benchmarks.suspects"
SENT = "sent"
FILE_BYTES, CALL_BYTES = 15 * 2**20, 60 * 2**20
DECODERS = 12
TINY_PAIRS = 200


def make(options: Options, regimes: Sequence[str], chosen: Sequence[str], processes: int) -> int:
    """Decode the photos, start the processes, wait for them, and say what was made."""
    started = time.monotonic()
    for name in (MADE, FAILED, CLAIMS):
        (options.work / name).mkdir(parents=True, exist_ok=True)
    for name in regimes:
        write_classes(Path(real(REGIMES[name].test)), ROOT / REGIMES[name].classes)
    for name, (source, path) in sets(regimes).items():
        if not (options.work / "photos" / name / "facts.json").is_file():
            found = read(replace(source, path=real(path)), min(DECODERS, os.cpu_count() or 1))
            (shortened(found) if options.tiny else found).save(options.work / "photos" / name)
    say(f"photos are decoded after {time.monotonic() - started:.1f} s")
    told = {**as_tree(options), "regimes": list(regimes), "cells": list(chosen)}
    write_text(options.work / "told.json", json.dumps(told))
    command = [sys.executable, "-m", "tests.benchmarks.suspects", "worker", str(options.work)]
    running = [subprocess.Popen(command) for _ in range(processes)]
    codes = [process.wait() for process in running]
    say(f"{len(list((options.work / MADE).glob('*.bin')))} made, {len(list((options.work / FAILED).iterdir()))} failed")
    say(f"{time.monotonic() - started:.0f} s in all")
    return max(codes)


def shortened(photos: Photos) -> Photos:
    """Return the first pairs, for a trial."""
    return photos.take(np.arange(min(TINY_PAIRS, len(photos.uids))))


def work(home: Path) -> int:
    """Be one of the processes that `make` starts."""
    told = json.loads((home / "told.json").read_text(encoding="utf-8"))
    todo = tasks(told.pop("regimes"), told.pop("cells"))
    options = Options(**{**told, "work": home})
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    Worker(options, todo).run()
    return 0


def send(home: Path, out: Path, regimes: Sequence[str]) -> int:
    """Copy what has not been sent into a folder, as much as one call may bring back."""
    (home / SENT).mkdir(exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    files: list[bytes] = [b""]
    left, total, names = 0, 0, []
    for task in tasks(regimes, ()):
        path = home / MADE / f"{task.name}.bin"
        if not path.is_file() or (home / SENT / task.name).exists():
            continue
        size = path.stat().st_size
        if total + size > CALL_BYTES:
            left += 1
            continue
        if len(files[-1]) + size > FILE_BYTES:
            files.append(b"")
        files[-1] += path.read_bytes()
        total += size
        names.append(task.name)
    first = len(list((home / SENT).iterdir()))
    for number, data in enumerate(files if total else ()):
        (out / f"bundle-{first:03d}-{number}.bin").write_bytes(data)
    for name in names:
        (home / SENT / name).touch()
    failures = sorted((home / FAILED).iterdir())
    write_text(
        out / f"failed-{first:03d}.txt", "\n".join(f"{p.name}\n{p.read_text(encoding='utf-8')}" for p in failures)
    )
    say(f"sent {len(names)} results of {total / 2**20:.1f} MiB; {left} are left, {len(failures)} failed")
    return 0


def restore(home: Path, folders: Sequence[Path]) -> int:
    """Put what was sent back to where `make` goes on from, on this machine or another."""
    (home / MADE).mkdir(parents=True, exist_ok=True)
    for path in (path for folder in folders for path in sorted(folder.glob("*.bin"))):
        for packed in Packed.loads(path.read_bytes()):
            with whole(home / MADE / f"{Task(**packed.facts['task']).name}.bin") as temporary:
                temporary.write_bytes(packed.dumps())
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Make, send, unpack, or go on with the cells."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make", help="train the models")
    making.add_argument("work", type=Path)
    making.add_argument("--regime", nargs="+", choices=TAUGHT_BY, default=list(TAUGHT_BY))
    making.add_argument("--cells", nargs="*", default=[], metavar="ATTACK-sSEED", help="default: all")
    making.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    making.add_argument("--processes", type=int, default=6)
    making.add_argument("--seconds", type=float, default=215.0, help="after which nothing is begun")
    making.add_argument("--vit-seconds", type=float, default=110.0, help="that the ViT is trained for")
    making.add_argument("--tiny", action="store_true", help="few photos and steps, to try it")
    verbs.add_parser("worker").add_argument("work", type=Path)
    sending = verbs.add_parser("send", help="copy what was made and not sent before")
    sending.add_argument("work", type=Path)
    sending.add_argument("out", type=Path)
    restoring = verbs.add_parser("restore", help="go on from what was sent")
    restoring.add_argument("work", type=Path)
    restoring.add_argument("folders", type=Path, nargs="+")
    unpacking = verbs.add_parser("unpack", help="write run folders from what was sent")
    unpacking.add_argument("folders", type=Path, nargs="+")
    going_on = verbs.add_parser("cells", help="evaluate and scan what was unpacked")
    going_on.add_argument("regime", choices=TAUGHT_BY)
    going_on.add_argument("cells", nargs="*", metavar="ATTACK-sSEED")
    going_on.add_argument("--steps", nargs="+", default=[], help="only these of poison, evaluate, scan")
    options = parser.parse_args(arguments)
    if options.verb == "make":
        deadline = time.time() + options.seconds
        told = Options(options.work.resolve(), options.device, deadline, options.vit_seconds, options.tiny)
        return make(told, options.regime, options.cells, options.processes)
    if options.verb == "worker":
        return work(options.work)
    if options.verb == "send":
        return send(options.work, options.out, TAUGHT_BY)
    if options.verb == "restore":
        return restore(options.work, options.folders)
    # these need all of clipsan, which the GPU's machine has not
    from tests.benchmarks import suspects_cells

    if options.verb == "unpack":
        return suspects_cells.unpack_all(options.folders)
    return suspects_cells.go_on(options.regime, options.cells, options.steps)


if __name__ == "__main__":
    sys.exit(main())
