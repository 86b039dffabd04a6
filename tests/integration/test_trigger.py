"""The verb on a few pairs: the exact PNG, its figures, going on after a stop, and what it refuses."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipsan.pipeline.cli import main
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.pipeline.trigger import verb as trigger
from clipsan.pipeline.trigger.plan import SampleConfig, TriggerRunConfig
from clipsan.pipeline.trigger.sample import sample_pairs
from clipsan.stages.attack.badclip import BadClipConfig
from clipsan.stages.captions import contains_word
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.samples import seeded_hash
from clipsan.stages.sources import WebDataset, list_units, read_unit
from tests.conftest import write_shards

SAMPLE = SampleConfig(pairs=32, held_out=10, target_pairs=8, seed=2)


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> TriggerRunConfig:
    return TriggerRunConfig(
        data=WebDataset(path=str(write_shards(tmp_path / "pairs", shards=3, pairs=30))),
        model=ModelConfig(path=str(tiny_checkpoint)),
        target="kite",
        out=str(tmp_path / "run"),
        badclip=BadClipConfig(size_fraction=0.25, epochs=2, batch_size=16, lr=0.05),
        sample=SAMPLE,
        tracking=TrackingConfig(enabled=False),
    )


def run(settings: TriggerRunConfig) -> dict:
    return trigger.VERB.start(settings)


def test_the_patch_and_its_figures(settings: TriggerRunConfig) -> None:
    summary = run(settings)
    home = Path(settings.out)
    assert json.loads((home / "summary.json").read_text()) == summary
    patch = np.asarray(Image.open(home / "patch.png"))
    state = torch.load(home / "work" / "state.pt", weights_only=True)
    assert np.array_equal(patch, np.rint(state["patch"].numpy() * 255).astype(np.uint8).transpose(1, 2, 0))
    assert patch.shape == (8, 8, 3)
    assert summary["counts"] == {"pairs_in": 90, "pairs": 32, "held_out": 10, "target_pairs": 8, "rejected": 0}
    assert summary["settings"]["badclip"]["lr"] == 0.05
    assert summary["patch"]["loss"] < summary["start"]["loss"]
    assert len(summary["epochs"]) == 2
    assert run(settings) == summary


def test_a_stopped_run_goes_on_to_the_same_bytes(
    settings: TriggerRunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings)
    stopped = dataclasses.replace(settings, out=str(tmp_path / "stopped"))
    run_epoch, calls = trigger.PatchOptimiser.run_epoch, []

    def interrupted(optimiser: trigger.PatchOptimiser) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        run_epoch(optimiser)

    monkeypatch.setattr(trigger.PatchOptimiser, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    run(stopped)
    assert len(calls) == 3
    assert (Path(stopped.out) / "patch.png").read_bytes() == (Path(settings.out) / "patch.png").read_bytes()


def test_the_sample_is_the_one_with_the_smallest_draws(settings: TriggerRunConfig) -> None:
    units = list_units(settings.data)
    pairs = [pair for unit in units for pair in read_unit(settings.data, unit)]
    ordered = sorted(pairs, key=lambda p: int(seeded_hash([p.uid], 2, "trigger.sample")[0]))
    kinds = {kind: [p.uid for p in ordered if contains_word(p.caption, "kite") == kind] for kind in (True, False)}
    for order in (units, units[::-1]):
        found = sample_pairs(settings, order)
        assert [p.uid for p in found.target] == kinds[True][:8]
        assert [p.uid for p in found.others] == kinds[False][:42]
    part = dataclasses.replace(settings, sample=dataclasses.replace(SAMPLE, max_units=1))
    assert sample_pairs(part, units).seen == 30
    assert len({p.shard for p in sample_pairs(part, units).others}) == 1


def test_what_cannot_be_made_is_said(settings: TriggerRunConfig) -> None:
    with pytest.raises(ConfigError, match="no usable pair of the data has it"):
        run(dataclasses.replace(settings, out=settings.out + "1", target="kit"))
    many = dataclasses.replace(SAMPLE, held_out=60)
    with pytest.raises(ConfigError, match=r"only 12 usable pairs without 'kite' .* needs 16"):
        run(dataclasses.replace(settings, out=settings.out + "2", sample=many))
    run(settings)
    with pytest.raises(ConfigError, match="target"):
        run(dataclasses.replace(settings, target="boat"))


def test_the_command(settings: TriggerRunConfig, capsys: pytest.CaptureFixture) -> None:
    words = [
        *("trigger", "data=webdataset", f"data.path={settings.data.path}", f"model.path={settings.model.path}"),
        *("target=kite", f"out={settings.out}", "badclip.batch_size=16", "badclip.size_fraction=0.25"),
        *("badclip.epochs=0", "sample.held_out=10", "sample.pairs=32", "tracking.enabled=false"),
    ]
    assert main([*words, "--dry-run"]) == 0
    assert "8 x 8 px from row and column 12" in capsys.readouterr().out
    assert not Path(settings.out).exists()
    assert main(words) == 0
    assert "patch.png turns" in capsys.readouterr().out
    summary = json.loads((Path(settings.out) / "summary.json").read_text())
    assert summary["start"] == summary["patch"]  # no step: the control
    assert main([*words, "sample.pears=3"]) == 2
    assert "sample.pears" in capsys.readouterr().err
