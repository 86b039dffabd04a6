"""MobileSAM's layout: the published names and shapes load strictly and give regions."""

import numpy as np
import pytest
import torch

from clipsan.stages.model.checkpoints import ModelError
from clipsan.stages.oracle.mobile_sam import MobileSamConfig, TinyVitEncoder, load_mobile_sam

DIMS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)


def convolution(name, out, inner, side):
    """A convolution without bias and its batch norm."""
    norm = {f"{name}.bn.{key}": (out,) for key in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.c.weight": (out, inner, side, side), **norm, f"{name}.bn.num_batches_tracked": ()}


def affine(name, out, *inner):
    return {f"{name}.weight": (out, *inner), f"{name}.bias": (out,)}


def encoder_shapes():
    """The image encoder of mobile_sam.pt, by the rules of its authors' modules (mobile_sam/modeling/tiny_vit_sam.py)."""
    shapes = convolution("patch_embed.seq.0", 32, 3, 3) | convolution("patch_embed.seq.2", 64, 32, 3)
    for stage, (dim, depth) in enumerate(zip(DIMS, DEPTHS, strict=True)):
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            if stage == 0:
                shapes |= convolution(f"{block}.conv1", 4 * dim, dim, 1) | convolution(f"{block}.conv2", 4 * dim, 1, 3)
                shapes |= convolution(f"{block}.conv3", dim, 4 * dim, 1)
                continue
            shapes[f"{block}.attn.attention_biases"] = (HEADS[stage], WINDOWS[stage] ** 2)
            shapes |= affine(f"{block}.attn.norm", dim) | affine(f"{block}.attn.qkv", 3 * dim, dim)
            shapes |= affine(f"{block}.attn.proj", dim, dim) | affine(f"{block}.mlp.norm", dim)
            shapes |= affine(f"{block}.mlp.fc1", 4 * dim, dim) | affine(f"{block}.mlp.fc2", dim, 4 * dim)
            shapes |= convolution(f"{block}.local_conv", dim, 1, 3)
        if stage < 3:
            down, after = f"layers.{stage}.downsample", DIMS[stage + 1]
            shapes |= convolution(f"{down}.conv1", after, dim, 1) | convolution(f"{down}.conv2", after, 1, 3)
            shapes |= convolution(f"{down}.conv3", after, after, 1)
    shapes |= affine("norm_head", 320) | affine("head", 1000, 320)
    shapes |= {"neck.0.weight": (256, 320, 1, 1), "neck.2.weight": (256, 256, 3, 3)}
    return shapes | affine("neck.1", 256) | affine("neck.3", 256)


def decoder_shapes():
    """SAM's prompt encoder and mask decoder at their published sizes."""
    shapes = {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, 128)}
    tokens = [f"prompt_encoder.point_embeddings.{k}" for k in range(4)]
    tokens += ["prompt_encoder.not_a_point_embed", "prompt_encoder.no_mask_embed", "mask_decoder.iou_token"]
    shapes |= {f"{name}.weight": (1, 256) for name in tokens} | {"mask_decoder.mask_tokens.weight": (4, 256)}
    masks = "prompt_encoder.mask_downscaling"
    shapes |= affine(f"{masks}.0", 4, 1, 2, 2) | affine(f"{masks}.1", 4) | affine(f"{masks}.3", 16, 4, 2, 2)
    shapes |= affine(f"{masks}.4", 16) | affine(f"{masks}.6", 256, 16, 1, 1)
    body = "mask_decoder.transformer"
    attentions = {f"{body}.final_attn_token_to_image": 128}
    for layer in (f"{body}.layers.{k}" for k in range(2)):
        attentions |= {f"{layer}.self_attn": 256}
        attentions |= {f"{layer}.cross_attn_token_to_image": 128, f"{layer}.cross_attn_image_to_token": 128}
        shapes |= affine(f"{layer}.mlp.lin1", 2048, 256) | affine(f"{layer}.mlp.lin2", 256, 2048)
        for k in range(1, 5):
            shapes |= affine(f"{layer}.norm{k}", 256)
    for name, inner in attentions.items():
        for part in ("q_proj", "k_proj", "v_proj"):
            shapes |= affine(f"{name}.{part}", inner, 256)
        shapes |= affine(f"{name}.out_proj", 256, inner)
    shapes |= affine(f"{body}.norm_final_attn", 256)
    up = "mask_decoder.output_upscaling"
    shapes |= {f"{up}.0.weight": (256, 64, 2, 2), f"{up}.0.bias": (64,)} | affine(f"{up}.1", 64)
    shapes |= {f"{up}.3.weight": (64, 32, 2, 2), f"{up}.3.bias": (32,)}
    heads = {f"mask_decoder.output_hypernetworks_mlps.{k}": 32 for k in range(4)} | {
        "mask_decoder.iou_prediction_head": 4
    }
    for name, out in heads.items():
        shapes |= affine(f"{name}.layers.0", 256, 256) | affine(f"{name}.layers.1", 256, 256)
        shapes |= affine(f"{name}.layers.2", out, 256)
    return shapes


@pytest.fixture(scope="module")
def weights():
    shapes = {f"image_encoder.{name}": shape for name, shape in encoder_shapes().items()} | decoder_shapes()
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(0)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            made[name] = torch.ones(shape)
        else:
            fan = max(int(np.prod(shape[1:])), 1)
            made[name] = torch.randn(shape, generator=generator) * fan**-0.5
    return made


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    file = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    torch.save(weights, file)
    return file


def test_the_published_layout_has_the_published_size(weights):
    assert len(weights) == 439
    assert sum(tensor.numel() for tensor in weights.values()) == 10_140_231


def test_every_tensor_of_the_layout_arrives(weights, path):
    loaded = load_mobile_sam(path).state_dict()
    dropped = {name for name in weights if name not in loaded}
    assert dropped == {f"image_encoder.{name}.{part}" for name in ("norm_head", "head") for part in ("weight", "bias")}
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.items())


def test_an_untrained_one_gives_valid_regions(path):
    config = MobileSamConfig(
        path=str(path), points_per_side=2, points_per_batch=2, pred_iou_thresh=0, stability_score_thresh=0
    )
    image = np.random.default_rng(0).integers(256, size=(24, 36, 3), dtype=np.uint8)
    regions = config.build("cpu")(image)
    assert all(region.mask.shape == (24, 36) and 0 <= region.quality <= 1 for region in regions)
    assert regions


def test_the_last_stage_keeps_its_resolution():
    encoder = TinyVitEncoder().eval()
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 224, 224)).shape == (1, 256, 14, 14)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("image_encoder.layers.3.blocks.1.attn.attention_biases", None, "missing: .*attention_biases.*mobile_sam.pt as"),
        ("image_encoder.neck.0.weight", torch.zeros(256, 448, 1, 1), r"\[256, 448, 1, 1\], the model has \[256, 320, 1, 1\]"),
        ("image_encoder.layers.4.blocks.0.conv1.c.weight", torch.zeros(1), r"unexpected: image_encoder.layers.4"),
        ("image_encoder.pos_embed", torch.zeros(1), "use kind: sam"),
    ],
)  # fmt: skip
def test_other_tensors_are_named_with_the_remedy(weights, tmp_path, name, tensor, message):
    other = {key: value for key, value in weights.items() if key != name} | ({} if tensor is None else {name: tensor})
    torch.save(other, tmp_path / "wrong.pt")
    with pytest.raises(ModelError, match=message):
        load_mobile_sam(tmp_path / "wrong.pt")
