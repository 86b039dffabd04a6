"""Percent, fractions and cosines stay apart."""

import json
import math
from typing import Any

import numpy as np
import pytest

from clipsan.stages.evaluation.figures import (
    Figure,
    as_json,
    as_summary,
    as_table,
    check_units,
    count,
    mean_cosine,
    rate,
)


def test_a_rate_is_a_percentage_with_its_interval() -> None:
    found = rate("asr", np.arange(1000) < 250, strand="1: patch -> banana")
    assert (found.figure, found.value, found.unit, found.n) == ("asr_pct", 25.0, "pct", 1000)
    half = 100 * 1.96 * math.sqrt(0.25 * 0.75 / 1000)
    assert found.low == pytest.approx(25 - half, abs=0.2)
    assert found.high == pytest.approx(25 + half, abs=0.2)


def test_a_rate_of_several_trials_an_image() -> None:
    found = rate("asr", np.array([2, 0, 1, 0]), np.array([2, 2, 1, 0]))
    assert (found.value, found.n) == (60.0, 3)


@pytest.mark.parametrize("hits", [np.array([0.5, 0.2]), np.array([1, 0]), np.array([0.4])])
def test_a_rate_is_made_from_hits_alone(hits: np.ndarray) -> None:
    with pytest.raises(ValueError, match="booleans"):
        rate("asr", hits)
    with pytest.raises(ValueError, match="whole numbers"):
        rate("asr", hits.astype(float), np.ones(len(hits), int))


@pytest.mark.parametrize(
    ("name", "value", "unit", "rule"),
    [
        ("asr", 50.0, "pct", "ends in _pct if and only if"),
        ("asr_pct", 0.5, "fraction", "ends in _pct if and only if"),
        ("asr_pct", 101.0, "pct", r"outside \[0, 100\]"),
        ("auroc", 50.0, "fraction", r"outside \[0, 1\]"),
        ("resistivity", -1.1, "cosine", r"outside \[-1, 1\]"),
        ("images", -1.0, "count", "outside"),
        ("auroc", math.nan, "fraction", "outside"),
    ],
)
def test_impossible_figures_are_refused(name: str, value: float, unit: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Figure(name, value, unit)
    with pytest.raises(ValueError, match=rule):
        Figure(name, 0.5, unit, low=0.0, high=value)


def test_a_mean_cosine_has_the_interval_of_a_mean() -> None:
    cosines = np.random.default_rng(0).normal(0.5, 0.1, 400).astype(np.float32)
    found = mean_cosine("resistivity", cosines)
    assert found.value == pytest.approx(cosines.astype(np.float64).mean())
    assert found.low == pytest.approx(found.value - 1.96 * 0.1 / 20, abs=2e-3)
    assert found.high == pytest.approx(found.value + 1.96 * 0.1 / 20, abs=2e-3)


def test_table_and_records_hold_the_same_rows() -> None:
    figures = [rate("asr", np.array([True, False])), count("images", 2), mean_cosine("resistivity", np.ones(3))]
    assert as_table(figures).to_pylist() == json.loads(as_json(figures))
    assert as_summary(figures)["images"] == 2
    assert as_summary(figures)["asr_pct_ci95"] == [figures[0].low, figures[0].high]
    with pytest.raises(ValueError, match="two figures"):
        as_summary([*figures, count("images", 3)])


def test_a_summary_is_checked_down_to_its_leaves() -> None:
    good = {"evaluation": {"asr_pct": 99.0, "asr_pct_ci95": [98.0, 99.5], "rebound_asr_pct": None}}
    good |= {"detection": {"dao": {"auroc": 0.9, "recall_at": {"0.01": 1.0}}}, "other": 1234}
    check_units(good)
    for bad, where in (
        ({"a": {"asr_pct": 9900.0}}, "a.asr_pct"),
        ({"rows": [{"asr_pct_ci95": [-1.0, 3.0]}]}, "rows.0.asr_pct_ci95"),
        ({"detection": {"dao": {"auroc": 90.0}}}, "detection.dao.auroc"),
        ({"detection": {"dao": {"recall_at": {"0.01": 55.0}}}}, "recall_at.0.01"),
    ):
        with pytest.raises(ValueError, match=where):
            check_units(bad)
