"""Markdown tables of RESULTS.md and README.md, generated from the stored figures.

    python -m tests.benchmarks.tables --write tests/benchmarks/RESULTS.md README.md

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; what is there is replaced.
"""

import argparse
import re
import sys
from pathlib import Path

from tests.benchmarks import results
from tests.benchmarks.audit_tables import AUDIT, GUARD, PEERS
from tests.benchmarks.density_table import admitted_side_by_side, density_finding
from tests.benchmarks.figures import ORACLE_COMMANDS, PHOTO_COMMANDS, WHOLE_SCAN
from tests.benchmarks.oracle_tables import PER_IMAGE, PROOF, QUALITY
from tests.benchmarks.repair_tables import REPAIR
from tests.benchmarks.results import Results, Row, Value
from tests.benchmarks.sections import Column, Section, Table
from tests.benchmarks.story_table import BEFORE_AFTER, before_after, found_of
from tests.benchmarks.sweep_tables import SWEEP
from tests.benchmarks.zoo_tables import DETECTORS, attacks, decisions, matrix, not_of_zoo, suspects

MARKED = re.compile(r"<!-- table:(?P<name>[\w-]+) -->\n(?P<old>.*?)<!-- /table:(?P=name) -->", re.DOTALL)
MARK = re.compile(r"<!-- (/?)table:([\w-]+) -->")

COMMANDS = {
    "attacks": PHOTO_COMMANDS,
    "detection": PHOTO_COMMANDS,
    "throughput": "python -m tests.benchmarks.throughput",
    "fuzz": "python -m tests.benchmarks.fuzz",
    "scale": "python -m tests.benchmarks.scale",
    "clean_models": "python -m tests.benchmarks.clean_models OUT --model NAME CHECKPOINT FORMAT PATH",
    "matching": "python -m tests.benchmarks.region_matching",
    "scan_224": "python -m tests.benchmarks.scan_224",
    "demo": "python -m tests.benchmarks.demo",
    "audit": "python -m tests.benchmarks.audit [--reference]",
    "audit_peers": "python -m tests.benchmarks.audit --peers",
    "audit_guard": "python -m tests.benchmarks.audit_guard",
    "naming": "python -m tests.benchmarks.naming SCAN...",
    "density": "python -m tests.benchmarks.density",
    "oracle": ORACLE_COMMANDS,
    "per_image": "python -m tests.benchmarks.per_image",
    "suspects": "python -m tests.benchmarks.suspects make WORK; python -m tests.benchmarks.suspects unpack FOLDER",
    "repair": "python -m tests.benchmarks.repair",
    "sweep": "python -m tests.benchmarks.sweep",
    "faults": "python -m tests.benchmarks.drills",
}


def _scans(rows: list[Row]) -> list[Row]:
    return [row for row in not_of_zoo(rows) if row["detector"] == WHOLE_SCAN]


def _poison_scans(rows: list[Row]) -> list[Row]:
    """The scans of the set that was poisoned, with its clean twin."""
    return [row for row in _scans(rows) if row["attack"] != "none"]


def _scanned(rows: list[Row]) -> list[Row]:
    """Without the models that were measured alone."""
    return [row for row in _scans(rows) if row.get("pairs") is not None]


def _format_scans(rows: list[Row]) -> list[Row]:
    return [row for row in _scans(rows) if row["attack"] == "none"]


def _detectors(rows: list[Row]) -> list[Row]:
    """Every detector, the one with the highest average precision first, cell by cell."""
    found = [row for row in not_of_zoo(rows) if row["detector"] != WHOLE_SCAN]
    cells = list(dict.fromkeys(_cell(row) for row in found))
    return sorted(found, key=lambda row: (cells.index(_cell(row)), -_number(row["average_precision"])))


def _admitted(rows: list[Row]) -> list[Row]:
    """Detectors on the highest and on the lowest rate of each attack whose ASR admits it."""
    found = [row for row in _detectors(rows) if row["admitted"]]
    rates: dict[Value, list[float]] = {}
    for row in found:
        rates.setdefault(row["attack"], []).append(_number(row["rate_pct"]))
    return [r for r in found if _number(r["rate_pct"]) in (max(rates[r["attack"]]), min(rates[r["attack"]]))]


def _cell(row: Row) -> tuple[Value, ...]:
    return tuple(row.get(field) for field in ("data", "attack", "rate_pct", "model", "seed"))  # type: ignore[return-value]


def _number(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else float("-inf")


ATTACK = (Column("attack", "attack"), Column("poison %", "rate_pct", 2))
DETECTOR = (
    Column("detector", "detector"),
    Column("AUROC", "auroc"),
    Column("average precision", "average_precision"),
    Column("recall % at 0.1 %", "recall_at_0_1_pct", 1),
    Column("recall % at 1 %", "recall_at_1_pct", 1),
    Column("recall % at 10 %", "recall_at_10_pct", 1),
)
MODEL_UNDER_ATTACK = (
    Column("clean accuracy %", "clean_accuracy_pct", 1),
    Column("ASR %", "asr_pct", 1),
    Column("accuracy under trigger %", "accuracy_under_trigger_pct", 1),
)
GROUPS = (Column("concepts named", "targets"),)
FLAGGED = (
    Column("pairs", "pairs"),
    Column("poisoned", "poisoned"),
    Column("flagged", "flagged"),
    Column("of these poisoned", "flagged_poisoned"),
)

ZOO = (Column("data", "data"), Column("image tower", "tower"), *ATTACK)

SECTIONS = {
    "zoo": Section(
        "attacks",
        (
            Table(
                (
                    *ZOO,
                    Column("seed", "seed"),
                    Column("poisoned pairs", "poisoned"),
                    *MODEL_UNDER_ATTACK,
                    Column("ASR % of the clean model", "clean_model_asr_pct", 1),
                    Column("ASR % after 300 benign steps", "rebound_asr_pct", 1),
                    Column("clean accuracy % then", "rebound_clean_accuracy_pct", 1),
                    Column("admitted", "admitted"),
                ),
                attacks,
            ),
        ),
    ),
    "zoo-detection": Section(
        "detection",
        (
            *(
                Table(
                    (*ZOO, Column("seeds", "seeds"), *(Column(f"{d}{unit}", f"{d}_{figure}") for d in DETECTORS)),
                    matrix(figure, controls=controls),
                    caption,
                )
                for figure, unit, controls, caption in (
                    ("auroc", "", True, "AUROC; on a control it must be about 0.5:"),
                    ("average_precision", "", False, "Average precision:"),
                    ("recall_at_1_pct", " %", False, "Recall within a review budget of 1 % of the pairs:"),
                )
            ),
            Table(
                (
                    *ZOO,
                    Column("seed", "seed"),
                    Column("poisoned", "poisoned"),
                    Column("flagged", "flagged"),
                    Column("of these poisoned", "flagged_poisoned"),
                    Column("concepts named", "targets"),
                ),
                decisions,
                "What each scan named and flagged by itself:",
            ),
        ),
    ),
    "audit": AUDIT,
    "audit-peers": PEERS,
    "audit-guard": GUARD,
    "naming": Section(
        "naming",
        (
            Table(
                (
                    Column("cell", "cell"),
                    Column("clean pairs kept %", "clean_pct", 0),
                    Column("poisoned pairs", "poisoned"),
                    Column("poison in the concept thinned to %", "concept_poisoned_pct", 0),
                    Column("subsets", "subsets"),
                    Column("target named in", "named"),
                    Column("wrong names", "wrong"),
                    Column("flagged", "flagged"),
                    Column("of these poisoned", "flagged_poisoned"),
                    Column("least gap of the target", "least_target_gap", 2),
                    Column("largest of another concept", "largest_other_gap", 2),
                ),
                lambda rows: rows,
            ),
        ),
    ),
    "attacks": Section(
        "attacks",
        (
            Table(
                (
                    *ATTACK,
                    Column("trigger shown", "trigger"),
                    Column("poisoned pairs", "poisoned"),
                    *MODEL_UNDER_ATTACK,
                    Column("ASR at least 90", "admitted"),
                ),
                not_of_zoo,
            ),
        ),
    ),
    "detection": Section(
        "detection",
        (
            Table((*ATTACK, *FLAGGED, *GROUPS), _poison_scans, "What each scan decided:"),
            Table(
                (*ATTACK, *DETECTOR),
                _admitted,
                "Every detector, at the highest and at the lowest poison rate at which the attack works:",
            ),
        ),
    ),
    "formats": Section(
        "detection",
        (
            Table(
                (
                    Column("data", "data"),
                    Column("format", "format"),
                    Column("pairs", "pairs"),
                    Column("rejected", "rejected"),
                    Column("flagged", "flagged"),
                    Column("concepts named", "targets"),
                    Column("seconds", "seconds", 0),
                ),
                _format_scans,
            ),
        ),
    ),
    "throughput": Section(
        "throughput",
        (
            Table(
                (
                    Column("method", "method"),
                    Column("pairs", "pairs"),
                    Column("runs", "runs"),
                    Column("pairs/s, median", "pairs_per_s", 0),
                    Column("lowest", "pairs_per_s_min", 0),
                    Column("highest", "pairs_per_s_max", 0),
                    Column("with start-up", "pairs_per_s_with_startup", 0),
                    Column("CPU ms a pair", "cpu_ms_per_pair", 2),
                    Column("ratio to the best plain loop", "ratio_to_plain_loop", 3),
                    Column("with start-up", "ratio_to_plain_loop_with_startup", 3),
                ),
                lambda rows: sorted(rows, key=lambda row: (row["model"], -_number(row["pairs_per_s"]))),
            ),
        ),
    ),
    "scale": Section(
        "scale",
        (
            Table(
                (
                    Column("pairs", "pairs"),
                    Column("oracle", "oracle"),
                    Column("workers", "workers"),
                    Column("CPU s", "cpu_s", 0),
                    Column("CPU s per 1,000", "cpu_s_per_1000", 2),
                    Column("of the driver", "driver_cpu_s", 0),
                    Column("wall s", "wall_s", 0),
                    Column("load", "load", 0),
                    Column("driver MiB", "driver_mib", 0),
                    Column("worker MiB", "worker_mib", 0),
                    Column("flagged", "flagged"),
                    Column("report MiB", "report_mib", 2),
                    Column("parsed in s", "report_parse_s", 2),
                ),
                lambda rows: sorted(rows, key=lambda row: (str(row["oracle"]), str(row["pairs"]).zfill(12))),
            ),
        ),
    ),
    "faults": Section(
        "faults",
        (
            Table(
                (
                    Column("fault", "fault"),
                    Column("how it was made", "tried"),
                    Column("outcome", "outcome"),
                    Column("bytes as undisturbed", "same_bytes"),
                    Column("seconds to recover", "recovery_s", 1),
                ),
                list,
            ),
        ),
    ),
    "fuzz": Section(
        "fuzz",
        (
            Table(
                (
                    Column("format", "format"),
                    Column("inputs", "inputs"),
                    Column("read", "read"),
                    Column("refused in one line", "refused"),
                    Column("failed", "failed"),
                    Column("pairs read", "pairs_read"),
                    Column("pairs rejected", "pairs_rejected"),
                    Column("CPU s, slowest", "slowest_s", 2),
                    Column("MiB, largest", "largest_mib", 0),
                ),
                list,
            ),
        ),
        lambda rows: (
            f"{sum(_number(row['inputs']) for row in rows):,.0f} inputs, "
            f"{sum(_number(row['failed']) for row in rows):,.0f} of which failed."
        ),
    ),
    "clean-models": Section(
        "clean_models",
        (
            Table(
                (
                    Column("clean model", "model"),
                    Column("clean pairs", "data"),
                    Column("pairs", "pairs"),
                    Column("concepts", "concepts"),
                    Column("stated rate %", "rate_pct", 0),
                    Column("named", "named"),
                    Column("which", "names"),
                    Column("flagged", "flagged"),
                    Column("smallest chance times concepts", "least_chance_times_concepts", 2),
                ),
                list,
            ),
        ),
        lambda rows: f"{len(rows)} clean models, {sum(_number(row['named']) for row in rows):.0f} concepts named.",
    ),
    "region-matching": Section(
        "matching",
        (
            Table(
                (
                    Column("images", "images"),
                    Column("image, px", "side_px"),
                    Column("patch, px", "patch_px"),
                    Column("patch", "patch"),
                    Column("found alike %", "alike_pct", 0),
                    Column("with every n-th row and column, to 64 px %", "strided_pct", 0),
                ),
                lambda rows: sorted(
                    rows, key=lambda row: (str(row["images"]), *map(_number, (row["side_px"], row["patch_px"])))
                ),
            ),
        ),
    ),
    "scan-224": Section(
        "scan_224",
        (
            Table(
                (
                    Column("photos", "images"),
                    Column("image, px", "side_px"),
                    Column("patch, px", "patch_px"),
                    Column("ASR on unseen photos %", "asr_pct", 1),
                    Column("named", "targets"),
                    Column("triggers proven", "triggers"),
                    Column("trigger found", "trigger"),
                    Column("overlap with the true one (IoU)", "iou", 2),
                    Column("flips %", "flips_pct", 1),
                    Column("control flips %", "control_pct", 1),
                ),
                list,
            ),
            Table(
                (
                    Column("pairs", "pairs"),
                    Column("poisoned", "poisoned"),
                    Column("flagged by the statistics", "flagged"),
                    Column("of these poisoned", "flagged_poisoned"),
                    Column("examined", "examined"),
                    Column("proven to carry a trigger", "proven"),
                    Column("of these poisoned", "proven_poisoned"),
                    Column("training, CPU s", "train_cpu_s"),
                    Column("scan, s", "seconds", 0),
                    Column("oracle, s", "examine_s", 0),
                    Column("proof, s", "prove_s", 0),
                    Column("search, s", "sweep_s", 0),
                ),
                list,
                "What it said of the pairs:",
            ),
        ),
    ),
    "before-after": Section("demo", (Table(BEFORE_AFTER, before_after),), found_of),
    "demo": Section(
        "demo",
        (
            Table((Column("attack", "attack"), *MODEL_UNDER_ATTACK), _scans),
            Table((Column("attack", "attack"), *FLAGGED, *GROUPS), _scanned, "What each scan decided:"),
            Table((Column("attack", "attack"), *DETECTOR), _detectors, "Every detector:"),
        ),
    ),
    "oracle-quality": QUALITY,
    "per-image": PER_IMAGE,
    "suspects": Section(
        "suspects",
        (
            Table(
                (
                    Column("data", "data"),
                    Column("image tower", "tower"),
                    Column("attack", "attack"),
                    Column("seed", "seed"),
                    Column("poisoned %", "rate_pct", 2),
                    Column("poisoned pairs", "poisoned"),
                    Column("of the concept %", "concept_poisoned_pct", 1),
                    Column("clean accuracy %", "clean_accuracy_pct", 1),
                    Column("ASR %", "asr_pct", 1),
                    Column("admitted", "admitted"),
                ),
                suspects,
            ),
        ),
    ),
    "proof": PROOF,
    "repair": REPAIR,
    "sweep": SWEEP,
    "density": Section(
        "density",
        (
            Table(
                (
                    *ATTACK,
                    Column("poisoned a block", "poisoned_per_block", 0),
                    Column("k", "k"),
                    Column("SLOF published", "slof_published"),
                    Column("rows aligned", "slof_rows"),
                    Column("ours", "slof_ours"),
                    Column("DAO published", "dao_published"),
                    Column("rows aligned", "dao_rows"),
                    Column("ours", "dao_ours"),
                    Column("k-distance published", "k_distance_published"),
                    Column("ours", "k_distance_ours"),
                ),
                admitted_side_by_side,
                "AUROC, mean of six random divisions into blocks, where the attack works:",
            ),
        ),
        density_finding,
    ),
}


def render(name: str, found: Results | None) -> str:
    """Return what stands between two markers, or a line that says how to get the figures.

    Raises:
        KeyError: there is no section of that name.
    """
    section = SECTIONS[name]
    chosen = [(table, table.choose(found.rows)) for table in section.tables] if found else []
    parts = [markdown(table, rows) for table, rows in chosen if rows]
    if found is None or not parts:
        return f"No figures yet: `{COMMANDS[section.results]}` measures them.\n"
    if section.finding:
        parts.append(section.finding(found.rows) + "\n")
    return "\n".join([*parts, _origin(found, [row for _, rows in chosen for row in rows])]) + "\n"


def markdown(table: Table, rows: list[Row]) -> str:
    """Return one table."""
    lines = [
        *([table.caption, ""] if table.caption else []),
        "| " + " | ".join(column.title for column in table.columns) + " |",
        "|" + "|".join("---:" if _is_numeric(column, rows) else "---" for column in table.columns) + "|",
        *("| " + " | ".join(cell(row, column) for column in table.columns) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def cell(row: Row, column: Column) -> str:
    """Return the text of one cell; a figure with an interval carries it."""
    value = row.get(column.field)
    interval = row.get(f"{column.field}_ci95")
    text = shown(value, column.digits)
    if value is not None and isinstance(interval, list):
        text += f" ({shown(interval[0], column.digits)} to {shown(interval[1], column.digits)})"
    return text


def shown(value: Value, digits: int) -> str:
    """Return a value as the tables print it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return str(value).replace("|", "\\|") or "none"


def fill(text: str, folder: Path = results.FOLDER) -> str:
    """Return a Markdown text with every marked table made anew.

    Raises:
        ValueError: a marker names no table, or has no counterpart.
    """
    names = [match["name"] for match in MARKED.finditer(text)]
    if len(MARK.findall(text)) != 2 * len(names):
        raise ValueError(
            "every <!-- table:NAME --> needs its <!-- /table:NAME --> on a later line, and no other between"
        )
    unknown = sorted(set(names) - SECTIONS.keys())
    if unknown:
        raise ValueError(f"no table {', '.join(unknown)}; there are {', '.join(SECTIONS)}")

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        table = render(name, results.load(SECTIONS[name].results, folder))
        return f"<!-- table:{name} -->\n{table}<!-- /table:{name} -->"

    return MARKED.sub(made, text)


def main() -> int:
    """Write the tables into a file, or show them all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="FILE.md", type=Path, nargs="+", help="Markdown files with table markers")
    paths = parser.parse_args().write
    if paths is None:
        for name, section in SECTIONS.items():
            sys.stdout.write(f"## {name}\n{render(name, results.load(section.results))}\n")
        return 0
    for path in paths:
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def _is_numeric(column: Column, rows: list[Row]) -> bool:
    return any(_number(row.get(column.field)) > float("-inf") for row in rows)


def _origin(found: Results, rows: list[Row]) -> str:
    machine = found.machine
    models = ", ".join(sorted({str(row["model"]) for row in rows if row.get("model")}))
    seeds = f"seed {', '.join(map(str, found.seeds))}" if found.seeds else ""
    what = "".join(f"{part}; " for part in (models, seeds) if part)
    return (
        f"Measured by `{found.command}` on {found.date}: {what}"
        f"{machine.cores} cores ({machine.cpu}), {machine.memory_gib:.0f} GiB; "
        f"torch {found.versions['torch']}, ray {found.versions['ray']}."
    )


if __name__ == "__main__":
    sys.exit(main())
