"""The pairs of the demo: rendered scenes that need nothing, or CIFAR-10 for whoever has a network."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pydantic
from PIL import Image

from clipsan.stages.scenes.scene import SceneConfig, render
from clipsan.stages.scenes.shapes import CONCEPTS
from clipsan.stages.sources import LabelCaptions, ParquetSource
from clipsan.stages.stage import config

from ..core.cluster import ClusterConfig
from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree
from ..core.pass_ import Done, Pass, Work, in_this_process
from ..core.run_folder import RunFolder

RENDER_VERSION = 1
PART_ROWS = 1000
TEST_SEED = 1_000_003
"""Added to the seed of the held-out scenes: no scene of one set is in the other."""

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

    def make(self, run: RunFolder, cluster: ClusterConfig) -> DemoSet:
        """Render the pairs, or what is missing of them, into the run's data/."""
        train = SceneConfig(count=self.pairs, side_px=self.side_px, seed=self.seed)
        test = SceneConfig(count=self.test_pairs, side_px=self.side_px, seed=self.seed + TEST_SEED)
        for name, scenes in (("train", train), ("test", test)):
            rendering = Pass(
                name=f"render {name}",
                cluster=cluster,
                run=run,
                folder=f"data/{name}",
                fingerprint=fingerprint({"version": RENDER_VERSION, **as_tree(scenes)}),
                pairs=scenes.count,
            )
            rendering.do(_parts(scenes.count), RenderWork(scenes))
        return _sets(run, list(CONCEPTS))


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

    def make(self, run: RunFolder, cluster: ClusterConfig) -> DemoSet:
        """Write the pairs, or what is missing of them, into the run's data/.

        Raises:
            ConfigError: the download failed, with the remedy.
        """
        photos = self._downloaded()
        classes = [str(name) for name in photos["train"].classes]
        captions = LabelCaptions(templates=self.templates, seed=self.seed, names=classes)
        for name, count in (("train", self.pairs), ("test", self.test_pairs)):
            whole = photos[name]
            writing = Pass(
                name=f"write {name}",
                cluster=cluster,
                run=run,
                folder=f"data/{name}",
                fingerprint=fingerprint({"version": RENDER_VERSION, "set": name, **as_tree(self), "root": ""}),
            )
            taken = min(count, len(whole.data))
            with in_this_process():  # the photos are in its memory
                writing.do(_parts(taken), PhotoWork(whole.data[:taken], whole.targets, captions, name))
        return _sets(run, classes)

    def _downloaded(self) -> dict[str, Any]:
        from torchvision.datasets import CIFAR10

        root = Path(self.root).expanduser()
        try:
            return {name: CIFAR10(str(root), train=name == "train", download=True) for name in ("train", "test")}
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"data=cifar10: CIFAR-10 could not be had ({' '.join(str(error).split())}); put cifar-10-python.tar.gz into "
                f"{root}, or run the demo without a network: clipsan demo"
            ) from None


DemoData = Annotated[SceneData | CifarData, pydantic.Discriminator("kind")]


@dataclass(frozen=True)
class RenderWork(Work):
    """Renders the scenes of one part; the mask's value k is the pixel of `things[k - 1]`."""

    scenes: SceneConfig

    def do(self, piece: int, tools: None) -> Done:
        rows = []
        for index in _rows_of(piece, self.scenes.count):
            scene = render(index, self.scenes)
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
        return Done(pairs=len(rows), parts=(pa.Table.from_pylist(rows, schema=SCENE_SCHEMA),))


@dataclass(frozen=True)
class PhotoWork(Work):
    """Writes the photos of one part, with captions drawn by their names."""

    photos: np.ndarray
    """`[N, H, W, 3] uint8`."""
    labels: Sequence[int]
    captions: LabelCaptions
    set: str
    """Name of the set, in the photos' names."""

    def do(self, piece: int, tools: None) -> Done:
        rows = [
            {
                "key": f"{i:06d}",
                "image": png(self.photos[i]),
                "caption": self.captions.caption(f"{self.set}/{i}", None, self.labels[i]),
                "label": self.labels[i],
            }
            for i in _rows_of(piece, len(self.photos))
        ]
        return Done(pairs=len(rows), parts=(pa.Table.from_pylist(rows, schema=SCENE_SCHEMA),))


def _parts(count: int) -> dict[int, int]:
    """Return the numbers of the parts of so many rows, by themselves."""
    return {part: part for part in range(-(-count // PART_ROWS))}


def _rows_of(part: int, count: int) -> range:
    return range(part * PART_ROWS, min((part + 1) * PART_ROWS, count))


def _sets(run: RunFolder, classes: list[str]) -> DemoSet:
    train, test = (
        ParquetSource(path=str(run.root / "data" / name / "*.parquet"), label="label", key="key")
        for name in ("train", "test")
    )
    return DemoSet(train, test, classes)


def png(pixels: np.ndarray) -> bytes:
    """Return an image file of `[H, W, 3]` or `[H, W]` uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
