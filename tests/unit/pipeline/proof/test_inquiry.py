"""Every limit of the proof can be set, is checked, and decides the fingerprint."""

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clipsan.pipeline.core.config import ConfigError, as_tree, validate
from clipsan.pipeline.proof.inquiry import ProofConfig, labeller_fingerprint, oracle_fingerprint, proof_fingerprint
from clipsan.stages.dossier.limits import ProofLimits
from clipsan.stages.model.checkpoints import build_model, save_clip
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.oracle import (
    DeepLabConfig,
    LiteRtConfig,
    MobileSamConfig,
    OracleConfig,
    SamConfig,
    SuperpixelsConfig,
)
from clipsan.stages.oracle.sam_layout import DecoderLayout, EncoderLayout, build_sam

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def mark(settings: ProofConfig) -> str:
    return proof_fingerprint(settings, SuperpixelsConfig(), {"score": "scored", "decision": {}, "seed": 0})


def numbers(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(numbers(as_tree(ProofLimits()))), ids=".".join)
def test_another_limit_is_another_proof(path: tuple[str, ...]) -> None:
    value: Any = as_tree(ProofLimits())
    for name in path:
        value = value[name]
    changed: Any = [3] if isinstance(value, list) else value + 1 if isinstance(value, int) or value > 1 else value / 2
    for name in reversed(path):
        changed = {name: changed}
    settings = validate(ProofConfig, {"limits": changed}, verb="scan")
    assert mark(settings) != mark(ProofConfig())


@pytest.mark.parametrize("other", [{"score": "other"}, {"decision": {"kind": "budget"}}, {"seed": 1}], ids=str)
def test_what_decides_the_choice_of_pairs_decides_the_proof(other: dict[str, Any]) -> None:
    before: dict[str, Any] = {"score": "scored", "decision": {}, "seed": 0}
    found = proof_fingerprint(ProofConfig(), SuperpixelsConfig(), {**before, **other})
    assert found != proof_fingerprint(ProofConfig(), SuperpixelsConfig(), before)


def test_the_limits_of_the_pairs_decide_it_too() -> None:
    examine = ProofConfig().examine
    for other in (
        dataclasses.replace(examine, completed_on=5),
        dataclasses.replace(examine, box=dataclasses.replace(examine.box, area_price=60.0)),
    ):
        assert mark(ProofConfig(examine=other)) != mark(ProofConfig())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"warp": {"steps": 0}}, r"limits\.warp\.steps"),
        ({"groups": {"residual": {"strengths": []}}}, r"limits\.groups\.residual\.strengths"),
        ({"rivals": {"shared": 1.5}}, r"limits\.rivals\.shared"),
        ({"carriers": {"shrinkage": 0}}, r"limits\.carriers\.shrinkage"),
        ({"patches": {"likeness": {"ties": 0.1}}}, r"limits\.patches\.likeness\.ties"),
    ],
)
def test_a_wrong_limit_is_named_in_one_line(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        validate(ProofConfig, {"limits": limits}, verb="scan")
    assert "\n" not in str(refused.value)


def labeller(folder: Path, spoiled: float | None = None) -> ModelConfig:
    """A small CLIP, whole or with one number replaced."""
    torch.manual_seed(0)
    model = build_model(TINY)
    if spoiled is not None:
        with torch.no_grad():
            next(model.visual.parameters()).view(-1)[0] = spoiled
    save_clip(model, TINY, {"mean": [0.5] * 3, "std": [0.5] * 3}, folder)
    return ModelConfig(path=str(folder))


def test_a_labeller_is_known_by_its_weights(tmp_path: Path) -> None:
    one = labeller_fingerprint(labeller(tmp_path / "one"))
    assert one == labeller_fingerprint(labeller(tmp_path / "copy"))
    assert one != labeller_fingerprint(labeller(tmp_path / "other", spoiled=0.25))


def test_a_labeller_without_usable_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    for settings, message in (
        (labeller(tmp_path / "nan", spoiled=float("nan")), "NaN or infinite"),
        (ModelConfig(path=str(tmp_path / "nowhere")), "nowhere"),
        (ModelConfig(name="ViT-B-32"), "without weights"),
    ):
        with pytest.raises(ConfigError, match=f"proof.labeller: .*{message}") as refused:
            labeller_fingerprint(settings)
        assert "\n" not in str(refused.value)


def small_sam(path: Path, spoiled: float | None = None) -> OracleConfig:
    """A small segment-anything, whole or with one number replaced."""
    torch.manual_seed(0)
    encoder = EncoderLayout(
        grid=4, patch_px=4, width=16, depth=1, heads=2, mlp_width=16, window=0, global_blocks=(0,), channels=16
    )
    model = build_sam(encoder, DecoderLayout(channels=16, mask_channels=4, depth=1, mlp_width=16, quality_width=8))
    if spoiled is not None:
        with torch.no_grad():
            model.image_encoder.pos_embed.view(-1)[0] = spoiled
    torch.save(model.state_dict(), path)
    return SamConfig(path=str(path))


def test_an_oracle_is_known_by_its_weights(tmp_path: Path) -> None:
    assert oracle_fingerprint(SuperpixelsConfig()) == {}
    one = oracle_fingerprint(small_sam(tmp_path / "sam.pt"))
    assert list(one) == [str(tmp_path / "sam.pt")]
    assert one == oracle_fingerprint(small_sam(tmp_path / "sam.pt"))
    assert one != oracle_fingerprint(small_sam(tmp_path / "sam.pt", spoiled=0.25))


@pytest.mark.parametrize("kind", [SamConfig, MobileSamConfig, DeepLabConfig])
def test_an_oracle_without_weights_is_refused_in_one_line(tmp_path: Path, kind: type[OracleConfig]) -> None:
    empty, code = tmp_path / "empty.pt", tmp_path / "code.pt"
    empty.touch()
    code.write_bytes(pickle.dumps(print))
    for path, message in (
        (tmp_path / "nowhere.pt", "no such file"),
        (empty, "is empty"),
        (code, "is not plain weights"),
    ):
        with pytest.raises(ConfigError, match=f"oracle: .*{message}") as refused:
            oracle_fingerprint(kind(path=str(path)))
        assert "\n" not in str(refused.value)


def test_an_oracle_whose_weights_are_no_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"oracle: .*NaN or infinite, in image_encoder\.pos_embed"):
        oracle_fingerprint(small_sam(tmp_path / "sam.pt", spoiled=float("nan")))


def test_an_oracle_that_lacks_its_file_or_its_extra_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"oracle: (path: no such file|kind: litert needs the extra)"):
        oracle_fingerprint(LiteRtConfig(path=str(tmp_path / "nowhere.tflite")))
