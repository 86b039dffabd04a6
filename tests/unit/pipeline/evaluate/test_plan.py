"""What an evaluation is told apart by."""

from pathlib import Path

import numpy as np

from clipsan.pipeline.evaluate.plan import make_plan
from clipsan.pipeline.evaluate.settings import EvaluateConfig, EvaluationAttack
from clipsan.stages.attack.triggers import PatchConfig, TriggerConfig
from clipsan.stages.attack.triggers.proven import ProvenConfig
from clipsan.stages.dossier.dossier import rate_of
from clipsan.stages.dossier.warp import Warp
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.sources import WebDataset
from tests.conftest import write_shards

SIDE = 32


def save_dossier(folder: Path, field: float) -> None:
    Warp(
        id="t1",
        targets=("kite",),
        side=SIDE,
        flips=rate_of(9, 10),
        control=rate_of(0, 10),
        uids=("a",),
        field=np.full((SIDE, SIDE, 2), field, np.float32),
    ).save(folder)


def test_other_triggers_in_the_same_folder_are_another_evaluation(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = WebDataset(path=str(write_shards(tmp_path / "pairs", shards=1, pairs=4) / "*.tar"))

    def fingerprint(trigger: TriggerConfig) -> str:
        settings = EvaluateConfig(
            data=data,
            model=ModelConfig(path=str(tiny_checkpoint)),
            classes=["ball", "kite"],
            templates=["a {}"],
            out=str(tmp_path / "run"),
            attack=EvaluationAttack(trigger=trigger, target="kite"),
        )
        return make_plan(settings).fingerprint

    proven = ProvenConfig(path=str(tmp_path / "t1"))
    save_dossier(tmp_path / "t1", 1.0)
    first = fingerprint(proven)
    assert fingerprint(proven) == first
    save_dossier(tmp_path / "t1", 2.0)
    assert fingerprint(proven) != first

    picture = tmp_path / "patch.npy"
    patch = PatchConfig(pattern="picture", picture=str(picture), size_px=2)
    np.save(picture, np.zeros((2, 2, 3), np.uint8))
    first = fingerprint(patch)
    np.save(picture, np.ones((2, 2, 3), np.uint8))
    assert fingerprint(patch) != first
