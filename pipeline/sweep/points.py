"""Which points a sweep tries, and after how many steps they are measured."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipsan.stages.search.pareto import Outcome
from clipsan.stages.search.space import Choice, LogUniform, Point, RandInt, Space, Uniform

from .settings import HalvingConfig, OptunaSearch


def resources_of(halving: HalvingConfig | None, rungs: int) -> list[int]:
    """Return what each rung counts as for ASHA: 1, reduction, reduction^2, ..."""
    return [1 if halving is None else halving.reduction**rung for rung in range(rungs)]


def rungs_of(total: int, halving: HalvingConfig | None) -> tuple[int, ...]:
    """Return the steps after which a trial of `total` steps is measured, rising, the last at its end.

    Raises:
        ValueError: there are fewer steps than rungs.
    """
    if halving is None:
        return (total,)
    left = np.arange(halving.rungs - 1, -1, -1) / (halving.rungs - 1)
    rungs = tuple(max(1, round(steps)) for steps in (total * halving.first_share**left).tolist())
    if len(set(rungs)) < len(rungs):
        raise ValueError(f"a trial of {total} steps cannot be measured {halving.rungs} times; give it more steps")
    return rungs


def propose(
    search: OptunaSearch, space: Space, seed: int, number: int, known: Mapping[int, tuple[Point, Outcome | None]]
) -> Point:
    """Return Optuna's point for trial `number` from the trials that ended before its batch.

    Args:
        search: the settings.
        space: what is searched.
        seed: of the sweep.
        number: of the trial.
        known: number -> its point and what came of it, None where it failed; those from the batch on are left out.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ranges = {name: _distribution(dimension) for name, dimension in space.items()}
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    with warnings.catch_warnings(action="ignore"):  # Optuna warns of what it calls experimental
        sampler = optuna.samplers.TPESampler(seed=own_seed, n_startup_trials=search.startup)
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        for earlier in sorted(known):
            point, outcome = known[earlier]
            if earlier >= search.waits_for(number) or outcome is None:
                continue
            params = {name: _encoded(space[name], value) for name, value in point.items()}
            values = [outcome.objective_pct, outcome.accuracy_pct]
            study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, values=values))
        found = study.ask(ranges).params
    return {name: _decoded(space[name], found[name]) for name in space}


def _distribution(dimension: Choice | Uniform | LogUniform | RandInt) -> Any:
    from optuna import distributions

    match dimension:
        case Uniform():
            return distributions.FloatDistribution(dimension.low, dimension.high)
        case LogUniform():
            return distributions.FloatDistribution(dimension.low, dimension.high, log=True)
        case RandInt():
            return distributions.IntDistribution(dimension.low, dimension.high)
    return distributions.CategoricalDistribution(range(len(dimension.values)))


def _encoded(dimension: Choice | Uniform | LogUniform | RandInt, value: Any) -> Any:
    # by place, because Optuna takes 1, 1.0 and True for one category
    return [repr(v) for v in dimension.values].index(repr(value)) if isinstance(dimension, Choice) else value


def _decoded(dimension: Choice | Uniform | LogUniform | RandInt, value: Any) -> Any:
    return dimension.values[value] if isinstance(dimension, Choice) else value
