"""transformers' SiglipModel: read as open_clip's, with the same vectors, and written as one that open_clip loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from clipsan.stages.model import siglip
from clipsan.stages.model.checkpoints import ModelConfig, ModelError, resolve_model
from clipsan.stages.model.clip import load_clip, save_clip
from clipsan.stages.model.siglip import from_siglip, siglip_cfg

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
THEIRS: dict[str, Any] = {
    "model_type": "siglip",
    "vision_config": {**SIZES, "image_size": 32, "patch_size": 8},
    "text_config": {**SIZES, "vocab_size": 49408, "max_position_embeddings": 12, "projection_size": 32},
}
TINY = "vit_tiny_patch8_siglip_32"
WORDS = ["a photo of a boat", "two pears"]


@pytest.fixture(autouse=True)
def tiny_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give timm a SigLIP tower of a few thousand parameters, beside its own of 86 million and more."""

    def build(pretrained: bool = False, **settings: Any) -> torch.nn.Module:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
        told = {name: settings[name] for name in ("num_classes", "global_pool")}
        return timm.models.VisionTransformer(**sizes, **told, class_token=False)

    monkeypatch.setitem(timm.models._registry._model_entrypoints, TINY, build)
    monkeypatch.setitem(siglip.TOWERS, (32, 2, 2, 64), "tiny")


@pytest.fixture
def clips_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read words with CLIP's own tokenizer, which needs no package and no file."""
    monkeypatch.setattr(
        "clipsan.stages.model.clip.HFTokenizer",
        lambda *_, context_length, **__: open_clip.SimpleTokenizer(context_length=context_length),
    )


def theirs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of open_clip's model under the names that transformers has, written down by hand."""
    found: dict[str, torch.Tensor] = {}
    outer = {
        "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    }
    inner = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.proj": "self_attn.out_proj",
        "attn.out_proj": "self_attn.out_proj",
    }
    homes = {
        "text.ln_final": "text_model.final_layer_norm",
        "text.text_projection": "text_model.head",
        "visual.trunk.patch_embed.proj": "vision_model.embeddings.patch_embedding",
        "visual.trunk.norm": "vision_model.post_layernorm",
        "visual.trunk.attn_pool.proj": "vision_model.head.attention.out_proj",
        "visual.trunk.attn_pool.norm": "vision_model.head.layernorm",
        "visual.trunk.attn_pool.mlp.fc1": "vision_model.head.mlp.fc1",
        "visual.trunk.attn_pool.mlp.fc2": "vision_model.head.mlp.fc2",
    }
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for kind in ("weight", "bias"):
        query, others = (state.pop(f"visual.trunk.attn_pool.{part}.{kind}") for part in ("q", "kv"))
        found[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat([query, others])
    for name, tensor in state.items():
        place, _, kind = name.rpartition(".")
        if name.startswith("logit_"):
            found[name] = tensor.reshape(1)
        elif name == "visual.trunk.pos_embed":
            found["vision_model.embeddings.position_embedding.weight"] = tensor[0]
        elif name in outer:
            found[outer[name]] = tensor
        elif place in homes:
            found[f"{homes[place]}.{kind}"] = tensor
        else:
            tower = "text_model" if name.startswith("text.") else "vision_model"
            number, rest = name.split("blocks.")[1].split(".", 1)
            home = f"{tower}.encoder.layers.{number}"
            if "qkv" in rest or "in_proj" in rest:
                kind = "bias" if rest.endswith("bias") else "weight"
                for part, block in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{home}.self_attn.{part}_proj.{kind}"] = block.contiguous()
            else:
                place, kind = rest.rsplit(".", 1)
                found[f"{home}.{inner.get(place, place)}.{kind}"] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def their_folder(home: Path, **changes: Any) -> tuple[Path, torch.nn.Module]:
    """Write a SigLIP of transformers; return it and the same model of open_clip."""
    torch.manual_seed(1)
    own = open_clip.CustomTextCLIP(**{k: v for k, v in siglip_cfg(THEIRS).items() if k != "custom_text"}).eval()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    home.mkdir()
    (home / "config.json").write_text(json.dumps(THEIRS | changes))
    save_file(theirs(own), home / "model.safetensors")
    return home, own


@pytest.mark.usefixtures("clips_words")
def test_a_folder_of_transformers_is_the_same_model(tmp_path: Path) -> None:
    folder, own = their_folder(tmp_path / "hf")
    found = load_clip(ModelConfig(path=str(folder)))
    assert (found.preprocess_cfg["mean"], found.preprocess_cfg["std"]) == ([0.5] * 3, [0.5] * 3)
    assert (found.preprocess_cfg["resize_mode"], found.preprocess_cfg["interpolation"]) == ("squash", "bicubic")
    assert from_siglip(theirs(own)).keys() == own.state_dict().keys()
    assert all(torch.equal(found.model.state_dict()[name], tensor) for name, tensor in own.state_dict().items())
    assert found.layers() == ["trunk.blocks.0", "trunk.blocks.1"]


@pytest.mark.usefixtures("clips_words")
def test_what_is_saved_is_loaded_here_and_by_open_clip(tmp_path: Path) -> None:
    folder, _ = their_folder(tmp_path / "hf")
    found = load_clip(ModelConfig(path=str(folder)))
    save_clip(found.model, found.model_cfg, found.preprocess_cfg, tmp_path / "saved")
    assert load_clip(ModelConfig(path=str(tmp_path / "saved"))).fingerprint == found.fingerprint
    again = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
    with torch.inference_mode():
        expected = again.eval().encode_image(found.normalise(pixels), normalize=True).numpy()
    np.testing.assert_allclose(found.encode_images(pixels)[0], expected, atol=1e-6)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_the_preprocessing_that_the_folder_names_is_taken(tmp_path: Path, file: str) -> None:
    folder, _ = their_folder(tmp_path / "hf")
    stored: dict[str, Any] = {"image_mean": [0.1] * 3, "resample": 2, "size": {"height": 32, "width": 32}}
    nested = {"image_processor": stored, "processor_class": "SiglipProcessor"}
    (folder / file).write_text(json.dumps(stored if file.startswith("pre") else nested))
    told = resolve_model(ModelConfig(path=str(folder))).preprocess_cfg
    assert told == {"mean": [0.1] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip2"}, "NaFlex"),
        ({"vision_config": THEIRS["vision_config"] | {"patch_size": 4}}, "patches of 4 at 32 px: timm has no SigLIP"),
        (
            {"vision_config": THEIRS["vision_config"] | {"hidden_act": "quick_gelu"}},
            "vision_config.hidden_act 'quick_gelu'",
        ),
        ({"vision_config": THEIRS["vision_config"] | {"vision_use_head": False}}, "pooling head"),
        ({"text_config": THEIRS["text_config"] | {"layer_norm_eps": 1e-5}}, "text_config.layer_norm_eps"),
        ({"text_config": THEIRS["text_config"] | {"projection_size": 16}}, "projection_size 16"),
        ({"text_config": THEIRS["text_config"] | {"hidden_size": 0}}, "sizes that make no model"),
        ({"text_config": "none"}, "no mapping"),
    ],
)
def test_what_is_not_converted_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder, _ = their_folder(tmp_path / "hf", **changes)
    with pytest.raises(ModelError, match=message):
        resolve_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("hidden_size", [1152, 768, 100, 7])
def test_the_hidden_layer_of_a_text_tower_has_the_width_that_is_named(hidden_size: int) -> None:
    for hidden in (4304, 3072, 333, 4303):
        text = THEIRS["text_config"] | {"hidden_size": hidden_size, "intermediate_size": hidden}
        assert int(hidden_size * siglip_cfg(THEIRS | {"text_config": text})["text_cfg"]["mlp_ratio"]) == hidden


def test_published_sizes_are_those_of_open_clips_own_configurations() -> None:
    for name, sizes, image, patch in (
        ("ViT-B-16-SigLIP", (768, 12, 12, 3072), 224, 16),
        ("ViT-B-32-SigLIP2-256", (768, 12, 12, 3072), 256, 32),
        ("ViT-L-16-SigLIP-384", (1024, 24, 16, 4096), 384, 16),
        ("ViT-SO400M-14-SigLIP-384", (1152, 27, 16, 4304), 384, 14),
    ):
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        tower = dict(zip(keys, sizes, strict=True))
        own = open_clip.get_model_config(name)
        text = {**tower, "vocab_size": own["text_cfg"]["vocab_size"]}
        ours = siglip_cfg(
            {
                "model_type": "siglip",
                "vision_config": {**tower, "image_size": image, "patch_size": patch},
                "text_config": text,
            }
        )
        assert ours["vision_cfg"]["timm_model_name"] == own["vision_cfg"]["timm_model_name"]
        assert ours["embed_dim"] == own["embed_dim"]
        for key in (
            "context_length",
            "width",
            "heads",
            "layers",
            "pool_type",
            "no_causal_mask",
            "proj_bias",
            "norm_kwargs",
        ):
            assert ours["text_cfg"][key] == own["text_cfg"][key], (name, key)


@pytest.mark.parametrize(("act", "tolerance"), [("gelu", 2e-6), ("gelu_pytorch_tanh", 2e-3)])
def test_transformers_itself_gives_the_same_vectors(tmp_path: Path, act: str, tolerance: float) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
    sections = {name: THEIRS[name] | {"hidden_act": act} for name in ("vision_config", "text_config")}
    torch.manual_seed(2)
    own = transformers.SiglipModel(transformers.SiglipConfig(**sections)).eval()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    own.save_pretrained(tmp_path / "hf")
    words = tokenizer_of_words(transformers)
    words.save_pretrained(tmp_path / "hf")
    found = load_clip(ModelConfig(path=str(tmp_path / "hf")))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
    ids = words(WORDS, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    assert torch.equal(found.tokenize(WORDS), ids)
    with torch.inference_mode():
        told = own(input_ids=ids, pixel_values=found.normalise(pixels))
    np.testing.assert_allclose(found.encode_images(pixels)[0], told.image_embeds.numpy(), atol=tolerance)
    np.testing.assert_allclose(found.encode_text(WORDS), told.text_embeds.numpy(), atol=2e-6)
    cosines = torch.from_numpy(found.encode_images(pixels)[0] @ found.encode_text(WORDS).T)
    logits = cosines * found.model.logit_scale.exp() + found.model.logit_bias
    np.testing.assert_allclose(logits.detach().numpy(), told.logits_per_image.numpy(), atol=20 * tolerance)
    save_clip(found.model, found.model_cfg, found.preprocess_cfg, tmp_path / "saved", found.tokenizer)
    again = load_clip(ModelConfig(path=str(tmp_path / "saved")))
    assert again.fingerprint == found.fingerprint
    assert torch.equal(again.tokenize(WORDS), ids)


def tokenizer_of_words(transformers: Any) -> Any:
    """Return a tokenizer of transformers with a dozen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<pad>", *" ".join(WORDS).split()]
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", pad_token="<pad>")
