"""The bench's matrix, its fingerprints, its table and its page, with summaries written by hand in the place of the verbs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.bench import table as bench_table
from clipsan.pipeline.bench.attacks import merge
from clipsan.pipeline.bench.cell import Cell, Step
from clipsan.pipeline.bench.plan import Plan, make_plan
from clipsan.pipeline.bench.settings import BenchConfig
from clipsan.pipeline.bench.watch import CellEnd, run_cell
from clipsan.pipeline.core.commit import FingerprintError, write_text
from clipsan.pipeline.core.config import ConfigError, load
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.evaluation.detection import auroc
from clipsan.stages.report.bench import AttackLine, BenchReport, Measured, render
from clipsan.stages.sources import ParquetSource
from tests.conftest import NOUNS, picture


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    rows = {"image": [picture(i) for i in range(5)], "caption": [f"a {n}" for n in NOUNS], "label": list(range(5))}
    pq.write_table(pa.table(rows), folder / "pairs.parquet")
    return folder


@pytest.fixture
def settings(home: Path, tiny_checkpoint: Path, tmp_path: Path) -> BenchConfig:
    pairs = ParquetSource(path=str(home / "pairs.parquet"), label="label")
    return BenchConfig(
        data=pairs,
        attacks={"patch": {"rate": 0.2}},
        controls={"clean": {}, "identity": {"rate": 0.2}},
        target="kite",
        train={"model": {"path": str(tiny_checkpoint)}, "epochs": 2, "batch_size": 2, "lr": 1e-4},
        evaluate={"data": dataclasses.asdict(pairs), "classes": list(NOUNS), "templates": ["a {}"]},
        scan={"decision": {"kind": "threshold"}},
        out=str(tmp_path / "run"),
        tracking=TrackingConfig(enabled=False),
    )


def cell_of(plan: Plan, name: str) -> Cell:
    return next(cell for cell in plan.cells if cell.name == name)


def finish(step: Step | None, **summary: Any) -> None:
    """Leave behind what a finished step leaves."""
    assert step is not None
    write_text(step.fingerprint_file, step.fingerprint)
    write_text(step.folder / "summary.json", json.dumps({"seconds": 10.0, **summary}))


def test_the_matrix_is_attacks_and_controls_times_seeds(settings: BenchConfig) -> None:
    attacks = {"patch": {"seeds": [3, 4]}, "blend": {}}
    plan = make_plan(dataclasses.replace(settings, attacks=attacks, seeds=[0, 1]))
    assert [cell.name for cell in plan.cells] == [
        *("clean-s0", "clean-s1", "patch-s3", "patch-s4", "blend-s0", "blend-s1", "identity-s0", "identity-s1"),
    ]
    patch = cell_of(plan, "patch-s3")
    assert [step.name for step in patch.steps] == ["poison", "train", "evaluate", "scan"]
    assert patch.attack is not None
    assert (patch.attack.seed, patch.attack.target) == (3, "kite")
    poison, train, evaluate, scan = (step.settings for step in patch.steps)
    assert poison.copy_data is False
    assert train.data.path == scan.data.path == f"{poison.out}/plan.json"
    assert (train.seed, train.model, evaluate.model.path) == (3, train.model, f"{train.out}/checkpoint")
    assert scan.manifest == f"{poison.out}/manifest.parquet"
    assert evaluate.attack.trigger == patch.attack.trigger


def test_clean_is_tried_with_every_trigger_and_identity_takes_its_model(settings: BenchConfig) -> None:
    plan = make_plan(settings)
    clean, identity = cell_of(plan, "clean-s0"), cell_of(plan, "identity-s0")
    assert [step.name for step in clean.steps] == ["train", "evaluate", "evaluate-patch", "scan"]
    assert clean.steps[-1].settings.manifest is None
    assert [step.name for step in identity.steps] == ["poison", "evaluate", "scan"]
    assert identity.steps[-1].settings.model == clean.steps[-1].settings.model
    rebound = {**settings.evaluate, "rebound": {"steps": 5}}
    trying = make_plan(dataclasses.replace(settings, evaluate=rebound))
    steps = [step for cell in trying.cells for step in cell.steps if step.name.startswith("evaluate")]
    assert [step.folder.parent.name for step in steps if step.settings.rebound is not None] == ["patch-s0"]
    assert cell_of(trying, "patch-s0").steps[2].settings.rebound.data == settings.data
    # Where the image path changes pixels, the marked set is another one than the untouched one.
    resized = make_plan(dataclasses.replace(settings, image=dataclasses.replace(settings.image, resize_px=16)))
    assert cell_of(resized, "identity-s0").model_of == "identity-s0"
    alone = make_plan(dataclasses.replace(settings, controls={"identity": {"rate": 0.2}}))
    assert [step.name for step in cell_of(alone, "identity-s0").steps] == ["poison", "train", "evaluate", "scan"]


def test_an_attack_changes_what_it_names_of_its_file(settings: BenchConfig) -> None:
    found = load(
        BenchConfig,
        None,
        [
            *(f"data={{kind: parquet, path: {settings.data.path}, label: label}}", "target=kite", "controls={}"),
            "attacks={rare: {attack: blend, rate: 0.4, trigger: {alpha: 0.5}}, other: {attack: patch, trigger: sig}}",
            "attacks.rare.count=3",
            "attacks.rare.rate=null",
            f"train.model={settings.train['model']}",
            f"evaluate.data={{kind: parquet, path: {settings.data.path}, label: label}}",
            f"evaluate.classes={list(NOUNS)}",
            f"out={settings.out}",
        ],
        verb="bench",
    )
    rare, other = (cell.attack for cell in make_plan(found).cells)
    assert rare is not None
    assert other is not None
    assert (rare.trigger.kind, rare.trigger.alpha, rare.count, rare.rate) == ("blend", 0.5, 3, None)
    assert (other.trigger.kind, other.rate) == ("sig", 0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": {"pach": {}}}, "no pach.yaml in conf/attack"),
        ({"attacks": {"patch": {"raet": 0.1}}}, "in attacks.patch: raet: unknown key; did you mean rate?"),
        ({"attacks": {"patch": {"seed": 1}}}, "attacks.patch.seed"),
        ({"attacks": {"patch": {"seeds": []}}}, "patch.seeds: needs a list"),
        ({"target": None}, "in attacks.patch: target: is required"),
        ({"target": "zebra"}, "'zebra' names 0 of the 5 classes"),
        ({"controls": {"patch-noise": {}}}, "so it is an attack"),
        ({"train": {"epochs": 1, "batch_size": 2, "lr": 1.0, "model": {"name": "x"}, "epoch": 2}}, "in train: epoch"),
        ({"scan": {"decision": {"kind": "magic"}}}, "in scan: decision"),
        ({"scan": {}}, "in scan: decision: is required"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    settings: BenchConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=r"(?s).*") as caught:
        make_plan(dataclasses.replace(settings, **changes))
    assert message in str(caught.value)


def test_rules_of_the_settings(settings: BenchConfig) -> None:
    for changes, rule in (
        ({"min_asr_pct": 120}, "min_asr_pct must be at most 100"),
        ({"cells": 0}, "cells must be at least 1"),
        ({"attacks": {"clean": {}}}, "clean is a control"),
        ({"train": {"seed": 3}}, "train: seed is filled in"),
    ):
        with pytest.raises(ValueError, match=rule):
            dataclasses.replace(settings, **changes)


def test_merging_keeps_what_is_not_named_and_replaces_other_kinds() -> None:
    base = {"trigger": {"kind": "patch", "cells": 4, "place": "center"}, "rate": 0.1}
    assert merge(base, {"trigger": {"cells": 2}}) == {
        **base,
        "trigger": {"kind": "patch", "cells": 2, "place": "center"},
    }
    assert merge(base, {"trigger": {"kind": "sig", "delta": 9}})["trigger"] == {"kind": "sig", "delta": 9}


def test_a_step_is_done_when_its_fingerprint_fits_and_its_summary_is_there(settings: BenchConfig) -> None:
    patch = cell_of(make_plan(settings), "patch-s0")
    names = ["poison", "train", "evaluate", "scan"]
    for number, step in enumerate(patch.steps[:2]):
        assert [s.name for s in patch.left(90)] == names[number:]
        finish(step)
    write_text(patch.steps[2].fingerprint_file, patch.steps[2].fingerprint)  # begun, not finished
    assert [s.name for s in patch.left(90)] == names[2:]
    finish(patch.steps[2], evaluation={"asr_pct": 60.0})
    assert patch.left(90) == []
    assert [s.name for s in patch.left(50)] == ["scan"]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"seeds": [0, 1]}, None),
        ({"cells": 3, "min_asr_pct": 10}, None),
        ({"scan": {"decision": {"kind": "budget"}}}, "patch-s0/scan"),
        ({"evaluate": {"batch_size": 3}}, "patch-s0/evaluate"),
        ({"train": {"epochs": 3}}, "patch-s0/train"),
        ({"attacks": {"patch": {"rate": 0.4}}}, "patch-s0/poison"),
    ],
)
def test_a_changed_setting_refuses_the_steps_that_it_decides(
    settings: BenchConfig, changes: dict[str, Any], refused: str | None
) -> None:
    for step in cell_of(make_plan(settings), "patch-s0").steps:
        finish(step)
    merged = {
        name: {**getattr(settings, name), **value} if name in ("scan", "evaluate", "train") else value
        for name, value in changes.items()
    }
    if refused is None:
        patch = cell_of(make_plan(dataclasses.replace(settings, **merged)), "patch-s0")
        assert all(step.done for step in patch.steps)
        return
    with pytest.raises(FingerprintError, match=f"{refused} was made with other settings"):
        make_plan(dataclasses.replace(settings, **merged))


def scan_summary(shift: float, targets: list[str]) -> dict[str, Any]:
    figures = {
        "auroc": 0.9 + shift,
        "average_precision": 0.5,
        "fpr95": 0.1,
        "recall_at": {"0.001": 0.05, "0.01": 0.5, "0.1": 1.0},
        "precision_at": {"0.001": 1.0, "0.01": 0.5, "0.1": 0.1},
    }
    return {
        "counts": {"pairs_in": 100, "flagged": 4},
        "targets": targets,
        "poisoned_flagged": 3,
        "detection": {"ensemble": figures, "dao": figures},
        "report": "r",
    }


def finished(settings: BenchConfig) -> Plan:
    """Two seeds of patch (one refused), a blend without summaries, clean, and an identity control off chance."""
    plan = make_plan(
        dataclasses.replace(settings, attacks={"patch": {"rate": 0.2, "seeds": [0, 1]}, "blend": {"rate": 0.2}})
    )
    for name, asr, shift in (("patch-s0", 95.0, 0.05), ("patch-s1", 40.0, 0.0), ("identity-s0", 20.0, -0.2)):
        cell = cell_of(plan, name)
        evaluation = {"clean_accuracy_pct": 50.0, "asr_pct": asr, "asr_pct_ci95": [asr - 1, asr + 1], "target": "kite"}
        for step in cell.steps:
            finish(
                step,
                evaluation=evaluation,
                **(
                    scan_summary(shift, ["kites", "moon"])
                    if step.name == "scan"
                    else {"counts": {"pairs_in": 100, "poisoned": 20}}
                ),
            )
    for step in cell_of(plan, "clean-s0").steps:
        clean = {"counts": {"pairs_in": 100, "flagged": 0}, "targets": [], "report": "r"}
        finish(step, evaluation={"clean_accuracy_pct": 51.0, "asr_pct": 7.0}, **(clean if step.name == "scan" else {}))
    return plan


def test_the_table_has_a_row_a_cell_and_detector(settings: BenchConfig) -> None:
    plan = finished(settings)
    rows = bench_table.rows(plan, {"blend-s0": "ValueError: no"})
    assert [(r["attack"], r["seed"], r["detector"], r["admitted"]) for r in rows] == [
        ("clean", 0, None, None),
        ("patch", 0, "ensemble", True),
        ("patch", 0, "dao", True),
        ("patch", 1, None, False),
        ("blend", 0, None, None),
        ("identity", 0, "ensemble", None),
        ("identity", 0, "dao", None),
    ]
    row = rows[1]
    assert (row["rate_pct"], row["poisoned"], row["clean_model_asr_pct"]) == (20.0, 20, 7.0)
    assert (row["asr_low_pct"], row["asr_high_pct"], row["recall_at_1_pct"]) == (94.0, 96.0, 50.0)
    assert (row["named"], row["target_named"], row["wrong_targets"]) == ("kites, moon", True, 1)
    assert rows[3]["advice"].startswith("raise attacks.patch.rate (now 0.2), train.epochs (now 2)")
    assert rows[4]["error"] == "ValueError: no"
    assert (rows[5]["target_named"], rows[5]["wrong_targets"]) == (None, 2)
    assert len({tuple(r) for r in rows}) == 1


def test_summary_and_screen_say_what_is_refused_failed_and_off_chance(settings: BenchConfig) -> None:
    plan = finished(settings)
    errors = {"blend-s0": "ValueError: no"}
    rows = bench_table.rows(plan, errors)
    summary = bench_table.summary(plan, rows, errors) | {"seconds": 3.0, "report": "r.html"}
    assert summary["counts"] == {"cells": 5, "admitted": 1, "refused": 1, "control": 2, "failed": 1, "unfinished": 0}
    assert summary["detection"]["patch"]["dao"]["auroc"] == pytest.approx(0.95)
    assert summary["detection"]["patch"]["dao"]["seeds"] == 1
    assert [off["detector"] for off in summary["controls_off_chance"]] == ["ensemble", "dao"]
    said = bench_table.screen(summary)
    assert "patch-s1 refused: ASR 40.0 % is under 90 %; raise attacks.patch.rate" in said
    assert "blend-s0 FAILED: ValueError: no" in said
    assert "AUROC of dao is 0.700, outside 0.45..0.55" in said


def test_the_files_hold_the_rows_and_are_the_same_each_time(settings: BenchConfig, tmp_path: Path) -> None:
    rows = bench_table.rows(finished(settings), {})
    stored = []
    for _ in range(2):
        bench_table.write(tmp_path, rows)
        stored.append([(tmp_path / name).read_bytes() for name in bench_table.FILES])
    assert stored[0] == stored[1]
    assert (
        pq.read_table(tmp_path / "table.parquet").to_pylist()
        == rows
        == json.loads((tmp_path / "table.json").read_text())
    )


def test_the_spread_of_chance_is_that_of_random_scores() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(200) < 20
    drawn = [auroc(rng.random(200), truth) for _ in range(2000)]
    assert np.std(drawn) == pytest.approx(bench_table.chance_sd(20, 200), rel=0.05)


def test_a_plan_says_what_is_done_and_how_long_the_rest_takes(settings: BenchConfig) -> None:
    plan = finished(settings)
    said = plan.describe()
    assert "patch-s0" in said
    assert "poison (done), train (done), evaluate (done), scan (done)" in said
    assert "blend on 20 % towards kite: poison, train, evaluate, scan" in said
    assert "identity on 20 %: poison (done), evaluate (done), scan (done); model of clean-s0" in said
    assert plan.estimate(plan.cells) == pytest.approx(40.0)
    assert plan.estimate([cell_of(plan, "patch-s0")]) is None


def test_a_cell_whose_model_failed_elsewhere_says_so(settings: BenchConfig, tmp_path: Path) -> None:
    cell = cell_of(make_plan(settings), "identity-s0")
    ended = run_cell(cell, tmp_path / "log.txt", 90.0, CellEnd("clean-s0", "ValueError: diverged"))
    assert ended.error == "ConfigError: its model is that of clean-s0, which failed"
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def measured(*values: float) -> Measured:
    return Measured(auroc=values, average_precision=values, recall_1=values)


def test_the_page_shows_the_matrix_and_escapes_names() -> None:
    lines = (
        AttackLine(name="<b>patch", seed=0, control=False, state="admitted", clean_accuracy_pct=60.0, asr_pct=99.0),
        AttackLine(
            name="sig", seed=0, control=False, state="refused", clean_accuracy_pct=61.0, asr_pct=30.0, note="raise rate"
        ),
        AttackLine(name="resize", seed=0, control=True, state="control", clean_accuracy_pct=60.0, asr_pct=3.0),
    )
    report = BenchReport(
        title="two attacks",
        min_asr_pct=90,
        lines=lines,
        detectors=("ensemble", "dao"),
        matrix={
            "<b>patch": {"ensemble": measured(0.9, 1.0), "dao": measured(0.3)},
            "resize": {"ensemble": measured(0.7)},
        },
        curves={"<b>patch": {"dao": np.array([[0.0, 0.0], [0.1, 0.5], [1.0, 1.0]])}},
    )
    page = render(report)
    assert page == render(report)
    assert "<b>patch" not in page
    assert "&lt;b&gt;patch" in page
    assert 'title="2 seeds: 0.900 to 1.000">0.950</td>' in page
    assert "var(--good) 50%" in page  # AUROC .95: nine tenths of the way from chance, times .55
    assert "var(--bad) 22%" in page  # AUROC .3 on an attack
    assert "var(--bad) 45%" in page  # a control at .7
    assert "raise rate" in page
    for outside in ('src="http', 'href="http', "<script", "@import", "url("):
        assert outside not in page
