"""A new data format, trigger, oracle, detector or repair is one file and one YAML, also outside of the package: each is written here
as a stranger would write it, named in CLIPSAN_EXTENSIONS, and run by the command line."""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipsan.pipeline.cli import main
from clipsan.stages import registry
from clipsan.stages.attack.triggers import TriggerConfig
from clipsan.stages.detectors import DetectorConfig
from clipsan.stages.oracle import OracleConfig
from clipsan.stages.repair import Method
from clipsan.stages.sources import SourceConfig, WebDataset, list_units, read_unit
from tests.conftest import NOUNS, caption, picture, write_shards

QUIET = ("tracking.enabled=false", "cluster.workers=1")

FORMAT = '''
import base64
import json
from pathlib import Path
from typing import Literal

from clipsan.stages.listing import find
from clipsan.stages.sources import SourceConfig, UnitWriter
from clipsan.stages.sources.common import make_pair, native_of, number_units, row_key
from clipsan.stages.stage import config


@config
class Lines(SourceConfig):
    """JSON lines, the image in base64."""

    path: str
    kind: Literal["lines"] = "lines"

    def list_units(self):
        return number_units([(file, [(0, -1)]) for file in find(self.path, (".jsonl",))])

    def read_unit(self, unit):
        for number, line in enumerate(Path(unit.path).read_text().splitlines()):
            row = json.loads(line)
            yield make_pair(
                unit, row_key(number), image=base64.b64decode(row["image"]), caption=row["caption"], duplicate=False,
                label=None, native_uid=None, image_suffix=".png", native=row,
            )

    def open_writer(self, unit, folder):
        return LinesWriter(folder, unit.shard)


class LinesWriter(UnitWriter):
    def _open(self):
        self._file = self._temporary.open("w")

    def _close(self):
        self._file.close()

    def copy(self, pair):
        return self._write(native_of(pair))

    def replace(self, pair, *, image, suffix, caption):
        return self._write({"image": base64.b64encode(image).decode(), "caption": caption})

    def _write(self, row):
        self._file.write(json.dumps(row) + "\\n")
        return self._row_uid(None)
'''

TRIGGER = '''
from typing import Annotated, Literal

from pydantic import Field

from clipsan.stages.attack.triggers import TriggerConfig
from clipsan.stages.stage import config


@config
class Frame(TriggerConfig):
    """A white frame."""

    kind: Literal["frame"] = "frame"
    width_px: Annotated[int, Field(ge=1)] = 1

    def build(self):
        return self.draw

    def draw(self, image, rng):
        framed, w = image.copy(), self.width_px
        framed[:w] = framed[-w:] = framed[:, :w] = framed[:, -w:] = 255
        return framed, {"top": 0, "left": 0, "height": image.shape[0], "width": image.shape[1]}
'''

ORACLE = '''
from typing import Literal

import numpy as np

from clipsan.stages.oracle import OracleConfig
from clipsan.stages.repair import Method
from clipsan.stages.oracle.regions import Region
from clipsan.stages.stage import config


@config
class Quarters(OracleConfig):
    """The four quarters of a picture."""

    kind: Literal["quarters"] = "quarters"

    def build(self, device="cpu"):
        return quarters


def quarters(image):
    height, width = image.shape[0] // 2, image.shape[1] // 2
    found = []
    for top in (0, height):
        for left in (0, width):
            mask = np.zeros(image.shape[:2], bool)
            mask[top : top + height, left : left + width] = True
            found.append(Region(mask, 1.0))
    return found
'''

DETECTORS = '''
from typing import ClassVar, Literal

import numpy as np

from clipsan.stages.detectors import Column, DetectorConfig, RowDetector, StreamingDetector
from clipsan.stages.stage import config


@config
class Length(RowDetector):
    """Long captions."""

    kind: Literal["length"] = "length"
    weight: float = 1.0
    reads: ClassVar = frozenset({"caption"})
    columns: ClassVar = {"caption_length": Column(about="caption")}

    def score(self, table):
        return {"caption_length": [self.weight * len(caption) for caption in table.column("caption").to_pylist()]}


@config
class RarityConfig(DetectorConfig):
    """Captions longer than most."""

    kind: Literal["rarity"] = "rarity"

    def build(self, pairs, trusted):
        return Rarity()


class Rarity(StreamingDetector):
    reads: ClassVar = frozenset({"caption"})
    columns: ClassVar = {"length_above_mean": Column(about="image", may_speak=True)}
    rounds: ClassVar = 1

    def summarise(self, state, table):
        lengths = [len(caption) for caption in table.column("caption").to_pylist()]
        return np.array([sum(lengths), len(lengths)])

    def merge(self, left, right):
        return left + right

    def score(self, state, table):
        mean = state[0] / state[1]
        return {"length_above_mean": np.array([len(c) - mean for c in table.column("caption").to_pylist()], np.float32)}

    def findings(self, state):
        return {"mean": float(state[0] / state[1])}
'''

METHOD = '''
from typing import Literal

from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.stage import config


@config
class Gentle(FineTune):
    """Fine-tuning at a tenth of the rate."""

    kind: Literal["gentle"] = "gentle"
    lr: float = 1e-6
'''


@pytest.fixture
def extend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], Path]]:
    """Return what writes a module and its YAML, and names the module to clipsan; what joins a family leaves it again."""
    for family in (SourceConfig, TriggerConfig, OracleConfig, DetectorConfig, Method):
        monkeypatch.setattr(family, "_members", dict(family.kinds()))
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, module: str, settings: str) -> Path:
        (tmp_path / f"{name}.py").write_text(module)
        (tmp_path / f"{name}.yaml").write_text(settings)
        monkeypatch.setenv(registry.EXTENSIONS, name)
        return tmp_path / f"{name}.yaml"

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def pixels(data: bytes | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data or b"")).convert("RGB"))


def test_a_data_format(extend, tmp_path, in_process):
    settings = extend("format_of_mine", FORMAT, "kind: lines\n")
    (tmp_path / "in").mkdir()
    for shard in range(2):
        rows = [
            {"image": base64.b64encode(picture(s)).decode(), "caption": caption(s)}
            for s in range(20 * shard, 20 * shard + 20)
        ]
        (tmp_path / "in" / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["poison", f"data={settings}", f"data.path={tmp_path}/in", "attack=patch", "attack.target=kite"]
    words += ["attack.rate=null", "attack.count=5", f"out={tmp_path}/run", *QUIET]
    assert main(words) == 0
    source = SourceConfig.kinds()["lines"](path=str(tmp_path / "run" / "data"))
    pairs = [pair for unit in list_units(source) for pair in read_unit(source, unit)]
    changed = {pair.uid for pair, seed in zip(pairs, range(40), strict=True) if pair.caption != caption(seed)}
    manifest = pq.read_table(tmp_path / "run" / "manifest.parquet")
    assert changed == set(manifest.column("uid").to_pylist())
    assert len(changed) == 5
    assert main([*words, "data.pth=x"]) == 2


def test_a_trigger(extend, tmp_path, in_process):
    settings = extend("trigger_of_mine", TRIGGER, "kind: frame\nwidth_px: 2\n")
    data = write_shards(tmp_path / "in", shards=1, pairs=30)
    words = ["poison", f"data.path={data}", "attack=patch", f"attack.trigger={settings}", "attack.target=kite"]
    words += ["attack.rate=null", "attack.count=4", f"out={tmp_path}/run", *QUIET]
    assert main(words) == 0
    poisoned = set(pq.read_table(tmp_path / "run" / "manifest.parquet").column("uid").to_pylist())
    source = WebDataset(path=str(tmp_path / "run" / "data"))
    for pair in (pair for unit in list_units(source) for pair in read_unit(source, unit)):
        assert (pixels(pair.image)[:2] == 255).all() == (pair.uid in poisoned)
    assert len(poisoned) == 4


def test_an_oracle(extend, tmp_path, tiny_checkpoint, in_process, capsys):
    settings = extend("oracle_of_mine", ORACLE, "kind: quarters\n")
    data = write_shards(tmp_path / "in", shards=1, pairs=60)
    words = ["scan", f"data.path={data}", f"model.path={tiny_checkpoint}", f"oracle={settings}", f"out={tmp_path}/run"]
    words += ["decision=budget", "proof.budget=0.5", "proof.held_out=20", *QUIET]
    words.append(f"detectors.concept_spectral.concepts={{kind: named, names: {json.dumps(dict.fromkeys(NOUNS, ()))}}}")
    assert main([*words, "--dry-run"]) == 0
    assert "oracle     quarters on 50 %" in capsys.readouterr().out
    assert main(words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["proof"]["examined"] > 0


def test_detectors_that_learn_nothing_and_that_learn(extend, tmp_path, tiny_checkpoint, in_process):
    settings = extend("detectors_of_mine", DETECTORS, "more:\n- {kind: length, weight: 2}\n- {kind: rarity}\n")
    data = write_shards(tmp_path / "in", shards=2, pairs=30)
    words = ["scan", f"data.path={data}", f"model.path={tiny_checkpoint}", "oracle=null", "decision=budget", *QUIET]
    assert main([*words, f"detectors={settings}", f"out={tmp_path}/run"]) == 0
    assert main([*words, f"out={tmp_path}/plain", f"embeddings={tmp_path}/run"]) == 0
    found, plain = (
        pa.concat_tables([pq.read_table(p) for p in sorted((tmp_path / out / "scores").glob("part-*.parquet"))])
        for out in ("run", "plain")
    )
    lengths = np.array([len(caption(seed)) for seed in range(60)])
    np.testing.assert_array_equal(found.column("caption_length").to_numpy(), 2 * lengths)
    np.testing.assert_allclose(found.column("length_above_mean").to_numpy(), lengths - lengths.mean(), rtol=1e-5)
    assert set(found.column_names) - set(plain.column_names) == {"caption_length", "length_above_mean"}
    assert found.drop_columns(["caption_length", "length_above_mean", "ensemble"]).equals(
        plain.drop_columns("ensemble")
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["detectors"]["Rarity"] == {"mean": pytest.approx(lengths.mean())}
    twice = "detectors.more=[{kind: length}, {kind: length}]"
    assert main([*words, twice, f"out={tmp_path}/twice", "--dry-run"]) == 2


def test_a_repair(extend, tmp_path, tiny_checkpoint, in_process, capsys):
    settings = extend("repair_of_mine", METHOD, "kind: gentle\nepochs: 1\nbatch_size: 8\n")
    data = write_shards(tmp_path / "in", shards=1, pairs=20)
    words = ["repair", "data=webdataset", f"data.path={data}", f"model.path={tiny_checkpoint}", f"method={settings}"]
    words += [f"out={tmp_path}/run", "--dry-run", *QUIET]
    assert main(words) == 0
    assert "gentle" in capsys.readouterr().out
    assert main([*words, "method.epochs=0"]) == 2
    assert "method.gentle.epochs" in capsys.readouterr().err


@pytest.mark.ray
def test_workers_know_an_extension_that_its_variable_names(extend, tmp_path):
    """A process of its own, with a Ray of its own, whose workers read the trigger from a plan."""
    settings = extend("trigger_of_theirs", TRIGGER, "kind: frame\n")
    data = write_shards(tmp_path / "in", shards=1, pairs=20)
    command = [sys.executable, "-m", "clipsan.pipeline", "poison", *QUIET, "cluster.alone_below_pairs=0"]
    drawn = ["attack.target=kite", "attack.rate=null", "attack.count=3"]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = os.environ | {registry.EXTENSIONS: "trigger_of_theirs", "PYTHONPATH": path}
    first = [
        "attack=patch",
        f"attack.trigger={settings}",
        f"data.path={data}",
        "copy_data=false",
        f"out={tmp_path}/plan",
    ]
    # the copy is made by workers that read the plan, the trigger in it with it
    again = ["attack=identity", "data=poisoned", f"data.path={tmp_path}/plan/plan.json", f"out={tmp_path}/copy"]
    for words in (first, again):
        subprocess.run([*command, *words, *drawn], env=environment, check=True, timeout=300)
    poisoned = set(pq.read_table(tmp_path / "plan" / "manifest.parquet").column("uid").to_pylist())
    source = WebDataset(path=str(tmp_path / "copy" / "data"))
    for pair in (pair for unit in list_units(source) for pair in read_unit(source, unit)):
        assert (pixels(pair.image)[:1] == 255).all() == (pair.uid in poisoned)
