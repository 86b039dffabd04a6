"""Tables are generated from stored figures, and RESULTS.md and README.md hold exactly what the generator gives."""

import re
import sys
from pathlib import Path

import pytest

from tests.benchmarks import results
from tests.benchmarks.results import KEYS, record
from tests.benchmarks.tables import (
    COMMANDS,
    MARK,
    MARKED,
    SECTIONS,
    Column,
    cell,
    fill,
    main,
    markdown,
    render,
    shown,
)

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = (ROOT / "README.md", ROOT / "tests" / "benchmarks" / "RESULTS.md")
COMMAND = "python -m tests.benchmarks.tables --write tests/benchmarks/RESULTS.md README.md"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_holds_what_the_generator_gives(path):
    text = path.read_text(encoding="utf-8")
    assert MARK.search(text)
    assert fill(text) == text, f"run: {COMMAND}"


def test_every_table_stands_in_a_document_and_in_one_alone():
    named = [match["name"] for path in DOCUMENTS for match in MARKED.finditer(path.read_text(encoding="utf-8"))]
    assert sorted(named) == sorted(SECTIONS)


def test_the_command_that_writes_them_is_the_one_that_they_name(tmp_path, monkeypatch):
    assert COMMAND in DOCUMENTS[1].read_text(encoding="utf-8")
    paths = [tmp_path / path.name for path in DOCUMENTS]
    for path in paths:
        path.write_text("<!-- table:demo -->\nold\n<!-- /table:demo -->\n")
    monkeypatch.setattr(sys, "argv", ["tables", "--write", *map(str, paths)])
    assert main() == 0
    assert all("old" not in path.read_text() and "| clean |" in path.read_text() for path in paths)


def demo(attack, detector="scan", **fields):
    return {"data": "scenes", "model": "demo", "seed": 0, "attack": attack, "detector": detector, **fields}


def test_the_lines_before_and_after_are_those_of_the_suspect_and_of_the_repaired_model(tmp_path):
    figures = {"asr_pct": 99.0, "accuracy_under_trigger_pct": 5.0, "clean_accuracy_pct": 90.0}
    rows = [
        demo("clean", pairs=40, poisoned=0, flagged=0, **figures),
        demo("patch", pairs=40, poisoned=4, flagged=5, flagged_poisoned=3, **figures, asr_pct_ci95=[98.0, 99.5]),
        demo("patch", "dao", auroc=0.5),
        demo("patch, repaired by unlearn", asr_pct=1.0, accuracy_under_trigger_pct=80.0, clean_accuracy_pct=89.0),
    ]
    text = render("before-after", record("demo", rows, command="python -m x", folder=tmp_path))
    assert "that become the target | 99.0 (98.0 to 99.5) | 1.0 |" in text
    assert "| 90.0 | 89.0 |" in text
    assert "Of 40 pairs, 4 of them poisoned, the scan flags 5, 3 of them poisoned; of 40 pairs, none" in text
    assert "python -m x" in text
    unrepaired = record("demo", rows[:3], command="python -m x", folder=tmp_path / "unrepaired")
    assert render("before-after", unrepaired).startswith("No figures yet")


def test_stored_figures_have_the_shape_of_results():
    for path in results.FOLDER.glob("*.json"):
        assert results.load(path.stem).rows


def test_every_share_of_every_table_is_headed_as_percent_and_nothing_else_is():
    for column in (column for section in SECTIONS.values() for table in section.tables for column in table.columns):
        assert ("%" in column.title) == column.field.endswith("_pct"), column


def test_every_section_is_made_of_a_known_file_with_a_command():
    assert {section.results for section in SECTIONS.values()} == set(KEYS) == set(COMMANDS)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 1, "-"),
        (True, 1, "yes"),
        (False, 1, "no"),
        (12345, 1, "12,345"),
        (99.96, 1, "100.0"),
        (0.98765, 3, "0.988"),
        ("a|b", 1, "a\\|b"),
        ("", 1, "none"),
    ],
)
def test_shown(value, digits, text):
    assert shown(value, digits) == text


def test_a_figure_carries_its_interval():
    row = {"asr_pct": 94.04, "asr_pct_ci95": [92.3, 95.36]}
    assert cell(row, Column("ASR %", "asr_pct", 1)) == "94.0 (92.3 to 95.4)"
    assert cell({"asr_pct": None}, Column("ASR %", "asr_pct", 1)) == "-"
    assert cell({}, Column("ASR %", "asr_pct", 1)) == "-"


def detection(detector, **fields):
    key = {"data": "photos", "attack": "patch", "rate_pct": 1.0, "model": "tiny", "seed": 0, "admitted": True}
    figures = {"auroc": 0.5, "average_precision": 0.1, "recall_at_0_1_pct": 1.0, "recall_at_1_pct": 2.25}
    return {**key, "detector": detector, **figures, **fields}


def test_detectors_are_listed_by_average_precision_at_the_ends_of_the_admitted_rates(tmp_path):
    rows = [
        detection("dao"),
        detection("ensemble", average_precision=0.99),
        detection("scan"),
        detection("dao", rate_pct=0.5),
        detection("dao", rate_pct=0.3),
        detection("dao", rate_pct=0.2, admitted=False),
    ]
    found = record("detection", rows, command="python -m x", folder=tmp_path)
    text = render("detection", found)
    assert text.endswith(".\n")
    assert "python -m x" in text
    lines = text[text.index("Every detector") :].splitlines()
    body = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("| patch")]
    assert [row[:3] for row in body] == [
        ["patch", "1.00", "ensemble"],
        ["patch", "1.00", "dao"],
        ["patch", "0.30", "dao"],
    ]
    assert body[0][3:] == ["0.500", "0.990", "1.0", "2.2", "-"]


@pytest.mark.parametrize("name", SECTIONS)
def test_a_row_with_nothing_but_its_key_fills_a_line_of_every_table(name):
    for table in SECTIONS[name].tables:
        row = dict.fromkeys(KEYS[SECTIONS[name].results], "x")
        lines = markdown(table, [row]).splitlines()
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}
        assert widths == {len(table.columns) + 1}
        assert len([line for line in lines if line.startswith("|")]) == 3


def test_without_figures_the_table_says_how_to_get_them(tmp_path):
    text = fill("a\n<!-- table:throughput -->\nold\n<!-- /table:throughput -->\nb\n", tmp_path)
    assert text == (
        "a\n<!-- table:throughput -->\nNo figures yet: `python -m tests.benchmarks.throughput` measures them.\n"
        "<!-- /table:throughput -->\nb\n"
    )
    assert fill(text, tmp_path) == text


@pytest.mark.parametrize(
    "text",
    [
        "<!-- table:throughput -->\nnever closed\n",
        "<!-- table:throughput -->\n<!-- /table:demo -->\n",
        "<!-- table:thruput -->\n<!-- /table:thruput -->\n",
    ],
)
def test_a_wrong_marker_is_an_error(tmp_path, text):
    with pytest.raises(ValueError, match="table"):
        fill(text, tmp_path)
