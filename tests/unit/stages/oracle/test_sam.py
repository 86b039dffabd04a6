"""Segment-anything by path: sizes told by the tensors, hostile and wrong files refused, valid regions from any weights."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

from clipsan.stages.model.checkpoints import ModelError
from clipsan.stages.oracle.sam import CROPS_PER_BATCH, CropPredictor, MaskSettings, SamConfig
from clipsan.stages.oracle.sam_layout import (
    DecoderLayout,
    EncoderLayout,
    build_sam,
    decoder_layout,
    encoder_layout,
    load_sam,
)

ENCODER = EncoderLayout(
    grid=8, patch_px=8, width=48, depth=3, heads=3, mlp_width=96, window=3, global_blocks=(1,), channels=64
)
DECODER = DecoderLayout(channels=64, mask_channels=8, depth=1, mlp_width=32, quality_depth=2, quality_width=16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_sam(ENCODER, DECODER).eval()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("sam") / "tiny.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(256, size=(40, 56, 3), dtype=np.uint8)


def loose(path, **fields):
    """Settings under which an untrained model gives masks."""
    return SamConfig(
        path=str(path), points_per_side=3, points_per_batch=4, pred_iou_thresh=0, stability_score_thresh=0, **fields
    )


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "global_blocks"),
    [
        ("vit_b", 768, 12, 12, (2, 5, 8, 11)),
        ("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
        ("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    ],
)
def test_published_models_are_told_by_their_tensors(name, width, depth, heads, global_blocks):
    with torch.device("meta"):
        published = sam_model_registry[name]()
        ours = build_sam(encoder_layout(published.state_dict()), decoder_layout(published.state_dict()))
    assert encoder_layout(published.state_dict()) == EncoderLayout(
        grid=64,
        patch_px=16,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        window=14,
        global_blocks=global_blocks,
        channels=256,
    )
    assert decoder_layout(published.state_dict()) == DecoderLayout()
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (published, ours)]
    assert shapes[0] == shapes[1]
    blocks = [
        [(b.window_size, b.attn.num_heads, b.attn.scale) for b in m.image_encoder.blocks] for m in (published, ours)
    ]
    assert blocks[0] == blocks[1]
    assert ours.image_encoder.img_size == 1024
    assert [block.norm1.eps for block in ours.image_encoder.blocks] == [1e-6] * depth


@pytest.mark.parametrize("window", [0, 3])
def test_sizes_survive_a_build(window):
    layout = EncoderLayout(
        grid=4, patch_px=4, width=16, depth=2, heads=2, mlp_width=24, window=window,
        global_blocks=(0,) if window else (0, 1), channels=16,
    )  # fmt: skip
    decoder = DecoderLayout(channels=16, mask_channels=4, depth=1, mlp_width=8, masks=2, quality_width=8)
    weights = build_sam(layout, decoder).state_dict()
    assert encoder_layout(weights) == layout
    assert decoder_layout(weights) == decoder


def test_weights_arrive_and_the_callers_generator_is_left_alone(model, path, tmp_path):
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for file in (path, tmp_path / "tiny.safetensors"):
        loaded = load_sam(file)
        assert not loaded.training
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.rand(1), expected)


def test_regions_are_those_of_the_package(model, path, image):
    found = loose(path).build("cpu")(image)
    official = SamAutomaticMaskGenerator(
        model, points_per_side=3, points_per_batch=4, pred_iou_thresh=0, stability_score_thresh=0
    ).generate(image)
    expected = [record for record in official if record["segmentation"].any()]
    assert len(found) == len(expected) > 0
    masks = {record["segmentation"].tobytes(): record for record in expected}
    for region in found:
        assert region.mask.shape == (40, 56)
        record = masks[region.mask.tobytes()]
        product = record["predicted_iou"] * record["stability_score"]
        assert region.quality == pytest.approx(min(max(product, 0), 1))
    assert [r.quality for r in found] == sorted((r.quality for r in found), reverse=True)


def test_a_second_look_gives_the_same_and_crops_add_to_it(path, image):
    oracle = loose(path, crop_n_layers=1).build("cpu")
    first, again = oracle(image), oracle(image)
    assert [(r.mask.tobytes(), r.quality) for r in first] == [(r.mask.tobytes(), r.quality) for r in again]
    assert first
    assert all(r.mask.shape == (40, 56) and r.mask.dtype == bool for r in first)


def test_crops_are_encoded_as_one_by_one(model):
    rng = np.random.default_rng(1)
    crops = [rng.integers(256, size=(20 + 3 * k, 31, 3), dtype=np.uint8) for k in range(CROPS_PER_BATCH + 1)]
    batched, single = CropPredictor(model), SamAutomaticMaskGenerator(model, points_per_side=1).predictor
    batched.encode(crops)
    for crop in crops:
        batched.set_image(crop)
        single.set_image(crop)
        assert batched.input_size == single.input_size
        assert batched.original_size == single.original_size
        torch.testing.assert_close(batched.get_image_embedding(), single.get_image_embedding(), rtol=1e-4, atol=1e-4)
    with pytest.raises(IndexError):
        batched.set_image(crops[0])


@pytest.mark.parametrize("layers", [0, 1])
def test_strict_thresholds_give_an_empty_list(path, image, layers):
    strict = SamConfig(
        path=str(path), points_per_side=2, pred_iou_thresh=0.99, stability_score_thresh=1.0, crop_n_layers=layers
    )
    assert strict.build("cpu")(image) == []


@pytest.mark.parametrize("shape", [(40, 56), (40, 56, 4)])
def test_what_is_no_image_is_refused(path, shape):
    with pytest.raises(ValueError, match=r"\[H, W, 3\] uint8"):
        loose(path).build("cpu")(np.zeros(shape, dtype=np.uint8))


class Payload:
    def __reduce__(self):
        return (__import__("os").system, ("true",))


def test_a_pickle_with_code_is_refused(tmp_path):
    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps({"image_encoder.pos_embed": Payload()}))
    with pytest.raises(ModelError, match="not plain weights"):
        load_sam(file)


def changed(model, **tensors):
    weights = dict(model.state_dict())
    for name, value in tensors.items():
        key = name.replace("__", ".")
        if value is None:
            del weights[key]
        else:
            weights[key] = value
    return weights


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"image_encoder__pos_embed": None}, r"pos_embed is missing.*sam_vit_b_01ec64"),
        ({"mask_decoder__iou_token__weight": None}, r"missing: mask_decoder.iou_token.weight.*sam_vit_b_01ec64"),
        ({"extra__token": torch.zeros(1)}, r"unexpected: extra.token"),
        ({"image_encoder__neck__1__weight": torch.zeros(7)}, r"neck.1.weight \[7\], the model has \[64\]"),
        ({"image_encoder__blocks__0__attn__rel_pos_h": torch.zeros(3, 16)}, r"windows \[2, 3\]"),
        ({"image_encoder__layers__0__blocks__0__conv1__c__weight": torch.zeros(1)}, r"use kind: mobile_sam"),
        ({"image_encoder__pos_embed": torch.zeros(64, 48)}, r"has 4 dimensions"),
    ],
)
def test_other_tensors_are_named_with_the_remedy(model, tmp_path, tensors, message):
    torch.save(changed(model, **tensors), tmp_path / "wrong.pth")
    with pytest.raises(ModelError, match=message):
        load_sam(tmp_path / "wrong.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no such file.*nowhere\.pth"):
        SamConfig(path=str(tmp_path / "nowhere.pth")).build("cpu")


@pytest.mark.parametrize(
    "fields",
    [
        {"points_per_side": 0},
        {"points_per_batch": 0},
        {"pred_iou_thresh": 1.0},
        {"stability_score_thresh": 1.1},
        {"crop_n_layers": -1},
        {"crop_n_layers": 4},
    ],
)
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        MaskSettings(path="x", **fields)
