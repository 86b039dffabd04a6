"""Schedules against torch's and by hand numbers, and what the optimisers train."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from clipsan.pipeline.core.config import ConfigError, validate
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.repair.par import Par
from clipsan.stages.repair.rvpt import Rvpt
from clipsan.stages.training.objective import Setting
from clipsan.stages.training.optimise import CosineWarmup, OneCycle, TwoPhase, parameter_groups
from tests.unit.stages.repair.helpers import tiny_clip


@pytest.mark.parametrize("steps", [10, 100, 157])
def test_one_cycle_is_torchs_step_for_step(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert OneCycle().rate(step, steps, 2e-3) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


def test_cosine_rises_from_the_first_step_and_ends_near_zero() -> None:
    schedule = CosineWarmup(warmup_steps=4)
    rates = [schedule.rate(step, 12, 1.0) for step in range(12)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.5)  # half way through the fall
    assert rates[11] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert all(a >= b for a, b in pairwise(rates[4:]))  # never rises again


def test_the_shortest_runs_have_a_schedule() -> None:
    for schedule in (OneCycle(), CosineWarmup(warmup_steps=0), CosineWarmup(warmup_steps=50)):
        for steps in (1, 2, 3):
            assert all(0 <= schedule.rate(step, steps, 1.0) <= 1 for step in range(steps))


def test_pars_rate_falls_linearly_then_as_a_cosine() -> None:
    objective = Par().build(tiny_clip(), Setting())
    rates = [objective.rate(step, 10) for step in range(10)]
    first = [3e-5, 2.325e-5, 1.65e-5, 0.975e-5, 3e-6]
    middle, end = 3e-6, 1e-9
    second = [end + (middle - end) * (1 + math.cos(math.pi * k / 5)) / 2 for k in range(5)]
    assert second[0] == middle
    np.testing.assert_allclose(rates, first + second, rtol=1e-9)


def test_two_phases_of_few_steps() -> None:
    assert TwoPhase().rate(0, 1, 1.0) == 1.0
    assert TwoPhase().rate(0, 2, 1.0) == 10.0
    assert TwoPhase().rate(1, 2, 1.0) == 1.0
    assert TwoPhase(share=0).rate(0, 4, 1.0) == 1.0


def test_fine_tuning_rises_over_fifty_steps_and_falls_to_zero() -> None:
    objective = FineTune().build(tiny_clip(), Setting())
    assert objective.rate(0, 1050) == pytest.approx(1e-5 / 50)
    assert objective.rate(49, 1050) == pytest.approx(1e-5)
    assert objective.rate(550, 1050) == pytest.approx(0.5e-5)
    assert objective.rate(1049, 1050) < 1e-10


def test_rvpts_rate_is_half_a_cosine() -> None:
    objective = Rvpt(first_block=2, tokens=2).build(tiny_clip(), Setting(classes=("a", "b")))
    assert [round(objective.rate(step, 4), 9) for step in range(4)] == [0.002, 0.001707107, 0.001, 0.000292893]


def test_biases_norms_and_the_logit_scale_do_not_decay() -> None:
    objective = FineTune().build(tiny_clip(), Setting())
    decaying, plain = objective.optimizer().param_groups
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decaying["betas"] == (0.9, 0.999)
    assert all(p.ndim >= 2 for p in decaying["params"])
    assert any(p is objective.model.logit_scale for p in plain["params"])
    assert len(decaying["params"]) + len(plain["params"]) == len(objective.trainable())


def test_norms_biases_and_scale_do_not_decay() -> None:
    model = tiny_clip().model
    decay, keep = (group["params"] for group in parameter_groups(model, 0.1))
    assert len(decay) + len(keep) == len(list(model.parameters()))
    assert all(parameter.ndim >= 2 for parameter in decay)
    assert any(parameter is model.logit_scale for parameter in keep)
    assert [group["weight_decay"] for group in parameter_groups(model, 0.1)] == [0.1, 0.0]


def test_the_logit_scale_stays_between_one_and_a_hundred() -> None:
    objective = FineTune().build(tiny_clip(), Setting())
    with torch.no_grad():
        objective.model.logit_scale.fill_(7.0)
    objective.after_step()
    assert objective.model.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"epochs": 0}, r"epochs: .*greater than or equal to 1"),
        ({"batch_size": 1}, r"batch_size: .*greater than or equal to 2"),
        ({"lr": 0.0}, r"lr: .*greater than 0"),
        ({"tau": 5.0}, r"tau.*less than or equal to 4"),
        ({"schedule": {"kind": "cosine", "warmup_steps": -1}}, r"warmup_steps: .*greater than or equal to 0"),
        ({"schedule": {"kind": "one_cycle", "rise": 1.0}}, r"rise: .*less than 1"),
    ],
)
def test_a_broken_rule_is_stated(settings, rule) -> None:
    with pytest.raises(ConfigError, match=rule):
        validate(Par, settings, verb="repair")
