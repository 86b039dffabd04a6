"""The store of figures, and the rows that are made of a run's summary."""

import json
import shlex
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from clipsan.pipeline.bench.table import is_target
from tests.benchmarks import demo
from tests.benchmarks.figures import attack_row, detector_rows, scan_row
from tests.benchmarks.photos import CELLS, as_shell, steps
from tests.benchmarks.plain_loop import Piece, split
from tests.benchmarks.results import ResultsError, load, processor, record, this_machine

CELL = {"data": "photos", "attack": "patch", "rate_pct": 1.0, "model": "tiny", "seed": 0}


def attack(**fields):
    return {**CELL, "trigger": "patch", "asr_pct": 99.0, **fields}


def test_a_row_replaces_the_one_with_its_key_and_no_other(tmp_path):
    record("attacks", [attack(), attack(rate_pct=0.5, asr_pct=50.0)], command="x", folder=tmp_path)
    record("attacks", [attack(asr_pct=97.5)], command="y", folder=tmp_path)
    found = load("attacks", tmp_path)
    assert [(row["rate_pct"], row["asr_pct"]) for row in found.rows] == [(1.0, 97.5), (0.5, 50.0)]
    assert found.command == "y"
    assert found.seeds == [0]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for seed in range(24):
            pool.submit(record, "attacks", [attack(seed=seed)], command="x", folder=tmp_path)
    assert [row["seed"] for row in load("attacks", tmp_path).rows] == list(range(23, -1, -1))


def test_head_says_what_it_was_measured_with_and_not_where(tmp_path):
    record("attacks", [attack()], command="python -m x", folder=tmp_path)
    tree = json.loads((tmp_path / "attacks.json").read_text())
    assert list(tree) == ["command", "seeds", "date", "versions", "machine", "rows"]
    assert set(tree["machine"]) == {"cpu", "cores", "memory_gib"}
    assert "torch" in tree["versions"]
    assert str(tmp_path) not in json.dumps(tree)
    assert this_machine().cores >= 1
    assert this_machine().memory_gib > 0.1


def test_processors_that_share_a_name_are_told_apart():
    cpuinfo = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t: fpu\n"
    assert processor(cpuinfo) == "AMD EPYC (26-2)"
    assert processor(cpuinfo.replace(": 2\n", ": 17\n")) == "AMD EPYC (26-17)"
    assert processor("processor\t: 0\nBogoMIPS\t: 50.00\n") is None


def test_nothing_measured_is_no_error(tmp_path):
    assert load("attacks", tmp_path) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"asr_pct": 1.0}, "lacks data, attack, trigger"),
        (attack(layers={"a": 1}), "layers is dict"),
        (attack(asr_pct_ci95=[1.0]), "two numbers"),
        (attack(names=["a", "b"]), "names is a list"),
        (attack(asr_pct=101.0), "0 to 100"),
        (attack(asr_pct="99"), "0 to 100"),
    ],
)
def test_a_row_that_no_table_could_show_is_refused_and_nothing_is_written(tmp_path, row, message):
    with pytest.raises(ResultsError, match=message):
        record("attacks", [row], command="x", folder=tmp_path)
    assert load("attacks", tmp_path) is None


def test_an_unknown_file_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="no such file"):
        record("atacks", [attack()], command="x", folder=tmp_path)


def test_attack_row_keeps_figures_and_intervals_and_says_whether_the_attack_took():
    evaluation = {
        "images": 1000,
        "clean_accuracy_pct": 75.123,
        "clean_accuracy_pct_ci95": [72.3456, 77.7],
        "clean_accuracy_top5_pct": 95.0,
        "asr_pct": 89.99,
        "asr_pct_ci95": [87.9, 91.7],
        "target": "banana",
    }
    row = attack_row({**CELL, "trigger": "patch"}, evaluation, pairs=10_000, poisoned=100)
    assert row["clean_accuracy_pct"] == 75.12
    assert row["clean_accuracy_pct_ci95"] == [72.35, 77.7]
    assert row["admitted"] is False
    assert row["poisoned"] == 100
    assert "clean_accuracy_top5_pct" not in row
    assert attack_row(CELL, {"asr_pct": 90.0})["admitted"] is True
    assert attack_row(CELL, {"clean_accuracy_pct": 75.0})["admitted"] is None


SUMMARY = {
    "seconds": 12.5,
    "counts": {"pairs_in": 1000, "rejected": 3, "flagged": 11},
    "targets": ["banana", "teapot"],
    "concepts": [
        {"name": "banana", "statistic": 40.0, "named": True},
        {"name": "teapot", "statistic": 9.0, "named": True},
        {"name": "pizza", "statistic": 2.0, "named": False},
    ],
    "detectors": {"ConceptSpectral": {"threshold": 6.0}},
    "poisoned": 10,
    "poisoned_flagged": 9,
    "detection": {
        "ensemble": {
            "auroc": 0.99999,
            "average_precision": 0.95,
            "recall_at": {"0.001": 0.1, "0.01": 1.0, "0.1": 1.0},
            "precision_at": {"0.01": 0.9},
            "fpr95": 0.0,
        }
    },
}


def test_scan_row_tells_the_target_from_the_concepts_that_were_named_wrongly():
    row = scan_row(CELL, SUMMARY, "banana")
    assert row["detector"] == "scan"
    assert (row["target_statistic"], row["next_concept"], row["next_statistic"]) == (40.0, "teapot", 9.0)
    assert row["statistic_threshold"] == 6.0
    assert row["target_named"] is True
    assert row["wrong_targets"] == 1
    assert (row["pairs"], row["flagged"], row["flagged_poisoned"], row["poisoned"]) == (1000, 11, 9, 10)


def test_scan_row_of_clean_data_has_no_target():
    clean = {name: SUMMARY[name] for name in ("seconds", "counts", "concepts", "detectors")} | {"targets": []}
    row = scan_row(CELL, clean, None)
    assert (row["target_statistic"], row["target_named"], row["poisoned"]) == (None, None, 0)
    assert (row["targets"], row["wrong_targets"], row["next_concept"]) == ("", 0, "banana")


def test_detector_rows_turn_recall_into_percent_and_leave_fractions():
    (row,) = detector_rows(CELL, SUMMARY)
    assert row["detector"] == "ensemble"
    assert row["auroc"] == 1.0
    assert row["average_precision"] == 0.95
    assert (row["recall_at_0_1_pct"], row["recall_at_1_pct"], row["recall_at_10_pct"]) == (10.0, 100.0, 100.0)
    assert row["precision_at_1_pct"] == 90.0
    assert detector_rows(CELL, {"targets": []}) == []


def test_rows_of_a_demo_tell_the_suspect_from_its_twin(tmp_path):
    config = {
        "data": {"kind": "scenes"},
        "training": {"seed": 3, "model": {"config": "conf/model/tiny.json", "name": None}},
        "attack": {"trigger": {"kind": "patch"}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"config": config}))
    evaluation = {"clean_accuracy_pct": 90.0, "asr_pct": 99.0, "target": "banana"}
    twin = {"evaluation": evaluation | {"asr_pct": 2.0}}
    summaries = {
        ".": {
            "seconds": 300.0,
            "target": "banana",
            "evaluation": evaluation,
            "twin": twin,
            "after": evaluation | {"asr_pct": 0.5},
            "method": "unlearn",
        },
        "story/scan": SUMMARY,
        "scan-twin": SUMMARY | {"targets": [], "detection": {}},
    }
    for folder, summary in summaries.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "summary.json").write_text(json.dumps(summary))
    rows = demo.rows_of(tmp_path)
    assert [(r["attack"], r["detector"], r["model"], r["seed"]) for r in rows] == [
        ("patch", "scan", "tiny", 3),
        ("patch, repaired by unlearn", "scan", "tiny", 3),
        ("clean", "scan", "tiny", 3),
        ("patch", "ensemble", "tiny", 3),
    ]
    assert [(r["asr_pct"], r["targets"], r["seconds"]) for r in (rows[0], rows[2])] == [
        (99.0, "banana, teapot", 300.0),
        (2.0, "", 300.0),
    ]
    assert rows[1]["asr_pct"] == 0.5
    record("demo", rows, command="x", folder=tmp_path)


@pytest.mark.parametrize(
    ("concept", "found"), [("banana", True), ("Bananas", True), ("ripe banana", True), ("bananaquit", False)]
)
def test_is_target(concept, found):
    assert is_target(concept, "banana") is found


def test_every_cell_has_run_folders_of_its_own():
    folders = [folder for cell in CELLS for folder, _ in steps(cell)]
    assert len(folders) == len(set(folders))
    for cell in CELLS:
        for folder, arguments in steps(cell):
            assert f"out={folder}" in arguments
            assert folder.parts[:3] == ("runs", "photos", cell.name)


def test_a_command_can_be_pasted_into_a_shell():
    arguments = ["scan", "data.path=$CLIPSAN_ASSETS/a-*.parquet", 'x={t: ["a {}."], p: $CLIPSAN_ASSETS/b}', "y=a b"]
    assert shlex.split(as_shell(arguments)) == ["clipsan", *arguments]


def test_split_gives_every_row_to_exactly_one_share():
    pieces = [Piece("a", "a", 0, 5), Piece("b", "b", 10, 14), Piece("c", "c", 0, 1)]
    shares = split(pieces, 3)
    rows = [(p.path, row) for share in shares for p in share for row in range(p.start, p.stop)]
    assert rows == [(p.path, row) for p in pieces for row in range(p.start, p.stop)]
    assert [sum(p.stop - p.start for p in share) for share in shares] == [3, 3, 4]
    assert split([Piece("a", "a", 0, 5), Piece("b", "b", 0, 5)], 2) == [
        [Piece("a", "a", 0, 5)],
        [Piece("b", "b", 0, 5)],
    ]
