"""Renders results/triggers.png: every trigger of conf/trigger on one rendered scene of 64 px.

python -m tests.benchmarks.gallery
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import yaml

from clipsan.pipeline.core.config import conf_folder
from clipsan.stages.attack.triggers import TriggerConfig
from clipsan.stages.report.gallery import Exhibit, gallery
from clipsan.stages.scenes.scene import SceneConfig, render
from tests.benchmarks.results import FOLDER

SCENES = SceneConfig(count=1000, side_px=64, seed=0)
SCENE, OTHER_SCENE = 4, 37
"""The scene that carries the triggers; the one that `replace` puts in its place."""


def exhibits(replacement: Path) -> list[Exhibit]:
    """Return one exhibit a file of conf/trigger, controls last; `replacement` is the picture of `replace`."""
    shown = []
    for file in sorted(conf_folder().glob("trigger/*.yaml"), key=lambda path: path.stem):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        detail = _detail(settings)
        if settings["kind"] == "replace":
            settings["picture"] = str(replacement)
        trigger = pydantic.TypeAdapter(TriggerConfig).validate_python(settings).build()
        shown.append(Exhibit(name=file.stem, detail=detail, trigger=trigger))
    return sorted(shown, key=lambda exhibit: exhibit.name in ("darken", "identity", "resize"))


def _detail(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value}".replace("_", " ") for key, value in settings.items() if key not in ("kind", "seed")
    )


def main() -> int:
    """Write the picture."""
    image = render(SCENE, SCENES).rgb
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other.npy"
        np.save(other, render(OTHER_SCENE, SCENES).rgb)
        picture = gallery(image, exhibits(other))
    (FOLDER / "triggers.png").write_bytes(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
