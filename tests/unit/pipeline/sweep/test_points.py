"""Which points a sweep tries: Optuna's proposals stand still, and rungs lie where early stopping compares."""

import numpy as np
import pytest

from clipsan.pipeline.core.config import ConfigError, validate
from clipsan.pipeline.sweep.points import propose, resources_of, rungs_of
from clipsan.pipeline.sweep.settings import HalvingConfig, OptunaSearch
from clipsan.stages.search.pareto import Outcome
from clipsan.stages.search.space import Choice, LogUniform, RandInt, Uniform

SPACE = {
    "rate": LogUniform(low=1e-5, high=1e-1),
    "tau": Choice(values=("auto", 1.0, 2.15)),
    "steps": RandInt(low=2, high=9),
    "weight": Uniform(low=0.0, high=1.0),
}
SEARCH = OptunaSearch(trials=24, batch=4, startup=8)


def test_a_batch_waits_for_all_before_it_and_for_none_of_its_own() -> None:
    assert [SEARCH.waits_for(number) for number in range(18)] == [0] * 8 + [8] * 4 + [12] * 4 + [16] * 2


def outcome(number: int, point: dict) -> Outcome:
    """Best at a rate of 1e-3 and a weight of .8; the value of tau plays no part."""
    far = abs(np.log10(point["rate"]) + 3) * 20 + abs(point["weight"] - 0.8) * 20
    return Outcome(number, float(min(100, far)), float(max(0, 70 - far / 4)))


def search(trials: int, seed: int) -> list[dict]:
    known: dict = {}
    for number in range(trials):
        point = propose(SEARCH, SPACE, seed, number, known)
        known[number] = (point, outcome(number, point))
    return [point for point, _ in known.values()]


def test_proposals_hang_on_the_seed_and_on_earlier_batches_alone() -> None:
    points = search(18, seed=3)
    assert points == search(18, seed=3)
    assert points[:4] != search(4, seed=4)
    known = {i: (point, outcome(i, point)) for i, point in enumerate(points)}
    # what the batch's own trials came to is not looked at, and which of them are known already makes no difference
    assert propose(SEARCH, SPACE, 3, 14, {i: known[i] for i in range(12)}) == points[14]
    spoilt = known | {13: (points[13], Outcome(13, 0.0, 100.0))}
    assert propose(SEARCH, SPACE, 3, 14, spoilt) == points[14]
    # of earlier batches it is, and a failure there is no result
    failed = known | {i: (points[i], None) for i in range(12)}
    assert propose(SEARCH, SPACE, 3, 14, failed) != points[14]


def test_proposals_are_of_the_space_and_go_where_it_is_good() -> None:
    points = search(40, seed=1)
    assert all(1e-5 <= p["rate"] <= 1e-1 and p["tau"] in ("auto", 1.0, 2.15) and 2 <= p["steps"] <= 9 for p in points)
    assert all(isinstance(p["steps"], int) and isinstance(p["rate"], float) for p in points)
    early = np.mean([outcome(0, p).objective_pct for p in points[:8]])
    late = np.mean([outcome(0, p).objective_pct for p in points[24:]])
    assert late < early - 5


def test_rungs_by_hand() -> None:
    thirds = HalvingConfig(reduction=3, rungs=3, first_share=1 / 9)
    assert rungs_of(90, thirds) == (10, 30, 90)
    assert rungs_of(100, thirds) == (11, 33, 100)
    assert rungs_of(8, HalvingConfig(first_share=0.5)) == (4, 8)
    assert rungs_of(64, HalvingConfig(rungs=4)) == (8, 16, 32, 64)
    assert rungs_of(7, None) == (7,)
    assert resources_of(thirds, 3) == [1, 3, 9]
    assert resources_of(None, 1) == [1]
    with pytest.raises(ValueError, match="2 steps cannot be measured 3 times"):
        rungs_of(2, thirds)
    with pytest.raises(ConfigError, match="first_share: Input should be less than 1"):
        validate(HalvingConfig, {"first_share": 1.0}, verb="sweep")
