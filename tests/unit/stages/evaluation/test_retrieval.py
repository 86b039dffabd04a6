"""Retrieval against loops over every pair."""

from dataclasses import replace

import numpy as np
import pytest

from clipsan.stages.evaluation import retrieval
from clipsan.stages.evaluation.figures import Figure
from clipsan.stages.evaluation.retrieval import (
    Gallery,
    image_to_text_ranks,
    retrieval_attack_figures,
    retrieval_figures,
    target_ranks,
    text_to_image_ranks,
)

IMAGES = 40


def unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), np.float32)


@pytest.fixture
def gallery() -> Gallery:
    rng = np.random.default_rng(0)
    images = unit(rng.normal(size=(IMAGES, 8)))
    owners = np.repeat(np.arange(IMAGES), rng.integers(1, 6, IMAGES))
    texts = unit(images[owners] + rng.normal(0, 0.5, (len(owners), 8)))
    words = ["a kite", "two kites", "a Kite at sea", "boat", "pear"]
    return Gallery(images, texts, owners, [words[i % 5] for i in range(len(owners))])


def values(figures: list[Figure], strand: str = "") -> dict[str, float]:
    return {found.figure: found.value for found in figures if found.strand == strand}


@pytest.fixture(params=[4_000_000, 7])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", request.param)


def test_recalls_are_those_of_loops(gallery: Gallery, chunked: None) -> None:
    scores = gallery.images.astype(np.float64) @ gallery.texts.astype(np.float64).T
    figures = values(retrieval_figures(gallery))
    for k in (1, 5, 10):
        found = 0
        for image in range(IMAGES):
            nearest = sorted(range(len(gallery.texts)), key=lambda text: -scores[image, text])[:k]
            found += any(gallery.owners[text] == image for text in nearest)
        assert figures[f"image_to_text_r{k}_pct"] == pytest.approx(100 * found / IMAGES)
        found = 0
        for text in range(len(gallery.texts)):
            nearest = sorted(range(IMAGES), key=lambda image: -scores[image, text])[:k]
            found += gallery.owners[text] in nearest
        assert figures[f"text_to_image_r{k}_pct"] == pytest.approx(100 * found / len(gallery.texts))
    assert 0 < figures["image_to_text_r1_pct"] < 100
    assert figures["retrieval_r1_pct"] == figures["image_to_text_r1_pct"]
    assert figures["retrieval_captions"] == len(gallery.texts)


def test_a_collapsed_encoder_finds_nothing(chunked: None) -> None:
    same = unit(np.ones((12, 4)))
    found = values(retrieval_figures(Gallery(same, same, np.arange(12), ["a"] * 12)))
    assert {found[f"{way}_r1_pct"] for way in ("image_to_text", "text_to_image")} == {0.0}
    lost = np.full((12, 4), np.nan, np.float32)
    assert (image_to_text_ranks(Gallery(lost, lost, np.arange(12), ["a"] * 12)) == 11).all()
    assert (text_to_image_ranks(Gallery(lost, lost, np.arange(12), ["a"] * 12)) == 11).all()


@pytest.mark.parametrize("exclude", [True, False])
def test_retrieval_asr_counts_captions_with_the_word(gallery: Gallery, chunked: None, exclude: bool) -> None:
    rng = np.random.default_rng(1)
    triggered = unit(gallery.images + rng.normal(0, 0.3, gallery.images.shape))
    figures = values(
        retrieval_attack_figures(gallery, triggered[:, None], ["kite"], ["1"], k=3, exclude_target=exclude)
    )
    hits = {"retrieval_asr_pct": triggered, "retrieval_false_target_pct": gallery.images}
    for name, images in hits.items():
        won = trials = 0
        for image in range(IMAGES):
            own = [text for text, owner in zip(gallery.captions, gallery.owners, strict=True) if owner == image]
            if exclude and any("kite" in text.lower().split() for text in own):
                continue
            order = np.argsort(-(images[image] @ gallery.texts.T))[:3]
            trials += 1
            won += any("kite" in gallery.captions[text].lower().split() for text in order)
        assert figures[name] == pytest.approx(100 * won / trials)
    assert figures["retrieval_target_captions"] == sum("kite" in text.lower().split() for text in gallery.captions)


def test_strands_of_which_one_has_no_caption(gallery: Gallery) -> None:
    triggered = np.stack([gallery.images, gallery.images], axis=1)
    figures = retrieval_attack_figures(gallery, triggered, ["pear", "zebra"], ["1", "2"])
    assert "retrieval_asr_pct" not in values(figures, "2")
    assert values(figures, "1")["retrieval_asr_pct"] == values(figures)["retrieval_asr_pct"]
    alone = values(retrieval_attack_figures(gallery, triggered[:, :1], ["zebra"], ["1"]))
    assert alone == {"retrieval_target_captions": 0}


def test_images_that_all_have_the_target_show_nothing_of_the_attack(gallery: Gallery) -> None:
    everywhere = replace(gallery, captions=[f"{text} kite" for text in gallery.captions])
    triggered = gallery.images[:, None]
    alone = values(retrieval_attack_figures(everywhere, triggered, ["kite"], ["1"]))
    assert alone == {"retrieval_target_captions": len(gallery.captions)}
    kept = values(retrieval_attack_figures(everywhere, triggered, ["kite"], ["1"], exclude_target=False))
    assert kept["retrieval_asr_pct"] == 100


def test_ties_count_for_the_attack(gallery: Gallery) -> None:
    same = unit(np.ones((3, 4)))
    tied = Gallery(same, same, np.arange(3), ["a", "b", "kite"])
    assert (target_ranks(same, tied, np.array([False, False, True])) == 0).all()
