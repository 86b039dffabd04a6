"""How far a repair of a model that nothing accuses may go."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.repair.blind import farthest, of_model, said
from clipsan.pipeline.repair.line import Line
from clipsan.pipeline.repair.plan import make_plan, make_verb_plan
from clipsan.pipeline.repair.settings import Blind, RepairConfig
from clipsan.stages.evaluation.exam import Exam, Pictures, answers
from clipsan.stages.evaluation.zero_shot import class_embeddings, predict
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.repair.par import Par
from clipsan.stages.repair.rvpt import Rvpt
from clipsan.stages.repair.unlearn import Unlearn
from clipsan.stages.sources import WebDataset
from clipsan.stages.training.objective import Setting
from tests.conftest import write_shards
from tests.unit.pipeline.repair.scan import write_scan
from tests.unit.stages.repair.helpers import CLASSES, disturb, tiny_clip

TEMPLATES = ("a photo of a {}.",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> WebDataset:
    return WebDataset(path=str(write_shards(tmp_path_factory.mktemp("pairs"), shards=2, pairs=10) / "*.tar"))


def pictures() -> Pictures:
    """Return pictures whose labels are what the untouched tiny model says of them: it is right of all."""
    clip = tiny_clip()
    size = clip.image_size
    pixels = np.random.default_rng(1).integers(0, 256, (60, 3, size, size), dtype=np.uint8)
    labels = predict(clip.encode_images(torch.from_numpy(pixels))[0], class_embeddings(clip, CLASSES, TEMPLATES))
    return Pictures(tuple(map(str, range(60))), pixels, labels, ("",) * 60)


def line(size: float) -> Line:
    clip, moved = tiny_clip(), tiny_clip()
    disturb(moved.model, size)
    start = {name: value.clone() for name, value in clip.model.state_dict().items()}
    return Line(clip, start, dict(moved.model.state_dict()))


@pytest.fixture
def blind(data: WebDataset) -> Blind:
    return Blind(data=data, steps=8, max_loss_points=60)


def test_a_repair_that_costs_nothing_goes_its_whole_way(blind: Blind) -> None:
    share, tried = farthest(line(0.0), pictures(), blind, CLASSES, TEMPLATES)
    assert share == 1
    assert tried == [{"share": 0.0, "accuracy_pct": 100.0}, {"share": 1.0, "accuracy_pct": 100.0}]


def test_the_largest_step_within_the_limit_is_taken(blind: Blind) -> None:
    far, shown = line(0.3), pictures()
    share, tried = farthest(far, shown, blind, CLASSES, TEMPLATES)
    exam = Exam(shown, ())
    accuracies = {n / 8: answers(far.at(n / 8), exam, CLASSES, TEMPLATES)["accuracy_pct"] for n in range(9)}
    allowed = [at for at, accuracy in accuracies.items() if 100 - accuracy <= 60]
    assert 0 < share == max(allowed) < 1
    assert tried[-1] == {"share": share, "accuracy_pct": accuracies[share]}
    assert "of the way to the repaired weights" in said(
        {"share": share, "steps": tried, "canary_before_pct": 99.0, "canary_after_pct": 3.0}
    )


def test_where_every_step_harms_the_model_is_left_as_it_is(blind: Blind) -> None:
    strict = dataclasses.replace(blind, steps=1, max_loss_points=0)
    share, tried = farthest(line(9.0), pictures(), strict, CLASSES, TEMPLATES)
    assert share == 0
    assert "left as it is" in said({"share": share, "steps": tried})
    assert "a canary in a copy kept 80.0 %" in said(
        {"share": 0.0, "steps": tried, "canary_before_pct": 99.0, "canary_after_pct": 80.0}
    )


def test_the_model_of_an_objective_is_found_in_its_state() -> None:
    clip = tiny_clip()
    state = Par().build(clip, Setting(classes=CLASSES)).state_dict()
    assert of_model(state).keys() == clip.model.state_dict().keys()


def test_where_a_scan_accuses_nothing_nothing_is_repaired_unless_one_wishes_it(
    data: WebDataset, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    root = write_scan(tmp_path / "scan", data)
    settings = RepairConfig(
        model=ModelConfig(path=str(tiny_checkpoint)),
        method=Unlearn(batch_size=8, blind=Par(batch_size=4, tau="auto", label_weight=1)),
        scan=str(root),
        out=str(tmp_path / "run"),
        cluster=ClusterConfig(workers=1),
    )
    wished = dataclasses.replace(settings, blind=Blind(data=data))
    assert make_verb_plan(settings).blind is None
    # an accused model is repaired as ever, whatever is wished
    assert make_verb_plan(wished).blind is None
    assert make_verb_plan(wished).fingerprint == make_verb_plan(settings).fingerprint
    (root / "summary.json").write_text('{"targets": []}')
    for method in (settings.method, Par(batch_size=4)):
        with pytest.raises(ConfigError, match=r"accuses nothing, so nothing is repaired; .* give blind\.data"):
            make_verb_plan(dataclasses.replace(settings, method=method))
    plan = make_verb_plan(wished)
    assert plan.blind == wished.blind
    assert plan.section == "method.blind"
    assert "taken back until at most 1 points are lost" in plan.describe()
    assert plan.fingerprint != make_plan(settings).fingerprint
    named = ("ball", "kite", "lamp")
    with pytest.raises(ConfigError, match="there is no way to go part of"):
        make_plan(dataclasses.replace(wished, method=Rvpt(batch_size=4), data=data, classes=list(named)))


def test_the_suspect_end_of_the_line_is_the_checkpoint(tiny_checkpoint: Path) -> None:
    model = ModelConfig(path=str(tiny_checkpoint))
    moved = load_clip(model)
    disturb(moved.model, 0.2)
    way = Line.of(model, {**moved.model.state_dict(), "head.weight": moved.model.logit_scale})
    images = pictures().pixels[:4]
    expected = load_clip(model).encode_images(torch.from_numpy(images))[0]
    np.testing.assert_array_equal(way.at(0.0).encode_images(torch.from_numpy(images))[0], expected)
