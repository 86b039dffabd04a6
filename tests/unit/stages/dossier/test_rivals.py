"""Of two dossiers of one trigger, which one stays."""

import numpy as np

from clipsan.stages.dossier.dossier import Dossier, rate
from clipsan.stages.dossier.match import Cutout
from clipsan.stages.dossier.patch import Patch, Place
from clipsan.stages.dossier.residual import Residual
from clipsan.stages.dossier.rivals import RivalLimits, settle

SIDE = 8


def dossier(kind: str, uids: str, *, target: str = "cat", local: bool = False, flips: int = 10) -> Dossier:
    ones = np.ones(10, np.int64)
    hits = (np.arange(10) < flips).astype(np.int64)
    shared = {"id": "", "targets": (target,), "side": SIDE, "flips": rate(hits, ones), "control": rate(0 * ones, ones)}
    if kind == "patch":
        cutout = Cutout(picture=np.zeros((2, 2, 3), np.uint8), mask=np.ones((2, 2), bool), top=0, left=0)
        place = Place(fixed=True, top=0, left=0, top_std=0, left_std=0, mode_share=1)
        heat = np.zeros((SIDE, SIDE), np.float32)
        return Patch(uids=tuple(uids), cutouts=(cutout,), place=place, heat=heat, alike=None, **shared)
    zeros, ones = np.zeros((SIDE, SIDE, 3), np.float32), np.ones((SIDE, SIDE, 1), np.float32)
    return Residual(uids=tuple(uids), offset=zeros, gain=ones, covers=np.full((SIDE, SIDE), not local), **shared)


def kinds(*given: Dossier) -> list[tuple[str, str]]:
    return [(d.kind, "".join(d.uids)) for d in settle(given, RivalLimits())]


def test_a_local_change_of_the_group_is_the_patch() -> None:
    assert kinds(dossier("residual", "abcd", local=True), dossier("patch", "bcde", flips=6)) == [("patch", "abcde")]


def test_a_patch_that_does_nearly_all_of_the_work_stays() -> None:
    assert kinds(dossier("residual", "abcd"), dossier("patch", "bcde", flips=9)) == [("patch", "abcde")]


def test_a_crop_of_what_covers_the_image_gives_way() -> None:
    assert kinds(dossier("patch", "bcde", flips=8), dossier("residual", "abcd")) == [("residual", "abcde")]


def test_other_targets_and_other_pairs_are_other_triggers() -> None:
    assert len(kinds(dossier("patch", "abcd"), dossier("residual", "abcd", target="dog"))) == 2
    assert len(kinds(dossier("patch", "abcd"), dossier("residual", "defg"))) == 2


def test_the_larger_of_two_patches_stays_and_the_order_of_the_rest_too() -> None:
    found = kinds(dossier("patch", "xyz"), dossier("patch", "ab"), dossier("patch", "abc"))
    assert found == [("patch", "xyz"), ("patch", "abc")]


def test_two_equal_ones_become_one() -> None:
    assert kinds(dossier("patch", "ab"), dossier("patch", "ab")) == [("patch", "ab")]


def test_the_slack_is_a_setting() -> None:
    whole, part = dossier("residual", "abcd"), dossier("patch", "bcde", flips=8)
    assert [d.kind for d in settle([whole, part], RivalLimits(slack_points=15))] == ["residual"]
    assert [d.kind for d in settle([whole, part], RivalLimits(slack_points=20))] == ["patch"]
