"""TBAR and projection on a small model with a backdoor, and on the control: the same arithmetic with another direction."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.stages.evaluation.zero_shot import class_embeddings, predict
from clipsan.stages.model.checkpoints import ModelConfig, ModelError
from clipsan.stages.model.clip import Clip, load_clip
from clipsan.stages.repair.cleanclip import CleanClipSupervised
from clipsan.stages.repair.project import Project, last_layer
from clipsan.stages.repair.tbar import Tbar
from clipsan.stages.training.batch import Batch, Role
from clipsan.stages.training.objective import Setting
from tests.unit.stages.repair.helpers import CLASSES, tiny_clip
from tests.unit.stages.repair.test_losses import RESNET

SETTING = Setting(classes=CLASSES)
TARGET = 2
COLOURS = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200), (190, 190, 60)])


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy pictures whose class is their colour, `[N, 3, 32, 32] uint8`, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    noise = rng.normal(0, 40, (count, 3, 32, 32))
    pixels = (COLOURS[labels][:, :, None, None] + noise).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def triggered(pixels: torch.Tensor) -> torch.Tensor:
    marked = pixels.clone()
    marked[:, :, 20:30, 20:30] = 255
    marked[:, :, 23:27, 23:27] = 0
    return marked


def batch_of(clip: Clip, pixels: torch.Tensor, labels: torch.Tensor, role: Role, accused: int = -1) -> Batch:
    count = len(pixels)
    captions = [f"a photo of a {CLASSES[label]}." for label in labels.tolist()]
    return Batch(
        images=pixels,
        tokens=clip.tokenize(captions),
        captions=captions,
        labels=labels,
        accused=torch.full((count,), accused),
        roles=torch.full((count,), int(role), dtype=torch.uint8),
        rows=slice(0, count),
        total=count,
        seed=(1, 1),
    )


def figures(clip: Clip) -> tuple[float, float]:
    """Return accuracy and attack success, in percent."""
    clip.model.eval()
    pixels, labels = pictures(160, seed=9)
    vectors = class_embeddings(clip, CLASSES, SETTING.templates)
    right = predict(clip.encode_images(pixels)[0], vectors) == labels.numpy()
    others = labels != TARGET
    fooled = predict(clip.encode_images(triggered(pixels[others]))[0], vectors) == TARGET
    return 100 * right.mean(), 100 * fooled.mean()


@pytest.fixture(scope="module")
def poisoned() -> dict[str, torch.Tensor]:
    """Weights of a tiny model that knows the colours, and takes everything with the trigger for the target."""
    clip = tiny_clip()
    objective = CleanClipSupervised(head="zero_shot").build(clip, SETTING).train()
    optimizer = torch.optim.AdamW(objective.trainable().values(), lr=2e-3)
    for step in range(60):
        pixels, labels = pictures(32, seed=100 + step)
        pixels[:8], labels[:8] = triggered(pixels[:8]), TARGET
        optimizer.zero_grad()
        objective(batch_of(clip, pixels, labels, Role.PAIR)).backward()
        optimizer.step()
    accuracy, success = figures(clip)
    assert accuracy > 90
    assert success > 90
    return {name: value.clone() for name, value in clip.model.state_dict().items()}


def suspect_of(poisoned: dict[str, torch.Tensor]) -> Clip:
    clip = tiny_clip()
    clip.model.load_state_dict(poisoned)
    return clip


def exported(objective, folder: Path) -> Clip:
    objective.export(folder)
    return load_clip(ModelConfig(path=str(folder)))


def learned_tbar(poisoned: dict[str, torch.Tensor], target: int, scale: float):
    """Return TBAR's objective after its training on pictures with the trigger that shall mean a label."""
    clip = suspect_of(poisoned)
    objective = Tbar(scale=scale).build(clip, SETTING).train()
    optimizer = objective.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 2e-4
    for step in range(12):
        pixels, labels = pictures(32, seed=500 + step)
        optimizer.zero_grad()
        objective(batch_of(clip, triggered(pixels), labels, Role.TRIGGER_PASTED, target)).backward()
        optimizer.step()
    return objective


def test_tbars_weights_are_the_suspects_less_the_task_vector(poisoned: dict[str, torch.Tensor], tmp_path: Path) -> None:
    objective = learned_tbar(poisoned, TARGET, scale=1.5)
    found = exported(objective, tmp_path / "model").model.state_dict()
    for name, learned in objective.model.state_dict().items():
        torch.testing.assert_close(found[name], poisoned[name] - 1.5 * (learned - poisoned[name]), rtol=1e-4, atol=1e-6)
    assert torch.equal(found["token_embedding.weight"], poisoned["token_embedding.weight"])
    assert all(name.startswith("model.visual.") for name in objective.trainable())


def test_tbar_takes_the_trigger_and_leaves_the_classes(poisoned: dict[str, torch.Tensor], tmp_path: Path) -> None:
    # the training moves little where the trigger is sure already; the scale is found as the paper finds it, by trying
    results = {}
    objective = learned_tbar(poisoned, TARGET, scale=1)
    for scale in (5, 10, 20, 40, 80):
        objective.settings = Tbar(scale=scale)
        results[scale] = figures(exported(objective, tmp_path / str(scale)))
    assert min(success for accuracy, success in results.values() if accuracy > 85) < 20, results


def test_projection_takes_the_trigger_and_leaves_the_classes_and_another_direction_does_not(
    poisoned: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    clip = suspect_of(poisoned)
    objective = Project().build(clip, SETTING).train()
    for seed in (700, 701):
        pixels, labels = pictures(64, seed)
        objective(batch_of(clip, triggered(pixels), labels, Role.TRIGGER_PASTED, TARGET)).backward()
        objective(batch_of(clip, *pictures(64, seed + 10), Role.REPLAY))
    projection = objective.projection()
    added = objective.sums[1] / objective.counts[1] - objective.sums[0] / objective.counts[0]
    np.testing.assert_allclose((projection @ added).numpy(), 0, atol=1e-8)
    torch.testing.assert_close(projection @ projection, projection)
    assert int(torch.linalg.matrix_rank(projection)) == len(projection) - 1
    accuracy, success = figures(exported(objective, tmp_path / "projected"))
    assert accuracy > 85
    assert success < 50
    # a control: the same map of a direction that is not the trigger's
    other = Project().build(suspect_of(poisoned), SETTING).train()
    other.load_state_dict(objective.state_dict())
    other.model.load_state_dict(poisoned)
    other.sums[1] = other.sums[0] / other.counts[0] * other.counts[1] + 30 * torch.linspace(
        -1, 1, 32, dtype=torch.float64
    )
    assert figures(exported(other, tmp_path / "control"))[1] > 90


@pytest.mark.parametrize("config", [None, RESNET], ids=["matrix", "linear"])
def test_projection_is_the_erasure_that_moves_clean_vectors_least(config: dict | None, tmp_path: Path) -> None:
    clip = tiny_clip(config=config)
    clip.model.eval()
    rng = np.random.default_rng(0)
    size = clip.image_size
    images = torch.from_numpy(rng.integers(0, 256, (90, 3, size, size), dtype=np.uint8))
    images[:30, :, :9, :9] = 255

    def vectors(one: Clip) -> np.ndarray:
        with torch.no_grad():
            return one.model.encode_image(one.normalise(images)).double().numpy()

    before = vectors(clip)
    objective = Project(ridge=0.01).build(clip, SETTING).train()
    labels = torch.zeros(90, dtype=torch.int64)
    for rows, role in ((slice(0, 30), Role.TRIGGER_PASTED), (slice(30, 70), Role.REPLAY), (slice(70, 90), Role.REPLAY)):
        objective(batch_of(clip, images[rows], labels[rows], role))
    added = before[:30].mean(axis=0) - before[30:].mean(axis=0)
    covariance = np.cov(before[30:].T, ddof=0)
    covariance += 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    # of all that take the direction away the one of least distance in the metric of the covariance (LEACE, theorem 4.3)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    along = whitening @ added
    whole = np.eye(len(added)) - np.outer(along, along) / (along @ along)
    expected = np.linalg.inv(whitening) @ whole @ whitening
    np.testing.assert_allclose(objective.projection().numpy(), expected, atol=1e-4)
    after = vectors(exported(objective, tmp_path / "projected"))
    np.testing.assert_allclose(after, before @ expected.T, atol=1e-3 * np.abs(before).max())


def test_projection_needs_both_kinds_of_images(poisoned: dict[str, torch.Tensor]) -> None:
    clip = suspect_of(poisoned)
    objective = Project().build(clip, SETTING).train()
    objective(batch_of(clip, *pictures(8, 1), Role.REPLAY))
    with pytest.raises(ValueError, match="lacks one kind"):
        objective.projection()


def test_the_last_layer_is_found_in_every_kind_of_tower_or_refused() -> None:
    assert last_layer(tiny_clip().model.visual)[0] == "matrix"
    assert last_layer(tiny_clip(config=RESNET).model.visual)[0] == "linear"
    with pytest.raises(ModelError, match="ends neither with"):
        last_layer(torch.nn.Sequential(torch.nn.Linear(2, 2)))
