"""What an audit refuses before any worker starts, each in one line, and what it takes for a vocabulary."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipsan.pipeline.audit.plan import make_plan
from clipsan.pipeline.audit.settings import AuditConfig
from clipsan.pipeline.core.config import ConfigError
from clipsan.stages.audit.outliers import tail
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.sources import FolderSource
from tests.conftest import picture

WEIGHTS = "open_clip_model.safetensors"


def settings(checkpoint: Path, tmp_path: Path, **changed) -> AuditConfig:
    return AuditConfig(model=ModelConfig(path=str(checkpoint)), out=str(tmp_path / "out"), count=16, **changed)


def folder_of(tmp_path: Path, count: int) -> Path:
    home = tmp_path / "images" / "any"
    home.mkdir(parents=True)
    for i in range(count):
        (home / f"{i:03d}.png").write_bytes(picture(i))
    return home.parent


def test_images_of_a_plain_folder_are_taken_without_captions(tiny_checkpoint, tmp_path) -> None:
    source = FolderSource(path=str(folder_of(tmp_path, 20)))
    plan = make_plan(settings(tiny_checkpoint, tmp_path, images=source))
    assert plan.pictures.shape == (16, 32, 32, 3)
    again = make_plan(settings(tiny_checkpoint, tmp_path, images=source))
    assert (again.pictures == plan.pictures).all()
    assert again.fingerprint == plan.fingerprint


def test_without_images_scenes_are_rendered(tiny_checkpoint, tmp_path) -> None:
    plan = make_plan(settings(tiny_checkpoint, tmp_path))
    assert len(plan.pictures) == 16
    assert "rendered scenes" in plan.describe()


def test_too_few_images(tiny_checkpoint, tmp_path) -> None:
    source = FolderSource(path=str(folder_of(tmp_path, 3)))
    with pytest.raises(ConfigError, match=r"images: 3 could be read, and an audit needs 16"):
        make_plan(settings(tiny_checkpoint, tmp_path, images=source))


def test_of_too_few_labels_none_is_ever_accused(tiny_checkpoint, tmp_path) -> None:
    few = ["banana", "ball", "kite", "pear", "cup"]
    assert tail(np.array([0.0, 0.1, 0.2, 0.1, 1e6])).min() == 1
    for count in (1, 5):
        with pytest.raises(ConfigError, match=rf"classes: {count} labels, and a label is judged by what 5 others show"):
            make_plan(settings(tiny_checkpoint, tmp_path, classes=few[:count]))
    (tmp_path / "captions.txt").write_text("banana ball kite pear cup\n")
    with pytest.raises(ConfigError, match="captions: 5 labels"):
        make_plan(settings(tiny_checkpoint, tmp_path, captions=str(tmp_path / "captions.txt")))
    assert tail(np.array([0.0, 0.1, 0.2, 0.1, 0.2, 1e6])).min() < 1e-9
    assert len(make_plan(settings(tiny_checkpoint, tmp_path, classes=[*few, "tree"])).names) == 6


def test_labels_that_are_sought_are_no_labels_that_are_given(tiny_checkpoint, tmp_path) -> None:
    plan = make_plan(settings(tiny_checkpoint, tmp_path, sought=12))
    assert plan.names == ()
    assert "12 at most, sought" in plan.describe()
    for others in ({"classes": ["ball", "kite"]}, {"captions": "captions.txt"}):
        with pytest.raises(ValueError, match="both give the vocabulary"):
            settings(tiny_checkpoint, tmp_path, sought=12, **others)
    with pytest.raises(ValueError, match="sought: peers are compared label by label"):
        settings(tiny_checkpoint, tmp_path, sought=12, peers=("runs/clean",))


def test_a_label_twice(tiny_checkpoint, tmp_path) -> None:
    with pytest.raises(ConfigError, match="'banana' is named twice"):
        make_plan(settings(tiny_checkpoint, tmp_path, classes=["banana", "Banana", "pear"]))


def test_words_are_mined_from_captions_the_most_frequent_first(tiny_checkpoint, tmp_path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("A red ball on the grass\nthe ball and a kite\nKite, ball!\na tree, a tree, a cup, a dog\n")
    plan = make_plan(settings(tiny_checkpoint, tmp_path, captions=str(captions), words=6))
    assert plan.names == ("ball", "kite", "cup", "dog", "grass", "red")
    captions.write_text("a café, कुत्ता\nuna flor, el gato, une chaise, eine Blume, die Katze\n", encoding="utf-8")
    assert {"café", "कुत्ता"} < {*make_plan(settings(tiny_checkpoint, tmp_path, captions=str(captions))).names}
    with pytest.raises(ConfigError, match=r"captions=.*cannot be read"):
        make_plan(settings(tiny_checkpoint, tmp_path, captions=str(tmp_path / "none.txt")))


def test_weights_that_are_no_numbers(tiny_checkpoint, tmp_path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = load_file(broken / WEIGHTS)
    weights["visual.proj"] = torch.full_like(weights["visual.proj"], float("nan"))
    save_file(weights, broken / WEIGHTS)
    with pytest.raises(ValueError, match="NaN or infinite"):
        make_plan(settings(broken, tmp_path))


def test_a_checkpoint_of_an_image_tower_alone(tiny_checkpoint, tmp_path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_checkpoint, half)
    weights = {name: value for name, value in load_file(half / WEIGHTS).items() if name.startswith("visual.")}
    save_file(weights, half / WEIGHTS)
    with pytest.raises(ValueError, match=r"lack|missing") as caught:
        make_plan(settings(half, tmp_path))
    assert "\n" not in str(caught.value)


def test_a_reference_must_fit(tiny_checkpoint, tmp_path) -> None:
    with pytest.raises(ConfigError, match="reference: is the suspect checkpoint itself"):
        make_plan(settings(tiny_checkpoint, tmp_path, reference=ModelConfig(path=str(tiny_checkpoint))))


def test_only_what_decides_a_figure_decides_the_fingerprint(tiny_checkpoint, tmp_path) -> None:
    prints = {
        name: make_plan(settings(tiny_checkpoint, tmp_path, **changed)).fingerprint
        for name, changed in {
            "plain": {},
            "tasks": {"labels_per_task": 3},
            "seed": {"seed": 1},
            "kinds": {"kinds": ("patch",)},
            "classes": {"classes": ["ball", "kite", "cup", "dog", "tree", "house"]},
        }.items()
    }
    assert prints["plain"] != prints["tasks"]
    assert len(set(prints.values())) == 5


def test_the_settings_of_the_file_are_those_of_the_class(tiny_checkpoint, tmp_path) -> None:
    from clipsan.pipeline.core.config import as_tree, load

    given = [f"model.path={tiny_checkpoint}", f"out={tmp_path}"]
    loaded = load(AuditConfig, None, given, verb="audit")
    plain = AuditConfig(model=ModelConfig(path=str(tiny_checkpoint)), out=str(tmp_path))
    assert json.dumps(as_tree(loaded)) == json.dumps(as_tree(plain))
