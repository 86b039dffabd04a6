"""RVPT's loss and layers by hand, its number of parameters, and prompts as an adapter."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch

from clipsan.stages.model.checkpoints import ModelError, build_model
from clipsan.stages.model.clip import Clip
from clipsan.stages.model.prompts import attach
from clipsan.stages.repair.rvpt import Rvpt
from clipsan.stages.training.objective import Setting
from tests.conftest import TINY
from tests.unit.stages.repair.helpers import (
    CLASSES,
    LABELS,
    ROWS,
    clean_batch,
    cross_entropy,
    disturb,
    encode_texts,
    tiny_clip,
    unit,
)
from tests.unit.stages.repair.test_losses import RESNET

SETTING = Setting(classes=CLASSES, seed=4)
TIMM = {
    **TINY,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    },
}


def test_at_the_papers_setting_there_are_345600_parameters() -> None:
    with torch.device("meta"):
        model = build_model(open_clip.get_model_config("ViT-B-32"))
    settings = Rvpt()
    prompts = attach(model, settings.first_block, settings.tokens, seed=0)
    assert prompts.tokens.shape == (9, 50, 768)
    assert sum(p.numel() for p in prompts.parameters()) == 345_600


def by_hand(clip: Clip, images: torch.Tensor, tokens: np.ndarray, first: int) -> tuple[list[torch.Tensor], np.ndarray]:
    """Return the class token behind each block and the unit image vectors, prompts placed by a plain loop."""
    visual = clip.model.visual
    with torch.no_grad():
        x = visual._embeds(clip.normalise(images))
        plain = x.shape[1]
        class_tokens = []
        for number, block in enumerate(visual.transformer.resblocks):
            if number >= first and len(tokens):
                added = torch.from_numpy(tokens[number - first]).expand(len(x), -1, -1)
                # the class token, the prompts, then the patches: attention does not mind the order
                x = block(torch.cat([x[:, :1], added, x[:, 1:]], 1))
                x = torch.cat([x[:, :1], x[:, 1 + added.shape[1] :]], 1)
            else:
                x = block(x)
            assert x.shape[1] == plain
            class_tokens.append(x[:, 0].double())
        return class_tokens, unit(visual.ln_post(x)[:, 0] @ visual.proj)


@pytest.mark.parametrize(("first", "scale"), [(0, None), (1, None), (3, 100.0)])
def test_the_loss_is_cross_entropy_and_repulsion_behind_every_prompted_block(first, scale) -> None:
    clip, plain = tiny_clip(), tiny_clip()
    for each in (clip, plain):
        disturb(each.model.visual.transformer, 4)  # weights at the start are small and so would be the prompts' effect
    batch = clean_batch(clip)
    objective = Rvpt(first_block=first, tokens=10, alpha=1.7, logit_scale=scale).build(clip, SETTING).train()
    with torch.no_grad():
        objective.prompts.tokens.normal_(generator=torch.Generator().manual_seed(0))
    now, image = by_hand(plain, batch.images, objective.prompts.tokens.detach().numpy(), first)
    old, _ = by_hand(plain, batch.images, np.zeros((0, 0, 0)), first)
    known = [i for i in range(ROWS) if LABELS[i] >= 0]
    cosines = [
        float(a[i] @ b[i] / (a[i].norm() * b[i].norm()))
        for i in known
        for a, b in zip(now[first:], old[first:], strict=True)
    ]
    assert len(cosines) == len(known) * (4 - first)  # layers D + 1 to L of L = 4
    logits = (scale or 1 / 0.07) * image @ encode_texts(plain, plain.model, [f"a photo of a {c}." for c in CLASSES]).T
    expected = cross_entropy(logits[known], np.array(LABELS)[known]).mean() + 1.7 * np.mean(cosines)
    assert np.mean(cosines) < 0.95
    for _ in range(2):  # computed, then from the cache
        assert objective(batch).item() == pytest.approx(expected, abs=2e-5)


def test_blocks_before_the_first_prompt_are_untouched_and_unprompted_features_too() -> None:
    clip, plain = tiny_clip(), tiny_clip()
    objective = Rvpt(first_block=2, tokens=3).build(clip, SETTING)
    images = clean_batch(clip).images
    layers = clip.layers()
    found, before = clip.encode_images(images, layers), plain.encode_images(images, layers)
    assert [bool((found[1][name] == before[1][name]).all()) for name in layers] == [True, True, False, False]
    with objective.prompts.watched(active=False):
        assert (clip.encode_images(images)[0] == before[0]).all()


def test_only_prompts_are_trained_and_the_loss_falls() -> None:
    clip = tiny_clip()
    batch = clean_batch(clip)
    objective = Rvpt(first_block=1, tokens=5).build(clip, SETTING).train()
    assert list(objective.trainable()) == ["model.visual.prompts.tokens"]
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    optimizer = objective.optimizer()
    losses = []
    for _ in range(20):
        losses.append(objective(batch))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05
    changed = [k for k, v in clip.model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["visual.prompts.tokens"]


def test_a_timm_vit_takes_prompts_too() -> None:
    clip = tiny_clip(config=TIMM)
    images = clean_batch(clip).images
    before, shapes = clip.encode_images(images, clip.layers())
    objective = Rvpt(first_block=3, tokens=5).build(clip, SETTING).train()
    assert objective.prompts.tokens.shape == (9, 5, 192)
    objective(clean_batch(clip)).backward()
    assert objective.prompts.tokens.grad.abs().sum(dim=(1, 2)).min() > 0
    after, layers = clip.encode_images(images, clip.layers())
    assert not np.allclose(before, after)
    assert {k: v.shape for k, v in layers.items()} == {k: v.shape for k, v in shapes.items()}


def test_a_network_without_class_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="need a ViT with a class token"):
        Rvpt().build(tiny_clip(config=RESNET), SETTING)
    with pytest.raises(ModelError, match="blocks 0 to 3"):
        Rvpt(first_block=4).build(tiny_clip(), SETTING)


def test_an_adapter_turns_the_original_checkpoint_into_the_repaired_model(tmp_path) -> None:
    clip = tiny_clip()
    images = clean_batch(clip).images
    objective = Rvpt(first_block=1, tokens=5).build(clip, SETTING)
    with torch.no_grad():
        objective.prompts.tokens.normal_(generator=torch.Generator().manual_seed(0))
    objective.export(tmp_path / "adapter")
    objective.export(tmp_path / "adapter")  # over an older one
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    assert size < 3 * 5 * 64 * 4 + 1000
    fresh = tiny_clip()
    suspect = fresh.fingerprint
    fresh.take_adapter(tmp_path / "adapter")
    assert (fresh.encode_images(images)[0] == clip.encode_images(images)[0]).all()
    assert fresh.fingerprint != suspect


def test_an_adapter_of_another_checkpoint_or_shape_is_refused(tmp_path) -> None:
    Rvpt(first_block=1, tokens=5).build(tiny_clip(), SETTING).export(tmp_path / "adapter")
    with pytest.raises(ModelError, match="was trained on the checkpoint"):
        tiny_clip(seed=8).take_adapter(tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for change, message in (({"tokens": 6}, "are not the"), ({"schema": 2}, "schema 2"), ({"width": None}, "readable")):
        other = tmp_path / next(iter(change))
        shutil.copytree(tmp_path / "adapter", other)
        (other / "adapter_config.json").write_text(json.dumps({**stored, **change}))
        with pytest.raises(ModelError, match=message):
            tiny_clip().take_adapter(other)


def test_a_resumed_objective_goes_on_with_its_prompts() -> None:
    first = Rvpt(first_block=1, tokens=5).build(tiny_clip(), SETTING)
    with torch.no_grad():
        first.prompts.tokens += 1
    state = first.state_dict()
    second = Rvpt(first_block=1, tokens=5).build(tiny_clip(), SETTING)
    second.load_state_dict(state)
    assert torch.equal(first.prompts.tokens, second.prompts.tokens)
