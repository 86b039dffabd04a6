"""The pairs of the demo: rendered scenes that need nothing, or CIFAR-10 for whoever has a network."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pydantic
from PIL import Image

from clipsan.stages.scenes.scene import SceneConfig, render
from clipsan.stages.scenes.shapes import CONCEPTS
from clipsan.stages.sources import LabelCaptions, ParquetSource
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig
from ..core.commit import fingerprint, missing_parts, write_part
from ..core.config import ConfigError, as_tree
from ..core.pass_old import Row, run_pass

RENDER_VERSION = 1
PART_ROWS = 1000
TEST_SEED = 1_000_003
"""Added to the seed of the held-out scenes: no scene of one set is in the other."""


@config
class SceneData:
    """Rendered scenes."""

    kind: Literal["scenes"] = "scenes"
    pairs: int
    """Scenes to train on and to scan."""
    test_pairs: int
    """Held-out scenes for accuracy and ASR."""
    side_px: int = 64
    """Height and width."""
    seed: int = 0
    """Seed of all scenes."""


@config
class CifarData:
    """CIFAR-10, downloaded by torchvision."""

    kind: Literal["cifar10"] = "cifar10"
    root: str
    """Folder of the download; an archive that is there already is used."""
    pairs: int
    """Training photos taken."""
    test_pairs: int
    """Test photos taken."""
    templates: list[str]
    """Captions, with {} where the class name goes."""
    seed: int = 0
    """Seed of the captions."""


DemoData = Annotated[SceneData | CifarData, pydantic.Discriminator("kind")]

SCENE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.binary()),
        ("caption", pa.string()),
        ("label", pa.int32()),
        ("mask", pa.binary()),
        ("things", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class DemoSet:
    """Where the pairs of the demo are."""

    train: ParquetSource
    test: ParquetSource
    classes: list[str]


class RenderWork:
    """Renders the scenes of one part; the mask's value k is the pixel of `things[k - 1]`."""

    def __init__(self, settings: SceneConfig, folder: Path, mark: str) -> None:
        self._settings = settings
        self._folder = folder
        self._mark = mark

    def run(self, piece: int) -> Row:
        rows = []
        for index in range(piece * PART_ROWS, min((piece + 1) * PART_ROWS, self._settings.count)):
            scene = render(index, self._settings)
            rows.append(
                {
                    "key": f"{index:06d}",
                    "image": png(scene.rgb),
                    "caption": scene.caption,
                    "label": scene.label,
                    "mask": png(scene.masks),
                    "things": [thing.concept for thing in scene.things],
                }
            )
        write_part(self._folder, piece, pa.Table.from_pylist(rows, schema=SCENE_SCHEMA), self._mark)
        return {"pairs": len(rows)}


def make_data(settings: SceneData | CifarData, folder: Path, cluster: ClusterConfig) -> DemoSet:
    """Render or download the pairs, or what is missing of them, into `folder`.

    Raises:
        ConfigError: the download failed, with the remedy.
    """
    if isinstance(settings, CifarData):
        return _cifar(settings, folder)
    train = SceneConfig(count=settings.pairs, side_px=settings.side_px, seed=settings.seed)
    test = SceneConfig(count=settings.test_pairs, side_px=settings.side_px, seed=settings.seed + TEST_SEED)
    for name, scenes in (("train", train), ("test", test)):
        mark = fingerprint({"version": RENDER_VERSION, **as_tree(scenes)})
        parts = range(-(-scenes.count // PART_ROWS))
        todo = missing_parts(folder / name, parts, mark)
        for _ in run_pass(
            f"render {name}", todo, RenderWork, (scenes, folder / name, mark), cluster=cluster, total=len(parts)
        ):
            pass
    return _sets(folder, list(CONCEPTS))


def _sets(folder: Path, classes: list[str]) -> DemoSet:
    train, test = (
        ParquetSource(path=str(folder / name / "*.parquet"), label="label", key="key") for name in ("train", "test")
    )
    return DemoSet(train, test, classes)


def png(pixels: np.ndarray) -> bytes:
    """Return an image file of `[H, W, 3]` or `[H, W]` uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _cifar(settings: CifarData, folder: Path) -> DemoSet:
    from torchvision.datasets import CIFAR10

    root = Path(settings.root).expanduser()
    try:
        photos = {name: CIFAR10(str(root), train=name == "train", download=True) for name in ("train", "test")}
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"data=cifar10: CIFAR-10 could not be had ({' '.join(str(error).split())}); put cifar-10-python.tar.gz into "
            f"{root}, or run the demo without a network: clipsan demo"
        ) from None
    classes = [str(name) for name in photos["train"].classes]
    captions = LabelCaptions(templates=settings.templates, seed=settings.seed, names=classes)
    for name, count in (("train", settings.pairs), ("test", settings.test_pairs)):
        mark = fingerprint({"version": RENDER_VERSION, "set": name, **as_tree(settings), "root": ""})
        whole = photos[name]
        count = min(count, len(whole.data))
        for part in missing_parts(folder / name, range(-(-count // PART_ROWS)), mark):
            rows = [
                {
                    "key": f"{i:06d}",
                    "image": png(whole.data[i]),
                    "caption": captions.caption(f"{name}/{i}", None, whole.targets[i]),
                    "label": whole.targets[i],
                }
                for i in range(part * PART_ROWS, min((part + 1) * PART_ROWS, count))
            ]
            write_part(folder / name, part, pa.Table.from_pylist(rows, schema=SCENE_SCHEMA), mark)
    return _sets(folder, classes)
