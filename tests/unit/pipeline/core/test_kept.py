"""A process loads a model once, and again only when another one, or another file, is asked for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.pipeline.core.kept import kept_clip
from clipsan.stages.model.clip import ModelConfig, load_clip, save_clip


def test_a_model_is_loaded_once_for_both_precisions(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipsan.stages.precision.has_bf16", lambda device: True)
    home = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    model = ModelConfig(path=str(home))
    first = kept_clip(model)
    half = kept_clip(model, precision="bf16")
    assert half.model is first.model
    assert kept_clip(model).model is first.model
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    for kept, precision in ((first, "f32"), (half, "bf16")):
        fresh = load_clip(model, precision=precision)
        np.testing.assert_array_equal(kept.encode_images(images)[0], fresh.encode_images(images)[0])
    assert not np.array_equal(first.encode_images(images)[0], half.encode_images(images)[0])
    with torch.no_grad():
        changed = load_clip(model)
        changed.model.visual.conv1.weight.mul_(2)
    save_clip(changed.model, changed.model_cfg, changed.preprocess_cfg, home)
    again = kept_clip(model)
    assert again.model is not first.model
    assert again.fingerprint != first.fingerprint
