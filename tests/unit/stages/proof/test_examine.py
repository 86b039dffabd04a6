import io
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from clipsan.stages.model.clip import Clip
from clipsan.stages.oracle.regions import Region, from_runs
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.examine import EVIDENCE_SCHEMA, ExamineConfig, Examiner, evidence_table, transplant_proves
from clipsan.stages.proof.localise import box_mask
from tests.unit.stages.proof.helpers import SIZE, RedCounter, labels, picture, window

GRID = [window(top, left, 8, 8) for top in range(0, 25, 4) for left in range(0, 25, 4)]
HELD_OUT = np.stack([picture(blue=10 * i) for i in range(10)] + [picture(mark=(0, 0)), picture(mark=(9, 9))])


def examiner(seen: list[Region] = GRID, onto: np.ndarray = HELD_OUT, **changes: Any) -> Examiner:
    settings = ExamineConfig(**{"held_out": 12, **changes})
    return Examiner(cast(Clip, RedCounter()), lambda image: seen, labels(), onto, settings)


def test_a_trigger_is_found_to_the_pixel_and_proven() -> None:
    image = picture(mark=(13, 17))
    row = examiner().examine("u", image, "target")
    assert (row["box_top"], row["box_left"], row["box_height"], row["box_width"]) == (13, 17, 4, 4)
    assert row["labels"] == ["target"]
    assert row["supported"] == []
    assert row["unsupported"] == ["target"]
    assert row["region_labels"] == ["cat", "target"]
    assert (row["trials"], row["flips"], row["control_flips"], row["proven"]) == (
        6,
        6,
        0,
        True,
    )  # ten are no targets, and four of them do not vote
    assert row["probability"] > 0.99
    assert row["probability_without"] < 0.01
    mask = from_runs(row["mask_runs"], row["mask_height"], row["mask_width"])
    assert mask.shape == (SIZE, SIZE)
    assert mask[13:17, 17:21].all()
    assert mask.sum() == 16
    cut = np.asarray(Image.open(io.BytesIO(row["region_png"])))
    assert (cut[13:17, 17:21] == (255, 0, 0, 255)).all()
    assert (cut[..., 3] > 0).sum() == 16


@pytest.mark.parametrize(("says", "proven"), [("cat", True), ("target", False)])
def test_with_a_trusted_labeller_algorithm_1_decides(says: str, proven: bool) -> None:
    class Trusted:
        def labels(self, image: np.ndarray, regions: Sequence[Region]) -> list[str]:
            return [says] * len(regions)

    settings = ExamineConfig(held_out=12)
    supervised = Examiner(cast(Clip, RedCounter()), lambda image: GRID, labels(), HELD_OUT, settings, Trusted())
    row = supervised.examine("u", picture(mark=(13, 17)), "target")
    assert row["unsupported"] == (["target"] if proven else [])
    assert row["supported"] == ([] if proven else ["target"])
    # a claim that the labeller bears out is not tested, though a region carries it
    assert row["proven"] is proven
    assert (row["trials"] > 0) is proven


def test_a_pair_without_a_carrier_has_nulls_and_is_not_proven() -> None:
    row = examiner().examine("u", picture(), "target")
    assert row["labels"] == ["cat", "target"]
    assert row["proven"] is False
    assert (row["trials"], row["flips"], row["control_flips"]) == (0, 0, None)
    assert row["box_top"] is row["mask_runs"] is row["probability_without"] is row["region_png"] is None


def test_a_claim_that_rests_on_two_places_has_no_carrier() -> None:
    image = picture(mark=(2, 2))
    image[26:30, 26:30] = (255, 0, 0)
    row = examiner().examine("u", image, "target")
    assert row["supported"] == ["target"]
    assert row["box_top"] is None


def test_a_whole_red_picture_is_no_trigger() -> None:
    image = np.full((SIZE, SIZE, 3), (255, 0, 0), dtype=np.uint8)
    assert examiner().examine("u", image, "target")["proven"] is False


def test_what_flips_by_its_control_too_is_not_proven() -> None:
    image = np.full((SIZE, SIZE, 3), (255, 0, 0), dtype=np.uint8)
    image[:, 24:] = (10, 20, 0)
    image[:, :6] = (10, 20, 0)
    everywhere = examiner(seen=[window(0, 6, SIZE, 18)], max_trigger_area=1.0)
    row = everywhere.examine("u", image, "target")
    assert row["trials"] == row["flips"] == 6
    assert row["control_flips"] > 0
    assert row["proven"] is False


def test_what_leaves_the_claim_standing_is_not_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(mark=(2, 2))
    image[10:14, 10:14] = (255, 0, 0)
    both = examiner(seen=[window(0, 0, 16, 16)])  # carries both marks
    monkeypatch.setattr(
        "clipsan.stages.proof.examine.tighten", lambda *_: (2, 2, 4, 4)
    )  # and is cut down to one of them
    row = both.examine("u", image, "target")
    assert (row["box_height"], row["trials"], row["proven"]) == (4, 0, False)
    assert row["probability_without"] > 0.99


def test_limits_decide_what_is_proven() -> None:
    image = picture(mark=(13, 17))
    assert examiner(max_trigger_area=16 / SIZE**2).examine("u", image, "target")["proven"] is True
    small = examiner(max_trigger_area=15 / SIZE**2).examine("u", image, "target")
    assert (small["box_height"], small["trials"], small["proven"]) == (4, 0, False)


def test_only_the_surest_regions_are_looked_at() -> None:
    image = picture(mark=(13, 17))
    found = [window(0, 0, 4, 4), window(12, 16, 8, 8)]
    assert examiner(seen=found, regions=2).examine("u", image, "target")["box_top"] == 13
    assert examiner(seen=found, regions=1).examine("u", image, "target")["box_top"] is None


def test_a_record_depends_on_its_pair_alone() -> None:
    first, second = examiner(), examiner()
    one, other = picture(mark=(13, 17)), picture(blue=250, mark=(3, 3))
    a = [first.examine("a", one, "target"), first.examine("b", other, "target")]
    b = [second.examine("b", other, "target"), second.examine("a", one, "target")]
    assert evidence_table(a).equals(evidence_table(b[::-1]))
    assert evidence_table(a).schema.equals(EVIDENCE_SCHEMA)
    assert set(a[0]) == set(EVIDENCE_SCHEMA.names)


def test_bad_input_is_refused_with_its_rule() -> None:
    with pytest.raises(ValueError, match="12 held-out images are wanted, and there are 3"):
        examiner(onto=HELD_OUT[:3])
    with pytest.raises(ValueError, match=r"held-out images are \[K, 32, 32, 3\] uint8"):
        examiner(onto=HELD_OUT[:, :16])
    with pytest.raises(ValueError, match="'whale' is no label"):
        examiner().examine("u", picture(), "whale")
    with pytest.raises(ValueError, match="held_out must be above 4"):
        ExamineConfig(held_out=4)
    with pytest.raises(ValueError, match="control_at_most and accept"):
        ExamineConfig(accept=0.1, control_at_most=0.2)
    with pytest.raises(ValueError, match="control_at_most and accept"):
        ExamineConfig(accept=0.1, control_at_most=0.1)


def test_half_of_the_flips_and_a_tenth_of_the_control_s_are_a_proof_and_no_less_and_no_more() -> None:
    settings = ExamineConfig()
    assert settings.proves(50.0, 10.0)
    assert not settings.proves(49.9, 0.0)
    assert not settings.proves(100.0, 10.1)


def test_what_stands_at_a_place_is_proven_on_pictures_that_had_no_part_in_choosing_it() -> None:
    suspect = Suspect(cast(Clip, RedCounter()), labels())
    onto = np.stack([*(picture(blue=blue) for blue in (0, 30, 200, 240)), picture(mark=(20, 20))])
    image, settings = picture(mark=(4, 4)), ExamineConfig()
    here, elsewhere = (box_mask((top, top, 4, 4), SIZE) for top in (4, 16))
    assert transplant_proves(suspect, image, here, 2, onto, settings, "a")
    # Without the mark nothing flips: a claim that falls with a place of its own is no trigger.
    assert not transplant_proves(suspect, image, elsewhere, 2, onto, settings, "a")
    # Where all of the picture is the mark, an equal area of another place flips as well.
    assert not transplant_proves(suspect, np.full((SIZE, SIZE, 3), (255, 0, 0), np.uint8), here, 2, onto, settings, "a")
