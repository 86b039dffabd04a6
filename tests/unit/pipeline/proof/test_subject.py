"""Which held-out pictures select regions, and which ones are left to count what a trigger flips."""

import numpy as np
import pytest

from clipsan.pipeline.proof.work import Subject
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.proof.examine import ExamineConfig
from tests.unit.stages.proof.helpers import labels

SETTINGS = ExamineConfig()


def subject(count: int) -> Subject:
    held_out = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Subject(model=ModelConfig(path="none"), device="cpu", labels=labels(), held_out=held_out, seed=0)


@pytest.mark.parametrize(("count", "selecting"), [(200, 36), (72, 36), (40, 20), (11, 5), (6, 5)])
def test_a_picture_that_selected_a_region_does_not_count_its_flips(count: int, selecting: int) -> None:
    made = subject(count)
    first, counted = made.selecting(SETTINGS).ravel().tolist(), made.counting(SETTINGS).ravel().tolist()
    assert first == list(range(selecting))
    assert first + counted == list(range(count))
    assert made.deciding(SETTINGS).ravel().tolist() == first[SETTINGS.completed_on :]
    assert counted
