"""The rules of the house: arrows run one way, without circles."""

from pathlib import Path

import pytest

from tests.house import House

HOUSE = House(Path(__file__).resolve().parents[2])
FOREIGN = {"ray", "mlflow"}


def test_no_modules_import_each_other() -> None:
    assert HOUSE.circles == []


def test_stages_know_neither_pipeline_nor_ray_nor_mlflow() -> None:
    for name, arrows in HOUSE.arrows.items():
        if name.startswith("stages"):
            assert not [arrow for arrow in arrows if arrow.startswith("pipeline")], name
            imports = [line.split()[1] for line in HOUSE.modules[name].read_text().splitlines() if is_import(line)]
            assert not FOREIGN & {imported.partition(".")[0] for imported in imports}, name


def is_import(line: str) -> bool:
    return line.lstrip().startswith(("import ", "from "))


def test_the_core_knows_no_verb() -> None:
    for name, arrows in HOUSE.arrows.items():
        if name.startswith("pipeline.core."):
            rooms = {arrow.split(".")[1] for arrow in arrows if arrow.startswith("pipeline.")}
            assert rooms <= {"core", "tracking"}, name


def test_a_circle_and_a_chain_are_found(tmp_path: Path) -> None:
    files = {
        "pipeline/__init__.py": "",
        "pipeline/top.py": "from .left import x\n",
        "pipeline/left.py": "def f():\n    from . import right\n",
        "pipeline/right.py": "from .left import x\nfrom clipsan.stages.low import y\n",
        "stages/__init__.py": "",
        "stages/low.py": "import os\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    house = House(tmp_path)
    assert house.circles == [["pipeline.left", "pipeline.right"]]
    assert house.longest_chain == ["pipeline.top", "pipeline.left", "stages.low"]
    assert house.lines == 6


@pytest.mark.parametrize("top", ["pipeline", "stages"])
def test_every_package_of_the_house_is_installed(top: str) -> None:
    import tomllib

    packages = tomllib.loads((HOUSE.root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        f"clipsan.{name}" for name, path in HOUSE.modules.items() if path.name == "__init__.py" and name.startswith(top)
    }
    assert found - {"clipsan.pipeline.api"} == {name for name in packages if name.startswith(f"clipsan.{top}")}
