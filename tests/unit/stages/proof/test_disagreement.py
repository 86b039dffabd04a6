import math
from collections.abc import Sequence

import numpy as np
import pytest

from clipsan.stages.oracle.regions import Region
from clipsan.stages.proof.disagreement import BATCH, GREY, Disagreement, Suspect, alone, disagree, without
from clipsan.stages.proof.localise import BoxLimits, box_mask, causal_score, complete, tighten
from tests.unit.stages.proof.helpers import MARK, NAMES, SCALE, SIZE, RedCounter, labels, picture, window

TARGET = NAMES.index("target")
LIMITS = BoxLimits()


class Says:
    """A labeller that gives every region the same names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def labels(self, image: np.ndarray, regions: Sequence[Region]) -> list[str]:
        return list(self.names[: len(regions)])


def run(
    image: np.ndarray, regions: list[Region], labeller: Says | None = None, same: np.ndarray | None = None
) -> Disagreement:
    return disagree(
        Suspect(RedCounter(), labels(same)),
        image,
        regions,
        TARGET,
        top_labels=3,
        least_probability=0.05,
        small_area=0.1,
        support=0.5,
        labeller=labeller,
    )


def target_probability(red: int) -> float:
    """By hand: the softmax over the cosines of a cat with so many red pixels."""
    share = min(1, red / MARK)
    norm = math.hypot(share, 1 - share)
    logits = [SCALE * (1 - share) / norm, 0.0, SCALE * share / norm]
    return math.exp(logits[2]) / sum(map(math.exp, logits))


def test_alone_keeps_the_region_in_its_place_on_grey() -> None:
    image = picture(mark=(4, 6))
    shown = alone(image, np.stack([box_mask((4, 6, 4, 4), SIZE), box_mask((0, 0, 2, 2), SIZE)]))
    assert (shown[0, 4:8, 6:10] == (255, 0, 0)).all()
    assert (shown[0].reshape(-1, 3) == GREY).all(axis=1).sum() == SIZE * SIZE - 16
    assert (shown[1, :2, :2] == (10, 20, 0)).all()


def test_without_fills_the_region_with_the_mean_of_its_border() -> None:
    image = picture(mark=(4, 6))
    image[3, 5:11] = (70, 80, 90)  # six of the twenty pixels of the border
    filled = without(image, box_mask((4, 6, 4, 4), SIZE)[None])[0]
    assert filled[4:8, 6:10].reshape(-1, 3).tolist() == [[28, 38, 27]] * 16
    untouched = ~box_mask((4, 6, 4, 4), SIZE)
    np.testing.assert_array_equal(filled[untouched], image[untouched])
    assert (without(image, np.ones((1, SIZE, SIZE), dtype=bool)) == GREY).all()


def test_a_label_that_one_small_region_carries_is_unsupported() -> None:
    found = run(picture(mark=(8, 8)), [window(6, 6, 8, 8), window(20, 20, 8, 8)])
    assert [NAMES[i] for i in found.claimed] == ["target"]
    assert found.supported == []
    assert [NAMES[i] for i in found.region_labels] == ["cat", "target"]
    assert found.unsupported == [TARGET]
    np.testing.assert_allclose(found.probability[TARGET], target_probability(16), rtol=1e-6)
    np.testing.assert_allclose(found.probability_alone[:, TARGET], [target_probability(16), target_probability(0)])
    np.testing.assert_allclose(found.probability_without[:, TARGET], [target_probability(0), target_probability(16)])


def test_a_label_that_survives_every_small_region_is_supported() -> None:
    image = picture(mark=(8, 8))
    image[20:24, 20:24] = (255, 0, 0)  # a second mark stands in for the first
    found = run(image, [window(6, 6, 8, 8), window(18, 18, 8, 8)])
    assert found.supported == [TARGET]
    assert found.unsupported == []


def test_a_large_region_takes_no_support_away() -> None:
    found = run(picture(mark=(8, 8)), [window(0, 0, 16, 16)])  # a quarter of the image; small is a tenth
    assert found.supported == [TARGET]


def test_a_region_of_just_the_largest_area_is_small() -> None:
    image, regions = picture(mark=(8, 8)), [window(6, 6, 8, 8)]
    limits = {"top_labels": 3, "least_probability": 0.05, "support": 0.5}
    for area, supported in ((64 / SIZE**2, []), (63 / SIZE**2, [TARGET])):
        found = disagree(Suspect(RedCounter(), labels()), image, regions, TARGET, small_area=area, **limits)
        assert found.supported == supported


def test_a_labeller_that_names_a_synonym_supports_the_label() -> None:
    synonyms = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1]], dtype=bool)  # dog and target are one
    regions = [window(6, 6, 8, 8), window(20, 20, 8, 8)]
    assert run(picture(mark=(8, 8)), regions, Says("cat", "dog"), synonyms).supported == [TARGET]


def test_pictures_that_have_the_label_already_are_left_out_and_some_must_be_left() -> None:
    suspect = Suspect(RedCounter(), labels())
    shown = np.stack([picture(), picture(mark=(3, 3)), picture(blue=250)])
    np.testing.assert_array_equal(suspect.others(shown, TARGET), shown[[0, 2]])
    with pytest.raises(ValueError, match="every held-out image has the label already"):
        suspect.others(shown[1:2], TARGET)


def test_what_no_region_gives_is_pruned() -> None:
    image = picture(mark=(8, 8))
    found = run(image, [window(8, 8, 4, 2)])  # half the mark: a tie alone, hardly a target without
    assert found.supported == []
    assert NAMES[found.region_labels[0]] == "cat"
    assert found.unsupported == []


def test_the_accused_label_is_always_claimed_and_comes_last() -> None:
    found = run(picture(), [window(0, 0, 4, 4)])
    assert [NAMES[i] for i in found.claimed] == ["cat", "target"]
    assert found.probability[TARGET] < 0.05


def test_a_trusted_labeller_decides_support_alone() -> None:
    image = picture(mark=(8, 8))
    regions = [window(6, 6, 8, 8), window(20, 20, 8, 8)]
    assert run(image, regions, Says("cat", "target")).supported == [TARGET]
    assert run(image, regions, Says("cat", "dog")).unsupported == [TARGET]
    with pytest.raises(ValueError, match="'whale' is no label"):
        run(image, regions, Says("whale", "cat"))


def test_an_image_without_regions_has_no_candidate() -> None:
    found = run(picture(mark=(8, 8)), [])
    assert found.region_labels == []
    assert found.unsupported == []


def test_batches_are_cut_at_fixed_places() -> None:
    encoder = RedCounter()
    Suspect(encoder, labels())(np.repeat(picture()[None], 2 * BATCH + 5, axis=0))
    assert encoder.batches == [BATCH, BATCH, 5]


def test_the_causal_score_by_hand() -> None:
    score = causal_score(np.array([0.75, 1.0]), np.array([0.25, 0.0]), np.array([0.1, 0.5]), LIMITS.area_price)
    ceiling = math.log((1 - 1e-6) / 1e-6)
    np.testing.assert_allclose(
        score, [2 * math.log(3) - LIMITS.area_price * 0.1, 2 * ceiling - LIMITS.area_price * 0.5]
    )


@pytest.mark.parametrize("start", [(6, 4, 10, 10), (9, 10, 2, 2), (8, 8, 14, 4), (0, 0, 20, 20)])
def test_tightening_finds_the_exact_block(start: tuple[int, int, int, int]) -> None:
    image = picture(mark=(9, 10))
    assert tighten(Suspect(RedCounter(), labels()), image, start, TARGET, LIMITS) == (9, 10, 4, 4)


def test_tightening_stays_inside_the_image() -> None:
    image = picture(mark=(28, 28))
    assert tighten(Suspect(RedCounter(), labels()), image, (24, 24, 8, 8), TARGET, LIMITS) == (28, 28, 4, 4)


@pytest.mark.parametrize("start", [(9, 10, 2, 2), (10, 11, 3, 3), (9, 10, 4, 4)])
def test_completing_grows_to_the_exact_block_and_no_further(start: tuple[int, int, int, int]) -> None:
    image = picture(mark=(9, 10))
    onto = np.stack([picture(), picture(blue=250)])
    assert complete(Suspect(RedCounter(), labels()), image, start, TARGET, onto, LIMITS) == (9, 10, 4, 4)
    assert complete(Suspect(RedCounter(), labels()), image, start, TARGET, onto[:0], LIMITS) == start


def test_completing_never_shrinks() -> None:
    found = complete(
        Suspect(RedCounter(), labels()), picture(mark=(9, 10)), (8, 8, 8, 8), TARGET, picture()[None], LIMITS
    )
    assert found == (8, 8, 8, 8)
