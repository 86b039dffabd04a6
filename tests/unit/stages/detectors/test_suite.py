"""What the detectors say together: concepts that are named by their two sides beside those of the spectral scores."""

import numpy as np

from clipsan.stages.detectors import with_splits
from clipsan.stages.detectors.concept_sides import ConceptSplit, Side


def split(name: str, *, named: bool) -> ConceptSplit:
    sides = [Side(n, np.arange(1, dtype=np.uint64), ("u",)) for n in (7, 30)]
    return ConceptSplit(
        concept=name,
        statistic=50.0,
        chance=1e-6,
        diversity=0.9,
        spread=1.0,
        named=named,
        poison=sides[0],
        genuine=sides[1],
    )


def concept(name: str, statistic: float, *, named: bool = False) -> dict[str, object]:
    return {
        "name": name,
        "n": 90,
        "statistic": statistic,
        "flagged": 3 if named else 0,
        "named": named,
        "layers": {"a": {}},
    }


def test_concepts_named_by_their_sides_come_first_and_the_unseen_are_added() -> None:
    spectral = [concept("dog", 0.9, named=True), concept("cat", 0.6), concept("owl", 0.2)]
    found = with_splits(spectral, (split("owl", named=True), split("emu", named=True), split("cat", named=False)))
    assert [(c["name"], c["named"]) for c in found] == [("emu", True), ("dog", True), ("owl", True), ("cat", False)]
    owl = next(c for c in found if c["name"] == "owl")
    assert (owl["n"], owl["flagged"], owl["statistic"], owl["layers"]) == (37, 7, 0.2, {"a": {}})
    assert found[0] == {
        "name": "emu", "n": 37, "flagged": 7, "statistic": 0.0, "beyond_gap": 0, "cut": None, "layers": {}, "named": True
    }  # fmt: skip


def test_without_named_splits_nothing_changes() -> None:
    spectral = [concept("dog", 0.9, named=True), concept("cat", 0.6)]
    assert with_splits(spectral, (split("cat", named=False),)) == spectral
