"""A second encoder by timm's names, by another library's order, or of a CLIP; weights that do not fit are refused."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from clipsan.stages.model.checkpoints import ModelConfig, ModelError
from clipsan.stages.model.clip import LAYER_WIDTH, load_clip
from clipsan.stages.model.reference import Reference, ReferenceConfig, ReferenceInputs, reference_fingerprint

NAME = "test_efficientnet"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, pretrained=False).eval()


@pytest.fixture(scope="module")
def weights(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path


def pictures(count: int, size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(256, size=(count, 3, size, size), dtype=np.uint8))


def test_features_are_those_of_the_network_and_unit_norm(network: torch.nn.Module, weights: Path) -> None:
    reference = Reference(ReferenceConfig(timm=NAME, weights=str(weights)), CPU)
    images = pictures(3, reference.inputs.size)
    found = reference.features(images)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (reference.inputs.mean, reference.inputs.std))
    with torch.inference_mode():
        wide = network.forward_head(network.forward_features((images / 255 - mean) / std), pre_logits=True)  # type: ignore[operator]
    assert found.shape == (3, min(wide.shape[1], LAYER_WIDTH))
    wide = torch.nn.functional.normalize(wide, dim=-1)
    if wide.shape[1] <= LAYER_WIDTH:
        torch.testing.assert_close(found, wide)
    else:  # distances survive an orthonormal projection, shortened
        assert (found.norm(dim=-1) <= wide.norm(dim=-1) + 1e-5).all()


def test_weights_of_another_library_are_taken_by_position(
    network: torch.nn.Module, weights: Path, tmp_path: Path
) -> None:
    other = {f"layer_{i}": v for i, (k, v) in enumerate(network.state_dict().items()) if "num_batches" not in k}
    torch.save(other, tmp_path / "other.pth")
    one = Reference(ReferenceConfig(timm=NAME, weights=str(weights)), CPU)
    two = Reference(ReferenceConfig(timm=NAME, weights=str(tmp_path / "other.pth")), CPU)
    images = pictures(2, one.inputs.size)
    torch.testing.assert_close(one.features(images), two.features(images))


def test_inputs_are_cut_to_size_whatever_comes(weights: Path) -> None:
    inputs = ReferenceInputs(ReferenceConfig(timm=NAME, weights=str(weights)))
    for shape in ((64, 64, 3), (300, 200, 3)):
        found = inputs.preprocess(np.full(shape, 90, np.uint8))
        assert found.shape == (3, inputs.size, inputs.size)
        assert found.dtype == torch.uint8
        assert (found == 90).all()


def test_a_clip_is_a_reference_as_well(tiny_checkpoint: Path) -> None:
    settings = ReferenceConfig(clip=ModelConfig(path=str(tiny_checkpoint)))
    reference, clip = Reference(settings, CPU), load_clip(ModelConfig(path=str(tiny_checkpoint)))
    images = pictures(2, clip.image_size)
    np.testing.assert_allclose(reference.features(images), clip.encode_images(images)[0], atol=1e-6)
    assert reference_fingerprint(settings) == clip.fingerprint


def test_fingerprint_is_of_the_weights_not_of_their_place(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.safetensors").write_bytes(weights.read_bytes())
    one, copy = (ReferenceConfig(timm=NAME, weights=str(path)) for path in (weights, tmp_path / "copy.safetensors"))
    assert reference_fingerprint(one) == reference_fingerprint(copy)


def test_what_does_not_fit_is_refused_in_one_line(weights: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "small.safetensors")
    for settings, words in (
        (ReferenceConfig(timm=NAME, weights=str(tmp_path / "small.safetensors")), "does not fit test_efficientnet"),
        (ReferenceConfig(timm="no_such_network", weights=str(weights)), "timm has no model 'no_such_network'"),
        (ReferenceConfig(timm=NAME, weights=str(tmp_path / "none.pt")), "none.pt"),
    ):
        with pytest.raises(ModelError, match=words) as refused:
            reference_fingerprint(settings)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [{}, {"timm": NAME}, {"timm": NAME, "weights": "w", "clip": ModelConfig(path="p")}])
def test_one_encoder_is_named(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"set one of timm and clip|belong together"):
        ReferenceConfig(**given)  # type: ignore[arg-type]
