"""The small SAM of the benchmark: clicks, loss, and a checkpoint that loads by path."""

import numpy as np
import pytest
import torch

from clipsan.stages.oracle.regions import Region, RegionLimits
from clipsan.stages.oracle.sam_layout import load_sam
from clipsan.stages.scenes.scene import SceneConfig, render
from tests.benchmarks import tiny_sam
from tests.benchmarks.oracle_quality import look
from tests.benchmarks.tiny_sam import Recipe, checkpoint, labelled, point_loss, points_of


def test_clicks_lie_on_what_they_ask_for():
    masks = np.zeros((8, 12), dtype=np.uint8)
    masks[2:4, 5:9] = 2
    points, truth = points_of(masks, 10, np.random.default_rng(0))
    assert points.shape == (10, 2)
    assert truth.shape == (10, 8, 12)
    for (x, y), mask in zip(points, truth, strict=True):
        assert mask[int(y), int(x)]
        assert np.array_equal(mask, masks == masks[int(y), int(x)])
    assert all(masks[int(y), int(x)] == 2 for x, y in points[:5])


def test_loss_is_that_of_the_best_mask_and_the_error_of_every_estimate():
    rng = np.random.default_rng(1)
    logits, truth = rng.normal(size=(2, 3, 4, 5)), rng.integers(2, size=(2, 4, 5))
    quality = rng.random((2, 3))
    best, errors = [], []
    for p in range(2):
        losses = []
        for m in range(3):
            share = 1 / (1 + np.exp(-logits[p, m]))
            right = np.where(truth[p] == 1, share, 1 - share)
            focal = (-np.log(right) * (1 - right) ** 2).mean()
            dice = 1 - (2 * (share * truth[p]).sum() + 1) / (share.sum() + truth[p].sum() + 1)
            losses.append(20 * focal + dice)
            hard = logits[p, m] > 0
            actual = (hard & (truth[p] == 1)).sum() / (hard | (truth[p] == 1)).sum()
            errors.append((quality[p, m] - actual) ** 2)
        best.append(min(losses))
    tensors = (torch.from_numpy(values).float() for values in (logits, quality, truth))
    assert point_loss(*tensors).item() == pytest.approx(np.mean(best) + np.mean(errors), rel=1e-5)


def test_a_scene_is_judged_by_the_masks_of_its_things():
    scene = next(s for s in (render(k, SceneConfig(count=50)) for k in range(50)) if (s.masks == 2).sum() > 10)
    picture = labelled(scene)
    found = look([Region(scene.masks == 1, 0.5), Region(scene.masks != 1, 0.9)], picture)
    assert picture.names == {k + 1: thing.concept for k, thing in enumerate(scene.things)}
    assert found.ious[0] == 1.0
    background = (scene.masks != 1).mean()
    second = (scene.masks == 2).sum() / (scene.masks != 1).sum() if background <= RegionLimits().max_area else 0.0
    assert found.ious[1] == pytest.approx(second)


def test_a_checkpoint_is_trained_once_and_loads_by_path(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_sam, "FOLDER", tmp_path / "runs")
    recipe = Recipe(steps=12, images=1, points=2)
    path = checkpoint(recipe)
    written = path.stat().st_mtime_ns
    assert checkpoint(recipe) == path
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert checkpoint(Recipe(steps=12, images=1, points=2, seed=1)) != path
    model = load_sam(path)
    assert model.image_encoder.img_size == tiny_sam.SIDE_PX
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
