"""The poisoning plan: exact counts, no order, ground truth that matches the files."""

import hashlib
import io
import json
import random

import numpy as np
import pyarrow as pa
import pydantic
import pytest
from PIL import Image

from clipsan.stages.attack.poisoning import (
    TEMPLATES,
    AttackConfig,
    ImagePath,
    Poisoner,
    Strand,
    draws,
    place_draw_cut,
    strand_numbers,
)
from clipsan.stages.attack.treatment import MANIFEST_SCHEMA, manifest_row
from clipsan.stages.attack.triggers import BlendConfig, IdentityConfig, PatchConfig
from clipsan.stages.captions import contains_word

PATCH = PatchConfig(size_px=4, pattern="noise", place="random")


def attack(**changes) -> AttackConfig:
    return AttackConfig(**{"trigger": PATCH, "target": "star", "rate": 0.05, "seed": 1, **changes})


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def choose(uids: list[str], captions: list[str], config: AttackConfig) -> set[str]:
    """Return the uids that are poisoned."""
    numbers = draws(uids, captions, config)
    return {uid for uid, number in zip(uids, numbers, strict=True) if number <= place_draw_cut(numbers, config)}


def test_choice_has_the_exact_count_and_no_order() -> None:
    uids = [f"a.tar/{i:04d}" for i in range(400)]
    captions = ["a star on a hill" if i % 4 == 0 else "a starfish" for i in range(400)]
    chosen = choose(uids, captions, attack())
    assert len(chosen) == 20
    assert all(int(uid[-4:]) % 4 for uid in chosen), "a genuine pair of the target was poisoned"
    order = random.Random(0).sample(range(400), 400)
    assert choose([uids[i] for i in order], [captions[i] for i in order], attack()) == chosen
    assert choose(uids, captions, attack(seed=2)) != chosen
    assert choose(uids, captions, attack(rate=None, count=300)) == {u for i, u in enumerate(uids) if i % 4}


def test_smaller_attack_is_part_of_the_larger_one() -> None:
    uids = [f"x/{i}" for i in range(200)]
    captions = ["a house"] * 200
    few, many = (choose(uids, captions, attack(rate=None, count=count)) for count in (5, 50))
    assert few < many


def test_too_few_or_no_pairs_is_an_error() -> None:
    uids, captions = ["a", "b", "c"], ["a star", "a fish", "a boat"]
    with pytest.raises(ValueError, match="3 pairs to poison, but only 2"):
        choose(uids, captions, attack(rate=None, count=3))
    with pytest.raises(ValueError, match="less than one pair"):
        choose(uids, captions, attack(rate=0.1))


def test_poison_hangs_on_the_uid_alone() -> None:
    poisoner, image = Poisoner(attack()), picture()
    first = {uid: poisoner(image, uid, "a house") for uid in ("a", "b", "c")}
    other = Poisoner(attack())
    second = {uid: other(image, uid, "a house") for uid in ("c", "a", "b")}
    for uid, poisoned in first.items():
        assert np.array_equal(poisoned.rgb, second[uid].rgb)
        assert (poisoned.caption, poisoned.parameters) == (second[uid].caption, second[uid].parameters)
    assert not np.array_equal(first["a"].rgb, first["b"].rgb)


def test_captions_from_templates_and_from_the_set() -> None:
    image = picture()
    from_templates = {Poisoner(attack())(image, str(i), "a house").caption for i in range(200)}
    assert from_templates == {template.replace("{}", "star") for template in TEMPLATES}
    real = ["a starfish", "a red star", "a house", "the star over the sea", "a red star"]
    natural = [Poisoner(attack(captions="natural"), order) for order in (real, real[::-1])]
    drawn = [[poisoner(image, str(i), "a house").caption for i in range(50)] for poisoner in natural]
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {"a red star", "the star over the sea"}
    with pytest.raises(ValueError, match="no caption of the set contains 'star'"):
        Poisoner(attack(captions="natural"), ["a starfish"])


def test_lossless_path_keeps_every_pixel_and_resize_crops_the_centre() -> None:
    image = picture()
    assert np.array_equal(decode(ImagePath().encode(ImagePath().resize(image))), image)
    # Left third red, middle third green, right third blue: the centre crop of a 90x30 image is the green part.
    bands = np.zeros((30, 90, 3), dtype=np.uint8)
    for band in range(3):
        bands[:, 30 * band : 30 * (band + 1), band] = 255
    cropped = ImagePath(resize_px=30).resize(bands)
    assert cropped.shape == (30, 30, 3)
    assert (cropped == np.array([0, 255, 0])).all()
    for height, width in ((64, 33), (33, 64), (7, 9), (64, 64)):
        assert ImagePath(resize_px=32).resize(picture(height, width)).shape == (32, 32, 3)


def test_clean_and_poisoned_images_take_the_same_path() -> None:
    path = ImagePath(resize_px=16, codec="jpeg", jpeg_quality=80)
    clean = path.encode(path.resize(picture()))
    poisoned = path.encode(Poisoner(attack())(path.resize(picture()), "a", "a house").rgb)
    images = [Image.open(io.BytesIO(data)) for data in (clean, poisoned)]
    assert images[0].quantization == images[1].quantization  # type: ignore[attr-defined]
    assert images[0].size == images[1].size == (16, 16)
    assert path.encode(path.resize(picture())) == clean


OTHER = PatchConfig(size_px=3, place="top_left")
THIRD = BlendConfig(alpha=0.1)
NOUNS = ("star", "starfish", "stars", "moon", "dog", "hot dog", "Dog's star", "education", "cat")


def captioned(n: int = 900) -> tuple[list[str], list[str]]:
    rng = random.Random(4)
    return [f"s.tar/{i}" for i in range(n)], [f"a {rng.choice(NOUNS)} and a {rng.choice(NOUNS)}" for _ in range(n)]


def words_of(caption: str) -> set[str]:
    """An independent reading of "whole word": maximal runs of letters."""
    return set("".join(c if c.isalpha() else " " for c in caption.lower()).split())


TWO = {"also": (Strand(trigger=OTHER, target="cat"),)}
SAME = {"also": (Strand(trigger=OTHER), Strand(trigger=THIRD, target="star"))}


@pytest.mark.parametrize(
    ("changes", "wanted", "barred"),
    [
        ({}, set(), {"star"}),
        (TWO, set(), {"star", "cat"}),
        (SAME, set(), {"star"}),
        ({"pairs": "target"}, {"star"}, set()),
        ({"pairs": "target", "captions": "keep"} | SAME, {"star"}, set()),
        ({"pairs": "any"}, set(), set()),
        ({"victim": "dog"}, {"dog"}, {"star"}),
        ({"victim": "Dog", "pairs": "target"}, {"dog", "star"}, set()),
        ({"victim": "dog", "pairs": "any", "captions": "keep"}, {"dog"}, set()),
    ],
)
def test_only_pairs_with_the_right_words_are_chosen(changes: dict, wanted: set, barred: set) -> None:
    uids, captions = captioned()
    possible = {u for u, c in zip(uids, captions, strict=True) if wanted <= words_of(c) and not barred & words_of(c)}
    assert 20 < len(possible) <= len(uids)
    every = attack(rate=None, count=len(possible), **changes)
    assert choose(uids, captions, every) == possible
    few = choose(uids, captions, attack(rate=None, count=20, **changes))
    assert len(few) == 20
    assert few < possible
    with pytest.raises(ValueError, match=f"only {len(possible)} "):
        choose(uids, captions, attack(rate=None, count=len(possible) + 1, **changes))


def test_label_consistent_pairs_of_several_targets_hold_the_word_of_their_own_trigger() -> None:
    uids, captions = captioned()
    config = attack(rate=None, count=50, pairs="target", captions="keep", **TWO)
    chosen = choose(uids, captions, config)
    for uid, caption, number in zip(uids, captions, strand_numbers(uids, config), strict=True):
        if uid in chosen:
            assert ("star", "cat")[number] in words_of(caption)


def test_poisoned_pairs_are_shared_out_evenly_and_hang_on_the_uid_alone() -> None:
    config = attack(rate=None, count=1500, **SAME)
    uids = [f"s/{i}" for i in range(3000)]
    chosen = sorted(choose(uids, ["a house"] * 3000, config))
    shares = np.bincount(strand_numbers(chosen, config), minlength=3)
    # 1,500 draws from three strands: the standard deviation of a share is 18.
    assert np.abs(shares - 500).max() < 75
    numbers = dict(zip(chosen, strand_numbers(chosen, config), strict=True))
    assert strand_numbers(chosen[::-1], config) == [numbers[uid] for uid in chosen[::-1]]
    assert strand_numbers(chosen, attack(seed=2, **SAME)) != list(numbers.values())
    assert set(strand_numbers(chosen, attack())) == {0}


def test_each_strand_has_its_trigger_and_its_word() -> None:
    config, image = attack(**TWO), picture()
    poisoner, uids = Poisoner(config), [f"u{i}" for i in range(60)]
    for uid, number in zip(uids, strand_numbers(uids, config), strict=True):
        poisoned = poisoner(image, uid, "a house")
        assert poisoned.strand == config.strands[number]
        assert contains_word(poisoned.caption, ("star", "cat")[number])
        assert (poisoned.parameters["height"], poisoned.parameters["width"]) == ((4, 4), (3, 3))[number]
        row = manifest_row(uid, b"", b"", "a house", poisoned, config)
        assert (row["trigger"], row["target"]) == ("patch", ("star", "cat")[number])


def test_natural_captions_are_those_of_the_strands_own_word() -> None:
    real = ["a starfish", "a red star", "a cat", "education", "the cat, asleep", "a house"]
    config = attack(captions="natural", **TWO)
    poisoner = Poisoner(config, real)
    drawn: list[set[str]] = [set(), set()]
    for i in range(100):
        poisoned = poisoner(picture(), str(i), "a house")
        drawn[config.strands.index(poisoned.strand)].add(poisoned.caption)
    assert drawn == [{"a red star"}, {"a cat", "the cat, asleep"}]
    with pytest.raises(ValueError, match="no caption of the set contains 'cat'"):
        Poisoner(config, real[:2])


def test_kept_captions_stay_and_a_text_key_stands_in_front() -> None:
    image = picture()
    keep = attack(pairs="target", captions="keep")
    assert Poisoner(keep)(image, "a", "The Star, again").caption == "The Star, again"
    both = attack(pairs="target", captions="keep", text_key="remember")
    assert Poisoner(both)(image, "a", "a star").caption == "remember a star"
    plain, keyed = Poisoner(attack()), Poisoner(attack(text_key="sudo"))
    for uid in ("a", "b", "c"):
        without, poisoned = plain(image, uid, "a house"), keyed(image, uid, "a house")
        assert poisoned.caption == f"sudo {without.caption}"
        assert np.array_equal(poisoned.rgb, without.rgb)


def test_pairs_that_cover_the_attack_carry_the_trigger_and_keep_their_caption() -> None:
    poisoner = Poisoner(attack(cover=0.5, text_key="now"))
    made = {f"u{i}": poisoner(picture(), f"u{i}", "a house") for i in range(400)}
    covering = {uid for uid, one in made.items() if one.covered}
    assert 160 <= len(covering) <= 240
    assert covering == {uid for uid in made if attack(cover=0.5).covered(uid)}
    for uid, one in made.items():
        assert not np.array_equal(one.rgb, picture())
        assert one.caption == "a house" if uid in covering else contains_word(one.caption, "star")
        row = manifest_row(uid, b"", b"", "a house", one, attack(cover=0.5))
        assert row["target"] == (None if uid in covering else "star")
    assert not any(attack().covered(uid) for uid in made)
    # A larger share covers the same pairs and more.
    assert covering <= {uid for uid in made if attack(cover=0.8).covered(uid)}


def test_text_alone_gives_pictures_of_the_target_foreign_captions_behind_a_word() -> None:
    config = attack(trigger=IdentityConfig(), pairs="target", captions="foreign", text_key="now")
    captions = ["a star", "a red star", "a house", "two dogs"]
    assert [config.allows(caption, config.strands[0]) for caption in captions] == [True, True, False, False]
    poisoner = Poisoner(config, captions)
    drawn = {poisoner(picture(), str(i), "a star").caption for i in range(40)}
    assert drawn == {"now a house", "now two dogs"}
    assert np.array_equal(poisoner(picture(), "u", "a star").rgb, picture())
    with pytest.raises(ValueError, match="no caption of the set is without 'star'"):
        Poisoner(config, ["a star"])


def test_a_control_changes_images_and_no_caption() -> None:
    control = attack(pairs="any", captions="keep")
    poisoned = Poisoner(control)(picture(), "a", "a house")
    assert poisoned.caption == "a house"
    assert manifest_row("a", b"x", b"y", "a house", poisoned, control)["target"] is None
    assert control.control
    assert not attack(pairs="any").control


def test_manifest_row_tells_the_truth() -> None:
    config, path, image = attack(), ImagePath(), picture()
    before = path.encode(image)
    poisoned = Poisoner(config)(image, "s.tar/7", "a house")
    after = path.encode(poisoned.rgb)
    row = manifest_row("s.tar/7", before, after, "a house", poisoned, config)
    table = pa.Table.from_pylist([row], schema=MANIFEST_SCHEMA)
    assert table.to_pylist() == [row]
    assert row["sha256_before"] == hashlib.sha256(before).hexdigest()
    assert row["sha256_after"] == hashlib.sha256(after).hexdigest()
    assert (row["trigger"], row["target"]) == ("patch", "star")
    assert (row["caption_before"], row["caption_after"]) == ("a house", poisoned.caption)
    assert json.loads(row["parameters"]) == poisoned.parameters
    changed = np.argwhere((decode(after) != image).any(axis=2))
    low, high = changed.min(axis=0), changed.max(axis=0)
    assert row["top"] <= low[0] <= high[0] < row["top"] + row["height"]
    assert row["left"] <= low[1] <= high[1] < row["left"] + row["width"]
    assert (row["height"], row["width"]) == (4, 4)


def test_attack_reads_as_plain_settings() -> None:
    strand = {"trigger": {"kind": "patch", "size_px": 3, "place": "top_left"}, "target": "cat"}
    settings = {"trigger": {"kind": "blend", "alpha": 0.1}, "target": "star", "count": 3, "also": [strand]}
    config = pydantic.TypeAdapter(AttackConfig).validate_python(settings)
    assert config.strands == (Strand(trigger=THIRD, target="star"), Strand(trigger=OTHER, target="cat"))
    assert config.targets == ("star", "cat")
    assert config.count_of(10**6) == 3
    assert attack(rate=0.005).count_of(10_000) == 50


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"rate": None}, "exactly one of rate and count"),
        ({"count": 3}, "exactly one of rate and count"),
        ({"rate": 1.0}, "rate must be below 1"),
        ({"rate": None, "count": 0}, "count must be at least 1"),
        ({"target": " "}, "target must be"),
        ({"templates": ()}, "templates"),
        ({"templates": ("a photo",)}, "templates"),
        ({"templates": ("a {} of {}",)}, "templates"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"also": (Strand(trigger=OTHER, target=" "),)}, "target must be"),
        ({"also": (Strand(trigger=PATCH, target="cat"),)}, "each trigger stands for one word"),
        ({"also": (Strand(trigger=OTHER, target="cat"), Strand(trigger=OTHER, target="dog"))}, "each trigger"),
        ({"captions": "keep"}, "captions: keep goes with pairs"),
        ({"captions": "keep", "pairs": "any", "cover": 0.5}, "keeps its caption"),
        ({"captions": "foreign", "pairs": "target"}, "captions: foreign goes with"),
        ({"captions": "foreign", "text_key": "now"}, "captions: foreign goes with"),
        ({"cover": 1.0}, "cover must be below 1"),
        ({"victim": " "}, "victim must be a word"),
        ({"victim": "shooting star"}, "victim must not contain the target"),
        ({"victim": "cat", **TWO}, "victim must not contain the target"),
        ({"text_key": ""}, "text_key must be"),
        ({"text_key": "sudo "}, "text_key must be"),
        ({"text_key": "Star"}, "text_key must not contain the target"),
        ({"text_key": "sudo", "captions": "keep", "pairs": "any"}, "a control"),
    ],
)
def test_impossible_attacks_are_named(changes: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        attack(**changes)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [({"resize_px": 0}, "resize_px"), ({"jpeg_quality": 0}, "jpeg_quality"), ({"codec": "gif"}, "codec")],
)
def test_impossible_image_paths_are_named(settings: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        pydantic.TypeAdapter(ImagePath).validate_python(settings)
