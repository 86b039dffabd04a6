"""Files that settings name count by what stands in them."""

from pathlib import Path

import numpy as np

from clipsan.pipeline.core.contents import contents
from clipsan.stages.attack.poisoning import AttackConfig, Strand
from clipsan.stages.attack.triggers import PatchConfig
from clipsan.stages.attack.triggers.proven import ProvenConfig
from clipsan.stages.repair.cleanclip import CleanClip
from clipsan.stages.repair.eftclip import EftClip
from clipsan.stages.repair.finetune import FineTune


def test_every_trigger_of_an_attack_counts_by_its_files(tmp_path: Path) -> None:
    dossier, picture = tmp_path / "t1", tmp_path / "patch.npy"
    dossier.mkdir()
    (dossier / "dossier.json").write_text("{}")
    np.save(picture, np.zeros((2, 2, 3), np.uint8))
    attack = AttackConfig(
        trigger=ProvenConfig(path=str(dossier)),
        also=(Strand(trigger=PatchConfig(pattern="picture", picture=str(picture), size_px=2), target="kite"),),
        target="ball",
        count=1,
    )
    first = contents(attack)
    assert len(first["files"]) == 2 == len(set(first["files"]))
    np.save(picture, np.ones((2, 2, 3), np.uint8))
    second = contents(attack)
    assert second["files"][0] == first["files"][0]
    assert second["files"][1] != first["files"][1]
    (dossier / "heat.npy").write_bytes(b"other")
    assert contents(attack)["files"][0] != first["files"][0]


def test_a_thesaurus_of_the_user_counts_and_the_installed_one_does_not(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("ball: sphere\n")
    for method in (CleanClip(synonyms=str(words)), EftClip(synonyms=str(words))):
        words.write_text("ball: sphere\n")
        before = contents(method)
        words.write_text("ball: globe\n")
        assert before["files"] != contents(method)["files"]
    assert contents(CleanClip()) == contents(CleanClip(synonyms=None)) == contents(FineTune()) == {}
