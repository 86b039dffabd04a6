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
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from clipsan.pipeline.bench.attacks import resolve_attack, seeds_of
from clipsan.pipeline.bench.settings import BenchConfig
from clipsan.pipeline.core.commit import whole, write_text
from clipsan.pipeline.core.config import as_tree, load, validate
from clipsan.pipeline.evaluate.plan import read_classes
from clipsan.pipeline.train.plan import TrainConfig
from clipsan.stages.attack.badclip import BadClipConfig, PatchOptimiser, encode_pairs, encode_target, measure
from clipsan.stages.attack.poisoning import AttackConfig, contains_word
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip, save_clip
from clipsan.stages.samples import seeded_hash
from tests.benchmarks.regimes import REGIMES, ROOT, Regime, write_classes
from tests.benchmarks.repair_variants import CHOSEN, VARIANTS
from tests.benchmarks.suspects_packing import Packed, pack, unpack
from tests.benchmarks.suspects_photos import Photos, poison, read
from tests.benchmarks.suspects_repairs import BLIND, Parts, Patient, blind, choose, rebound, repair, settings_of
from tests.benchmarks.suspects_training import Loaded, Recipe, figures, fit, pretrain, probe, tokens_of

COMMAND = "python -m tests.benchmarks.suspects"
MADE, FAILED, CLAIMS, SENT = "made", "failed", "claims", "sent"
LEAST_ASR_PCT = 90.0
ATTEMPTS = (1.0, 1.5, 2.2)
"""Times the rate of the matrix."""
FILE_BYTES, CALL_BYTES = 15 * 2**20, 60 * 2**20
TAUGHT_BY = ("rare", "vit-pretrained", "common")
DEVELOPMENT = ("patch", "sig", "blend")
BLINDED = ("clean", "patch", "sig", "wanet")
"""Their models are also repaired as one that nothing accuses."""
FROM_SCAN = ("eftclip", "unlearn", "tbar", "project")
"""Methods that need a scan."""
VIT = "vit-pretrained"
DECODERS = 12
TINY_PAIRS = 200
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to make."""

    kind: str
    """base, badclip, cell, choice (of a method's rate) or repair."""
    regime: str
    cell: str = ""
    method: str = ""
    """Of repair_variants, or BLIND."""

    @property
    def name(self) -> str:
        """Of its file."""
        if not self.method:
            return f"{self.regime}.{self.cell or self.kind}"
        return f"{self.regime}.{self.kind}.{self.cell}.{self.method}"

    @property
    def needs(self) -> list[str]:
        """What must be made before."""
        if self.kind == "base":
            return []
        if self.kind == "choice":
            return [f"{self.regime}.{self.cell}"]
        if self.kind == "repair":
            variant = VARIANTS.get(self.method)
            chosen = variant is not None and variant.lr is not None
            return [f"{self.regime}.{self.cell}", *([f"{self.regime}.choice.patch-s0.{self.method}"] if chosen else [])]
        patch = [f"{self.regime}.badclip"] if self.cell.startswith("badclip") else []
        return [f"{self.regime}.base", *patch]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a matrix."""

    attack: AttackConfig | None
    seed: int
    train: TrainConfig


@dataclass(frozen=True, slots=True)
class Options:
    """What every process is told."""

    work: Path
    device: str
    deadline: float
    """Seconds since the epoch after which nothing is begun."""
    vit_seconds: float
    tiny: bool


def matrix(regime: Regime) -> BenchConfig:
    """Return the matrix of a regime, on the photos of this machine."""
    file = ROOT / "tests" / "benchmarks" / "matrices" / f"{regime.name}.yaml"
    paths = [f"data.path={real(regime.train)}", f"evaluate.data.path={real(regime.test)}"]
    if regime.name != "rare":
        paths.append(f"evaluate.retrieval.data.path={real(regime.test)}")
    return load(BenchConfig, str(file), paths, verb="bench")


def real(path: str) -> str:
    """Return a path with the folder of photos in it."""
    return path.replace("$CLIPSAN_ASSETS", os.environ["CLIPSAN_ASSETS"])


def cells(regime: Regime) -> dict[str, Cell]:
    """Return the cells of a regime by name; a control that trains on the clean set is the clean cell itself."""
    bench = matrix(regime)
    found: dict[str, Cell] = {}
    for name, given in {**bench.attacks, **bench.controls}.items():
        attack = None if name == "clean" else resolve_attack(bench, name, given)
        if attack is not None and attack.control and attack.trigger.kind == "identity":
            continue
        for seed in seeds_of(bench, name):
            tree = {**bench.train, "data": as_tree(bench.data), "out": "", "seed": seed}
            settings = validate(TrainConfig, tree, verb="train")
            found[f"{name}-s{seed}"] = Cell(None if attack is None else replace(attack, seed=seed), seed, settings)
    return found


def tasks(regimes: Sequence[str], chosen: Sequence[str]) -> list[Task]:
    """Return what is to be made, in order: the ViT, which takes longest, the other clean models, then the cells by what they teach."""
    ordered = [name for name in (VIT, *TAUGHT_BY) if name in regimes]
    found = [Task("base", name) for name in dict.fromkeys(ordered)]
    wanted = {name: [c for c in cells(REGIMES[name]) if not chosen or c in chosen] for name in ordered}
    with_patch = [name for name, own in wanted.items() if any(c.startswith("badclip") for c in own)]
    found += [Task("badclip", name) for name in with_patch]
    every = [Task("cell", name, cell) for name in TAUGHT_BY if name in wanted for cell in wanted[name]]
    for name in (VIT, "common"):
        every += repairs(name, wanted[name]) if name in wanted else []
    return found + sorted(every, key=_rank)


def repairs(regime: str, cells: Sequence[str]) -> list[Task]:
    """Return the repairs of a regime's suspects, and the choices of their rates."""
    methods = [name for name, variant in VARIANTS.items() if variant.method not in FROM_SCAN]
    methods = [name for name in methods if regime == VIT or VARIANTS[name].method != "rvpt"]
    found = [Task("choice", regime, "patch-s0", name) for name in methods if VARIANTS[name].lr is not None]
    found = found if "patch-s0" in cells else []
    for cell in cells:
        attack, _, seed = cell.rpartition("-s")
        if attack in DEVELOPMENT and found:
            kept = methods if seed == "0" else [name for name in methods if VARIANTS[name].lr is not None]
            found += [Task("repair", regime, cell, name) for name in kept]
        if attack in BLINDED and seed == "0":
            found.append(Task("repair", regime, cell, BLIND))
    return found


def _rank(task: Task) -> tuple[int, int]:
    attack, _, seed = task.cell.rpartition("-s")
    regime = TAUGHT_BY.index(task.regime)
    if task.kind == "choice" or (task.method == BLIND):
        return 1, regime
    if task.kind == "repair":
        return 2 + 2 * (seed != "0"), regime
    if (attack in DEVELOPMENT or task.regime == VIT) and seed == "0":
        return 0, regime
    if attack in BLINDED and task.regime == "common" and seed == "0":
        return 0, regime
    return 1 + (task.regime == "common") + 2 * (seed != "0"), regime


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


def sets(regimes: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Return name -> (source, path) of the photos that are needed."""
    found: dict[str, tuple[Any, str]] = {}
    for name in regimes:
        regime, bench = REGIMES[name], matrix(REGIMES[name])
        for path in (regime.base, regime.train, regime.test):
            found[set_name(path)] = (bench.data, path)
    if VIT in regimes:
        found["tiny-imagenet-val"] = (matrix(REGIMES[VIT]).data, "$CLIPSAN_ASSETS/tiny-imagenet-val.parquet")
    return found


def set_name(path: str) -> str:
    """Return the name of the folder of some photos."""
    return Path(path).name.partition(".")[0].replace("[", "").replace("]", "").replace("*", "all")


def shortened(photos: Photos) -> Photos:
    """Return the first pairs, for a trial."""
    return photos.take(np.arange(min(TINY_PAIRS, len(photos.uids))))


class Worker:
    """Makes one thing after the other, whatever no other process has claimed."""

    def __init__(self, options: Options, todo: Sequence[Task]) -> None:
        self._options, self._todo = options, list(todo)
        self._clips: dict[str, Clip] = {}
        self._states: dict[str, dict[str, torch.Tensor]] = {}
        self._loaded: dict[str, tuple[Photos, Loaded]] = {}
        self._cells = {name: cells(REGIMES[name]) for name in {task.regime for task in todo}}

    def run(self) -> None:
        """Work until nothing is left or the time is over."""
        while time.time() < self._options.deadline:
            task = self._claim()
            if task is None:
                if not self._waiting():
                    return
                time.sleep(LOOK_EVERY_S)
                continue
            started = time.monotonic()
            try:
                packed = getattr(self, f"_{task.kind}")(task)
                with whole(self._file(task.name)) as temporary:
                    temporary.write_bytes(packed.dumps())
                told = {k: v for k, v in packed.facts.items() if k not in ("tensors", "attack")}
                say(json.dumps(told | {"made_in_s": round(time.monotonic() - started, 1), "bytes": len(packed.body)}))
            except Exception as error:
                write_text(self._options.work / FAILED / task.name, traceback.format_exc())
                say(f"{task.name} FAILED: {type(error).__name__}: {error}")

    def _file(self, name: str) -> Path:
        return self._options.work / MADE / f"{name}.bin"

    def _open(self) -> Iterator[Task]:
        taken = {path.name for path in (self._options.work / CLAIMS).iterdir()}
        taken |= {path.stem for path in (self._options.work / MADE).glob("*.bin")}
        yield from (task for task in self._todo if task.name not in taken)

    def _claim(self) -> Task | None:
        for task in self._open():
            if all(self._file(name).is_file() for name in task.needs):
                try:
                    (self._options.work / CLAIMS / task.name).touch(exist_ok=False)
                except FileExistsError:
                    continue
                return task
        return None

    def _waiting(self) -> bool:
        """Whether something is left that may yet come to be ready."""
        failed = {path.name for path in (self._options.work / FAILED).iterdir()}
        failed |= {task.name for task in self._todo if failed & set(task.needs)}
        return any(not failed & set(task.needs) for task in self._open())

    def _photos(self, path: str) -> Photos:
        return Photos.saved(self._options.work / "photos" / set_name(path))

    def _on_device(self, path: str, clip: Clip) -> tuple[Photos, Loaded]:
        """Return photos and their pairs on the device, which stay there; all models tokenise alike."""
        if path not in self._loaded:
            photos = self._photos(path)
            self._loaded[path] = (photos, Loaded.of(photos, clip))
        return self._loaded[path]

    def _fresh(self, regime: Regime) -> Clip:
        """Return a model of a regime's architecture as it is before any training."""
        return load_clip(ModelConfig(config=str(model_file(regime))), self._options.device, init_seed=0)

    def _clean(self, regime: Regime) -> tuple[Clip, dict[str, torch.Tensor]]:
        """Return the clean model of a regime, with its weights."""
        if regime.name not in self._clips:
            clip = self._fresh(regime)
            (packed,) = Packed.loads(self._file(f"{regime.name}.base").read_bytes())
            self._states[regime.name] = unpack(packed, clip.model.state_dict())
            self._clips[regime.name] = clip
        clip = self._clips[regime.name]
        clip.model.load_state_dict(self._states[regime.name])
        return clip, self._states[regime.name]

    def _figures(self, regime: Regime, clip: Clip, cell: Cell | None) -> dict[str, float]:
        names = read_classes(str(ROOT / regime.classes))
        templates = matrix(regime).evaluate["templates"]
        attack, seed = (None, 0) if cell is None else (cell.attack, cell.seed)
        return figures(clip, self._photos(regime.test), names, templates, attack, seed)

    def _base(self, task: Task) -> Packed:
        regime = REGIMES[task.regime]
        clip = self._fresh(regime)
        if regime.name == VIT:
            facts, tokens = self._pretrain(regime, clip)
        else:
            _, loaded = self._on_device(regime.base, clip)
            facts, tokens = (
                {"loss": round(fit(clip, loaded, base_training(regime, self._options.tiny)), 4)},
                loaded.tokens,
            )
        packed = pack(clip.model.state_dict(), None, tokens.unique().cpu().numpy(), {"task": as_tree_of(task), **facts})
        clip.model.load_state_dict(unpack(packed, clip.model.state_dict()))
        more: dict[str, float] = self._figures(regime, clip, None)
        if regime.name == VIT:
            more |= self._of_pretrained(regime, clip)
        return Packed(packed.facts | more, packed.body)

    def _pretrain(self, regime: Regime, clip: Clip) -> tuple[dict[str, Any], torch.Tensor]:
        """Pretrain the ViT on every photo that is there: those of 200 concepts, and of 20 of them those that are only in the other set."""
        photos, loaded = self._on_device(regime.base, clip)
        names = names_of(regime.base)
        others, more = self._on_device(regime.train, clip)
        place = {name: label for label, name in enumerate(names)}
        own = names_of(regime.train)
        known = {
            pixels.tobytes()
            for pixels in np.concatenate(
                [photos.pixels, self._photos(VIT_TEST).pixels, self._photos(regime.test).pixels]
            )
        }
        fresh = [row for row, pixels in enumerate(others.pixels) if pixels.tobytes() not in known]
        labels = np.concatenate([photos.labels, [place[own[label]] for label in others.labels[fresh].tolist()]])
        pixels = torch.cat([loaded.pixels, more.pixels[torch.tensor(fresh, dtype=torch.int64, device=clip.device)]])
        data: Any = matrix(regime).data
        templates = data.captions_from_labels.templates
        recipe = Recipe(seconds=self._options.vit_seconds)
        recipe = replace(recipe, batch_size=32) if self._options.tiny else recipe
        wanted = torch.from_numpy(labels.astype(np.int64)).to(clip.device)
        told = pretrain(clip, pixels, wanted, names, templates, recipe)
        return {"photos": len(pixels), "pretraining": told}, torch.cat([loaded.tokens, more.tokens])

    def _of_pretrained(self, regime: Regime, clip: Clip) -> dict[str, float]:
        """Return what the pretrained ViT makes of 200 concepts."""
        names, test, train = names_of(regime.base), self._photos(VIT_TEST), self._photos(regime.base)
        shown = figures(clip, test, names, matrix(regime).evaluate["templates"], None, 0)
        return {
            "clean_accuracy_of_200_pct": shown["clean_accuracy_pct"],
            "probe_of_200_pct": probe(clip, train, test, train.labels),
        }

    def _badclip(self, task: Task) -> Packed:
        """Optimise BadCLIP's patch as `clipsan trigger` does, on the same sample of pairs."""
        regime = REGIMES[task.regime]
        assert regime.patch is not None
        clip, _ = self._clean(regime)
        photos, target = self._photos(regime.train), matrix(regime).target or ""
        settings = BadClipConfig(size_fraction=0.14)
        draw = seeded_hash(photos.uids, 0, "trigger.sample")
        named = np.array([contains_word(caption, target) for caption in photos.captions])
        others, own = (
            [row for row in np.argsort(draw, kind="stable").tolist() if named[row] == of] for of in (False, True)
        )
        others, own = others[:2500], own[:500]
        kept = 4 * len(others) // 5

        def pictures(rows: list[int]) -> tuple[list[torch.Tensor], list[str]]:
            images = [torch.from_numpy(np.array(photos.pixels[row]).transpose(2, 0, 1).copy()) for row in rows]
            return images, [photos.captions[row] for row in rows]

        meant = encode_target(clip, *pictures(own))
        optimiser = PatchOptimiser(clip, encode_pairs(clip, *pictures(others[:kept])), meant, settings)
        for _ in range(1 if self._options.tiny else settings.epochs):
            optimiser.run_epoch()
        held_out = encode_pairs(clip, *pictures(others[kept:]))
        flips = measure(clip, held_out, meant, optimiser.pixels(), settings)["flip_pct"]
        picture = self._options.work / f"{task.name}.png"
        Image.fromarray(optimiser.pixels()).save(picture)
        there = ROOT / regime.patch / "patch.png"
        there.parent.mkdir(parents=True, exist_ok=True)
        with whole(there) as temporary:
            temporary.write_bytes(picture.read_bytes())
        return Packed({"task": as_tree_of(task), "flip_pct": round(flips, 1), "tensors": []}, picture.read_bytes())

    def _cell(self, task: Task) -> Packed:
        regime, cell = REGIMES[task.regime], self._cells[task.regime][task.cell]
        best: Packed | None = None
        for times in ATTEMPTS if cell.attack is not None and not cell.attack.control else ATTEMPTS[:1]:
            try:
                found = self._attempt(task, regime, at_rate(cell, times))
            except ValueError:
                if best is None:  # more pairs than there are is no failure of an attempt at a higher rate
                    raise
                break
            best = found if best is None or found.facts.get("asr_pct", 0) > best.facts.get("asr_pct", 0) else best
            if found.facts.get("asr_pct", 100.0) >= LEAST_ASR_PCT or time.time() > self._options.deadline:
                break
        assert best is not None
        return best

    def _attempt(self, task: Task, regime: Regime, cell: Cell) -> Packed:
        clip, before = self._clean(regime)
        photos, loaded = self._on_device(regime.train, clip)
        facts: dict[str, Any] = {"task": as_tree_of(task), "attack": as_tree(cell.attack), "seed": cell.seed}
        if cell.attack is not None:
            done = poison(photos, cell.attack)
            facts |= {"rate": cell.attack.rate, "poisoned": len(done.rows), "pairs": len(photos.uids)}
            facts["concept_poisoned_pct"] = done.share_of_concept_pct(photos, cell.attack)
            loaded = loaded.with_rows(done.rows, done.pixels, tokens_of(done.captions, clip))
        settings = replace(cell.train, epochs=1) if self._options.tiny else cell.train
        facts["loss"] = round(fit(clip, loaded, settings), 4)
        packed = pack(clip.model.state_dict(), before, loaded.tokens.unique().cpu().numpy(), facts)
        clip.model.load_state_dict(unpack(packed, before))
        return Packed(packed.facts | self._figures(regime, clip, cell), packed.body)

    def _patient(self, task: Task) -> tuple[Patient, Cell]:
        """Return a suspect with what a repair of it knows."""
        regime, cell = REGIMES[task.regime], self._cells[task.regime][task.cell]
        clip, before = self._clean(regime)
        (packed,) = Packed.loads(self._file(f"{task.regime}.{task.cell}").read_bytes())
        # of this process: two that put the same folder in place would disturb each other
        home = self._options.work / "checkpoints" / f"{task.regime}.{task.cell}.{os.getpid()}"
        if not (home / "open_clip_config.json").is_file():
            clip.model.load_state_dict(unpack(packed, before))
            save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, home)
        if cell.attack is not None:
            cell = replace(cell, attack=replace(cell.attack, rate=packed.facts["rate"]))
        photos = self._photos(regime.train)
        victims = np.zeros(0, int) if cell.attack is None else poison(photos, cell.attack).rows
        names, templates = read_classes(str(ROOT / regime.classes)), matrix(regime).evaluate["templates"]
        patient = Patient(
            model=ModelConfig(path=str(home)),
            device=torch.device(self._options.device),
            photos=photos,
            parts=Parts.of(photos, victims),
            classes=tuple(names),
            templates=tuple(templates),
            quick=self._options.tiny,
        )
        return patient, cell

    def _choice(self, task: Task) -> Packed:
        patient, _ = self._patient(task)
        home = str(self._options.work / "checkpoints" / f"{task.name}.canary")
        return Packed({"task": as_tree_of(task), "tensors": [], **choose(patient, task.method, home)}, b"")

    def _repair(self, task: Task) -> Packed:
        regime = REGIMES[task.regime]
        patient, cell = self._patient(task)
        facts: dict[str, Any] = {"task": as_tree_of(task), "tensors": []}
        if task.method == BLIND:
            done = blind(patient, str(self._options.work / "checkpoints" / f"{task.name}.canary"))
        else:
            variant, lr = VARIANTS[task.method], None
            if variant.lr is not None:
                (choice,) = Packed.loads(self._file(f"{task.regime}.choice.patch-s0.{task.method}").read_bytes())
                lr = choice.facts["lr"] or variant.lr
                facts["settings"] = CHOSEN if choice.facts["lr"] else f"{variant.lr_from}; no rate kept the accuracy"
            else:
                facts["settings"] = "as published" if task.method.endswith("-published") else "the method's own"
            if variant.method == "cleanclip" and find_spec("wn") is None:
                facts["settings"] += "; no synonyms"
            facts["lr"] = lr
            done = repair(patient, settings_of(variant, lr))
        facts |= {**done.facts, **self._figures(regime, done.clip, cell)}
        facts["card"] = torch.cuda.get_device_name() if self._options.device == "cuda" else ""
        if cell.attack is not None and (task.method == BLIND or VARIANTS[task.method].method != "rvpt"):
            rebound(patient, done.clip, np.arange(len(patient.photos.uids)))
            facts |= {f"rebound_{name}": value for name, value in self._figures(regime, done.clip, cell).items()}
        return Packed(facts, b"")


VIT_TEST = "tiny-imagenet-val.parquet"


def at_rate(cell: Cell, times: float) -> Cell:
    """Return the cell with so many times its pairs poisoned."""
    if cell.attack is None or cell.attack.rate is None or times == 1:
        return cell
    return replace(cell, attack=replace(cell.attack, rate=round(cell.attack.rate * times, 4)))


def model_file(regime: Regime) -> Path:
    """Return the architecture of a regime."""
    return ROOT / "conf" / "model" / f"{regime.model}.json"


def base_training(regime: Regime, tiny: bool) -> TrainConfig:
    """Return how a clean ResNet is trained: as `python -m tests.benchmarks.zoo` does."""
    tree = {
        "data": as_tree(replace(matrix(regime).data, path=real(regime.base))),
        "model": {"config": str(model_file(regime))},
        "out": "",
        "epochs": 1 if tiny else regime.base_epochs,
        "batch_size": 128,
        "lr": 2e-3,
        "precision": "bf16",
    }
    return validate(TrainConfig, tree, verb="train")


def names_of(path: str) -> list[str]:
    """Return the class names by label of some photos."""
    found: dict[int, str] = {}
    for file in sorted(Path(os.environ["CLIPSAN_ASSETS"]).glob(Path(path).name)):
        table = pq.read_table(file, columns=["label", "names"])
        found |= dict(zip(table.column("label").to_pylist(), table.column("names").to_pylist(), strict=True))
    return [found[label] for label in sorted(found)]


def as_tree_of(task: Task) -> dict[str, str]:
    """Return a task as plain data."""
    return {"kind": task.kind, "regime": task.regime, "cell": task.cell, "method": task.method}


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


def say(words: str) -> None:
    """Say a line at once."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


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
