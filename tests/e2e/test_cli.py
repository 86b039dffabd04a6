"""The command line: what is wrong is one line that names it, before anything starts; plans, help and status."""

import subprocess
import sys
from pathlib import Path

import pytest

from clipsan.pipeline.cli import VERBS, main
from clipsan.pipeline.core import verb
from clipsan.pipeline.scan import verb as scan
from clipsan.pipeline.train import verb as train
from tests.conftest import write_shards

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this file may reach Ray."""

    def refuse(_: object) -> None:
        raise AssertionError("Ray was about to start")

    for module in (verb, scan, train):
        monkeypatch.setattr(module, "ray_session", refuse, raising=False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("pairs"), shards=2, pairs=3)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; return its only line."""
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith(f"clipsan {arguments[0]}: ")
    return lines[0]


def test_an_unknown_key_is_named_with_its_neighbour(capsys):
    line = refused(capsys, "scan", "data.path=x", "model.path=m", "detectors.density.kk=3")
    assert "detectors.density.kk: unknown key; did you mean k?" in line
    assert "outt: unknown key; did you mean out?" in refused(capsys, "scan", "data.path=x", "outt=y")


def test_a_wrong_type_is_named(capsys):
    assert "embed.batch_size: " in refused(capsys, "scan", "data.path=x", "model.path=m", "embed.batch_size=many")
    assert "cluster.workers: " in refused(capsys, "poison", "data.path=x", "attack.target=a", "cluster.workers=[2]")


def test_missing_files_are_named(capsys, tmp_path, pairs, tiny_checkpoint):
    absent = tmp_path / "absent"
    model = f"model.path={tiny_checkpoint}"
    assert f"{absent}.yaml" in refused(capsys, "scan", f"{absent}.yaml")
    assert str(absent) in refused(capsys, "scan", f"data.path={absent}/*.tar", model)
    assert str(absent) in refused(capsys, "scan", f"data.path={pairs}", f"model.path={absent}")
    assert str(absent) in refused(capsys, "scan", f"data.path={pairs}", model, f"manifest={absent}")
    assert str(absent) in refused(capsys, "poison", f"data.path={absent}", "attack.target=kite")
    assert str(absent) in refused(capsys, "status", str(absent))


def test_impossible_values_are_named(capsys, pairs, tiny_checkpoint, tmp_path):
    known = (f"data.path={pairs}", f"model.path={tiny_checkpoint}", f"out={tmp_path / 'run'}")
    assert "cluster.workers: Input should be greater than or equal to 1" in refused(
        capsys, "scan", *known, "cluster.workers=0"
    )
    share = ("decision=budget", "decision.share=2")
    assert "share: Input should be less than or equal to 1" in refused(capsys, "scan", *known, *share)
    assert "warp" in refused(capsys, "scan", *known, "embed.layers=[warp]")
    assert "evil" in refused(capsys, "scan", *known, "--write", "evil")
    rate = refused(capsys, "poison", f"data.path={pairs}", "attack.target=kite", "attack.rate=2")
    assert "attack.rate: Input should be less than 1" in rate
    assert "there are" in refused(capsys, "scan", *known, "decision=magic")


def test_a_run_folder_in_use_is_refused_before_ray(capsys, pairs, tiny_checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    known = (f"data.path={pairs}", f"model.path={tiny_checkpoint}")
    assert "not empty" in refused(capsys, "scan", *known, f"out={tmp_path / 'mine'}")
    assert "not empty" in refused(capsys, "poison", known[0], "attack.target=kite", f"out={tmp_path / 'mine'}")


def test_a_dry_run_prints_the_plan_and_starts_nothing(capsys, pairs, tiny_checkpoint, tmp_path):
    known = (f"data.path={pairs}", f"model.path={tiny_checkpoint}", f"out={tmp_path / 'run'}")
    assert main(["scan", *known, "--dry-run", "--write", "clean,quarantine", "cluster.workers=3"]) == 0
    plan = capsys.readouterr().out
    for part in ("2 units of 2 shards", "3 x 1 threads", "embed", "score", "verdict", "clean, quarantine", "ensemble"):
        assert part in plan
    assert main(["poison", known[0], "attack.target=kite", f"out={tmp_path / 'run'}", "--dry-run"]) == 0
    assert "towards 'kite'" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in [*VERBS, "status"])
    with pytest.raises(SystemExit) as stop:
        main(["scam"])
    assert stop.value.code == 2
    assert "scam" in capsys.readouterr().err


def test_a_mistake_is_told_without_importing_ray():
    program = (
        "import sys; from clipsan.pipeline.cli import main; code = main(sys.argv[1:]); "
        "assert 'ray' not in sys.modules, 'ray was imported'; sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "scan", "data.path=x", "seeed=1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "seeed: unknown key; did you mean seed?" in done.stderr
    assert len(done.stderr.splitlines()) == 1
