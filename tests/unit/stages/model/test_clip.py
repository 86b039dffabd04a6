"""The model: loading without running code, preprocessing as open_clip, encoding, layers, saving."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from clipsan.stages.model.clip import (
    Clip,
    Inputs,
    ModelConfig,
    ModelError,
    default_layers,
    load_clip,
    resolve_model,
    save_clip,
)

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 6, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": TEXT,
}
RESNET = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": TEXT}
CONVNEXT = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "test_convnext",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": TEXT,
}


def config_file(folder: Path, model_cfg: dict) -> str:
    path = folder / "model.json"
    path.write_text(json.dumps(model_cfg))
    return str(path)


@pytest.fixture
def vit(tmp_path: Path) -> Clip:
    return load_clip(ModelConfig(config=config_file(tmp_path, VIT)), init_seed=3)


def pictures(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


@pytest.mark.parametrize("settings", [{}, {"name": "RN50", "config": "x.json"}])
def test_a_configuration_that_leaves_the_architecture_open_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"name|config"):
        ModelConfig(**settings)


def test_an_unknown_name_and_a_missing_file_are_named() -> None:
    with pytest.raises(ModelError, match="no model 'ViT-Z-99'"):
        resolve_model(ModelConfig(name="ViT-Z-99"))
    with pytest.raises(ModelError, match="no such file"):
        resolve_model(ModelConfig(config="/nowhere/model.json"))
    with pytest.raises(ModelError, match="no such file or folder"):
        resolve_model(ModelConfig(path="/nowhere/weights.pt", name="RN50"))


def test_an_architecture_without_weights_is_no_suspect_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="without weights"):
        load_clip(ModelConfig(config=config_file(tmp_path, VIT)))


def test_the_seed_alone_decides_fresh_weights(tmp_path: Path) -> None:
    model = ModelConfig(config=config_file(tmp_path, VIT))
    torch.manual_seed(1)
    first = load_clip(model, init_seed=5).fingerprint
    torch.manual_seed(2)
    assert load_clip(model, init_seed=5).fingerprint == first
    assert load_clip(model, init_seed=6).fingerprint != first


@pytest.mark.parametrize("shape", [(32, 32), (45, 80), (80, 45), (33, 20), (200, 31)])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_preprocessing_equals_open_clip(tmp_path: Path, shape: tuple[int, int], mode: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    stored = {
        "model_cfg": VIT,
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "resize_mode": mode},
    }
    clip = load_clip(ModelConfig(config=config_file(tmp_path, stored)), init_seed=0)
    settings = PreprocessCfg(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), resize_mode=mode)
    expected = image_transform_v2(settings, is_train=False)(Image.fromarray(rgb))
    ours = clip.normalise(clip.preprocess(rgb)[None])[0]
    assert clip.preprocess(rgb).dtype == torch.uint8
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_encoding_equals_open_clip_and_has_unit_norm(vit: Clip) -> None:
    images, captions = pictures(5), ["a cat", "a dog", "a cat", "", "x " * 50]
    found = vit.encode(images, captions)
    mean = torch.tensor(vit.preprocess_cfg["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(vit.preprocess_cfg["std"]).view(1, 3, 1, 1)
    with torch.no_grad():
        image = vit.model.encode_image((images.float() / 255 - mean) / std, normalize=True)
        text = vit.model.encode_text(open_clip.SimpleTokenizer(context_length=12)(captions), normalize=True)
    np.testing.assert_allclose(found.image, image.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.text, text.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.image, axis=1), 1, atol=1e-5)
    assert found.image.dtype == found.text.dtype == np.float32


@pytest.mark.parametrize("model_cfg", [VIT, RESNET, CONVNEXT])
def test_a_row_does_not_depend_on_its_batch(tmp_path: Path, model_cfg: dict) -> None:
    clip = load_clip(ModelConfig(config=config_file(tmp_path, model_cfg)), init_seed=0)
    images, captions, layers = pictures(7), [f"number {i}" for i in range(7)], clip.layers()
    whole = clip.encode(images, captions, layers)
    alone = clip.encode(images[4:5], captions[4:5], layers)
    np.testing.assert_allclose(whole.image[4], alone.image[0], atol=1e-5)
    np.testing.assert_allclose(whole.text[4], alone.text[0], atol=1e-5)
    for name in layers:
        np.testing.assert_allclose(whole.layers[name][4], alone.layers[name][0], atol=1e-4)


def test_default_layers_are_spread_evenly(vit: Clip, tmp_path: Path) -> None:
    assert default_layers(vit.model) == [f"transformer.resblocks.{i}" for i in (1, 2, 4, 5)]
    resnet = load_clip(ModelConfig(config=config_file(tmp_path, RESNET)), init_seed=0)
    assert resnet.layers() == ["layer1", "layer2", "layer3", "layer4"]
    convnext = load_clip(ModelConfig(config=config_file(tmp_path, CONVNEXT)), init_seed=0)
    assert convnext.layers() == [f"trunk.stages.{i}" for i in range(4)]


def test_layer_features_are_the_mean_over_positions(vit: Clip, tmp_path: Path) -> None:
    resnet = load_clip(ModelConfig(config=config_file(tmp_path, RESNET)), init_seed=0)
    images = pictures(2)
    pixels = resnet.normalise(images)
    tower = resnet.model.visual
    with torch.no_grad():
        expected = tower.layer1(tower.stem(pixels)).mean((2, 3))
    np.testing.assert_allclose(resnet.encode_images(images, ["layer1"])[1]["layer1"], expected.numpy(), atol=1e-5)
    with torch.no_grad():
        tokens = vit.model.visual._embeds(vit.normalise(images))
        expected = vit.model.visual.transformer.resblocks[0](tokens).mean(1)
    found = vit.encode_images(images, ["transformer.resblocks.0"])[1]["transformer.resblocks.0"]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_wide_layers_are_projected_without_changing_lengths_much(tmp_path: Path) -> None:
    clip = load_clip(ModelConfig(config=config_file(tmp_path, RESNET)), init_seed=0)
    widths = clip.layer_widths(clip.layers())
    assert widths == {"layer1": 32, "layer2": 64, "layer3": 128, "layer4": 128}  # layer4 has 256 channels
    basis = clip._projections[256]
    torch.testing.assert_close(basis.T @ basis, torch.eye(128), atol=1e-5, rtol=0)


def test_an_unknown_layer_is_named(vit: Clip) -> None:
    with pytest.raises(ModelError, match="no block 'layer9'"):
        vit.layers(["layer9"])


@pytest.mark.parametrize("model_cfg", [VIT, CONVNEXT])
def test_a_saved_folder_loads_here_and_in_open_clip(tmp_path: Path, model_cfg: dict) -> None:
    clip = load_clip(ModelConfig(config=config_file(tmp_path, model_cfg)), init_seed=1)
    folder = tmp_path / "saved" / "checkpoint"
    for _ in range(2):  # the second one replaces the first
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    again = load_clip(ModelConfig(path=str(folder)))
    assert again.fingerprint == clip.fingerprint
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    images = pictures(3)
    with torch.no_grad():
        expected = theirs.encode_image(clip.normalise(images), normalize=True)
    np.testing.assert_allclose(again.encode_images(images)[0], expected.numpy(), atol=1e-5)
    assert list(theirs.visual.preprocess_cfg["mean"]) == clip.preprocess_cfg["mean"]


def test_the_format_of_the_file_plays_no_part(vit: Clip, tmp_path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in vit.model.state_dict().items()}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}, tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        model = ModelConfig(config=config_file(tmp_path, VIT), path=str(tmp_path / name))
        assert load_clip(model).fingerprint == vit.fingerprint


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": Malicious(mark)}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match=r"refused.*To convert"):
        load_clip(ModelConfig(config=config_file(tmp_path, VIT), path=str(tmp_path / "evil.pt")))
    assert not mark.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert mark.exists()  # the file would have run code


@pytest.mark.parametrize("name", ["damaged.safetensors", "damaged.pt"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(ModelError, match=name):
        load_clip(ModelConfig(config=config_file(tmp_path, VIT), path=str(tmp_path / name)))


def test_code_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    text = {**TEXT, "hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    with pytest.raises(ModelError, match="trust_remote_code"):
        resolve_model(ModelConfig(config=config_file(tmp_path, {**VIT, "text_cfg": text})))


def test_a_tokenizer_that_is_not_here_is_an_error_and_no_download(tmp_path: Path) -> None:
    text = {**TEXT, "hf_tokenizer_name": "google/bert-not-here"}
    path = config_file(tmp_path, {**VIT, "text_cfg": text})
    with pytest.raises(ModelError, match="not on this machine"):
        Inputs(resolve_model(ModelConfig(config=path)))


def test_another_architecture_is_named_key_by_key(vit: Clip, tmp_path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in vit.model.state_dict().items()}
    weights["surplus"] = torch.zeros(1)
    weights["logit_scale"] = torch.zeros(3)
    del weights["visual.proj"]
    save_file(weights, tmp_path / "w.safetensors")
    model = ModelConfig(config=config_file(tmp_path, VIT), path=str(tmp_path / "w.safetensors"))
    with pytest.raises(ModelError, match=r"missing: visual\.proj; unexpected: surplus; shape: logit_scale \[3\]"):
        load_clip(model)
