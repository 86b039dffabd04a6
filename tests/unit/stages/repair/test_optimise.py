"""Schedules of the repair methods by hand numbers, and what the optimisers train."""

import math

import numpy as np
import pytest
import torch

from clipsan.stages.repair import Setting, build
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.repair.optimise import TwoPhase
from clipsan.stages.repair.par import Par
from clipsan.stages.repair.rvpt import Rvpt
from tests.unit.stages.repair.helpers import tiny_clip


def test_pars_rate_falls_linearly_then_as_a_cosine() -> None:
    objective = build(Par(), tiny_clip(), Setting())
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
    objective = build(FineTune(), tiny_clip(), Setting())
    assert objective.rate(0, 1050) == pytest.approx(1e-5 / 50)
    assert objective.rate(49, 1050) == pytest.approx(1e-5)
    assert objective.rate(550, 1050) == pytest.approx(0.5e-5)
    assert objective.rate(1049, 1050) < 1e-10


def test_rvpts_rate_is_half_a_cosine() -> None:
    objective = build(Rvpt(first_block=2, tokens=2), tiny_clip(), Setting(classes=("a", "b")))
    assert [round(objective.rate(step, 4), 9) for step in range(4)] == [0.002, 0.001707107, 0.001, 0.000292893]


def test_biases_norms_and_the_logit_scale_do_not_decay() -> None:
    objective = build(FineTune(), tiny_clip(), Setting())
    decaying, plain = objective.optimizer().param_groups
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decaying["betas"] == (0.9, 0.999)
    assert all(p.ndim >= 2 for p in decaying["params"])
    assert any(p is objective.model.logit_scale for p in plain["params"])
    assert len(decaying["params"]) + len(plain["params"]) == len(objective.trainable())


def test_the_logit_scale_stays_between_one_and_a_hundred() -> None:
    objective = build(FineTune(), tiny_clip(), Setting())
    with torch.no_grad():
        objective.model.logit_scale.fill_(7.0)
    objective.after_step()
    assert objective.model.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [({"epochs": 0}, "epochs"), ({"batch_size": 1}, "batch_size"), ({"lr": 0.0}, "lr"), ({"tau": 5.0}, "tau")],
)
def test_a_broken_rule_is_stated(settings, rule) -> None:
    with pytest.raises(ValueError, match=rule):
        Par(**settings)
