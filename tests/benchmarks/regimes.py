"""The regimes of the attack zoo: photos, clean model and matrix of each. Light to import: what trains on a GPU needs no more of the zoo."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from clipsan.pipeline.core.commit import write_text

ROOT = Path(__file__).resolve().parents[2]
"""Where every command is run."""
FINE_TUNED = ", poisoned by fine-tuning"
"""Ends the names of the zoo's models in the tables."""
RUNS = Path("runs/zoo")


@dataclass(frozen=True, slots=True)
class Regime:
    """One matrix: the photos, and the clean model that is poisoned."""

    name: str
    data: str
    train: str
    """Training photos, `$CLIPSAN_ASSETS` standing for their folder."""
    base: str
    """Photos that the clean model is trained on."""
    test: str
    base_run: Path
    base_epochs: int
    classes: Path
    model: str = "resnet10t-64"
    """Of conf/model/."""
    patch: Path | None = None
    """Where BadCLIP's patch is made, if the matrix has it."""

    @property
    def out(self) -> Path:
        return RUNS / self.name

    @property
    def shown(self) -> str:
        return self.model + FINE_TUNED


REGIMES = {
    "common": Regime(
        name="common",
        data="tiny-imagenet20",
        train="$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet",
        base="$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet",
        test="$CLIPSAN_ASSETS/tiny-imagenet20-val.parquet",
        base_run=Path("runs/photos/clean/train"),
        base_epochs=12,
        classes=Path("runs/photos/classes.yaml"),
        patch=RUNS / "badclip" / "0.14",
    ),
    "rare": Regime(
        name="rare",
        data="tiny-imagenet, 15,000",
        train="$CLIPSAN_ASSETS/tiny-imagenet-train-0000[0-2].parquet",
        base="$CLIPSAN_ASSETS/tiny-imagenet-train-*.parquet",
        test="$CLIPSAN_ASSETS/tiny-imagenet-val.parquet",
        base_run=RUNS / "base-200" / "train",
        base_epochs=7,
        classes=RUNS / "classes-200.yaml",
        patch=RUNS / "badclip-200" / "0.14",
    ),
    "vit": Regime(
        name="vit",
        data="tiny-imagenet20",
        train="$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet",
        base="$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet",
        test="$CLIPSAN_ASSETS/tiny-imagenet20-val.parquet",
        base_run=RUNS / "base-vit" / "train",
        base_epochs=16,
        classes=Path("runs/photos/classes.yaml"),
        model="vit-64",
    ),
    "vit-pretrained": Regime(
        name="vit-pretrained",
        data="tiny-imagenet20",
        train="$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet",
        base="$CLIPSAN_ASSETS/tiny-imagenet-train-*.parquet",
        test="$CLIPSAN_ASSETS/tiny-imagenet20-val.parquet",
        base_run=RUNS / "base-vit-pretrained" / "train",
        base_epochs=16,
        classes=Path("runs/photos/classes.yaml"),
        model="vit-64-wide",
        patch=RUNS / "badclip-vit" / "0.14",
    ),
}


def write_classes(test: Path, path: Path) -> None:
    """Write the class names by index, for `clipsan evaluate`."""
    table = pq.read_table(test, columns=["label", "names"])
    names = dict(zip(table.column("label").to_pylist(), table.column("names").to_pylist(), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump([names[label] for label in sorted(names)]))
