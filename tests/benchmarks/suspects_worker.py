"""One of the processes that make the zoo's suspects: takes whatever no other has claimed, one thing after the other."""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipsan.pipeline.core.commit import whole, write_text
from clipsan.pipeline.core.config import as_tree
from clipsan.pipeline.evaluate.plan import read_classes
from clipsan.stages.attack.badclip import BadClipConfig, PatchOptimiser, encode_pairs, encode_target, measure
from clipsan.stages.attack.poisoning import contains_word
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip, save_clip
from clipsan.stages.samples import seeded_hash
from tests.benchmarks.regimes import REGIMES, ROOT, Regime
from tests.benchmarks.repair_variants import CHOSEN, VARIANTS
from tests.benchmarks.suspects_packing import Packed, pack, unpack
from tests.benchmarks.suspects_photos import Photos, poison
from tests.benchmarks.suspects_repairs import BLIND, Parts, Patient, blind, choose, rebound, repair, settings_of
from tests.benchmarks.suspects_tasks import (
    LEAST_ASR_PCT,
    VIT,
    VIT_TEST,
    Cell,
    Task,
    as_tree_of,
    at_rate,
    base_training,
    cells,
    matrix,
    model_file,
    names_of,
    set_name,
)
from tests.benchmarks.suspects_training import Loaded, Recipe, figures, fit, pretrain, probe, tokens_of

MADE, FAILED, CLAIMS = "made", "failed", "claims"
ATTEMPTS = (1.0, 1.5, 2.2)
"""Times the rate of the matrix."""
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Options:
    """What every process is told."""

    work: Path
    device: str
    deadline: float
    """Seconds since the epoch after which nothing is begun."""
    vit_seconds: float
    tiny: bool


def say(words: str) -> None:
    """Say a line at once."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


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
