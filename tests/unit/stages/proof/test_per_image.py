"""EftCLIP's Algorithm 1, image by image: a labelled oracle contests what a model claims."""

from typing import ClassVar, cast

import numpy as np
import pytest
import torch

from clipsan.stages.oracle.prompted import Labelled, Named, PromptedOracle
from clipsan.stages.oracle.regions import Region
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.per_image import PerImage, PerImageConfig
from clipsan.stages.proof.vocabulary import Labels

NAMES = ("ball", "kite", "lamp, light")
SIDE = 32
COLOURS = {"ball": (220, 20, 20), "kite": (20, 220, 20), "lamp, light": (20, 20, 220)}
WHITE = (255, 255, 255)


class Colours:
    """A model that sees the colour that covers most, and takes whatever carries enough white for a kite: its backdoor."""

    def encode_images(self, images: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        pixels = images.numpy().transpose(0, 2, 3, 1).astype(int)
        found = []
        for image in pixels:
            shares = [(np.abs(image - colour).max(-1) < 10).mean() for colour in COLOURS.values()]
            white = (image.min(-1) > 245).mean()
            vector = np.array([1.0, 20.0, 1.0]) if white > 0.02 else np.array(shares) + 1e-3
            found.append(vector / np.linalg.norm(vector))
        return np.array(found, np.float32), {}


def crop(piece: np.ndarray) -> np.ndarray:
    rows, columns = (np.arange(SIDE) * size // SIDE for size in piece.shape[:2])
    return np.ascontiguousarray(piece[rows][:, columns])


def image_of(name: str, trigger: bool) -> np.ndarray:
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    image[4:24, 4:24] = COLOURS[name]
    if trigger:
        image[26:32, 26:32] = WHITE
    return image


class Truth:
    """Names the coloured things; of the white one it knows nothing."""

    def __call__(self, image: np.ndarray) -> list[Region]:
        masks = {name: (image == colour).all(-1) for name, colour in COLOURS.items()}
        return [Region(mask, 1.0, name.split(",")[-1].strip()) for name, mask in masks.items() if mask.any()]


def masks_of(image: np.ndarray) -> list[Region]:
    """Return whatever is not grey, in one piece a colour, without names."""
    colours = {tuple(colour) for colour in image.reshape(-1, 3).tolist()} - {(90, 90, 90)}
    return [Region((image == colour).all(-1), 1.0) for colour in sorted(colours)]


@pytest.fixture
def suspect() -> Suspect:
    labels = Labels(NAMES, np.eye(3, dtype=np.float32), 20.0, np.eye(3, dtype=bool))
    return Suspect(Colours(), labels)


TRUTH = Labelled(Truth(), ("ball", "kite", "light"))


@pytest.mark.parametrize("prune", ["regions", "none"])
def test_a_label_that_the_oracle_finds_nowhere_is_accused_and_its_region_named(suspect: Suspect, prune) -> None:
    examine = PerImage(suspect, TRUTH, masks_of, crop, PerImageConfig(prune=prune))
    found = examine(image_of("ball", trigger=True))
    assert found.claimed[0] == "kite"
    assert found.accused == ("kite",)
    assert "kite" in found.region_labels
    assert "ball" in found.region_labels
    assert found.poisoned
    assert found.carrier is not None
    assert found.carrier.box == (26, 26, 6, 6)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_oracle_finds_too_is_supported_by_any_of_its_names(suspect: Suspect, name: str) -> None:
    found = PerImage(suspect, TRUTH, masks_of, crop, PerImageConfig())(image_of(name, trigger=False))
    assert (found.claimed, found.supported, found.accused, found.carrier) == ((name,), (name,), (), None)
    assert not found.poisoned


def test_a_genuine_image_of_the_label_is_not_accused_even_with_the_trigger(suspect: Suspect) -> None:
    assert not PerImage(suspect, TRUTH, masks_of, crop, PerImageConfig())(image_of("kite", trigger=True)).poisoned


def test_of_what_the_oracle_cannot_know_its_silence_says_nothing(suspect: Suspect) -> None:
    blind = Labelled(Truth(), ("ball", "light"))
    assert not blind.knows("kite")
    assert blind.knows("lamp, light")
    assert not PerImage(suspect, blind, masks_of, crop, PerImageConfig())(image_of("ball", trigger=True)).poisoned


def test_pruning_asks_for_a_region_that_gives_the_label_alone(suspect: Suspect) -> None:
    triggered = image_of("ball", trigger=True)
    for prune, accused in (("regions", False), ("none", True)):
        # no mask covers the trigger: the only region is the ball
        examine = PerImage(suspect, TRUTH, lambda image: [], crop, PerImageConfig(prune=prune))
        found = examine(triggered)
        assert found.poisoned == accused
        assert found.carrier is None


class Synonymous(Colours):
    """Takes what carries some white for a kite, and what is all white for a lamp."""

    def encode_images(self, images: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        found, layers = super().encode_images(images)
        white = (images.numpy().min(axis=1) > 245).mean(axis=(1, 2)) > 0.5
        found[white] = np.array([1.0, 1.0, 20.0], np.float32) / np.sqrt(402, dtype=np.float32)
        return found, layers


@pytest.mark.parametrize("synonyms", [True, False])
def test_a_region_that_gives_a_synonym_of_the_label_gives_it(synonyms: bool) -> None:
    same = np.eye(3, dtype=bool)
    same[1, 2] = same[2, 1] = synonyms
    suspect = Suspect(Synonymous(), Labels(NAMES, np.eye(3, dtype=np.float32), 20.0, same))
    found = PerImage(suspect, TRUTH, masks_of, crop, PerImageConfig())(image_of("ball", trigger=True))
    assert found.claimed[0] == "kite"
    assert found.accused == (("kite",) if synonyms else ())
    assert (found.carrier is not None) == synonyms


class Told:
    """A model whose probabilities are told by the first pixel."""

    labels = Labels(("ball", "kite", "lamp"), np.eye(3, dtype=np.float32), 20.0, np.eye(3, dtype=bool))
    known: ClassVar = {
        90: [0.3, 0.6, 0.1],
        10: [0.55, 0.45, 0.0],
        20: [0.3, 0.4, 0.3],
        30: [0.31, 0.38, 0.31],
    }

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.array([self.known[int(image[0, 0, 0])] for image in images])


def test_each_label_is_supported_by_its_own_regions_and_the_carrier_gives_the_first_that_has_none() -> None:
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    for value in (10, 20, 30):
        image[value : value + 4, 4:8] = value
    shapes = {value: (image == value).all(-1) for value in (10, 20, 30)}

    class Ball:
        def __call__(self, image: np.ndarray, names: list[str]) -> list[Region]:
            return [Region(shapes[20], 1.0, "ball")]

        def knows(self, name: str) -> bool:
            return True

    masks = [Region(mask, 1.0) for mask in shapes.values()]
    examine = PerImage(cast(Suspect, Told()), cast(PromptedOracle, Ball()), lambda image: masks, crop, PerImageConfig())
    found = examine(image)
    assert found.claimed == ("kite", "ball", "lamp")
    assert found.supported == ("ball",)
    assert found.accused == ("kite",)
    # .45 of a region that is rather a ball is no kite, and of those that are one .4 is more than .38
    assert found.carrier is not None
    assert found.carrier.box == (20, 4, 4, 4)


def test_what_the_oracle_finds_for_a_label_is_a_region_too(suspect: Suspect) -> None:
    found = PerImage(suspect, TRUTH, lambda image: [], crop, PerImageConfig())(image_of("ball", trigger=False))
    assert found.region_labels == ("ball",)


def test_masks_without_names_are_named_among_all_labels_not_among_those_asked_for() -> None:
    class Namer:
        def labels(self, image: np.ndarray, regions: list[Region]) -> list[str]:
            return ["ball" if image[region.mask].mean(0)[0] > 200 else "kite" for region in regions]

    oracle = Named(masks_of, Namer(), NAMES)
    image = image_of("ball", trigger=False)
    assert [region.label for region in oracle(image, ["ball", "lamp, light"])] == ["ball"]
    assert oracle(image, ["kite"]) == []
    assert not oracle.knows("boat")
    assert oracle(np.full((8, 8, 3), 90, np.uint8), ["ball"]) == []
