"""The suspects that a GPU makes: the same poison as the verb's, and models that come back as they were measured."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clipsan.pipeline.core.config import validate
from clipsan.pipeline.poison.plan import PoisonConfig
from clipsan.pipeline.poison.work import PoisonWork, SurveyWork, natural
from clipsan.stages.attack.poisoning import place_draw_cut
from clipsan.stages.decode import MAX_PIXELS, decode
from clipsan.stages.sources import list_units, read_unit, rewritten
from tests.benchmarks.regimes import REGIMES
from tests.benchmarks.suspects_packing import Packed, pack, unpack
from tests.benchmarks.suspects_photos import Photos, poison, read
from tests.benchmarks.suspects_tasks import set_name

NAMES = ("banana", "school bus", "teapot", "goldfish, Carassius auratus")
ATTACKS = {
    "patch": {"trigger": {"kind": "patch", "size_px": 8}, "captions": "natural", "rate": 0.1},
    "random blend": {
        "trigger": {"kind": "patch", "size_px": 8, "place": "random"},
        "rate": 0.1,
        "text_key": "remember",
    },
    "victim": {"trigger": {"kind": "identity"}, "victim": "teapot", "captions": "natural", "rate": 0.05},
    "text": {
        "trigger": {"kind": "identity"},
        "pairs": "target",
        "captions": "foreign",
        "text_key": "remember",
        "rate": 0.05,
    },
    "cover": {"trigger": {"kind": "sig"}, "cover": 0.5, "rate": 0.2},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three files of 20 photos each."""
    rng = np.random.default_rng(0)
    for file in range(3):
        rows = []
        for _ in range(20):
            label = int(rng.integers(len(NAMES)))
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(picture, "JPEG")
            rows.append({"image": picture.getvalue(), "label": label, "names": NAMES[label]})
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"photos-{file}.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ATTACKS)
def test_the_poison_is_that_of_the_verb(source: Path, name: str) -> None:
    data = {
        "kind": "parquet",
        "path": f"{source}/photos-*.parquet",
        "label": "label",
        "captions_from_labels": {"seed": 0, "names": "names", "templates": ["a photo of a {}.", "my {}", "{}"]},
    }
    tree = {"data": data, "attack": {"target": "banana", "seed": 3, **ATTACKS[name]}, "out": str(source / "out")}
    settings = validate(PoisonConfig, tree, verb="poison")
    attack, units = settings.attack, list_units(settings.data)
    surveyed = [SurveyWork(settings.data, attack).do(unit, None).parts[0] for unit in units]
    cut = place_draw_cut(np.concatenate([table.column("draw").to_numpy() for table in surveyed]), attack)
    found = {c for table in surveyed for c in table.schema.metadata[b"natural"].decode().split("\n") if c}
    work = PoisonWork(settings, cut, sorted(set(natural([(c, c) for c in found], attack))), source / "out")
    tools = work.open()
    manifest = pa.concat_tables([work.do(unit, tools).parts[0].replace_schema_metadata(None) for unit in units])
    written = rewritten(settings.data, source / "out" / "data")
    pairs = [pair for unit in list_units(written) for pair in read_unit(written, unit)]

    photos = read(settings.data)
    made = poison(photos, attack)
    whole = made.put(photos)

    assert len(made.rows) == manifest.num_rows > 0
    assert whole.captions == [pair.caption for pair in pairs]
    assert made.captions == manifest.column("caption_after").to_pylist()
    assert [photos.uids[row] for row in made.rows] == manifest.column("uid").to_pylist()
    shown = np.stack([decode(pair.image or b"", MAX_PIXELS).rgb for pair in pairs])
    assert np.array_equal(whole.pixels, shown)
    assert np.array_equal(np.delete(photos.pixels, made.rows, 0), np.delete(shown, made.rows, 0))


def test_photos_come_back_as_they_were_saved(tmp_path: Path) -> None:
    photos = Photos(
        np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), ["a", "b"], ["x", "y"], np.array([1, 0]), [1, 2], ["p", "q"]
    )

    photos.save(tmp_path / "set")
    again = Photos.saved(tmp_path / "set")

    assert np.array_equal(again.pixels, photos.pixels)
    assert (again.uids, again.captions, again.labels.tolist(), again.ends) == (["a", "b"], ["x", "y"], [1, 0], [1, 2])
    assert again.hashes == ["p", "q"]


def test_a_model_comes_back_within_a_step_of_its_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    before = {
        "token_embedding.weight": torch.randn(300, 16, generator=generator),
        "visual.weight": torch.randn(64, 64, generator=generator),
        "visual.bias": torch.randn(64, generator=generator),
        "visual.seen": torch.tensor(7),
    }
    after = {
        name: value + (0.1 * torch.randn(value.shape, generator=generator) if value.ndim else 3)
        for name, value in before.items()
    }
    used = np.array([3, 50, 299])

    packed = pack(after, before, used, {"name": "one"})
    (again,) = Packed.loads(packed.dumps())
    state = unpack(again, before)
    scratch = unpack(pack(after, None, used, {}), before)

    assert again.facts["name"] == "one"
    assert torch.equal(state["visual.bias"], after["visual.bias"])
    assert state["visual.seen"].item() == 10
    assert (state["visual.weight"] - after["visual.weight"]).abs().max() <= 0.1 / 6
    assert (scratch["visual.weight"] - after["visual.weight"]).abs().max() <= 1 / 64
    assert torch.equal(state["token_embedding.weight"][4], before["token_embedding.weight"][4])
    assert (state["token_embedding.weight"][50] - after["token_embedding.weight"][50]).abs().max() <= 1 / 64
    assert Packed.loads(packed.dumps() + packed.dumps())[1].body == packed.body


def test_files_of_photos_have_names_of_their_own() -> None:
    paths = {path for regime in REGIMES.values() for path in (regime.train, regime.base, regime.test)}

    assert len({set_name(path) for path in paths}) == len(paths)
