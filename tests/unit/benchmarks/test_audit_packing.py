"""What a packed model gives back is what was measured when it was made."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.pipeline.core.commit import write_text
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip, save_clip
from tests.benchmarks import audit_packing
from tests.benchmarks.audit_packing import (
    LEVELS,
    TOKENS,
    TRUTH,
    Base,
    Cell,
    checkpoint_of,
    decode,
    drawn_tokens,
    encode,
    keep,
    pack,
    unpack,
)

BASE = Base(arch="vit", seed=3)
CELL = Cell(arch="vit", base=3, attack=None, seed=9)


@pytest.fixture
def clip() -> Clip:
    return load_clip(ModelConfig(config=audit_packing.MODELS["vit"]), init_seed=1)


def _states(clip: Clip) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], np.ndarray]:
    """A base that learned some tokens, and a model that was tuned from it, both rounded; and the tokens as drawn."""
    tokens = drawn_tokens(clip.model.state_dict(), BASE.seed)
    base = {name: value.clone() for name, value in clip.model.state_dict().items()}
    base[TOKENS] = torch.from_numpy(tokens.copy())
    base[TOKENS][40:60] += 0.1
    base = decode(encode(base, None, tokens), None, tokens)
    generator = torch.Generator().manual_seed(0)
    tuned = {
        name: value + 0.01 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in base.items()
    }
    tuned[TOKENS] = base[TOKENS].clone()
    tuned[TOKENS][41] += 0.05
    return base, tuned, tokens


def test_a_change_is_kept_in_steps(clip: Clip) -> None:
    base, tuned, _ = _states(clip)
    arrays = encode(tuned, base, None)
    found = decode(arrays, base, None)
    assert set(found) == set(tuned)
    for name, value in tuned.items():
        if value.ndim < 2:
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        else:
            step = (value - base[name]).abs().amax() / LEVELS
            assert float((found[name] - value).abs().max()) <= 0.51 * float(step)
    assert len(arrays[f"rows:{TOKENS}"]) == 1


def test_packed_models_come_back_to_the_bit(clip: Clip, tmp_path: Path) -> None:
    base, tuned, tokens = _states(clip)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for model, arrays, start in (
        (BASE, encode(base, None, tokens), None),
        (CELL, encode(tuned, base, None), base),
    ):
        states[model.name] = decode(arrays, start, tokens)
        clip.model.load_state_dict(states[model.name])
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, checkpoint_of(tmp_path / "made", model))
        keep(tmp_path / "made" / model.name, arrays)
        truth = {"arch": model.arch, "seed": model.seed, "base": None if start is None else BASE.name}
        write_text(tmp_path / "made" / model.name / TRUTH, json.dumps(truth))
    files = pack(tmp_path / "made", tmp_path / "files", [CELL])
    assert [path.name for path in files] == ["audit-models-0.zip"]
    assert unpack(tmp_path / "files", tmp_path / "back") == sorted([BASE.name, CELL.name])
    for model in (BASE, CELL):
        found = load_clip(ModelConfig(path=str(checkpoint_of(tmp_path / "back", model)))).model.state_dict()
        for name, value in states[model.name].items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_packed_files_stay_below_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_packing, "FILE_BYTES", 1000)
    cells = [Cell(arch="vit", base=3, attack=None, seed=seed) for seed in range(3)]
    for model in (BASE, *cells):
        keep(tmp_path / model.name, {"x": np.random.default_rng(0).integers(0, 255, 400).astype(np.uint8)})
    files = pack(tmp_path, tmp_path / "files", cells)
    assert len(files) == 4
