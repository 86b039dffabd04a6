"""The embed stage: every pair in exactly one table, vectors as the model gives them."""

import io

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from clipsan.stages import embed
from clipsan.stages.detectors.streaming import vectors
from clipsan.stages.embed import FACT_FIELDS, EmbedConfig, Embedder
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import load_clip
from clipsan.stages.model.reference import Reference, ReferenceConfig
from clipsan.stages.samples import RawPair, Reject
from tests.conftest import caption, picture


@pytest.fixture(scope="module")
def clip(tiny_checkpoint):
    return load_clip(ModelConfig(path=str(tiny_checkpoint)))


def pair(i, **changes):
    fields = {"shard": "a.tar", "key": str(i), "image": picture(i), "caption": caption(i)} | changes
    return RawPair(**fields)


def bad(i, kind):
    match kind:
        case "good":
            return pair(i)
        case "text":
            return pair(i, image=b"<html>not found</html>")
        case "cut":
            return pair(i, image=picture(i)[:-40])
        case "empty":
            return pair(i, reject=Reject.CAPTION_EMPTY, caption="")
        case "gone":
            return pair(i, image=None, reject=Reject.IMAGE_MISSING)
    raise AssertionError(kind)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from(["good", "text", "cut", "empty", "gone"]), max_size=20), batch=st.integers(1, 7))
def test_every_pair_is_embedded_or_rejected_and_never_both(clip, kinds, batch):
    pairs = [bad(i, kind) for i, kind in enumerate(kinds)]
    embedded, rejected = Embedder(clip, EmbedConfig(batch_size=batch))(pairs)
    good = [p.uid for p, kind in zip(pairs, kinds, strict=True) if kind == "good"]
    assert embedded.column("uid").to_pylist() == good
    assert rejected.column("uid").to_pylist() == [p.uid for p in pairs if p.uid not in good]
    reasons = {"text": "image_unreadable", "cut": "image_truncated", "empty": "caption_empty", "gone": "image_missing"}
    assert rejected.column("reason").to_pylist() == [reasons[k] for k in kinds if k != "good"]


def test_vectors_are_the_models_and_unit_norm(clip):
    pairs = [pair(i) for i in range(5)]
    table, _ = Embedder(clip, EmbedConfig(batch_size=2))(pairs)
    pixels = torch.stack([clip.preprocess(np.asarray(Image.open(io.BytesIO(p.image)))) for p in pairs])
    with torch.inference_mode():
        image = torch.nn.functional.normalize(clip.model.encode_image(clip.normalise(pixels)), dim=-1)
        text = torch.nn.functional.normalize(clip.model.encode_text(clip.tokenize([p.caption for p in pairs])), dim=-1)
    np.testing.assert_allclose(vectors(table, "image"), image.numpy(), atol=2e-3)
    np.testing.assert_allclose(vectors(table, "text"), text.numpy(), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors(table, "image"), axis=1), 1, atol=2e-3)


def test_captions_of_like_length_share_a_batch_and_each_pair_has_its_own(clip, monkeypatch):
    monkeypatch.setattr(embed, "CPU_BATCH", 2)
    captions = ["one two three four five", "a", "one two three", "a b", "a", "one two three four five six"]
    seen = []
    whole = clip.text_features
    monkeypatch.setattr(clip, "text_features", lambda tokens: (seen.append(tuple(tokens.shape)), whole(tokens))[1])
    table, _ = Embedder(clip, EmbedConfig(batch_size=2))([pair(i, caption=text) for i, text in enumerate(captions)])
    with torch.inference_mode():
        text = torch.nn.functional.normalize(clip.model.encode_text(clip.tokenize(captions)), dim=-1)
    np.testing.assert_allclose(vectors(table, "text"), text.numpy(), atol=2e-3)
    # five distinct ones: "a" and "a b", three words and five, six; a start and an end beside
    assert seen == [(2, 4), (2, 7), (1, 8)]


def test_no_batch_of_captions_is_larger_than_one_of_pictures(clip, monkeypatch):
    seen = []
    whole = clip.text_features
    monkeypatch.setattr(clip, "text_features", lambda tokens: (seen.append(len(tokens)), whole(tokens))[1])
    Embedder(clip, EmbedConfig(batch_size=3))([pair(i, caption=f"number {i}") for i in range(7)])
    assert seen == [3, 3, 1]


def test_layer_columns_follow_the_chosen_blocks(clip):
    table, _ = Embedder(clip, EmbedConfig(layers=["transformer.resblocks.1"]))([pair(0)])
    assert table.column_names == [*(n for n, _ in FACT_FIELDS), "image", "text", "layer.transformer.resblocks.1"]
    assert table.schema.field("layer.transformer.resblocks.1").type.list_size == 64


def test_a_second_encoder_adds_what_it_sees(clip, tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    settings = ReferenceConfig(timm="test_efficientnet", weights=str(tmp_path / "w.safetensors"))
    pairs = [pair(0), bad(1, "text"), pair(2), pair(3)]
    embed = Embedder(clip, EmbedConfig(batch_size=2, reference=settings))
    table, rejected = embed(pairs)
    assert (table.num_rows, rejected.num_rows) == (3, 1)
    reference = Reference(settings, torch.device("cpu"))
    images = [np.asarray(Image.open(io.BytesIO(p.image)).convert("RGB")) for p in pairs if p is not pairs[1]]
    seen = reference.features(torch.stack([reference.inputs.preprocess(rgb) for rgb in images]))
    np.testing.assert_allclose(vectors(table, "reference"), seen.numpy(), atol=2e-3)
    assert embed([])[0].schema == table.schema
    plain, _ = Embedder(clip, EmbedConfig(batch_size=2))(pairs)
    assert plain.equals(table.drop_columns("reference"))


def test_an_empty_unit_has_the_same_columns(clip):
    embed = Embedder(clip, EmbedConfig())
    assert embed([])[0].schema == embed([pair(0)])[0].schema


def test_decoding_in_threads_gives_the_same_tables(clip):
    pairs = [bad(i, "cut" if i % 5 == 0 else "good") for i in range(30)]
    inline = Embedder(clip, EmbedConfig(batch_size=4, decode_threads=0))(pairs)
    threads = Embedder(clip, EmbedConfig(batch_size=4, decode_threads=3))(pairs)
    assert inline[0].equals(threads[0])
    assert inline[1].equals(threads[1])


def test_facts_are_of_the_original_image(clip):
    table, _ = Embedder(clip, EmbedConfig())([pair(3, image=picture(3, side=48), label=2)])
    row = table.to_pylist()[0]
    assert (row["width"], row["height"], row["label"]) == (48, 48, 2)
