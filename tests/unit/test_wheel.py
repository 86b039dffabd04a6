"""What is installed: one package, so that no name of ours meets another's."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools.build_meta import build_wheel; build_wheel('dist')"


def test_a_wheel_holds_nothing_but_the_package_clipsan(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("pipeline", "stages", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"clipsan"}
    assert {
        "clipsan/__init__.py",
        "clipsan/pipeline/cli.py",
        "clipsan/stages/decode.py",
        "clipsan/conf/scan.yaml",
    } <= set(names)
    modules = {path.relative_to(ROOT) for top in ("pipeline", "stages") for path in (ROOT / top).rglob("*.py")}
    installed = {Path(*Path(name).parts[1:]) for name in names if name.startswith("clipsan/") and name.endswith(".py")}
    assert installed == (modules - {Path("pipeline/api/__init__.py")}) | {Path("__init__.py")}
