"""Candidate statistics of an audit on the development models, from which constants may be chosen; deciding nothing by itself.

    python -m tests.benchmarks.audit_study MODELS STUDY.zip --device cuda --minutes 5

Of every development model below MODELS a member NAME.npz of the one file. Towards every label triggers of three kinds and three budgets are
sought: on the suspect, under changes of the images (noise, mixing, contrast), and against copies of the suspect that were perturbed by
so much and learned again what it makes of scenes. Arrays are `[budgets, labels]` of what held-out images then show.
"""

import argparse
import copy
import json
import multiprocessing
import os
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from clipsan.pipeline.core.commit import whole
from clipsan.stages.audit.judge import Judge
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from tests.benchmarks.audit_models import development_cells
from tests.benchmarks.audit_packing import CHECKPOINT, MODELS, TRUTH
from tests.benchmarks.audit_training import NAMES, Scenes, build_trigger, start_worker

TEMPLATES = ("a photo of a {}.", "a {}")
KINDS = {"patch": (0.015, 0.03, 0.06), "additive": (0.03, 0.06, 0.1), "blend": (0.08, 0.15, 0.25)}
"""Kind -> budgets: share of the area, root mean square, share of the picture that is replaced."""
RATES = {"patch": 0.3, "additive": 0.02, "blend": 0.3}
COPIES = {"near": (0.15, 80), "far": (0.4, 150), "farther": (1.0, 300), "anew": (None, 500)}
"""Copy -> noise on the weights in units of their spread (None: fresh weights), and steps that it learns again."""
GRID = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is done."""

    images: int = 128
    steps: int = 100
    per_label: int = 4
    scenes: int = 1500
    share: float = 1.0
    """Of the steps of COPIES."""


class Search:
    """Triggers of one kind, a row for each budget and label."""

    def __init__(self, kind: str, side: int, device: torch.device, seed: int) -> None:
        self.kind, self.side = kind, side
        generator = torch.Generator().manual_seed(seed)
        rows = len(KINDS[kind]) * len(NAMES)
        budgets = torch.tensor(KINDS[kind]).repeat_interleave(len(NAMES))
        self.budget = budgets.view(-1, 1, 1, 1).to(device)
        size = 0.02 if kind == "additive" else 0.5
        self.pattern = (size * torch.randn(rows, 3, side, side, generator=generator)).to(device).requires_grad_()
        self.mask = (0.05 * torch.randn(rows, 1, GRID, GRID, generator=generator)).to(device).requires_grad_()
        self.labels = torch.arange(len(NAMES)).repeat(len(KINDS[kind])).to(device)

    @property
    def params(self) -> list[torch.Tensor]:
        return [self.pattern, self.mask] if self.kind == "patch" else [self.pattern]

    def parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what remains of an image, and what is added to it, each `[R, ., S, S]`."""
        if self.kind == "additive":
            size = (self.pattern**2).mean((1, 2, 3), keepdim=True).sqrt()
            return torch.ones_like(self.pattern[:, :1]), self.pattern * (self.budget / torch.maximum(size, self.budget))
        if self.kind == "blend":
            return torch.ones_like(self.pattern[:, :1]) * (1 - self.budget), self.budget * torch.sigmoid(self.pattern)
        raised = F.interpolate(self.mask, size=(self.side, self.side), mode="bilinear", align_corners=False)
        with torch.no_grad():
            low, high = raised.amin((1, 2, 3), keepdim=True) - 2, raised.amax((1, 2, 3), keepdim=True) + 2
            for _ in range(20):
                middle = (low + high) / 2
                above = torch.sigmoid(4 * (raised - middle)).mean((1, 2, 3), keepdim=True) > self.budget
                low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        mask = torch.sigmoid(4 * (raised - (low + high) / 2))
        return 1 - mask, mask * torch.sigmoid(self.pattern)


def put(keep: torch.Tensor, add: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return `[R, n, 3, S, S]` of images `[R or 1, n, 3, S, S]`."""
    return (keep[:, None] * images + add[:, None]).clamp(0, 1)


def cosines(judge: Judge, pixels: torch.Tensor) -> torch.Tensor:
    """Return `[N, D]`; large batches on a GPU."""
    if judge.clip.device.type == "cpu":
        return judge.features(pixels)
    normed = (pixels - judge._mean) / judge._std
    with torch.autocast("cuda", torch.bfloat16):
        found = judge.clip.model.encode_image(normed, normalize=False)
    return F.normalize(found.float(), dim=-1)


def varied(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return triggered images `[R, n, ...]` with noise, another's half, or less contrast, a third each."""
    kind = torch.randint(3, images.shape[:2], generator=generator).to(images.device)[..., None, None, None]
    noise = images + 0.1 * torch.randn_like(images)
    mixed = 0.6 * images + 0.4 * images.roll(1, dims=1)
    pale = 0.5 + 0.6 * (images - 0.5)
    return torch.where(kind == 0, noise, torch.where(kind == 1, mixed, pale)).clamp(0, 1)


def seek(
    judge: Judge, kind: str, images: torch.Tensor, effort: Effort, *, against: Judge | None = None, vary: bool = False
) -> Search:
    """Return the triggers that pull all images to the labels' texts, and not where a clean copy is given."""
    device = judge.clip.device
    found = Search(kind, judge.side, device, 0)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(found.params, lr=RATES[kind], betas=(0.5, 0.9))
    texts = judge.labels[found.labels]
    for step in range(effort.steps):
        rows = torch.randint(len(images), (len(found.labels), effort.per_label), generator=generator).to(device)
        changed = put(*found.parts(), images[rows])
        changed = varied(changed, generator) if vary else changed
        flat = changed.flatten(0, 1)
        loss = -(cosines(judge, flat).view(*changed.shape[:2], -1) * texts[:, None]).sum(-1).mean(1).sum()
        if against is not None:
            loss = loss + (cosines(against, flat).view(*changed.shape[:2], -1) * texts[:, None]).sum(-1).mean(1).sum()
        for group in optimizer.param_groups:
            group["lr"] = RATES[kind] * max(0.02, 1 - step / effort.steps)
        for value, slope in zip(found.params, torch.autograd.grad(loss, found.params), strict=True):
            value.grad = slope
        optimizer.step()
    return found


@torch.no_grad()
def shown(
    judge: Judge, change: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> dict[str, np.ndarray]:
    """Return of each row of `change(images) [R, n, 3, S, S]` its mean cosine, lead, flips, confidence and agreement."""
    features = []
    for start in range(0, len(images), 8):
        changed = change(images[start : start + 8])
        features.append(cosines(judge, changed.flatten(0, 1)).view(*changed.shape[:2], -1))
    found = torch.cat(features, dim=1)
    cosine = found @ judge.labels.T
    own = cosine.gather(2, labels.view(-1, 1, 1).expand(-1, cosine.shape[1], 1))[..., 0]
    rest = cosine.scatter(2, labels.view(-1, 1, 1).expand(-1, cosine.shape[1], 1), -2.0).amax(2)
    sure = (
        (judge.clip.scale * cosine).softmax(2).gather(2, labels.view(-1, 1, 1).expand(-1, cosine.shape[1], 1))[..., 0]
    )
    lead, count = own - rest, found.shape[1]
    middle = found.sum(1)
    values = {
        "cosine": own.mean(1),
        "lead": lead.mean(1),
        "low_lead": lead.quantile(0.1, dim=1),
        "flips": (lead > 0).float().mean(1),
        "sure": sure.mean(1),
        "agreement": ((middle**2).sum(-1) - count) / (count * (count - 1)),
        "toward": (F.normalize(middle, dim=-1) * judge.labels[labels]).sum(-1),
        "spread": own.std(1),
    }
    return {name: value.float().cpu().numpy().reshape(-1, len(NAMES)) for name, value in values.items()}


def rolled(part: torch.Tensor, neutral: float) -> torch.Tensor:
    """Return a part moved by 3 px right and down."""
    found = part.roll((3, 3), dims=(2, 3)).clone()
    found[:, :, :3], found[:, :, :, :3] = neutral, neutral
    return found


def changes(found: Search, generator: torch.Generator) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return ways to show a trigger."""
    with torch.no_grad():
        keep, add = (part.detach() for part in found.parts())
    half = torch.zeros_like(keep)
    half[..., : found.side // 2] = 1
    neutral = float(keep.amax())

    def plain(x: torch.Tensor) -> torch.Tensor:
        return put(keep, add, x[None])

    return {
        "plain": plain,
        "noise": lambda x: (plain(x) + 0.1 * torch.randn_like(plain(x))).clamp(0, 1),
        "mixed": lambda x: 0.5 * plain(x) + 0.5 * x.roll(1, dims=0)[None],
        "blurred": lambda x: F.avg_pool2d(plain(x).flatten(0, 1), 3, 1, 1).view(len(keep), len(x), *x.shape[1:]),
        "weak": lambda x: 0.5 * plain(x) + 0.5 * x[None],
        "strong": lambda x: (1.5 * plain(x) - 0.5 * x[None]).clamp(0, 1),
        "moved": lambda x: put(rolled(keep, neutral), rolled(add, 0.0), x[None]),
        "left": lambda x: put(1 - half * (1 - keep), half * add, x[None]),
        "right": lambda x: put(1 - (1 - half) * (1 - keep), (1 - half) * add, x[None]),
    }


def relearned(clip: Clip, arch: str, noise: float | None, steps: int, scenes: torch.Tensor) -> Clip:
    """Return a copy of the suspect whose image tower was perturbed and has learned again what it makes of scenes."""
    with torch.no_grad():
        wanted = torch.cat([clip.image_features(part)[0] for part in scenes.split(256)]).clone()
    other = copy.copy(clip)
    other.model = copy.deepcopy(clip.model)
    tower = other.model.visual
    if noise is None:
        fresh = load_clip(ModelConfig(config=MODELS[arch]), init_seed=99).model.visual
        tower.load_state_dict(fresh.state_dict())
    other.model.requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    values = [value.requires_grad_() for value in tower.parameters()]
    with torch.no_grad():
        for value in values:
            if noise is not None and value.ndim >= 2:
                value += noise * value.std() * torch.randn(value.shape, generator=generator).to(value.device)
    rate = 1e-3 if noise is not None else 2e-3
    optimizer = torch.optim.AdamW(values, lr=rate, weight_decay=0.0)
    other.model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        rows = torch.randint(len(scenes), (64,), generator=generator).to(scenes.device)
        with torch.autocast(clip.device.type, torch.bfloat16, enabled=clip.device.type == "cuda"):
            found = other.model.encode_image(other.normalise(scenes[rows]), normalize=False)
        loss = (1 - (F.normalize(found.float(), dim=-1) * wanted[rows]).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    other.model.eval().requires_grad_(False)
    return other


def study(home: Path, out: Path, device: str, effort: Effort, deadline: float) -> str:
    """Write the file of a model; what is not reached before the deadline is left out."""
    if time.time() > deadline:
        return f"{home.name}: no time\n"
    started = time.time()
    truth = json.loads((home / TRUTH).read_text(encoding="utf-8"))
    clip = load_clip(ModelConfig(path=str(home / CHECKPOINT)), device)
    judge = Judge(clip, NAMES, TEMPLATES)
    pictures = judge.pixels(Scenes.draw(effort.images, 9001).pixels)
    learned, tried = pictures[: effort.images // 2], pictures[effort.images // 2 :][:32]
    scenes = torch.from_numpy(Scenes.draw(effort.scenes, 9100).pixels.transpose(0, 3, 1, 2).copy()).to(clip.device)
    found: dict[str, Any] = {}
    with torch.no_grad():
        found["clean"] = (cosines(judge, pictures) @ judge.labels.T).cpu().numpy()
    searches: dict[str, Search] = {}

    def write() -> None:
        with whole(out / f"{home.name}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, truth=json.dumps(truth), **found)

    def tell(stage: str, search: Search, at: Judge, ways: Sequence[str]) -> None:
        every = changes(search, torch.Generator().manual_seed(2))
        for way in ways:
            for name, value in shown(at, every[way], tried, search.labels).items():
                found[f"{stage}/{search.kind}/{way}/{name}"] = value

    every = ("plain", "noise", "mixed", "blurred", "weak", "strong", "moved", "left", "right")
    for kind in KINDS:
        searches[kind] = seek(judge, kind, learned, effort)
        tell("own", searches[kind], judge, every)
    copies = {}
    for name, (noise, steps) in COPIES.items():
        copies[name] = Judge(relearned(clip, truth["arch"], noise, int(steps * effort.share), scenes), NAMES, TEMPLATES)
        with torch.no_grad():
            found[f"clean-{name}"] = (cosines(copies[name], pictures) @ judge.labels.T).cpu().numpy()
        for kind in KINDS:
            tell(f"own-at-{name}", searches[kind], copies[name], ("plain",))
    if truth["attack"] is not None:
        trigger, rng = build_trigger(truth["attack"], home), np.random.default_rng(0)
        true = judge.pixels(np.stack([trigger(image, rng)[0] for image in Scenes.draw(64, 9002).pixels]))
        with torch.no_grad():
            for name, at in {"suspect": judge, **copies}.items():
                found[f"true/{name}"] = (cosines(at, true) @ judge.labels.T).cpu().numpy()
    write()
    for against in (None, "far", "farther", "anew", "near"):
        for kind in KINDS:
            if time.time() > deadline:
                break
            other = None if against is None else copies[against]
            search = seek(judge, kind, learned, effort, against=other, vary=against is None)
            stage = "varied" if against is None else f"against-{against}"
            tell(stage, search, judge, ("plain", "noise", "mixed", "weak"))
            if other is not None:
                tell(f"{stage}-there", search, other, ("plain",))
        write()
    return f"{home.name}: {len(found)} arrays, {time.time() - started:.0f} s\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Study all development models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=min(10, len(os.sched_getaffinity(0))))
    parser.add_argument("--tiny", action="store_true", help="that the script runs is all that it shows")
    given = parser.parse_args(arguments)
    deadline = time.time() + 60 * given.minutes
    effort = Effort(images=32, steps=2, scenes=64, share=0.01) if given.tiny else Effort()
    known = [cell.name for cell in development_cells()]
    homes = [given.models / name for name in known if (given.models / name / TRUTH).is_file()]
    parts = given.models / "study"
    parts.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmarks.audit_training"])
    with ProcessPoolExecutor(given.processes, mp_context=context, initializer=start_worker) as pool:
        futures = [pool.submit(study, home, parts, given.device, effort, deadline) for home in homes]
        for future in as_completed(futures):
            error = future.exception()
            sys.stdout.write(future.result() if error is None else f"failed: {error!r}\n")
            sys.stdout.flush()
            # after every model, so that a stopped study leaves what it had
            with whole(given.file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                for path in sorted(parts.glob("*.npz")):
                    archive.write(path, path.name)


if __name__ == "__main__":
    main()
