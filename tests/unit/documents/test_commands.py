"""Every command of the documents works: clipsan's are planned on tiny data, those of other programs read by their own parsers."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import pytest
import ray

from clipsan.pipeline.cli import FOLDER_VERBS, VERBS, main
from clipsan.pipeline.core.config import conf_folder
from clipsan.pipeline.core.run_folder import read_summary
from clipsan.pipeline.verbs import verb_of
from tests.unit.deploy.helpers import FILES, SETTINGS, lines, settings_of
from tests.unit.documents.helpers import DOCUMENTS, ROOT, at_home, fences, headed, make_world, shell

SHOWN = [(path, *found) for path in DOCUMENTS for found in shell(path.read_text(encoding="utf-8"))]
PAIRS = ["data=webdataset", "data.path=data/cc3m/*.tar"]
MODEL = ["model.path=checkpoints/suspect"]
LABELLED = ["data=labelled-parquet", "data.path=data/val.parquet"]
EVALUATE = ["evaluate.data=labelled-parquet", "evaluate.data.path=data/val.parquet", "evaluate.classes=classes.yaml"]
HELD_OUT = ["held_out.data=labelled-parquet", "held_out.data.path=data/val.parquet"]
BEFORE = {
    "scan": [*PAIRS, *MODEL, "out=runs/other", "cluster=join", "cluster.workers=4"],
    "poison": [*PAIRS, "attack=sig", "attack.target=kite"],
    "train": PAIRS,
    "repair": [*PAIRS, *MODEL, "classes=classes.yaml", *EVALUATE],
    "evaluate": [*LABELLED, *MODEL],
    "run": [*PAIRS, *MODEL, *EVALUATE],
    "bench": [*LABELLED, "target=banana", *EVALUATE],
    "sweep": ["repair.model.path=checkpoints/suspect", "repair.scan=runs/scan", *HELD_OUT],
    "sweep-detectors": ["scan=runs/scan"],
}
"""What a part of a command, in running text, is preceded by; `...` stands for it too."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), tiny_checkpoint)


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command may reach Ray."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was about to start")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.mark.parametrize(
    ("path", "words", "whole"),
    SHOWN,
    ids=[f"{path.parent.name}/{path.stem}-{' '.join(words)[:60]}" for path, words, _ in SHOWN],
)
def test_a_command_works(
    path: Path,
    words: list[str],
    whole: bool,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if len(words) > 2 and words[0] == "clipsan" and not whole:
        words = [*words[:2], *BEFORE.get(words[1], []), *(word for word in words[2:] if word != "...")]
    monkeypatch.chdir(world)
    variables = list(takewhile(lambda word: re.fullmatch(r"[A-Z_]+=\S*", word), words))
    words = words[len(variables) :]
    if any(variable.startswith("CLIPSAN_EXTENSIONS=") for variable in variables):
        extend(variables, [at_home(word, world) for word in words], world)
        return
    monkeypatch.setattr("sys.argv", words)
    TRY[words[0]](words[1:], world, monkeypatch)
    capsys.readouterr()


def extend(variables: list[str], words: list[str], home: Path) -> None:
    """Plan a command with an extension that the document shows, in a process of its own: families are read once a process."""
    environment = {**os.environ, **dict(variable.split("=", 1) for variable in variables)}
    environment["PYTHONPATH"] = os.pathsep.join([str(home), *sys.path])
    command = [sys.executable, "-m", "clipsan.pipeline", *words[1:], "--dry-run"]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


HEADED = [
    (path, words)
    for path in sorted(conf_folder().rglob("*.yaml"))
    if path.parent.name not in ("attack", "trigger")
    for words in headed(path)
]
"""Those of conf/attack and conf/trigger have tests of their own."""


@pytest.mark.parametrize(
    ("path", "words"), HEADED, ids=[f"{path.parent.name}/{path.stem}-{' '.join(words)[:60]}" for path, words in HEADED]
)
def test_a_command_in_a_file_of_conf_works(
    path: Path, words: list[str], world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *rest = words[1:]
    whole = verb == path.stem and "..." not in rest and any(word.startswith("out=") for word in rest)
    before = [] if whole else BEFORE.get(verb, [])
    monkeypatch.chdir(world)
    # published weights of oracles are in no small world
    monkeypatch.setattr("clipsan.pipeline.scan.plan.oracle_fingerprint", lambda oracle: {})
    try_clipsan([verb, *before, *(word for word in rest if word != "...")], world, monkeypatch)
    capsys.readouterr()


def try_clipsan(words: list[str], home: Path, _: pytest.MonkeyPatch) -> None:
    """Plan it; a verb alone must be one."""
    if not words:
        return
    verb, *rest = (at_home(word, home) for word in words)
    assert verb in {*VERBS, *FOLDER_VERBS}
    if verb in FOLDER_VERBS and not rest:
        return
    if verb == "log" and rest != ["RUN"]:
        from clipsan.pipeline.tracking.log import settings_of as tracking_of

        assert tracking_of(home / rest[0], rest[1:]).uri
    elif verb == "status":
        assert main([verb, *("runs/scan" if word == "RUN" else word for word in rest)]) == 0
    elif rest and not {"RUN", "CELL"} & set(re.findall(r"[A-Z]{3,}", " ".join(rest))):
        assert main([verb, *rest, *([] if "--dry-run" in rest else ["--dry-run"])]) == 0


def try_python(words: list[str], _: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the arguments and do nothing; of a module that takes none, look whether it is there."""
    flag, module, *rest = words
    assert flag == "-m"
    if module == "pytest":
        return
    file = ROOT / f"{module.removeprefix('clipsan.').replace('.', '/')}.py"
    if "parse_args" not in file.read_text(encoding="utf-8"):
        assert not rest
        return
    read = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: object) -> None:
        read(self, *given)  # type: ignore[arg-type]
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr("sys.argv", [module, *rest])
    with pytest.raises(Understood):
        import_module(module).main()


class Understood(Exception):
    """The arguments were read."""


def try_make(words: list[str], _: Path, __: pytest.MonkeyPatch) -> None:
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def try_pip(words: list[str], _: Path, __: pytest.MonkeyPatch) -> None:
    command, package = words
    assert command == "install"
    extra = re.fullmatch(r"clipsan\[(\w+)\]", package)
    assert extra is not None
    assert f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def try_ray(words: list[str], _: Path, __: pytest.MonkeyPatch) -> None:
    """Ray's own parser reads the options; clipsan's settings what comes after them."""
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts.scripts import start, up

    if words[0] == "start":
        start.make_context("ray start", words[1:], resilient_parsing=True)
        assert isinstance(json.loads(words[words.index("--resources") + 1]), dict)
    elif words[0] == "up":
        assert all((ROOT / word).is_file() for word in words[1:2])
        up.make_context("ray up", words[1:], resilient_parsing=len(words) == 1)
    else:
        assert words[:2] == ["job", "submit"]
        cut = words.index("--")
        submit.make_context("ray job submit", [*words[2:cut], "clipsan"])
        assert words[cut + 1] == "clipsan"
        settings_of(words[cut + 2 :])


def try_deploy(words: list[str], _: Path, __: pytest.MonkeyPatch) -> None:
    """A verb with its settings must load; whatever else there is to a line stands so in a file of deploy/, which has its tests."""
    verb = next((i for i, word in enumerate(words) if word in SETTINGS), None)
    if verb is not None and "..." not in words:
        settings_of(words[verb:])
    files = [word for word in words if word.startswith("deploy/")]
    assert all((ROOT / file).is_file() for file in files)
    if verb is None and len(words) > 1:
        shown = {" ".join(line.split()) for file in FILES for line in lines(file.read_text(encoding="utf-8"))}
        assert any(line.endswith(" ".join(words)) for line in shown), words


def try_source(words: list[str], _: Path, __: pytest.MonkeyPatch) -> None:
    assert words == [".venv/bin/activate"]


TRY: dict[str, Callable[[list[str], Path, pytest.MonkeyPatch], None]] = {
    "clipsan": try_clipsan,
    "python": try_python,
    "make": try_make,
    "pip": try_pip,
    "ray": try_ray,
    "kubectl": try_deploy,
    "docker": try_deploy,
    "sbatch": try_deploy,
    "deploy/submit.sh": try_deploy,
    ".": try_source,
}
"""Program -> how its commands are tried."""


def test_the_python_of_the_readme_works(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scan is planned, and taken as done: the world has its run folder."""
    shown = fences((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert len(shown) == 2
    monkeypatch.chdir(world)
    monkeypatch.setattr(type(verb_of("scan")), "finish", lambda _, checked: read_summary(Path(checked.plan.config.out)))
    for block in shown:
        assert len(block.splitlines()) <= 5
        exec(compile(at_home(block, world), "README.md", "exec"), {"dataset": [], "uids": []})
    assert str(world / "runs" / "scan") in capsys.readouterr().out


def test_commands_are_found() -> None:
    found = {path.parent.name + "/" + path.name for path, _, _ in SHOWN}
    assert len(found) == len([path for path in DOCUMENTS if path.is_file()])
    verbs = {words[1] for _, words, whole in SHOWN if whole and words[0] == "clipsan" and len(words) > 2}
    assert verbs >= {
        "scan",
        "repair",
        "train",
        "evaluate",
        "poison",
        "bench",
        "sweep",
        "sweep-detectors",
        "run",
        "status",
        "log",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scan", *BEFORE["scan"], "decision.shar=1"], "decision"),
        (["repair", "model.path=checkpoints/suspect", "scan=runs/nowhere", "method=unlearn"], "runs/nowhere"),
    ],
)
def test_a_wrong_command_would_be_seen(
    words: list[str], said: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(AssertionError):
        try_clipsan(words, world, monkeypatch)
    assert said in capsys.readouterr().err
