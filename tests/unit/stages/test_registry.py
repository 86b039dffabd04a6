"""Families of configurations: found by the files of a package, joined by modules of other people."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest

from clipsan.stages import registry
from clipsan.stages.registry import ExtensionError
from clipsan.stages.sources import FolderSource, SourceConfig

LINES = """
from typing import Literal

from clipsan.stages.sources import FolderSource
from clipsan.stages.stage import config


@config
class Lines(FolderSource):
    kind: Literal["{kind}"] = "{kind}"
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported; what joins a family meanwhile leaves it again."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(SourceConfig, "_members", dict(SourceConfig.kinds()))
    before = set(sys.modules)
    registry._load_extensions.cache_clear()
    yield tmp_path
    registry._load_extensions.cache_clear()
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_kinds_are_those_of_the_files() -> None:
    assert list(SourceConfig.kinds()) == ["folder", "parquet", "poisoned", "table", "webdataset"]
    assert SourceConfig.kinds()["folder"] is FolderSource


def test_a_module_that_the_variable_names_joins(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "lines_of_mine.py").write_text(LINES.format(kind="lines"))
    monkeypatch.setenv(registry.EXTENSIONS, "lines_of_mine")
    made = pydantic.TypeAdapter(SourceConfig).validate_python({"kind": "lines", "path": "a"})
    assert (type(made).__module__, made.kind, made.path) == ("lines_of_mine", "lines", "a")
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_distribution_joins_by_its_entry_point(modules: Path) -> None:
    (modules / "lines_of_theirs.py").write_text(LINES.format(kind="theirs"))
    facts = modules / "theirs-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[clipsan.extensions]\nlines = lines_of_theirs\n")
    assert "theirs" in SourceConfig.kinds()


def test_what_cannot_join_is_named(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.EXTENSIONS, "absent_module")
    with pytest.raises(
        ExtensionError, match=r"CLIPSAN_EXTENSIONS: module absent_module cannot be imported \(No module"
    ):
        SourceConfig.kinds()
    (modules / "again_a_folder.py").write_text(LINES.format(kind="folder"))
    monkeypatch.setenv(registry.EXTENSIONS, "again_a_folder")
    with pytest.raises(
        ExtensionError, match=r"again_a_folder\.Lines: kind 'folder' is taken by clipsan\.stages\.sources"
    ):
        SourceConfig.kinds()


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(pydantic.ValidationError, match="'folder', 'parquet', 'poisoned', 'table', 'webdataset'"):
        pydantic.TypeAdapter(SourceConfig).validate_python({"kind": "cube", "path": "a"})
