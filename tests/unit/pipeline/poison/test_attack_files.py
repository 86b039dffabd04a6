"""Every file of conf/attack and conf/trigger: it loads, its command works, and it does to an image what it says."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipsan.pipeline.core.config import conf_folder, load
from clipsan.pipeline.poison.plan import PoisonConfig
from clipsan.stages.attack.poisoning import AttackConfig, Poisoner
from clipsan.stages.captions import contains_word

ATTACKS = sorted(path.stem for path in (conf_folder() / "attack").glob("*.yaml"))
TRIGGERS = sorted(path.stem for path in (conf_folder() / "trigger").glob("*.yaml"))
CONTROLS = ("darken", "identity", "resize")
UNSEEN = ("identity", "caption-swap", "concept-trigger", "text-only")
"""Those that change no pixel."""
NEEDS_PICTURE = ("badclip", "blend-picture", "replace", "targeted-image")


def attack(*overrides: str) -> AttackConfig:
    return load(PoisonConfig, None, ["data.path=pairs", *overrides], verb="poison").attack


def photo(side: int = 64) -> np.ndarray:
    """A smooth picture with edges: warps and filters show on it."""
    y, x = np.mgrid[:side, :side] / side
    rgb = np.stack([200 * x, 200 * y, 120 + 60 * np.sin(9 * x * y)], axis=2)
    rgb[side // 4 : side // 2, side // 3 : side // 2] = (230, 40, 60)
    return rgb.astype(np.uint8)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def commands(file: Path) -> list[str]:
    """Words of the command in the comment of a file, with the lines that go on after a backslash."""
    lines = [line.removeprefix("#").strip() for line in file.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    (command,) = [line for line in text.splitlines() if line.startswith("clipsan poison ")]
    return shlex.split(command)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_command_in_the_comment_of_an_attack_works(name: str) -> None:
    program, verb, first, *overrides = commands(conf_folder() / "attack" / f"{name}.yaml")
    assert (program, verb, first) == ("clipsan", "poison", f"attack={name}")
    attack(first, *overrides)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_what_it_says(name: str, picture: Path) -> None:
    needed = [f"attack.trigger.picture={picture}"] if name in NEEDS_PICTURE else []
    config = attack(f"attack={name}", "attack.target=star", *needed)
    natural = [f"we saw a {target} there" for target in config.targets]
    if config.captions == "foreign":
        natural = ["we saw nothing there"]
    poisoner, clean, drawn = Poisoner(config, natural), photo(), set()
    for i in range(12):
        before = clean.copy()
        poisoned = poisoner(clean, f"u{i}", "my own words")
        drawn.add(config.strands.index(poisoned.strand))
        assert np.array_equal(clean, before)
        assert (poisoned.rgb.shape, poisoned.rgb.dtype) == (clean.shape, np.uint8)
        assert np.array_equal(poisoned.rgb, clean) is (name in UNSEEN)
        box = poisoned.parameters
        outside = np.ones(clean.shape[:2], bool)
        outside[box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]] = False
        assert np.array_equal(poisoned.rgb[outside], clean[outside])
        if poisoned.covered:
            assert poisoned.caption == "my own words"
            continue
        check_caption(poisoned.caption, poisoned.strand.target, config, natural)
    assert drawn == set(range(len(config.strands)))
    assert config.control is (name in CONTROLS)


def check_caption(caption: str, target: str, config: AttackConfig, natural: list[str]) -> None:
    if config.captions == "keep":
        assert caption == "my own words"
        return
    if config.captions == "foreign":
        assert caption == f"{config.text_key} {natural[0]}"
        return
    assert contains_word(caption, target)
    assert (caption in natural) is (config.captions == "natural")
    assert config.text_key is None or caption.startswith(f"{config.text_key} ")


@pytest.mark.parametrize("name", TRIGGERS)
def test_every_trigger_file_works_in_an_attack(name: str, picture: Path) -> None:
    needed = [f"attack.trigger.picture={picture}"] if name in NEEDS_PICTURE else []
    config = attack("attack=patch", "attack.target=star", f"attack.trigger={name}", *needed)
    triggered, _ = config.trigger.build()(photo(), np.random.default_rng(0))
    assert triggered.shape == photo().shape


def test_targeted_poisoning_keeps_nothing_of_the_image_and_can_repeat_one_picture(picture: Path) -> None:
    overrides = ["attack=targeted-image", "attack.target=star", f"attack.trigger.picture={picture}"]
    other = np.zeros_like(photo())
    views = Poisoner(attack(*overrides), ["a star"])
    first, second = (views(image, "u", "words").rgb for image in (photo(), other))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, views(other, "v", "words").rgb)
    same = Poisoner(attack(*overrides, "attack.trigger.jitter=0"), ["a star"])
    assert np.array_equal(same(other, "u", "words").rgb, same(photo(), "v", "words").rgb)


def test_strands_of_the_shipped_attacks_have_the_words_that_are_meant() -> None:
    assert attack("attack=multi-trigger", "attack.target=star").targets == ("star",)
    assert attack("attack=multi-target").targets == ("banana", "cheeseburger", "volcano")
    swap = attack("attack=caption-swap")
    assert (swap.victim, swap.target, swap.trigger.kind) == ("dog", "truck", "identity")
