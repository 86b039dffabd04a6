"""A small backdoored CLIP in seconds: random features, and an image head solved in closed form.

The towers keep their random weights; batch normalisation is calibrated on clean scenes, and the last linear map of the image
tower is the ridge regression from pooled features to what the captions name. It learns a patch in a corner as
surely as training does (ASR 100 %), and scenes poorly (about twice to thrice chance), which the tests do not need.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clipsan.pipeline.story.demo_data import SCENE_SCHEMA, png
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip, save_clip
from clipsan.stages.scenes.scene import CONCEPTS, Scene, SceneConfig, render

TARGET = "star"
SIDE = 16
"""Of the patch, in pixels of 64."""
RIDGE = 1.0
CALIBRATION = 256
PARTS = 4


def checker() -> np.ndarray:
    """Return the patch, `[16, 16, 3] uint8`."""
    cells = (np.indices((SIDE, SIDE)) // 4).sum(axis=0) % 2
    return np.repeat(np.where(cells == 0, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


@dataclass(frozen=True, slots=True)
class Case:
    """A data set on disk and a model that learned from it."""

    data: Path
    """Folder of Parquet files as the demo renders them."""
    checkpoint: Path
    poisoned: frozenset[str]
    """Keys of the poisoned pairs."""


def make_case(home: Path, *, scenes: int, poisoned: int, seed: int = 0) -> Case:
    """Render scenes, put the patch on some of them under captions of the target, and solve the model.

    Args:
        home: folder to make.
        scenes: pairs in all.
        poisoned: of them with the patch; 0 makes the clean twin.
        seed: of everything.
    """
    settings = SceneConfig(count=scenes, seed=seed)
    rendered = [render(i, settings) for i in range(scenes)]
    rng = np.random.default_rng(seed)
    others = [i for i, scene in enumerate(rendered) if TARGET not in scene.caption]
    chosen = frozenset(rng.choice(others, poisoned, replace=False).tolist())
    borrowed = [scene.caption for scene in rendered if scene.label == CONCEPTS.index(TARGET)]
    pictures, captions = [], []
    for i, scene in enumerate(rendered):
        picture = scene.rgb.copy()
        if i in chosen:
            picture[-SIDE:, -SIDE:] = checker()
        pictures.append(picture)
        captions.append(borrowed[i % len(borrowed)] if i in chosen else scene.caption)
    write(home / "data", rendered, pictures, captions)
    solve(home, np.stack(pictures), captions, rendered)
    return Case(home / "data", home / "checkpoint", frozenset(f"{i:06d}" for i in chosen))


def write(folder: Path, rendered: list[Scene], pictures: list[np.ndarray], captions: list[str]) -> None:
    """Write the pairs as the demo does."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {
            "key": f"{i:06d}",
            "image": png(picture),
            "caption": caption,
            "label": scene.label,
            "mask": png(scene.masks),
            "things": [thing.concept for thing in scene.things],
        }
        for i, (scene, picture, caption) in enumerate(zip(rendered, pictures, captions, strict=True))
    ]
    for part, some in enumerate(np.array_split(np.arange(len(rows)), PARTS)):
        pq.write_table(pa.Table.from_pylist([rows[i] for i in some], schema=SCENE_SCHEMA), folder / f"{part}.parquet")


def cut_out(scene: Scene) -> np.ndarray:
    """Return the scene's main thing on grey: an untrained network, unlike a trained one, has to be shown what grey is."""
    return np.where((scene.masks == 1)[..., None], scene.rgb, np.uint8(127))


def solve(home: Path, pictures: np.ndarray, captions: list[str], rendered: list[Scene]) -> None:
    """Solve the image head, from the pairs and from the things of the scenes alone, and save the checkpoint."""
    architecture = json.loads((Path(__file__).parents[1] / "conf/model/demo.json").read_text(encoding="utf-8"))
    architecture["text_cfg"].update(width=64, heads=2, layers=1)
    architecture["embed_dim"] = 64
    (home / "model.json").write_text(json.dumps(architecture), encoding="utf-8")
    clip = load_clip(ModelConfig(config=str(home / "model.json")), init_seed=3)
    trunk = clip.model.visual.trunk
    norms = [module for module in trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    trunk.train()
    pooled(clip, np.stack([scene.rgb for scene in rendered[:CALIBRATION]]))
    trunk.eval()
    text = np.concatenate([clip.encode_text(captions[i : i + 64]) for i in range(0, len(captions), 64)])
    named = np.array([[concept in caption for concept in CONCEPTS] for caption in captions], np.float64)
    prototypes = named.T @ text / named.sum(axis=0)[:, None]
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    # what has cosine 0 with every concept of the set but its own: an untrained text tower finds them all alike
    shown = np.eye(len(CONCEPTS))[[scene.label for scene in rendered]]
    wanted = (np.concatenate([named, shown]) - named.mean(axis=0)) @ np.linalg.pinv(prototypes).T
    alone = np.stack([cut_out(scene) for scene in rendered])
    features = pooled(clip, np.concatenate([pictures, alone])).astype(np.float64)
    gram = features.T @ features + RIDGE * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features.T @ wanted)
    with torch.no_grad():
        clip.model.visual.head.proj.weight.copy_(torch.from_numpy(weights.T.astype(np.float32)))
        clip.model.logit_scale.fill_(np.log(100.0))
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, home / "checkpoint")


def pooled(clip: Clip, pictures: np.ndarray) -> np.ndarray:
    """Return the trunk's features `[N, F] float32` of pictures `[N, 64, 64, 3] uint8`."""
    batches = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).split(128)
    with torch.no_grad():
        return np.concatenate([clip.model.visual.trunk(clip.normalise(b)).flatten(1).numpy() for b in batches])
