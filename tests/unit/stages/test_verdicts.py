"""The cut and the verdicts, on hand-made scores."""

import numpy as np
import pyarrow as pa
import pytest

from clipsan.stages.captions import name_vocabulary
from clipsan.stages.verdicts import BudgetDecision, Judge, OddLimits, ThresholdDecision, place_cut, usual_copies


def facts(**columns):
    count = len(next(iter(columns.values())))
    table = {
        "uid": [str(i) for i in range(count)],
        "uid_hex": ["0" * 32] * count,
        "shard": ["s"] * count,
        "key": [str(i) for i in range(count)],
        "caption": ["c"] * count,
        "pixel_std": np.full(count, 50, np.float32),
        "ensemble": np.zeros(count, np.float32),
        "clip_mixture": np.zeros(count, np.float32),
        "image_duplicates": np.full(count, np.log1p(1), np.float32),
        "pair_duplicates": np.ones(count, np.int32),
        "slof": np.full(count, 0.5, np.float32),
        "dao": np.full(count, 0.5, np.float32),
        "concept": ["cat"] * count,
        "trigger_id": pa.nulls(count, pa.string()),
    }
    return pa.table(table | columns)


def test_a_budget_flags_its_share_whatever_the_scores():
    scores = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    cut = place_cut(scores, BudgetDecision(share=0.05), calibrated=99.0, calibration="")
    assert (scores >= cut.value).sum() == 50
    assert "50 most suspicious" in cut.meaning
    assert "5 %" in cut.meaning


def test_a_budget_that_cuts_through_equal_scores_flags_them_all_and_says_so():
    scores = np.array([5, 4, 3, 3, 3, 1, 0, 0, 0, 0], np.float32)
    cut = place_cut(scores, BudgetDecision(share=0.3), calibrated=99.0, calibration="")
    assert cut.value == 3
    assert "the 3 most suspicious pairs, 30 % of those scanned, and 2 that score the same as the last" in cut.meaning
    judged = Judge(cut.value, frozenset(), mixture_speaks=False, limits=OddLimits())(facts(ensemble=scores))
    assert judged.column("verdict").to_pylist() == ["suspect"] * 5 + ["clean"] * 5


def test_a_budget_of_29_percent_flags_29_of_100():
    assert (np.arange(100) >= place_cut(np.arange(100), BudgetDecision(share=0.29), 0.0, "").value).sum() == 29


def test_a_threshold_is_the_given_one_or_the_calibrated_one():
    scores = np.arange(10, dtype=np.float32)
    assert place_cut(scores, ThresholdDecision(value=7.0), 5.0, "x").value == 7.0
    cut = place_cut(scores, ThresholdDecision(), 5.0, "One false flag in a million.")
    assert cut.value == 5.0
    assert "One false flag in a million." in cut.meaning


def test_impossible_budgets_are_refused():
    for share in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match=r"share must be (above 0|at most 1)"):
            BudgetDecision(share=share)


def test_each_reason_has_its_own_sign():
    table = facts(
        ensemble=np.array([9, 0, 0, 0, 0, 0, 0], np.float32),
        clip_mixture=np.array([0, 1, 0, 0, 0, 0, 0], np.float32),
        pixel_std=np.array([50, 50, 1, 50, 50, 50, 50], np.float32),
        image_duplicates=np.log1p(np.array([1, 1, 1, 40, 2, 1, 1], np.float32)),
        slof=np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.9995, 0.9995], np.float32),
        dao=np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.9995, 0.5], np.float32),
    )
    judged = Judge(5.0, frozenset({"cat"}), mixture_speaks=True, limits=OddLimits())(table).to_pydict()
    assert judged["reasons"] == [
        ["poison_suspect"],
        ["mismatched_caption"],
        ["placeholder"],
        ["placeholder"],
        ["near_duplicate"],
        ["outlier"],
        [],
    ]
    assert judged["verdict"] == ["suspect"] * 6 + ["clean"]
    assert judged["target"] == ["cat"] + [None] * 6


def test_limits_decide_what_is_odd():
    table = facts(image_duplicates=np.log1p(np.array([2, 4], np.float32)), pixel_std=np.array([5, 50], np.float32))
    limits = OddLimits(placeholder_copies=4, uniform_std=6.0)
    judged = Judge(5.0, frozenset(), mixture_speaks=False, limits=limits)(table)
    assert judged.column("reasons").to_pylist() == [["placeholder", "near_duplicate"], ["placeholder"]]


def test_a_picture_is_a_placeholder_under_many_captions_and_a_duplicate_under_few():
    copies = np.log1p(np.array([40, 40, 40, 40, 19, 20], np.float32))
    own = np.array([1, 4, 5, 40, 1, 1], np.int32)
    judged = Judge(5.0, frozenset(), mixture_speaks=False, limits=OddLimits())(
        facts(image_duplicates=copies, pair_duplicates=own)
    )
    expected = ["placeholder", "placeholder", "near_duplicate", "near_duplicate", "near_duplicate", "placeholder"]
    assert judged.column("reasons").to_pylist() == [[reason] for reason in expected]


def test_where_every_picture_has_five_captions_only_further_copies_are_odd():
    copies = np.log1p(np.repeat([5, 4, 7], [50, 4, 7]).astype(np.float32))
    judge = Judge(5.0, frozenset(), mixture_speaks=False, limits=OddLimits(), copies=usual_copies(copies))
    reasons = judge(facts(image_duplicates=copies)).column("reasons").to_pylist()
    assert reasons == [[]] * 54 + [["near_duplicate"]] * 7


def test_the_same_pair_again_is_odd_in_any_set():
    copies, same = np.log1p(np.full(40, 2, np.float32)), np.repeat([2, 1], 20).astype(np.int32)
    judge = Judge(5.0, frozenset(), mixture_speaks=False, limits=OddLimits(), copies=usual_copies(copies))
    reasons = judge(facts(image_duplicates=copies, pair_duplicates=same)).column("reasons").to_pylist()
    assert reasons == [["near_duplicate"]] * 20 + [[]] * 20


@pytest.mark.parametrize(
    ("pictures", "usual"),
    [
        ({1: 50, 2: 50}, 1),
        ({1: 49, 2: 50}, 2),
        # three pictures have most of the pairs, and are three
        ({1: 60, 25: 3, 5: 1}, 1),
        ({5: 80, 4: 20, 6: 10}, 5),
        ({3: 7}, 3),
    ],
)
def test_usual_is_what_half_of_the_pictures_have(pictures, usual):
    rng = np.random.default_rng(0)
    each = [copies for copies, count in pictures.items() for _ in range(count)]
    assert sorted(each)[(len(each) - 1) // 2] == usual
    pairs = rng.permutation([copies for copies in each for _ in range(copies)])
    assert usual_copies(np.log1p(pairs).astype(np.float32)) == usual


def test_without_a_pair_one_is_usual():
    assert usual_copies(np.zeros(0, np.float32)) == 1


def test_a_flag_outside_the_named_concepts_names_no_target():
    judged = Judge(5.0, frozenset({"dog"}), mixture_speaks=True, limits=OddLimits())(
        facts(ensemble=np.array([9.0], np.float32))
    )
    assert judged.column("target").to_pylist() == [None]


def test_a_mixture_that_does_not_separate_accuses_nobody():
    judged = Judge(5.0, frozenset(), mixture_speaks=False, limits=OddLimits())(
        facts(clip_mixture=np.ones(3, np.float32))
    )
    assert judged.column("verdict").to_pylist() == ["clean"] * 3


def test_a_proven_trigger_makes_a_pair_poisoned_whatever_its_scores():
    table = facts(ensemble=np.array([9, 0, 0], np.float32), trigger_id=pa.array(["t1", "t1", None], pa.string()))
    judged = Judge(5.0, frozenset({"cat"}), mixture_speaks=True, limits=OddLimits(), triggers={"t1": "dog"})(
        table
    ).to_pydict()
    assert judged["verdict"] == ["poisoned", "poisoned", "clean"]
    assert judged["reasons"] == [["proven_trigger", "poison_suspect"], ["proven_trigger"], []]
    assert judged["target"] == ["dog", "dog", None]


def test_a_flagged_pair_is_of_the_named_concept_that_its_column_does_not_know():
    table = facts(
        ensemble=np.array([9, 9, 0, 9], np.float32), caption=["a rare emu", "a cat", "an emu", "an emu and a gnu"]
    )
    beyond = name_vocabulary({"emu": (), "gnu": ()})
    judged = Judge(5.0, frozenset({"emu", "gnu"}), mixture_speaks=True, limits=OddLimits(), beyond=beyond)(table)
    assert judged.column("target").to_pylist() == ["emu", None, None, "emu"]
    assert judged.column("concept").to_pylist() == ["emu", "cat", "cat", "emu"]
