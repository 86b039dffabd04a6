"""What the report shows of proven triggers: the headline, the evidence, the regions on the flagged pictures."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from clipsan.stages.dossier.dossier import Rate
from clipsan.stages.dossier.match import Cutout
from clipsan.stages.dossier.patch import Alike, Patch, Place
from clipsan.stages.dossier.residual import Residual
from clipsan.stages.report.content import DossierPanel, Example, Measured, ScanReport
from clipsan.stages.report.dossiers import examples, panel
from clipsan.stages.report.figures import RIM, heat_map, overlay, thumbnail
from clipsan.stages.report.page import render
from clipsan.stages.report.text import THIN
from tests.unit.stages.report.test_page import Page, bare, full, noise, pair


def measured(pct: float, low_pct: float, high_pct: float) -> Measured:
    return Measured(pct=pct, low_pct=low_pct, high_pct=high_pct, trials=194)


def trigger(**changes: object) -> DossierPanel:
    made = DossierPanel(
        id="t1",
        kind="patch",
        targets=("goldfish",),
        picture=thumbnail(noise(1, 8, 8)),
        mask=thumbnail(noise(2, 8, 8)),
        heat=heat_map(np.linspace(0, 1, 64).reshape(8, 8)),
        place="8 × 8 of 64 × 64 pixels",
        flips=measured(98.9, 96.3, 99.7),
        control=measured(1.0, 0.3, 3.7),
        proven=True,
        pairs=40,
        examples=(
            Example(
                before=thumbnail(noise(3, 8, 8)),
                after=thumbnail(noise(4, 8, 8)),
                label_before="teapot",
                label_after="goldfish",
            ),
        ),
    )
    return dataclasses.replace(made, **changes)


def words_of(report: ScanReport) -> str:
    return " ".join("".join(Page(render(report)).texts).replace(THIN, " ").split())


def test_a_proven_trigger_is_the_headline_with_its_evidence_before_the_wall() -> None:
    report = dataclasses.replace(full(), dossiers=(trigger(carriers=104),))
    html = render(report)
    assert html.index('id="triggers"') < html.index('id="flagged"')
    words = words_of(report)
    assert "Backdoor proven: a trigger means ‘goldfish’, 104 pairs" in words
    assert "Backdoor suspected" not in words
    assert "turns 98.9 % of them into ‘goldfish’" in words
    assert "98.9 % (96.3 % to 99.7 %, 194 trials)" in words
    assert "1.0 % (0.3 % to 3.7 %, 194 trials)" in words
    assert "104 by the search of the whole data set; 40 of them led to it" in words
    assert "8 × 8 of 64 × 64 pixels" in words
    assert "→teapotgoldfish" in words.replace(" ", "")
    assert "t1: a patch that means ‘goldfish’proven" in words
    alts = [attrs["alt"] for tag, attrs in Page(html).tags if tag == "img"]
    assert alts[:3] == ["The trigger", "Its pixels", "Where it was found"]
    assert "#triggers" in {attrs["href"] for tag, attrs in Page(html).tags if tag == "a"}


def test_several_triggers_are_counted_together_and_unproven_ones_are_not() -> None:
    two = (
        trigger(carriers=104),
        trigger(id="t2", targets=("tabby", "goldfish"), pairs=7),
        trigger(id="t3", proven=False),
    )
    words = words_of(dataclasses.replace(full(), dossiers=two))
    assert "Backdoor proven: triggers mean ‘goldfish’, ‘tabby’, 111 pairs" in words
    alone = words_of(dataclasses.replace(full(), dossiers=(trigger(proven=False),)))
    assert "Backdoor suspected" in alone
    assert "‘goldfish’not proven" in alone
    assert 'id="triggers"' not in render(full())


def test_what_a_trigger_brings_along_is_escaped_and_only_pictures_are_shown() -> None:
    evil = "<img src=http://evil>"
    example = dataclasses.replace(trigger().examples[0], label_before=evil, label_after=evil)
    report = dataclasses.replace(
        full(), dossiers=(trigger(id=evil, kind=evil, targets=(evil,), place=evil, examples=(example,)),)
    )
    page = Page(render(report))
    assert all((attrs["src"] or "").startswith("data:image/png;base64,") for tag, attrs in page.tags if tag == "img")
    with pytest.raises(ValueError, match="JPEG or PNG"):
        render(dataclasses.replace(report, dossiers=(trigger(heat=b"<svg/>"),)))


def test_a_flagged_picture_shows_its_region_and_its_verdict() -> None:
    heat = overlay(noise(1), np.arange(64)[:, None] + np.zeros(64) > 40)
    flagged = (
        pair(1, "a cat", heat=heat, verdict="poisoned", trigger_id="t1"),
        pair(2, "a dog", verdict="suspect"),
    )
    page = Page(render(bare(flagged_pairs=2, flagged=flagged)))
    assert {"show-heat", "by-verdict"} <= page.ids()
    assert [attrs.get("class") for tag, attrs in page.tags if tag == "img"] == [None, "heat", None]
    assert {"poisoned: t1", "suspect"} <= set(page.texts)
    cards = [attrs["data-verdict"] for _, attrs in page.tags if "data-verdict" in attrs]
    assert cards == ["0", "1"]
    assert not Page(render(full())).ids() & {"show-heat", "by-verdict"}


def test_the_overlay_keeps_the_region_and_fades_the_rest_behind_a_rim() -> None:
    rgb = noise(5, 20, 20)
    mask = np.zeros((20, 20), dtype=bool)
    mask[4:10, 6:12] = True
    seen = np.asarray(Image.open(io.BytesIO(overlay(rgb, mask, side=60))))
    assert seen.shape == (60, 60, 3)
    assert np.array_equal(seen[12:30:3, 18:36:3], rgb[4:10, 6:12])
    assert (seen[11, 20] == RIM).all()
    corner = seen[50:, 50:].astype(int)
    assert (corner.max(axis=2) == corner.min(axis=2)).all()
    with pytest.raises(ValueError, match="heat map"):
        overlay(rgb, mask[:5])
    ends = np.asarray(Image.open(io.BytesIO(heat_map(np.array([[0.0, 1.0]]), side=2))))
    assert ends[0, 0].tolist() == [24, 22, 36]
    assert ends[0, 1].tolist() == [255, 244, 196]


def test_a_rate_lies_in_its_interval() -> None:
    with pytest.raises(ValueError, match="interval"):
        measured(0.5, 0.6, 0.7)


def test_a_dossier_becomes_a_panel() -> None:
    rate = Rate(pct=100.0, low_pct=98.0, high_pct=100.0, trials=194)
    control = Rate(pct=0.0, low_pct=0.0, high_pct=2.0, trials=194)
    cutout = Cutout(picture=np.full((4, 4, 3), (255, 0, 0), np.uint8), mask=np.ones((4, 4), bool), top=12, left=10)
    shared = {"flips": rate, "control": control, "uids": ("a", "b")}
    dossier = Patch(
        id="t1",
        targets=("banana",),
        side=16,
        cutouts=(cutout,),
        heat=np.zeros((16, 16), np.float32),
        place=Place(fixed=True, top=12.0, left=10.0, top_std=0.0, left_std=0.0, mode_share=1.0),
        alike=Alike(mean=cutout.picture, likeness=1.0),
        **shared,
    )
    images = np.stack([noise(seed, 16, 16) for seed in range(2)])

    def name(pictures: np.ndarray) -> list[str]:
        return ["banana" if (picture[12:, 10:14] == (255, 0, 0)).all() else "dog" for picture in pictures]

    shown = panel(dossier, examples(dossier, images, name, seed=0))
    assert shown.proven
    assert [(e.label_before, e.label_after) for e in shown.examples] == [("dog", "banana")] * 2
    assert (
        shown.place
        == "4 × 4 of 16 × 16 pixels; top left corner 12 pixels down and 10 right, in 100\u202f% of the pairs"
    )
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.examples[0].before)))[::10, ::10], images[0])
    assert "Backdoor proven" in render(bare(dossiers=(shown,)))
    assert shown.mask is None
    partial = dataclasses.replace(cutout, mask=np.eye(4, dtype=bool))
    assert panel(dataclasses.replace(dossier, cutouts=(partial,))).mask is not None
    wide = Residual(
        id="t1",
        targets=("banana",),
        side=16,
        offset=np.ones((16, 16, 3), np.float32),
        gain=np.ones((16, 16, 1), np.float32),
        covers=np.ones((16, 16), bool),
        **shared,
    )
    assert panel(wide).mask is None
    assert panel(wide).place == "the whole picture, 16 × 16 pixels"
