"""Run folders, dossiers and checkpoints that somebody made on purpose: a row a case, each refused in one line that names the file.

`pytest -v tests/unit/test_hostile.py` prints the table; tests/unit/stages/sources/test_cases.py has that of data sets,
tests/unit/stages/report/test_payloads.py that of texts on pages, and `python -m tests.benchmarks.fuzz` that of mutated files.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.status import describe
from clipsan.pipeline.tracking.record import read_record
from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.model.checkpoints import ModelConfig, ModelError
from clipsan.stages.model.clip import load_clip
from tests.fuzz.targets import RUN_YAML, TINY, checkpoint_folder, dossier_files, write_run


class Code:
    """What a pickle runs: it would leave a file behind."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def run(name: str, content: str) -> Callable[[Path], object]:
    """Return what looks at a run folder one of whose files a stranger wrote."""

    def look(home: Path) -> object:
        write_run("")(home)
        (home / name).write_text(content)
        damaged = [line for line in describe(home).splitlines() if line.startswith("damaged")]
        if damaged:  # is told among the rest, in a line
            raise ConfigError(damaged[0])
        return read_record(home)

    return look


def dossier(kind: str, name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def look(home: Path) -> object:
        for place, data in dossier_files(kind).items():
            (home / place).parent.mkdir(exist_ok=True)
            (home / place).write_bytes(change(data) if place == f"t1/{name}" else data)
        return read_dossiers(home)

    return look


def fields(**changed: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **changed}).encode()


def checkpoint(name: str, content: bytes, without: str = "") -> Callable[[Path], object]:
    def look(home: Path) -> object:
        for file, data in checkpoint_folder().items():
            if file != without:
                (home / file).write_bytes(data)
        (home / name).write_bytes(content)
        return load_clip(ModelConfig(path=str(home)))

    return look


def model(**changed: object) -> bytes:
    return json.dumps({"model_cfg": {**TINY, **changed}}).encode()


CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
RECORD = {"verb": "scan", "root": "/", "fingerprint": "f", "params": {}, "metrics": {}}
HEADER = b"\x93NUMPY\x01\x00"
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "run.yaml that runs code": (run("run.yaml", "!!python/object/apply:os.system [touch ran]"), "not valid YAML"),
    "run.yaml that is a list": (run("run.yaml", "[1, 2]"), "holds no run"),
    "passes.json that leads through the disk": (
        run("work/passes.json", '{"embed": {"folder": "/", "parts": 1}}'), "holds no passes"),
    "passes.json that leads out": (
        run("work/passes.json", '{"embed": {"folder": "../..", "parts": 1}}'), "holds no passes"),
    "summary.json nested 100,000 deep": (run("summary.json", "[" * 100_000), "not valid JSON"),
    "summary.json that is a number": (run("summary.json", "3"), "must hold a JSON object"),
    "tracking.json that names /etc/passwd": (
        run("tracking.json", json.dumps({**RECORD, "files": ["/etc/passwd"]})), "outside the run folder"),
    "a dossier whose id leads out": (dossier("warp", "dossier.json", fields(id="../../x")), "an id of"),
    "a dossier of a million pixels a side": (dossier("residual", "dossier.json", fields(side=10**6)), "a side of"),
    "a dossier without targets": (dossier("warp", "dossier.json", fields(targets=[])), "at least one target"),
    "a dossier that is a list": (dossier("warp", "dossier.json", lambda data: b"[]"), "no object"),
    "an array that claims more than its file holds": (
        dossier("warp", "warp.npy", lambda data: data.replace(b"(8, 8, 2)", b"(99999,)")), "warp"),
    "an array of Python objects": (
        dossier("warp", "warp.npy", lambda data: pickle.dumps(np.array([Code()], object))), "warp.npy is no array"),
    "an array whose header does not end": (
        dossier("warp", "warp.npy", lambda data: HEADER + b"\x20\x00" + b"{'descr': (((((" + b" " * 17), "warp.npy is no array"),
    "a picture that is PostScript": (
        dossier("patch", "trigger.png", lambda data: b"%!PS-Adobe-3.0\nshowpage\n"), "cannot identify"),
    "weights that run code": (checkpoint("pytorch_model.bin", pickle.dumps(Code()), WEIGHTS), "not plain weights"),
    "weights with code among them": (
        checkpoint("pytorch_model.bin", pickle.dumps({"a": 1, "state_dict": {"b": Code()}}), WEIGHTS), "not plain weights"),
    "safetensors of a header of 2^60 bytes": (
        checkpoint(WEIGHTS, (2**60).to_bytes(8, "little") + b"{}"), "not a readable safetensors"),
    "an empty file of weights": (checkpoint(WEIGHTS, b""), "is empty"),
    "a configuration that trusts remote code": (checkpoint(CONFIG, model(trust_remote_code=True)), "trust_remote_code"),
    "a configuration of a billion layers": (
        checkpoint(CONFIG, model(vision_cfg={**TINY["vision_cfg"], "layers": 10**9})), "sizes that no model has"),
    "a configuration of 10^12 weights": (
        checkpoint(CONFIG, model(vision_cfg={**TINY["vision_cfg"], "width": 2**19, "head_width": 2**10})), "of another model"),
    "a tower that is no mapping": (checkpoint(CONFIG, model(vision_cfg=3)), "must be a mapping"),
    "a mean of two numbers": (
        checkpoint(CONFIG, json.dumps({"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5, 0.5]}}).encode()), "three numbers"),
}  # fmt: skip
"""By what is tried; what reads it, and words of the refusal."""


@pytest.mark.parametrize("name", list(CASES))
def test_it_is_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look, words = CASES[name]
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises((ConfigError, ModelError, ValueError)) as refused:
        look(tmp_path / "home")
    said = " ".join(str(refused.value).split())
    assert words in said
    assert str(tmp_path / "home") in said
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_run_folder_of_the_rows_is_whole(tmp_path: Path) -> None:
    write_run("")(tmp_path)
    assert describe(tmp_path).startswith("scan ")
    assert read_record(tmp_path).verb == yaml.safe_load(yaml.safe_dump(RUN_YAML))["verb"]
