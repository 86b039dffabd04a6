"""The row of a clean model: what was named of how many concepts, and how small the smallest chance is."""

from pathlib import Path
from typing import Any

from tests.benchmarks.clean_models import row_of, settings_of
from tests.benchmarks.results import check


def summary(chances: list[float], targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        "counts": {"verdicts": {"clean": 90, "suspect": 10, "poisoned": 0}, "flagged": 4},
        "detectors": {
            "ConceptSides": {
                "concepts_divided": 200,
                "false_discovery_rate": 0.05,
                "concepts": [{"name": "x", "chance": chance} for chance in chances],
            }
        },
    }


def test_row_tells_what_was_named() -> None:
    row = row_of("net", "/data/pairs-*.parquet", summary([0.02, 0.001], ["owl", "emu"]))
    check("clean_models", row)
    assert row == {
        "model": "net",
        "data": "pairs-*.parquet",
        "pairs": 100,
        "concepts": 200,
        "rate_pct": 5.0,
        "named": 2,
        "names": "owl, emu",
        "flagged": 4,
        "least_chance_times_concepts": 0.2,
    }


def test_nothing_named_of_nothing_divided() -> None:
    row = row_of("net", "pairs.csv", summary([], []))
    assert (row["named"], row["names"], row["least_chance_times_concepts"]) == (0, None, None)


def test_scan_is_the_default_one_without_an_oracle(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "net", "checkpoint", "parquet", "pairs.parquet")
    assert (settings.oracle, settings.out, settings.decision.kind) == (None, str(tmp_path / "net"), "threshold")
    assert settings.embeddings is None


def test_embeddings_of_an_earlier_folder_are_taken_where_it_has_them(tmp_path: Path) -> None:
    (tmp_path / "earlier" / "net" / "embeddings").mkdir(parents=True)
    given = ("checkpoint", "parquet", "pairs.parquet", tmp_path / "earlier")
    assert settings_of(tmp_path / "new", "net", *given).embeddings == str(tmp_path / "earlier" / "net")
    assert settings_of(tmp_path / "new", "other", *given).embeddings is None
