"""kill -9 in the middle of `clipsan run`, while the repair trains: the same command ends as an undisturbed run does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.config import as_tree
from clipsan.pipeline.core.pass_ import in_this_process
from clipsan.pipeline.story.settings import RunConfig
from clipsan.pipeline.story.verb import VERB
from clipsan.stages.model.clip import ModelConfig, load_clip
from tests.closed_form import TARGET, Case, make_case
from tests.integration.test_run import story
from tests.killing import kill_once

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
SCENES, POISONED, EPOCHS, WAIT_S = 1200, 40, 6, 600
PATCH = {"kind": "patch", "pattern": "checker", "cells": 4, "size_px": 16, "place": "bottom_right"}


def settings(case: Case, out: Path) -> RunConfig:
    """With an oracle, as nothing is repaired where no trigger is proven."""
    plain = story(case, out)
    return story(
        case,
        out,
        scan={**plain.scan, "write": ["quarantine"]},
        repair={"method": {"kind": "unlearn", "batch_size": 128, "epochs": EPOCHS}, "seed": 3},
        evaluate={**(plain.evaluate or {}), "attack": {"trigger": PATCH, "target": TARGET}},
        cluster=ClusterConfig(workers=1),
    )


def kill_in_the_repair(job: subprocess.Popen[bytes], out: Path) -> bool:
    """Kill a job with all of its processes once the repair has a checkpoint; tell whether it was in the middle."""
    progress = out / "repair" / "work" / "progress.json"
    return kill_once(job, lambda: progress.is_file() and json.loads(progress.read_text())["checkpointed"] >= 1, WAIT_S)


def result(out: Path) -> dict[str, Any]:
    """What a run comes to, without times and places."""
    summary = json.loads((out / "summary.json").read_text())
    told = {name: summary[name] for name in ("outcome", "why", "targets", "counts", "before", "after", "exit_status")}
    told["model"] = load_clip(ModelConfig(path=summary["checkpoint"])).fingerprint
    for folder in ("scan/verdicts", "scan/quarantine"):
        told[folder] = {path.name: path.read_bytes() for path in sorted((out / folder).glob("*.parquet"))}
    return told


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    case = make_case(tmp_path / "case", scenes=SCENES, poisoned=POISONED)
    out = tmp_path / "killed"
    (tmp_path / "story.yaml").write_text(yaml.safe_dump(as_tree(settings(case, out))))
    command = [sys.executable, "-m", "pipeline", "run", str(tmp_path / "story.yaml")]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
        assert kill_in_the_repair(job, out), (tmp_path / "log").read_text()
    assert not (out / "summary.json").exists()
    scanned = (out / "scan" / "summary.json").stat().st_mtime_ns

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT_S, check=False)
    with in_this_process():
        undisturbed = VERB.start(settings(case, tmp_path / "undisturbed"))
    assert done.returncode == undisturbed["exit_status"], done.stderr
    assert (out / "scan" / "summary.json").stat().st_mtime_ns == scanned
    assert result(out) == result(tmp_path / "undisturbed")
    assert undisturbed["targets"] == [TARGET]
    assert done.stdout.splitlines()[-1].startswith(undisturbed["outcome"])
