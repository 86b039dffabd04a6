"""Features that float16 cannot hold are counted, column by column, whatever the chunks."""

import functools

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipsan.stages.detectors.saturation import Saturation
from clipsan.stages.embed import EmbedConfig, Embedder
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import load_clip
from clipsan.stages.samples import RawPair
from tests.conftest import caption, picture

WIDTH = 4


def table(**columns: np.ndarray) -> pa.Table:
    return pa.table(
        {
            name: pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float16).ravel()), WIDTH)
            for name, rows in columns.items()
        }
    )


@pytest.mark.parametrize(
    ("value", "lost"),
    [(65504, 1), (-65504, 1), (np.inf, 1), (-np.inf, 1), (np.nan, 1), (65472, 0), (-65472, 0), (1, 0), (-1e-7, 0)],
)
def test_the_end_of_the_range_counts_and_what_lies_before_it_does_not(value: float, lost: int) -> None:
    rows = np.ones((3, WIDTH))
    rows[1, 2] = value
    found = Saturation().summarise(None, table(image=rows, text=np.ones((3, WIDTH))))
    assert Saturation().findings(found) == ({"image": 1} if lost else {})


def test_a_vector_that_became_zero_counts() -> None:
    rows = np.full((3, WIDTH), 1e-9)
    rows[0, 0] = 1
    found = Saturation().summarise(None, table(image=np.ones((3, WIDTH)), text=rows))
    assert Saturation().findings(found) == {"text": 2}


def test_counts_do_not_depend_on_the_chunks() -> None:
    rng = np.random.default_rng(0)
    rows = {name: np.where(rng.random((40, WIDTH)) < 0.1, 65504, 1.0) for name in ("image", "text", "layer.a")}
    whole = table(**rows)
    detector = Saturation()
    parts = [detector.summarise(None, whole.slice(start, 7)) for start in range(0, 40, 7)]
    assert functools.reduce(detector.merge, parts) == detector.summarise(None, whole)
    assert detector.findings(parts[0] + parts[0]).keys() <= rows.keys()


def test_what_the_embed_pass_keeps_at_the_ends_of_the_range_is_counted(tiny_checkpoint) -> None:
    clip = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    layer = "transformer.resblocks.1"
    with torch.no_grad():
        clip.model.visual.get_submodule(layer).mlp.c_proj.bias[3] = 1e6
    pairs = [RawPair(shard="a.tar", key=str(i), image=picture(i), caption=caption(i)) for i in range(5)]
    embedded, _ = Embedder(clip, EmbedConfig(layers=["transformer.resblocks.0", layer]))(pairs)
    assert Saturation().findings(Saturation().summarise(None, embedded)) == {f"layer.{layer}": 5}


def test_a_part_without_pairs_has_nothing_to_count() -> None:
    empty = table(image=np.ones((0, WIDTH)), text=np.ones((0, WIDTH)))
    assert Saturation().findings(Saturation().summarise(None, empty)) == {}
