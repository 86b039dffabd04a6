"""Training on a real local Ray: same as one plain loop, every pair accounted for, a killed worker costs nothing."""

import dataclasses
import json
import os
import signal
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch.nn import functional as F

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.config import ConfigError, as_tree, validate
from clipsan.pipeline.core.verb import Summary
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.pipeline.train.plan import TrainConfig
from clipsan.pipeline.train.verb import VERB
from clipsan.stages.decode import decode
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.samples import seeded_hash
from clipsan.stages.sources import WebDataset, list_units, read_unit
from clipsan.stages.training.augment import AugmentConfig, augment
from clipsan.stages.training.objective import clip_loss
from clipsan.stages.training.optimise import OneCycle, adamw
from tests.conftest import add_member, picture, write_shards

pytestmark = pytest.mark.ray

EPOCHS = 12
BATCH = 8
AUGMENT = AugmentConfig(min_area=0.7, flip=True)


def with_bad_pairs(folder: Path) -> Path:
    write_shards(folder, shards=3, pairs=33)
    with tarfile.open(folder / "00003.tar", "w") as tar:
        add_member(tar, "a.jpg", b"this is no image")
        add_member(tar, "a.txt", b"a caption")
        add_member(tar, "b.png", picture(1)[:200])
        add_member(tar, "b.txt", b"half a picture")
        add_member(tar, "c.png", picture(2))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> WebDataset:
    return WebDataset(path=str(with_bad_pairs(tmp_path_factory.mktemp("pairs")) / "*.tar"))


@pytest.fixture(scope="module")
def settings(data: WebDataset, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return TrainConfig(
        data=data,
        model=ModelConfig(path=str(tiny_checkpoint)),
        out=str(tmp_path_factory.mktemp("train") / "run"),
        epochs=EPOCHS,
        batch_size=BATCH,
        lr=1e-3,
        augment=AUGMENT,
        seed=4,
        cluster=ClusterConfig(workers=2),
        tracking=TrackingConfig(enabled=False),
    )


@pytest.fixture(scope="module")
def trained(settings: TrainConfig, ray_cluster: None) -> Summary:
    return VERB.start(settings)


def plain_loop(settings: TrainConfig, made: int, total: int) -> list[float]:
    """Mean loss of each epoch in the first `made` of `total` steps, in this process, without Ray and its feeding."""
    clip = load_clip(settings.model)
    model, loss_of = clip.model.train(), clip_loss(0, 1)
    optimizer = adamw(model, settings.lr, settings.weight_decay, betas=(0.9, 0.98), eps=1e-6)
    pairs = [pair for unit in list_units(settings.data)[:3] for pair in read_unit(settings.data, unit)]
    order = seeded_hash([pair.uid for pair in pairs], settings.seed, "training order").view(np.int64)
    pairs = [pairs[i] for i in np.argsort(order)]
    images = torch.stack([clip.preprocess(decode(pair.image, 10**6).rgb) for pair in pairs])
    tokens = clip.tokenize([pair.caption for pair in pairs])
    steps = len(pairs) // BATCH
    losses: list[list[float]] = []
    for step in range(made):
        epoch, number = divmod(step, steps)
        if number == 0:
            draw = np.random.default_rng([settings.seed, epoch]).permutation(len(pairs))
            losses.append([])
        rows = draw[number * BATCH : (number + 1) * BATCH]
        pixels = augment(images[rows], slice(0, BATCH), BATCH, AUGMENT, (settings.seed, step))
        for group in optimizer.param_groups:
            group["lr"] = OneCycle().rate(step, total, settings.lr)
        image = F.normalize(model.encode_image(clip.normalise(pixels)), dim=-1)
        loss = loss_of(image, F.normalize(model.encode_text(tokens[rows]), dim=-1), model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[-1].append(loss.item())
    return [float(np.mean(epoch)) for epoch in losses]


def test_every_pair_is_accounted_for(trained: Summary, settings: TrainConfig) -> None:
    assert trained["counts"] == {"pairs_in": 102, "used": 99, "rejected": 3}
    assert trained["rejected_reasons"] == {
        "caption_missing": 1,
        "image_truncated": 1,
        "image_unreadable": 1,
    }
    assert json.loads((Path(settings.out) / "summary.json").read_text())["counts"] == trained["counts"]


def test_two_workers_train_as_one_plain_loop(trained: Summary, settings: TrainConfig) -> None:
    expected = plain_loop(settings, 36, 12 * EPOCHS)
    assert [record["loss"] for record in trained["history"][:3]] == pytest.approx(expected, rel=2e-3)
    assert trained["history"][-1]["loss"] < trained["history"][0]["loss"]


def test_the_model_is_there_for_the_scan(trained: Summary, settings: TrainConfig) -> None:
    before = load_clip(settings.model)
    after = load_clip(ModelConfig(path=trained["checkpoint"]))
    assert after.fingerprint != before.fingerprint
    assert after.preprocess_cfg == before.preprocess_cfg


def test_a_finished_run_is_not_done_again_and_other_settings_are_refused(
    trained: Summary, settings: TrainConfig
) -> None:
    told = (Path(settings.out) / "work" / "progress.json").stat().st_mtime_ns
    assert VERB.start(settings)["history"] == trained["history"]
    assert (Path(settings.out) / "work" / "progress.json").stat().st_mtime_ns == told  # no worker was started
    with pytest.raises(ConfigError, match="lr"):
        VERB.start(dataclasses.replace(settings, lr=5e-4))


def kill_a_worker_after(progress: Path, epochs: int, killed: list[int]) -> None:
    for _ in range(12_000):  # a loaded machine takes minutes to start the workers
        time.sleep(0.05)
        if progress.is_file() and json.loads(progress.read_text())["checkpointed"] >= epochs:
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::RayTrain"):
                    killed.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)
                    return


def test_a_killed_worker_costs_nothing(trained: Summary, settings: TrainConfig, tmp_path: Path) -> None:
    again = dataclasses.replace(settings, out=str(tmp_path / "killed"))
    killed: list[int] = []
    watcher = threading.Thread(
        target=kill_a_worker_after, args=(tmp_path / "killed" / "work" / "progress.json", 2, killed)
    )
    watcher.start()
    result = VERB.start(again)
    watcher.join()
    assert killed
    assert [record["loss"] for record in result["history"]] == [record["loss"] for record in trained["history"]]
    first, second = (load_clip(ModelConfig(path=r["checkpoint"])).fingerprint for r in (trained, result))
    assert first == second


def test_a_set_that_does_not_fit_is_streamed(settings: TrainConfig, ray_cluster: None, tmp_path: Path) -> None:
    streamed = dataclasses.replace(settings, out=str(tmp_path / "streamed"), memory_mb=0, epochs=3)
    result = VERB.start(streamed)
    assert [record["epoch"] for record in result["history"]] == [1, 2, 3]
    assert result["history"][-1]["loss"] < result["history"][0]["loss"]


@pytest.mark.parametrize("memory_mb", [2048, 0])
def test_steps_may_end_within_an_epoch(
    settings: TrainConfig, ray_cluster: None, tmp_path: Path, memory_mb: int
) -> None:
    short = dataclasses.replace(settings, out=str(tmp_path / "run"), epochs=None, steps=17, memory_mb=memory_mb)
    result = VERB.start(short)
    told = json.loads((tmp_path / "run" / "work" / "progress.json").read_text())
    assert told == {"step": 17, "checkpointed": 2, "loss": result["history"][-1]["loss"]}
    assert result["history"][-1]["lr"] == pytest.approx(OneCycle().rate(16, 17, settings.lr))
    if memory_mb:  # a stream comes in an order of its own
        assert [record["loss"] for record in result["history"]] == pytest.approx(plain_loop(short, 17, 17), rel=2e-3)


def test_epochs_or_steps(settings: TrainConfig) -> None:
    for wrong, rule in (
        ({"steps": 3}, "exactly one of epochs and steps"),
        ({"epochs": None}, "exactly one of epochs and steps"),
        ({"epochs": None, "steps": 0}, "steps: .* greater than or equal to 1"),
    ):
        with pytest.raises(ConfigError, match=rule):
            validate(TrainConfig, {**as_tree(settings), **wrong}, verb="train")


def test_impossible_batches_are_refused(settings: TrainConfig, ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a multiple"):
        VERB.start(dataclasses.replace(settings, batch_size=7, out=str(tmp_path / "odd")))
    with pytest.raises(ConfigError, match="only 99 usable pairs"):
        VERB.start(dataclasses.replace(settings, batch_size=100, out=str(tmp_path / "large")))
