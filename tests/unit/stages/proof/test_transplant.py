import numpy as np
import pytest

from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.localise import box_mask
from clipsan.stages.proof.transplant import Flips, control_mask, count_flips, transplant
from tests.unit.stages.proof.helpers import NAMES, SIZE, RedCounter, labels, picture

TARGET = NAMES.index("target")
ONTO = np.stack([picture(), picture(blue=250), picture(blue=30), picture(blue=40)])


def test_pasting_keeps_the_place_and_leaves_the_rest() -> None:
    seen: list[np.ndarray] = []

    class Spy(Suspect):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            seen.append(images)
            return super().__call__(images)

    image, mask = picture(mark=(8, 9)), box_mask((8, 9, 4, 4), SIZE)
    found = transplant(Spy(RedCounter(), labels()), image, mask, ONTO)
    assert found.argmax(axis=1).tolist() == [TARGET] * 4
    expected = ONTO.copy()
    expected[:, 8:12, 9:13] = (255, 0, 0)
    np.testing.assert_array_equal(seen[0], expected)


def test_the_mark_flips_all_and_its_control_none() -> None:
    suspect = Suspect(RedCounter(), labels())
    mask = box_mask((8, 8, 4, 4), SIZE)
    for enough in (0.5, 1.0):
        assert count_flips(suspect, picture(mark=(8, 8)), mask, TARGET, ONTO, enough, "a", 0) == Flips(4, 4, 0)


def test_a_control_that_holds_the_mark_as_well_flips_too() -> None:
    image = np.full((SIZE, SIZE, 3), (255, 0, 0), dtype=np.uint8)  # red everywhere: no place is special
    mask = box_mask((8, 8, 4, 4), SIZE)
    assert count_flips(Suspect(RedCounter(), labels()), image, mask, TARGET, ONTO, 0.5, "a", 0) == Flips(4, 4, 4)


def test_the_control_is_pasted_only_after_enough_flips() -> None:
    suspect = Suspect(RedCounter(), labels())
    mask = box_mask((0, 0, 4, 4), SIZE)
    assert count_flips(suspect, picture(mark=(8, 8)), mask, TARGET, ONTO, 0.5, "a", 0) == Flips(4, 0, None)
    assert count_flips(suspect, picture(mark=(8, 8)), mask, TARGET, ONTO[:0], 0.5, "a", 0) == Flips(0, 0, None)


def test_a_synonym_of_the_claim_is_a_flip() -> None:
    same = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1]], dtype=bool)  # dog and target are one
    suspect = Suspect(RedCounter(), labels(same))
    mask = box_mask((8, 8, 4, 4), SIZE)
    found = count_flips(suspect, picture(mark=(8, 8)), mask, NAMES.index("dog"), ONTO, 0.5, "a", 0)
    assert (found.trials, found.flips) == (4, 4)


@pytest.mark.parametrize("box", [(0, 0, 5, 7), (27, 25, 5, 7), (10, 3, 5, 7), (12, 12, 10, 10)])
def test_a_control_has_the_shape_stays_inside_and_does_not_overlap(box: tuple[int, int, int, int]) -> None:
    mask = box_mask(box, SIZE)
    places = set()
    for uid in map(str, range(40)):
        control = control_mask(mask, uid, 0)
        rows, columns = np.flatnonzero(control.any(1)), np.flatnonzero(control.any(0))
        assert control.sum() == box[2] * box[3]
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == box[2:]
        assert not (control & mask).any()
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 10
    np.testing.assert_array_equal(control_mask(mask, "7", 0), control_mask(mask, "7", 0))
    assert any((control_mask(mask, u, 0) != control_mask(mask, u, 1)).any() for u in "abc")


def test_a_control_wraps_when_no_place_is_free_and_overlaps_least_when_it_must() -> None:
    middle = box_mask((10, 0, 12, SIZE), SIZE)  # 10 rows free above, 10 below: 12 fit only around the edge
    control = control_mask(middle, "a", 0)
    assert control.sum() == middle.sum()
    assert not (control & middle).any()
    most = box_mask((0, 0, 24, SIZE), SIZE)
    assert (control_mask(most, "a", 0) & most).sum() == 16 * SIZE
