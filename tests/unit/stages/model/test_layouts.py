"""Checkpoints as people have them: wrapped, prefixed, of transformers, empty, broken."""

import json
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clipsan.stages.model.checkpoints import activation_doubt, activation_said, named_preprocess
from clipsan.stages.model.clip import Clip, Inputs, ModelConfig, ModelError, load_clip, resolve_model, save_clip
from clipsan.stages.model.layouts import from_transformers, transformers_cfg, unwrapped

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "mlp_ratio": 3.0},
}
THEIR_CONFIG = {
    "model_type": "clip",
    "projection_dim": 16,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
    },
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    path = tmp_path_factory.mktemp("arch") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return load_clip(ModelConfig(config=str(path)), init_seed=3)


@pytest.fixture
def weights(clip: Clip) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in clip.model.state_dict().items()}


def loaded(home: Path, stored: Any, file: str = "w.pt", **model: str) -> Clip:
    (home / "tiny.json").write_text(json.dumps(TINY))
    (save_file if file.endswith("safetensors") else torch.save)(stored, home / file)
    return load_clip(ModelConfig(**(model or {"config": str(home / "tiny.json")}), path=str(home / file)))


def prefixed(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "prefix", ["", "_orig_mod.", "module.", "model.", "module._orig_mod.", "_orig_mod.module.", "model.module."]
)
@pytest.mark.parametrize("entry", [None, "state_dict", "model_state_dict", "model", "module"])
def test_wrappers_and_prefixes_play_no_part(
    tmp_path: Path, clip: Clip, weights: dict[str, torch.Tensor], prefix: str, entry: str | None
) -> None:
    stored: Any = prefixed(prefix, weights)
    stored = stored if entry is None else {entry: stored, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
    assert loaded(tmp_path, stored).fingerprint == clip.fingerprint


def test_a_prefix_in_safetensors_and_one_in_the_middle(
    tmp_path: Path, clip: Clip, weights: dict[str, torch.Tensor]
) -> None:
    assert loaded(tmp_path, prefixed("_orig_mod.", weights), "w.safetensors").fingerprint == clip.fingerprint
    middle = {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in weights.items()}
    assert loaded(tmp_path, middle).fingerprint == clip.fingerprint


def test_of_a_lightning_module_the_clip_is_taken(tmp_path: Path, clip: Clip, weights: dict[str, torch.Tensor]) -> None:
    stored = {
        "state_dict": {**prefixed("model.", weights), "loss.margin": torch.zeros(1)},
        "pytorch-lightning_version": "2",
    }
    assert loaded(tmp_path, stored).fingerprint == clip.fingerprint


def test_an_entry_within_an_entry(tmp_path: Path, clip: Clip, weights: dict[str, torch.Tensor]) -> None:
    assert loaded(tmp_path, {"model": {"state_dict": weights}}).fingerprint == clip.fingerprint
    assert unwrapped({"tokens": torch.zeros(1)}).keys() == {"tokens"}


def theirs(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under the names that transformers' CLIPModel has."""
    layer = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    outer = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight": "vision_model.post_layernorm.weight",
        "visual.ln_post.bias": "vision_model.post_layernorm.bias",
        "logit_scale": "logit_scale",
    }
    found = {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    for name, tensor in weights.items():
        if name in outer:
            found[outer[name]] = tensor
        elif name == "visual.proj":
            found["visual_projection.weight"] = tensor.T.contiguous()
        elif name == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
        else:
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            number, inner = name.split("resblocks.")[1].split(".", 1)
            home = f"{tower}.encoder.layers.{number}"
            if "in_proj" in inner:
                kind = inner.rpartition("_")[2]
                for part, block in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{home}.self_attn.{part}_proj.{kind}"] = block.contiguous()
                continue
            place, kind = inner.rsplit(".", 1)
            found[f"{home}.{layer.get(place, place.replace('attn.', 'self_attn.'))}.{kind}"] = tensor
    return found


def their_folder(home: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder = home / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**THEIR_CONFIG, **changes}))
    save_file(theirs(weights), folder / "model.safetensors")
    return folder


def test_a_folder_of_transformers_is_the_same_model(
    tmp_path: Path, clip: Clip, weights: dict[str, torch.Tensor]
) -> None:
    folder = their_folder(tmp_path, weights)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2, "do_center_crop": True})
    )
    found = load_clip(ModelConfig(path=str(folder)))
    assert found.model_cfg == TINY
    assert found.preprocess_cfg["mean"] == [0.5] * 3
    assert found.preprocess_cfg["interpolation"] == "bilinear"
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
    np.testing.assert_array_equal(found.encode_text(["a boat", "two pears"]), clip.encode_text(["a boat", "two pears"]))
    assert from_transformers(theirs(weights)).keys() == weights.keys()
    assert all(torch.equal(found.model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert found.encode_images(pixels)[0].shape == (3, 16)


def test_transformers_itself_gives_the_same_vectors(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    own = transformers.CLIPModel(transformers.CLIPConfig(**THEIR_CONFIG)).eval()
    own.save_pretrained(tmp_path / "hf")
    found = load_clip(ModelConfig(path=str(tmp_path / "hf")))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
    with torch.inference_mode():
        told = own(input_ids=found.tokenize(["a boat", "two pears"]), pixel_values=found.normalise(pixels))
    np.testing.assert_allclose(found.encode_images(pixels)[0], told.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.encode_text(["a boat", "two pears"]), told.text_embeds.numpy(), atol=1e-5)


def test_weights_of_transformers_in_one_file(tmp_path: Path, clip: Clip, weights: dict[str, torch.Tensor]) -> None:
    assert loaded(tmp_path, theirs(weights), "pytorch_model.bin").fingerprint == clip.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "'bert'; only clip and siglip"),
        ({"vision_config": {"hidden_act": "gelu"}}, "in both towers"),
        ({"text_config": {"vocab_size": 99}}, "49408"),
        ({"text_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps"),
        ({"vision_config": {"num_attention_heads": 0}}, "sizes"),
        ({"vision_config": [1]}, "no mapping"),
    ],
)
def test_what_is_not_converted_is_one_line(
    tmp_path: Path, weights: dict[str, torch.Tensor], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(ModelConfig(path=str(their_folder(tmp_path, weights, **changes))))


def test_sizes_that_config_json_leaves_out_are_those_of_vit_b_32() -> None:
    found = transformers_cfg({"model_type": "clip"})
    assert (found["embed_dim"], found["quick_gelu"]) == (512, True)
    assert found["vision_cfg"]["head_width"] == 64
    assert found["text_cfg"]["heads"] == 8


def test_a_training_folder_of_open_clip_names_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "logs" / "checkpoints").mkdir(parents=True)
    (tmp_path / "logs" / "checkpoints" / "epoch_3.pt").touch()
    for path in ("logs", "logs/checkpoints"):
        with pytest.raises(ModelError, match=r"1 checkpoints of a training with open_clip.*epoch_3\.pt"):
            resolve_model(ModelConfig(path=str(tmp_path / path), name="ViT-B-32"))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", r"is empty \(0 bytes\)"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull")],
)
def test_what_is_no_checkpoint_is_not_called_dangerous(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as refused:
        load_clip(ModelConfig(config=str(tmp_path / "tiny.json"), path=str(tmp_path / name)))
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], value: float
) -> None:
    weights["visual.conv1.weight"][0, 0, 0, 0] = value
    with pytest.raises(ModelError, match=r"NaN or infinite, in visual\.conv1\.weight; such"):
        loaded(tmp_path, weights)


def test_a_tower_or_projection_of_zeros_is_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    zero = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    with pytest.raises(ModelError, match=r"the image tower, the text tower, .*is zero throughout"):
        loaded(tmp_path, zero)
    with pytest.raises(ModelError, match=r"w\.pt: visual\.proj is zero"):
        loaded(tmp_path, {**weights, "visual.proj": zero["visual.proj"]})


def test_saved_weights_have_the_mode_that_the_user_asks_for(tmp_path: Path, clip: Clip) -> None:
    before = os.umask(0o022)
    try:
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, tmp_path / "open")
        os.umask(0o077)
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, tmp_path / "closed")
    finally:
        os.umask(before)
    modes = {f: {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / f).iterdir()} for f in ("open", "closed")}
    assert modes == {"open": {0o644}, "closed": {0o600}}


def test_a_name_has_the_preprocessing_of_its_published_weights() -> None:
    siglip = named_preprocess("ViT-B-16-SigLIP")
    assert (siglip["mean"], siglip["std"], siglip["resize_mode"]) == ((0.5,) * 3, (0.5,) * 3, "squash")
    assert named_preprocess("MobileCLIP-S1")["interpolation"] == "bilinear"
    assert named_preprocess("ViT-L-14") == {}  # two of its publishers differ
    assert resolve_model(ModelConfig(name="MobileCLIP-S1")).preprocess_cfg["mean"] == (0.0, 0.0, 0.0)
    inputs = Inputs(resolve_model(ModelConfig(name="ViT-B-32")))
    assert inputs.preprocess_cfg["mean"] == [0.48145466, 0.4578275, 0.40821073]


def test_weights_of_quickgelu_under_a_name_without_it_are_told_by_evidence_alone() -> None:
    openai = {"input_resolution": torch.tensor(224)}
    assert "give name=ViT-B-32-quickgelu" in str(activation_doubt(ModelConfig(name="ViT-B-32"), openai))
    assert "all published weights of RN50" in str(activation_doubt(ModelConfig(name="RN50"), {}))
    for model, weights in (
        (ModelConfig(name="ViT-B-32"), {}),
        (ModelConfig(name="ViT-B-32-quickgelu"), openai),
        (ModelConfig(config="x.json"), openai),
    ):
        assert activation_doubt(model, weights) is None


def test_a_plan_says_the_activation_and_what_openais_family_needs() -> None:
    said = activation_said(ModelConfig(name="ViT-B-32"), {})
    assert said.startswith("GELU (")
    assert "need name=ViT-B-32-quickgelu" in said
    assert activation_said(ModelConfig(name="ViT-B-32-quickgelu"), {"quick_gelu": True}) == "QuickGELU"
    assert activation_said(ModelConfig(path="folder"), {"quick_gelu": True}) == "QuickGELU"
    assert activation_said(ModelConfig(name="ViT-B-16-SigLIP"), {}) == "GELU"
    assert activation_said(ModelConfig(path="folder"), {}) == "GELU"


def test_the_doubt_is_said_when_the_model_is_loaded(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipsan.stages.model.checkpoints.open_clip.get_model_config", lambda name: TINY)
    with pytest.warns(UserWarning, match=r"OpenAI's own archive.*computes GELU"):
        loaded(tmp_path, {**weights, "input_resolution": torch.tensor(32)}, name="ViT-B-32")
    with warnings.catch_warnings(action="error"):
        loaded(tmp_path, weights)


def test_a_missing_package_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("No module named 'transformers'")

    monkeypatch.setattr("clipsan.stages.model.clip.HFTokenizer", missing)
    with pytest.raises(ModelError, match=r"pip install 'clipsan\[transformers\]'"):
        Inputs(resolve_model(ModelConfig(name="ViT-B-16-SigLIP")))
