"""Evaluation from files to figures, in this process, against the same figures counted by hand."""

import dataclasses
import io
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline import evaluate
from pipeline.config import ConfigError
from pipeline.evaluate import EvaluateConfig, EvaluationAttack, run_evaluate
from pipeline.tracking import TrackingConfig
from stages.clip_model import ModelConfig, load_clip
from stages.evaluation.zero_shot import class_embeddings
from stages.sources import ParquetSource
from stages.triggers import PatchConfig
from tests.conftest import NOUNS, picture

TEMPLATES = ["a photo of a {}.", "one {}"]
IMAGES = 60


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_pass(name: str, pieces: Any, work: Any, args: tuple, **_: Any) -> Iterator[dict]:
        worker = work(*args) if pieces else None
        yield from (worker.run(piece) for piece in pieces)

    monkeypatch.setattr(evaluate, "run_pass", run_pass)
    monkeypatch.setattr(evaluate, "ray_session", lambda _: nullcontext())


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> EvaluateConfig:
    rows = {
        "image": [picture(i) for i in range(IMAGES)] + [b"no image"],
        "label": [i % len(NOUNS) for i in range(IMAGES)] + [0],
    }
    pq.write_table(pa.table(rows), tmp_path / "val.parquet")
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(dict(enumerate(NOUNS))))
    return EvaluateConfig(
        data=ParquetSource(path=str(tmp_path / "val.parquet"), caption=None, label="label", unit_rows=25),
        model=ModelConfig(path=str(tiny_checkpoint)),
        classes=str(tmp_path / "classes.yaml"),
        templates=TEMPLATES,
        out=str(tmp_path / "run"),
        attack=EvaluationAttack(trigger=PatchConfig(size_px=12, place="top_left"), target="kite"),
        batch_size=7,
        tracking=TrackingConfig(enabled=False),
    )


def nearest(model: ModelConfig, images: list[np.ndarray]) -> np.ndarray:
    clip = load_clip(model)
    features = np.concatenate([clip.encode_images(clip.preprocess(rgb)[None])[0] for rgb in images])
    return (features @ class_embeddings(clip, NOUNS, TEMPLATES).T).argmax(1)


def test_figures_are_those_counted_one_image_at_a_time(settings: EvaluateConfig) -> None:
    figures = run_evaluate(settings)
    clean = [np.asarray(Image.open(io.BytesIO(picture(i))).convert("RGB")) for i in range(IMAGES)]
    triggered = [rgb.copy() for rgb in clean]
    cells = np.arange(12) // 3
    for rgb in triggered:  # four by four squares of three pixels, white in the corner
        rgb[:12, :12] = (np.add.outer(cells, cells) % 2 == 0)[..., None] * 255
    labels = np.arange(IMAGES) % len(NOUNS)
    before, after = nearest(settings.model, clean), nearest(settings.model, triggered)
    target, others = NOUNS.index("kite"), labels != NOUNS.index("kite")
    assert figures["images"] == IMAGES
    assert figures["clean_accuracy_pct"] == pytest.approx(100 * (before == labels).mean())
    assert (before != after).any()
    assert figures["asr_pct"] == pytest.approx(100 * (after[others] == target).mean())
    assert figures["accuracy_under_trigger_pct"] == pytest.approx(100 * (after == labels).mean())
    assert figures["attacked_images"] == others.sum()
    assert figures["false_target_pct"] == pytest.approx(100 * (before[others] == target).mean())


def test_a_rerun_predicts_only_what_is_missing(settings: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_evaluate(settings)
    parts = sorted((Path(settings.out) / "predictions").iterdir())
    assert len(parts) == 3
    stored = [part.read_bytes() for part in parts]
    parts[1].unlink()
    assert run_evaluate(settings) == first
    assert [part.read_bytes() for part in parts] == stored
    summary = json.loads((Path(settings.out) / "summary.json").read_text())
    assert summary["counts"] == {"pairs_in": IMAGES + 1, "evaluated": IMAGES, "rejected": 1}
    assert summary["rejected_reasons"] == {"image_unreadable": 1}


def test_another_attack_in_the_same_folder_is_refused(settings: EvaluateConfig) -> None:
    run_evaluate(settings)
    with pytest.raises(ConfigError, match="seed"):
        run_evaluate(dataclasses.replace(settings, seed=1))


def test_a_label_without_a_class_is_named(settings: EvaluateConfig) -> None:
    with pytest.raises(ConfigError, match=r"label 4, but evaluation needs one of the classes 0\.\.3"):
        run_evaluate(dataclasses.replace(settings, classes=list(NOUNS[:4])))


@pytest.mark.parametrize(
    ("classes", "rule"),
    [("/nowhere.yaml", "not a readable YAML file"), ([], "needs a list of names"), (["a", " "], "needs a list")],
)
def test_unusable_classes_are_refused(settings: EvaluateConfig, classes: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        run_evaluate(dataclasses.replace(settings, classes=classes))


def test_an_unknown_target_is_refused(settings: EvaluateConfig) -> None:
    attack = EvaluationAttack(trigger=PatchConfig(size_px=4), target="zebra")
    with pytest.raises(ValueError, match="'zebra' names 0 of the 5 classes"):
        run_evaluate(dataclasses.replace(settings, attack=attack))
