"""README tables are generated from stored figures, and README holds exactly what the generator gives."""

import re
from pathlib import Path

import pytest

from tests.benchmarks import results
from tests.benchmarks.results import KEYS, record
from tests.benchmarks.tables import COMMANDS, MARK, SECTIONS, Column, cell, fill, markdown, render, shown

README = Path(__file__).resolve().parents[3] / "README.md"


def test_readme_holds_what_the_generator_gives():
    text = README.read_text(encoding="utf-8") if README.is_file() else ""
    if not MARK.search(text):
        pytest.skip("README.md has no table markers")
    assert fill(text) == text, "run: python -m tests.benchmarks.tables --write README.md"


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
