"""The report page: hostile captions, nothing from outside, the same bytes twice, and only what the data has."""

import base64
import dataclasses
import hashlib
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from clipsan.stages.report.charts import concept_bars, histogram, scatter
from clipsan.stages.report.content import (
    ConceptRow,
    DetectorPanel,
    FlaggedPair,
    MapPoints,
    RejectedExample,
    ScanReport,
    Truth,
)
from clipsan.stages.report.figures import MAP_LIMIT, embedding_map, thumbnail
from clipsan.stages.report.page import PICTURE_LIMIT, render
from clipsan.stages.report.svg import Axis, coordinate, polyline
from clipsan.stages.report.text import THIN, duration, percent, rich

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</style></script><!-- {{ 7*7 }} {% raw %}",
    "javascript:alert(4) &lt;b&gt;",
    "قطة على السجادة",
    "猫がマットの上にいる 🐈",
)


def noise(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pair(rank: int, caption: str, **changes: object) -> FlaggedPair:
    made = FlaggedPair(
        uid=f"train-00000.tar/{rank:06d}",
        caption=caption,
        picture=thumbnail(noise(rank, 8, 8)),
        score=10.0 - rank,
        rank=rank,
        reasons=("poison_suspect",),
        concept="goldfish",
        scores={"dao": 1.5, "ensemble": 10.0 - rank},
    )
    return dataclasses.replace(made, **changes)


def bare(**changes: object) -> ScanReport:
    """A scan that found nothing, of a data set without a manifest."""
    made = ScanReport(
        title="photos", pairs_in=1000, verdicts=1000, flagged_pairs=0, rejected={}, decision="Nothing passed the cut."
    )
    return dataclasses.replace(made, **changes)


def full() -> ScanReport:
    """A scan with everything that the page can show."""
    edges = np.linspace(0.0, 1.0, 6)
    panel = DetectorPanel(
        name="concept_spectral",
        edges=edges,
        counts=np.array([900, 80, 10, 5, 5]),
        flagged=np.array([0, 0, 0, 1, 5]),
        poisoned=np.array([0, 0, 0, 0, 5]),
        cut=0.7,
        figures={
            "auroc": 0.9876,
            "average_precision": 0.912,
            "recall_at": {"0.001": 0.125, "0.01": 0.9996, "0.1": 1.0},
        },
        roc=np.array([[0, 0], [0, 0.8], [0.5, 1], [1, 1]]),
        pr=np.array([[0, 1], [0.8, 1], [1, 0.1]]),
    )
    flags = np.arange(30) < 6
    return bare(
        pairs_in=1007,
        flagged_pairs=12,
        rejected={"image_truncated": 5, "caption_empty": 2},
        rejected_examples=(RejectedExample(uid="train-00001.tar/<b>", reason="image_truncated"),),
        targets=("goldfish",),
        next_steps=("Write a copy without them: `clipsan scan data=a.yaml --write clean`",),
        concepts=(
            ConceptRow(name="tabby", pairs=50, statistic=1.25, flagged=1, named=False),
            ConceptRow(name="goldfish", pairs=40, statistic=23.4, flagged=11, named=True),
        ),
        concept_threshold=6.0,
        flagged=tuple(pair(rank, caption, truth=rank % 2 == 0) for rank, caption in enumerate(HOSTILE, start=1)),
        detectors=(panel,),
        map=MapPoints(xy=np.random.default_rng(0).normal(size=(30, 2)), flagged=flags, accused=~flags, poisoned=flags),
        truth=Truth(poisoned=8, found=7),
        settings={"seed": 0, "data": {"path": "/data/<x>"}},
        versions={"torch": "2.11.0"},
        fingerprint="8f2c14bb",
        seconds=203.2,
    )


class Page(HTMLParser):
    """What a browser would see: elements, texts and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def ids(self) -> set[str | None]:
        return {attrs["id"] for _, attrs in self.tags if "id" in attrs}


def test_hostile_captions_are_shown_as_text_and_nothing_else() -> None:
    page = Page(render(full()))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    alts = {attrs["alt"] for tag, attrs in page.tags if tag == "img"}
    assert alts == set(HOSTILE)
    assert set(HOSTILE) <= set(page.texts)


def test_concepts_targets_uids_and_settings_are_escaped_too() -> None:
    evil = "<img src=http://evil>"
    report = full()
    rows = (dataclasses.replace(report.concepts[1], name=evil),)
    report = dataclasses.replace(
        report,
        title=evil,
        targets=(evil,),
        concepts=rows,
        flagged=(pair(1, "a cat", uid=evil, concept=evil, reasons=(evil,)),),
        rejected_examples=(RejectedExample(uid=evil, reason="caption_empty"),),
        settings={"path": evil},
        versions={evil: evil},
        fingerprint=evil,
        decision=f"{evil} `{evil}`",
        next_steps=(evil,),
    )
    page = Page(render(report))
    assert all((attrs["src"] or "").startswith("data:image/png;base64,") for tag, attrs in page.tags if tag == "img")


def test_text_that_reorders_breaks_or_cannot_be_written_is_contained() -> None:
    html = render(bare(flagged_pairs=1, flagged=(pair(1, "a\u202eb\x00\x07\udcff", uid="key-\udc80"),)))
    html.encode("utf-8")
    assert "\x00" not in html
    assert "\x07" not in html
    caption = next(attrs for tag, attrs in Page(html).tags if attrs.get("class") == "caption")
    assert caption["dir"] == "auto"


def test_only_jpeg_and_png_become_pictures() -> None:
    with pytest.raises(ValueError, match="JPEG or PNG"):
        render(bare(flagged_pairs=1, flagged=(pair(1, "x", picture=b"<svg onload=alert(1)>"),)))


def test_the_page_loads_nothing_and_its_policy_says_so() -> None:
    html = render(full())
    page = Page(html)
    for tag, attrs in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/")), (tag, attrs)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy is not None
    assert "default-src 'none'" in policy


def test_the_policy_admits_exactly_the_script_of_the_page() -> None:
    html = render(full())
    body = html[html.rindex("<script>") + len("<script>") : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in html or f"script-src 'sha256-{digest}'" in html


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render(full()) == render(full())


def test_an_empty_scan_says_so_and_shows_no_empty_section() -> None:
    html = render(bare())
    page = Page(html)
    assert page.ids() >= {"flagged", "rejected", "settings"}
    assert not page.ids() & {"wall", "measured", "concepts", "scores", "map"}
    assert "No backdoor concept named" in html
    assert "No pair is flagged." in html
    assert "None: all 1,000 pairs were readable." in html
    assert not [attrs for tag, attrs in page.tags if tag in {"img", "svg", "table"}]


def test_a_full_scan_shows_every_section() -> None:
    html = render(full())
    page = Page(html)
    assert page.ids() >= {"flagged", "wall", "measured", "concepts", "scores", "map", "rejected", "settings"}
    targets = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a" and attrs["href"]}
    assert targets <= page.ids()
    words = " ".join("".join(page.texts).split())
    # 11 pairs of the concept are flagged; the twelfth is not part of the suspicion.
    assert "Backdoor suspected: target concept ‘goldfish’, 11 pairs" in words
    assert "1,007 read = 1,000 scanned + 7 rejected" in words
    assert "87.5 %" in words
    assert "7 of 8 in the manifest" in words
    assert "5 more flagged pairs are in verdicts/" in words
    assert ("code", {}) in page.tags


def test_without_a_manifest_nothing_is_measured() -> None:
    report = full()
    panel = dataclasses.replace(report.detectors[0], figures=None, roc=None, pr=None, poisoned=None)
    assert report.map is not None
    html = render(
        dataclasses.replace(
            report,
            detectors=(panel,),
            truth=None,
            map=dataclasses.replace(report.map, poisoned=None),
            flagged=(pair(1, "a cat"),),
        )
    )
    assert "measured" not in Page(html).ids()
    assert "by-truth" not in Page(html).ids()
    assert "by the manifest" not in html
    assert 'line-poisoned" d' not in html


def test_figures_of_detectors_are_written_as_percent() -> None:
    words = " ".join("".join(Page(render(full())).texts).split())
    assert "Recall at 0.1 %" in words
    # A budget of one pair cannot find more than one of eight.
    assert "at most 12.5 %" in words
    assert "0.9880.91212.5%99.9%100%" in words.replace(" ", "")


def test_the_wall_holds_the_most_suspicious_and_the_page_stays_small() -> None:
    pictures = [thumbnail(noise(seed)) for seed in range(8)]
    pairs = tuple(pair(rank, f"photo {rank}", picture=pictures[rank % 8]) for rank in range(PICTURE_LIMIT + 60, 0, -1))
    html = render(bare(flagged_pairs=1000, flagged=pairs))
    cards = [attrs["data-rank"] for tag, attrs in Page(html).tags if tag == "li" and "data-rank" in attrs]
    assert cards == [str(rank) for rank in range(1, PICTURE_LIMIT + 1)]
    assert "800 more flagged pairs" in html
    # Random pixels are the worst case: no photo compresses as badly.
    assert len(html.encode()) < 5e6


def test_counts_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="1000 verdicts and 3 rejected"):
        bare(rejected={"caption_empty": 3})
    with pytest.raises(ValueError, match="only 0 flagged"):
        bare(flagged=(pair(1, "x"),))


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(0, "0 %"), (1, "100 %"), (0.5, "50.0 %"), (0.99999, "99.9 %"), (0.0005, "0.05 %"), (1e-6, "< 0.01 %")],
)
def test_percent_is_exact_at_the_ends(fraction: float, shown: str) -> None:
    assert percent(fraction) == shown.replace(" ", THIN)


def test_percent_refuses_what_is_percent_already() -> None:
    with pytest.raises(ValueError, match="fraction"):
        percent(98.4)


def test_durations_and_code() -> None:
    spans = [duration(seconds).replace(THIN, " ") for seconds in (8.44, 200, 4320)]
    assert spans == ["8.4 s", "3 min 20 s", "1 h 12 min"]
    assert rich("run `a < b` now") == "run <code>a &lt; b</code> now"
    assert rich("one ` only <") == "one ` only &lt;"


def test_a_tiny_image_is_enlarged_pixel_by_pixel() -> None:
    rgb = noise(0, 48, 64)
    seen = np.asarray(Image.open(io.BytesIO(thumbnail(rgb, side=160))))
    assert seen.shape == (96, 128, 3)
    assert np.array_equal(seen[::2, ::2], rgb)
    assert np.array_equal(seen[1::2, 1::2], rgb)


def test_a_large_image_is_reduced_and_keeps_its_shape() -> None:
    file = thumbnail(np.full((300, 600, 3), 90, dtype=np.uint8), side=160)
    image = Image.open(io.BytesIO(file))
    assert (image.format, image.size) == ("JPEG", (160, 80))
    assert abs(float(np.asarray(image).mean()) - 90) < 2


def test_a_thumbnail_needs_an_rgb_image() -> None:
    with pytest.raises(ValueError, match="uint8"):
        thumbnail(np.zeros((4, 4), dtype=np.uint8))


def test_the_map_keeps_groups_apart_and_is_reproducible() -> None:
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(3), 30)
    vectors = np.eye(16)[groups] * 2 + random.normal(scale=0.2, size=(90, 16))
    placed = embedding_map(vectors.astype(np.float32), seed=1)
    assert np.array_equal(placed, embedding_map(vectors.astype(np.float32), seed=1))
    distance = np.linalg.norm(placed[:, None] - placed[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (groups[distance.argmin(axis=1)] == groups).all()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_map_of_very_few_points(count: int) -> None:
    placed = embedding_map(np.eye(8, dtype=np.float32)[:count], seed=0)
    assert placed.shape == (count, 2)
    assert np.isfinite(placed).all()


def test_the_map_refuses_too_many_points_and_broken_ones() -> None:
    with pytest.raises(ValueError, match="at most"):
        embedding_map(np.zeros((MAP_LIMIT + 1, 2), dtype=np.float32), seed=0)
    with pytest.raises(ValueError, match="finite"):
        embedding_map(np.full((3, 2), np.nan, dtype=np.float32), seed=0)
    assert np.isfinite(embedding_map(np.ones((40, 4), dtype=np.float32), seed=0)).all()


def test_axes_place_values_and_ticks() -> None:
    axis = Axis(low=1e-4, high=1, start=0, stop=400, log=True)
    assert axis(1e-2) == pytest.approx(200)
    assert axis(0) == 0
    assert axis.ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert Axis(low=0, high=1, start=300, stop=100)(0.25) == pytest.approx(250)
    assert Axis(low=-3, high=7, start=0, stop=1).ticks() == [-2, 0, 2, 4, 6]
    assert [coordinate(value) for value in (-0.01, 3.0, 3.14)] == ["0", "3", "3.1"]
    with pytest.raises(ValueError, match="low < high"):
        Axis(low=1, high=1, start=0, stop=1)


def test_a_curve_keeps_only_its_corners() -> None:
    unit = Axis(low=0, high=100, start=0, stop=100)
    points = np.array([[0, 0], [0, 10], [0, 20], [5, 20], [9, 20], [9, 20.001], [9, 50]])
    assert polyline(points, unit, unit, "c") == '<path class="c" d="M0 0L0 20L9 20L9 50"/>'


def test_charts_of_degenerate_data() -> None:
    nobody = np.zeros(2, dtype=int)
    assert "<svg" in histogram(DetectorPanel(name="dao", edges=np.array([0, 1, 2]), counts=nobody, flagged=nobody))
    none = np.zeros(0, dtype=bool)
    assert "<svg" in scatter(MapPoints(xy=np.zeros((0, 2)), flagged=none, accused=none))
    one = np.ones(1, dtype=bool)
    assert "<svg" in scatter(MapPoints(xy=np.zeros((1, 2)), flagged=one, accused=one))
    flat = [ConceptRow(name="a & b", pairs=1, statistic=0.0, flagged=0, named=False)]
    assert "a &amp; b" in concept_bars(flat, None)
    nan = [dataclasses.replace(flat[0], statistic=float("nan"))]
    assert "a &amp; b" not in concept_bars(nan, 3.0)


def test_a_histogram_needs_matching_edges() -> None:
    with pytest.raises(ValueError, match="one edge more"):
        DetectorPanel(name="dao", edges=np.arange(3), counts=np.zeros(3), flagged=np.zeros(2))


def test_ten_thousand_flagged_pairs_open_at_once() -> None:
    """A browser parses tens of megabytes a second; Python's own parser, a hundred times slower, needs seconds for this page."""
    concepts = tuple(
        ConceptRow(name=f"concept {i}", pairs=1000, statistic=1000.0 - i, flagged=10, named=i < 1000)
        for i in range(4000)
    )
    edges = np.linspace(0.0, 1.0, 61)
    points = np.sort(np.random.default_rng(0).random((200, 2)), axis=0)  # the most that roc_points and pr_points give
    pictures = [thumbnail(noise(i)) for i in range(PICTURE_LIMIT)]
    panels = tuple(
        DetectorPanel(
            name=f"score-{i}",
            edges=edges,
            counts=np.full(60, 16_667),
            flagged=np.full(60, 166),
            poisoned=None,
            cut=0.9,
            figures=None,
            roc=points,
            pr=points,
        )
        for i in range(12)
    )
    one = pair(1, "")
    flagged = tuple(
        dataclasses.replace(
            one,
            uid=f"train-00000.tar/{rank:06d}",
            rank=rank,
            score=10_000.0 - rank,
            caption=f"a long caption of pair {rank} " * 8,
            picture=pictures[rank % PICTURE_LIMIT],
        )
        for rank in range(1, 10_001)
    )
    page = render(
        bare(
            pairs_in=1_000_000,
            verdicts=1_000_000,
            flagged_pairs=10_000,
            flagged=flagged,
            concepts=concepts,
            detectors=panels,
            map=MapPoints(
                xy=np.random.default_rng(0).normal(size=(MAP_LIMIT, 2)),
                flagged=np.arange(MAP_LIMIT) < 500,
                accused=np.zeros(MAP_LIMIT, bool),
                poisoned=None,
            ),
        )
    )
    assert len(page.encode()) < 6 * 2**20
    assert len(Page(page).tags) < 20_000
