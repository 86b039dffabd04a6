"""The repair table says of each rate where it is from."""

from pathlib import Path

import pytest

from clipsan.pipeline.core.commit import write_text
from tests.benchmarks import photos, repair


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("finetune", (["method.lr=0.003"], "by hand")),
        ("par", (["method.lr=3e-05"], "development split")),
        ("par-2.15", (["method.lr=3e-05"], "development split, of par")),
        ("par-live", (["method.lr=0.0003"], "by hand")),
        ("par-published", ([], "as published")),
        ("eftclip", ([], "the method's own")),
    ],
)
def test_where_no_sweep_has_been_made_the_rate_says_where_it_is_from(
    row: str, expected: tuple[list[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "ROOT", tmp_path)
    assert repair.rate(row) == expected


@pytest.mark.parametrize("row", ["finetune", "par"])
def test_a_sweep_replaces_the_rate_unless_it_recommends_none(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "ROOT", tmp_path)
    summary = tmp_path / repair.choice(row) / "summary.json"
    summary.parent.mkdir(parents=True)
    kept = repair.rate(row)
    write_text(summary, '{"recommended": null}')
    assert repair.rate(row) == kept
    write_text(summary, '{"recommended": {"settings": {"method.lr": 0.001}}}')
    assert repair.rate(row) == (["method.lr=0.001"], "development split")
