"""Oracles that name what they see: label maps, ground truth, DeepLab in two formats, and the trusted CLIP."""

import builtins
import importlib
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pydantic
import pytest
import torch
import torchvision
import yaml

from clipsan.stages.model.checkpoints import ModelError
from clipsan.stages.oracle import DeepLabConfig, LiteRtConfig, OracleConfig, SuperpixelsConfig
from clipsan.stages.oracle.label_maps import VOC_NAMES, named, regions_of
from clipsan.stages.oracle.regions import Region
from clipsan.stages.proof.labeller import Labeller
from clipsan.stages.scenes.scene import SceneConfig, render
from tests.benchmarks.ground_truth import GroundTruth, UnknownImageError

ASSETS = Path(os.environ.get("CLIPSAN_ASSETS", Path(__file__).resolve().parents[5] / "shared" / "assets"))
TFLITE = ASSETS / "deeplabv3_mnv2_pascal_quant.tflite"
CONF = Path(__file__).resolve().parents[4] / "conf" / "oracle"


def test_connected_parts_of_a_label_are_regions_with_its_mean_score():
    labels = np.array([[1, 0, 2, 2], [0, 1, 0, 2], [3, 0, 0, 1]])
    scores = np.array([[0.5, 0, 0.9, 0.6], [0, 0.7, 0, 0.6], [1, 0, 0, 0.2]])
    found = regions_of(labels, {1: "cat", 2: "dog"}, scores=scores)
    assert [(r.label, round(r.quality, 6), int(r.mask.sum())) for r in found] == [
        ("dog", 0.7, 3),
        ("cat", 0.6, 2),  # the two touch at a corner
        ("cat", 0.2, 1),
    ]
    whole = regions_of(labels, {1: "cat", 3: "cow"}, whole=True)
    assert [(r.label, r.quality, int(r.mask.sum())) for r in whole] == [("cat", 1.0, 3), ("cow", 1.0, 1)]


def test_background_has_no_name_and_makes_no_region():
    assert len(VOC_NAMES) == 21
    assert 0 not in named(VOC_NAMES)
    assert named(VOC_NAMES)[20] == "tv"
    assert regions_of(np.zeros((4, 4), dtype=int), named(VOC_NAMES)) == []


def test_ground_truth_knows_its_images_by_their_pixels():
    scenes = [render(index, SceneConfig(count=5)) for index in range(5)]
    oracle = GroundTruth.of_maps(
        (scene.rgb, scene.masks, {k + 1: thing.concept for k, thing in enumerate(scene.things)}) for scene in scenes
    )
    for scene in scenes:
        regions = {region.label: region.mask for region in oracle(scene.rgb.copy())}
        np.testing.assert_array_equal(regions[scene.things[0].concept], scene.masks == 1)
    changed = scenes[0].rgb.copy()
    changed[0, 0, 0] ^= 1
    with pytest.raises(UnknownImageError, match="no ground truth"):
        oracle(changed)
    with pytest.raises(ValueError, match="does not fit"):
        GroundTruth.of_maps([(scenes[0].rgb, scenes[0].masks[:8], {})])


@pytest.fixture(scope="module")
def deeplab_weights(tmp_path_factory):
    """A MobileNet DeepLab of three classes with drawn weights, saved as torchvision saves its own, with the auxiliary head."""
    torch.manual_seed(0)
    model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    )
    path = tmp_path_factory.mktemp("deeplab") / "small.pth"
    torch.save(model.state_dict(), path)
    return path, model.eval()


def deeplab(path, **changed):
    settings = {"path": str(path), "backbone": "mobilenet_v3_large", "names": ("", "cat", "dog"), "shorter_px": 64}
    return DeepLabConfig(**{**settings, **changed}).build("cpu")


def test_deeplab_gives_the_arg_max_of_its_model(deeplab_weights):
    path, model = deeplab_weights
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        tensor = normalise(torchvision.transforms.functional.to_tensor(image))[None]
        probability = model(tensor)["out"].softmax(1)[0].numpy()
    expected = probability.argmax(0)
    regions = deeplab(path)(image)
    for number, name in ((1, "cat"), (2, "dog")):
        masks = [region.mask for region in regions if region.label == name]
        union = np.any(masks, axis=0) if masks else np.zeros((64, 96), dtype=bool)
        assert (union == (expected == number)).mean() > 0.999
    for region in regions:
        own = probability[("", "cat", "dog").index(region.label)][region.mask].mean()
        assert region.quality == pytest.approx(own, abs=1e-4)
    assert any(region.label for region in regions)


def test_deeplab_names_the_file_and_the_remedy(deeplab_weights, tmp_path):
    path, _ = deeplab_weights
    with pytest.raises(ModelError, match=r"no such file: .*none\.pth"):
        deeplab(tmp_path / "none.pth")
    with pytest.raises(ModelError, match=r"small\.pth tells 3 classes apart, but names has 2; set names"):
        deeplab(path, names=("", "cat"))
    with pytest.raises(ModelError, match=r"small\.pth.*set backbone"):
        deeplab(path, backbone="resnet50")
    code = tmp_path / "code.pth"
    torch.save({"weights": Path.cwd}, code)
    with pytest.raises(ModelError, match=r"code\.pth is not plain weights"):
        deeplab(code)
    other = tmp_path / "other.pth"
    torch.save({"x": torch.zeros(1)}, other)
    with pytest.raises(ModelError, match="weights of a torchvision DeepLab"):
        deeplab(other)


def test_without_the_extra_litert_says_what_to_install(monkeypatch):
    def missing(name, *rest):
        if name.startswith("ai_edge_litert"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return builtins.__import__(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModelError, match=r"pip install 'clipsan\[litert\]'"):
        LiteRtConfig(path="x.tflite").build()


def test_litert_refuses_what_is_no_model(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="the litert extra is not installed")
    with pytest.raises(ModelError, match="no such file"):
        LiteRtConfig(path=str(tmp_path / "none.tflite")).build()
    (tmp_path / "text.tflite").write_text("no model")
    with pytest.raises(ModelError, match=r"text\.tflite is no TFLite file"):
        LiteRtConfig(path=str(tmp_path / "text.tflite")).build()


def test_litert_finds_the_person_of_a_photo():
    """The largest person of the photo, by its panoptic mask."""
    pytest.importorskip("ai_edge_litert", reason="the litert extra is not installed")
    if not TFLITE.is_file():
        pytest.skip(f"no {TFLITE}")
    from tests.benchmarks.oracle_quality import photos

    oracle = LiteRtConfig(path=str(TFLITE)).build()
    best = 0.0
    for photo in photos(ASSETS / "coco-val128.tar", limit=12):
        people = [region.mask for region in oracle(photo.rgb) if region.label == "person"]
        truth = np.isin(photo.labels, [value for value, name in photo.names.items() if name == "person"])
        if people and truth.mean() > 0.1:
            union = np.any(people, axis=0)
            best = max(best, (union & truth).sum() / (union | truth).sum())
    assert best > 0.7


class Channels:
    """Stands for a trusted CLIP: an image's vector is its mean colour, a text's the colour that it names."""

    def __init__(self):
        self.batches = []

    def preprocess(self, rgb):
        mean = torch.from_numpy(rgb.reshape(-1, 3).mean(0))
        return mean.round().to(torch.uint8)[:, None, None].expand(3, 4, 4)

    def encode_images(self, images):
        self.batches.append(len(images))
        vectors = images[:, :, 0, 0].float() + 1
        return torch.nn.functional.normalize(vectors, dim=1).numpy(), {}

    def encode_text(self, captions):
        return np.stack([[float(c in text) for c in ("red", "green", "blue")] for text in captions])


def region(top, left, height, width, shape=(32, 32)):
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return Region(mask, 1.0)


def test_a_region_has_the_label_whose_prompts_its_crop_is_nearest_to():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:16], image[16:, :8] = (250, 10, 10), (10, 10, 250)
    labeller = Labeller(Channels(), ("red", "green", "blue"), ("a {} thing", "something {}"))
    regions = [region(0, 0, 16, 32), region(16, 0, 16, 8)]
    assert labeller.labels(image, regions) == ["red", "blue"]
    assert labeller.labels(image, []) == []
    with pytest.raises(ValueError, match="needs names"):
        Labeller(Channels(), ())


def test_crops_are_batched_at_fixed_places():
    clip = Channels()
    labels = Labeller(clip, ("red", "green")).labels(np.zeros((32, 32, 3), dtype=np.uint8), [region(0, 0, 4, 4)] * 100)
    assert clip.batches == [64, 36]
    assert len(labels) == 100


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_the_group_is_a_valid_oracle_and_opens_with_its_command(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# clipsan scan ... oracle={path.stem}")
    tree = yaml.safe_load(text)
    if "path" in tree:
        assert tree["path"] is None, "the user's to give"
        tree["path"] = "weights"
    settings = pydantic.TypeAdapter(OracleConfig).validate_python(tree)
    assert settings.kind == path.stem


def test_there_is_a_file_for_every_kind_and_the_default_file_states_the_defaults():
    kinds = {path.stem for path in CONF.glob("*.yaml")}
    assert kinds == {"superpixels", "sam", "mobile_sam", "deeplab", "litert"}
    assert yaml.safe_load((CONF / "superpixels.yaml").read_text()) == asdict(SuperpixelsConfig())
