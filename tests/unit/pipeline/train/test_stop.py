"""Early stop: the rule by hand, and the accuracy against one taken directly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.pipeline.train.feed import Captions, Share
from clipsan.pipeline.train.stop import Accuracy, StopRule
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.clip import ModelConfig, load_clip
from tests.conftest import NOUNS
from tests.unit.pipeline.train.test_feed import Rows

RULE = StopRule(NOUNS, ("a photo of a {}.",), patience=2, min_gain_points=0.5)


@pytest.mark.parametrize(
    ("accuracies", "stops"),
    [
        ([], False),
        ([50], False),
        ([50, 50.4], False),
        ([50, 50.4, 50.4], True),
        ([50, 49, 50.6], False),
        ([50, 49, 50.4], True),
        ([50, 60, 55, 59], True),
        ([50, 40, 51, 40], False),
    ],
)
def test_patience_is_counted_from_the_last_gain(accuracies: list[float], stops: bool) -> None:
    assert RULE.stops([{"clean_accuracy_pct": value} for value in accuracies]) is stops


class Images:
    """A table of random images and labels."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(3)
        self.images = torch.from_numpy(rng.integers(0, 256, (count, 3, 32, 32), np.uint8))
        self.labels = torch.from_numpy(rng.integers(0, len(NOUNS), count))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: np.ndarray) -> Rows:
        nothing = torch.zeros(len(places), dtype=torch.int64)
        own = torch.from_numpy(places)
        return Rows(
            self.images[own], nothing[:, None], Captions.of([""] * len(places)), self.labels[own], nothing, nothing
        )


def test_accuracy_is_that_of_the_model_in_evaluation_mode_and_modes_are_kept(tiny_checkpoint: Path) -> None:
    clip = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    images = Images(90)
    vectors = class_embeddings(clip, NOUNS, RULE.templates)
    hits = (clip.encode_images(images.images)[0] @ vectors.T).argmax(1) == images.labels.numpy()
    clip.model.train()
    clip.model.visual.eval()
    modes = [module.training for module in clip.model.modules()]
    share = Share(0, 1, 8)
    found = Accuracy(RULE, images, share).pct(clip, torch.device("cpu"))  # type: ignore[arg-type]
    assert found == pytest.approx(100 * hits.mean())
    assert [module.training for module in clip.model.modules()] == modes


def test_workers_share_the_images_out() -> None:
    parts = [Accuracy(RULE, Images(9), Share(rank, 2, 8))._rows.labels.tolist() for rank in range(2)]  # type: ignore[arg-type]
    labels = Images(9).labels.tolist()
    assert parts == [labels[::2], labels[1::2]]
