"""A shortened text has the vector and the gradients of the whole one."""

import open_clip
import pytest
import torch

from clipsan.stages.model.checkpoints import build_model
from clipsan.stages.model.text import encode_text, ends, shorten

VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
CAPTIONS = ["a boat", "", "two ripe pears on a table"]


def model_of(**text: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model({"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT | text}).double()


@pytest.fixture
def tokens() -> torch.Tensor:
    return open_clip.SimpleTokenizer(context_length=12)(CAPTIONS)


def test_the_end_is_that_of_the_caption(tokens: torch.Tensor) -> None:
    model = model_of()
    # a start, the words, an end
    assert ends(model, tokens).tolist() == [3, 1, 7]
    assert shorten(model, tokens).shape == (3, 8)
    assert torch.equal(shorten(model, tokens), tokens[:, :8])
    assert shorten(model, tokens[:0]).shape == (0, 12)


@pytest.mark.parametrize(
    "text",
    [{}, {"proj_bias": True}, {"proj_type": "none"}, {"pool_type": "eos", "eos_id": 49407}],
    ids=["published", "a projection with a bias", "no projection", "an end that is named"],
)
def test_shortened_texts_have_the_vectors_of_whole_ones(text: dict, tokens: torch.Tensor) -> None:
    model = model_of(**text)
    short = shorten(model, tokens)
    assert short.shape[1] == 8
    torch.testing.assert_close(encode_text(model, short), model.encode_text(tokens), rtol=1e-12, atol=1e-12)
    assert torch.equal(encode_text(model, tokens), model.encode_text(tokens))


def test_gradients_are_those_of_whole_texts(tokens: torch.Tensor) -> None:
    one, other = model_of(), model_of()
    encode_text(one, shorten(one, tokens)).square().sum().backward()
    other.encode_text(tokens).square().sum().backward()
    found = {name: value.grad for name, value in one.named_parameters() if value.grad is not None}
    assert "positional_embedding" in found
    for name, value in other.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(found[name], value.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "custom"),
    [({"pool_type": "last"}, False), ({"no_causal_mask": True}, True), ({"pool_type": "last"}, True)],
    ids=["the last token", "no mask", "SigLIP"],
)
def test_a_tower_that_reads_to_the_end_gets_whole_texts(text: dict, custom: bool, tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    cfg = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT | text, "custom_text": custom}
    model = build_model(cfg).double()
    assert ends(model, tokens).tolist() == [11, 11, 11]
    assert torch.equal(shorten(model, tokens), tokens)
    assert torch.equal(encode_text(model, tokens), model.encode_text(tokens))
