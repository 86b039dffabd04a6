"""The table of `clipsan bench`, out of the summaries that its steps left; the same files give the same table, byte for byte.

One row a cell and detector, the figures of the cell repeated in each. A cell without detection (refused, failed, clean, or not
finished) has one row, its detector null. Times are not in the table but in summary.json: they differ from run to run.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipsan.stages.captions import contains_word

from ..core.commit import fingerprint, whole, write_text
from .cell import Cell
from .plan import Plan
from .settings import CLEAN

Row = dict[str, Any]

FILES = ("table.parquet", "table.json")

BUDGETS = {"0.001": "0_1", "0.01": "1", "0.1": "10"}
"""Review budget as summary.json names it -> in percent, as the columns do."""
CHANCE = (0.45, 0.55)
"""AUROC between which a detector must stay on a control."""

CELL_COLUMNS = {
    "attack": pa.string(),
    "control": pa.bool_(),
    "seed": pa.int64(),
    "trigger": pa.string(),
    "target": pa.string(),
    "rate_pct": pa.float64(),
    "pairs": pa.int64(),
    "poisoned": pa.int64(),
    "admitted": pa.bool_(),
    "advice": pa.string(),
    "error": pa.string(),
    "clean_model_asr_pct": pa.float64(),
    "flagged": pa.int64(),
    "flagged_poisoned": pa.int64(),
    "named": pa.string(),
    "target_named": pa.bool_(),
    "wrong_targets": pa.int64(),
}
DETECTOR_COLUMNS = {
    "detector": pa.string(),
    "auroc": pa.float64(),
    "auroc_chance_sd": pa.float64(),
    "average_precision": pa.float64(),
    **{f"{measure}_at_{b}_pct": pa.float64() for measure in ("recall", "precision") for b in BUDGETS.values()},
    "fpr95": pa.float64(),
}


def rows(plan: Plan, errors: Mapping[str, str]) -> list[Row]:
    """Return the table: cells in the order of the matrix, detectors in that of the scan, missing figures as null.

    `errors` maps cells that failed to what stopped them.
    """
    made = [row for cell in plan.cells for row in _cell_rows(plan, cell, errors.get(cell.name))]
    figures = sorted({name for row in made for name in row} - CELL_COLUMNS.keys() - DETECTOR_COLUMNS.keys())
    names = [*CELL_COLUMNS, *figures, *DETECTOR_COLUMNS]
    return [{name: row.get(name) for name in names} for row in made]


def _cell_rows(plan: Plan, cell: Cell, error: str | None) -> list[Row]:
    row: Row = {"attack": cell.attack_name, "control": cell.control, "seed": cell.seed, "error": error}
    if cell.attack is not None:
        row |= {
            "trigger": ", ".join(dict.fromkeys(strand.trigger.kind for strand in cell.attack.strands)),
            "target": None if cell.control else ", ".join(cell.attack.targets),
            "rate_pct": None if cell.attack.rate is None else _rounded(100 * cell.attack.rate),
        }
    poisoned, evaluated, scanned = (cell.summary(name) for name in ("poison", "evaluate", "scan"))
    if poisoned is not None:
        counts = poisoned["counts"]
        share = 100 * counts["poisoned"] / counts["pairs_in"]
        row |= {"pairs": counts["pairs_in"], "poisoned": counts["poisoned"], "rate_pct": _rounded(share)}
    if evaluated is not None:
        row |= _flat(evaluated["evaluation"])
        row["clean_model_asr_pct"] = _clean_model_asr_pct(plan, cell)
    row["admitted"] = None if cell.control or evaluated is None else cell.is_admitted(plan.config.min_asr_pct)
    row["advice"] = advice(plan, cell) if row["admitted"] is False else None
    if scanned is None or row["admitted"] is False:
        return [row]
    row |= _decision(cell, scanned)
    detection = scanned.get("detection") or {}
    return [row | _detector_row(name, found, row) for name, found in detection.items()] or [row]


def _flat(evaluation: Mapping[str, Any]) -> Row:
    """Return the numbers of an evaluation as columns; `NAME_pct_ci95` becomes NAME_low_pct and NAME_high_pct."""
    flat: Row = {}
    for name, value in evaluation.items():
        if name.endswith("_ci95"):
            stem, unit = name.removesuffix("_ci95"), ""
            if stem.endswith("_pct"):
                stem, unit = stem.removesuffix("_pct"), "_pct"
            flat |= {f"{stem}_{end}{unit}": float(v) for end, v in zip(("low", "high"), value, strict=True)}
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[name] = float(value)
        elif isinstance(value, Mapping):
            flat |= {f"{name}_{key}": figure for key, figure in _flat(value).items()}
    return {name: value for name, value in flat.items() if name not in CELL_COLUMNS}


def _decision(cell: Cell, scanned: Mapping[str, Any]) -> Row:
    """What the scan as a whole decided."""
    named = scanned["targets"]
    wanted = () if cell.attack is None or cell.control else cell.attack.targets
    right = [name for name in named if any(is_target(name, target) for target in wanted)]
    found = [target for target in wanted if any(is_target(name, target) for name in named)]
    return {
        "pairs": scanned["counts"]["pairs_in"],
        "flagged": scanned["counts"]["flagged"],
        "flagged_poisoned": scanned.get("poisoned_flagged"),
        "named": ", ".join(named),
        "target_named": len(found) == len(wanted) if wanted else None,
        "wrong_targets": len(named) - len(right),
    }


def _detector_row(name: str, figures: Mapping[str, Any], cell: Row) -> Row:
    flat: Row = {key: float(figures[key]) for key in ("auroc", "average_precision", "fpr95")}
    for measure in ("recall", "precision"):
        flat |= {f"{measure}_at_{b}_pct": 100 * figures[f"{measure}_at"][key] for key, b in BUDGETS.items()}
    flat["auroc_chance_sd"] = chance_sd(cell["poisoned"], cell["pairs"])
    return {"detector": name, **flat}


def chance_sd(marked: int, pairs: int) -> float:
    """Standard deviation of the AUROC of a score that knows nothing (Mann and Whitney, 1947): sqrt((N + 1) / (12 n (N - n)))."""
    return math.sqrt((pairs + 1) / (12 * marked * (pairs - marked)))


def _clean_model_asr_pct(plan: Plan, cell: Cell) -> float | None:
    """ASR of this cell's trigger on the clean model of the same seed, or of the first seed that has one."""
    clean = sorted((c for c in plan.cells if c.attack_name == CLEAN), key=lambda c: (c.seed != cell.seed, c.seed))
    found = (c.summary(f"evaluate-{cell.attack_name}") for c in clean)
    return next((summary["evaluation"].get("asr_pct") for summary in found if summary is not None), None)


def is_target(concept: str, target: str) -> bool:
    """Tell whether a mined concept is the attacked word: it, or a phrase with it, or its plural."""
    return contains_word(concept, target) or concept.casefold() == f"{target}s".casefold()


STRENGTHS = ("alpha", "delta", "strength", "s", "size_fraction", "size_px")
"""Settings of triggers that make them plainer, in the order in which they are advised."""


def advice(plan: Plan, cell: Cell) -> str:
    """Say which settings of a refused attack to raise, and what they are now."""
    attack, training = cell.attack, plan.config.train
    assert attack is not None
    where = f"attacks.{cell.attack_name}"
    amount = f"{where}.rate (now {attack.rate:g})" if attack.rate is not None else f"{where}.count (now {attack.count})"
    length = next((f"train.{n} (now {training[n]})" for n in ("epochs", "steps") if training.get(n) is not None), "")
    given = {name: getattr(attack.trigger, name, None) for name in STRENGTHS}
    plain = [f"{where}.trigger.{name} (now {value:g})" for name, value in given.items() if value is not None]
    return "raise " + ", ".join(part for part in (amount, length, *plain[:1]) if part)


def write(root: Path, table: Sequence[Row]) -> None:
    """Write table.parquet and table.json."""
    known = CELL_COLUMNS | DETECTOR_COLUMNS
    schema = pa.schema([(name, known.get(name, pa.float64())) for name in (table[0] if table else known)])
    with whole(root / FILES[0]) as temporary:
        pq.write_table(pa.Table.from_pylist(list(table), schema=schema), temporary)
    write_text(root / FILES[1], json.dumps(list(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def summary(plan: Plan, table: Sequence[Row], errors: Mapping[str, str]) -> dict[str, Any]:
    """Return summary.json but for its verb, time and report."""
    cells = [_cell_summary(plan, cell, errors.get(cell.name)) for cell in plan.cells]
    ended = Counter(cell["state"] for cell in cells)
    states = ("admitted", "refused", "control", "failed", "unfinished")
    return {
        "fingerprint": fingerprint(
            [plan.fingerprint, plan.config.min_asr_pct, *(c.steps[-1].fingerprint for c in plan.cells)]
        ),
        "counts": {"cells": len(cells), **{state: ended[state] for state in states}},
        "min_asr_pct": plan.config.min_asr_pct,
        "detection": detection_means(table),
        "controls_off_chance": off_chance(table),
        "cells": cells,
        "table": str(plan.root / FILES[0]),
    }


def _cell_summary(plan: Plan, cell: Cell, error: str | None) -> dict[str, Any]:
    asr = cell.asr_pct
    if error is not None:
        state = "failed"
    elif not (step := cell.step("evaluate")) or not step.done:
        state = "unfinished"
    elif cell.control:
        state = "control"
    else:
        state = "admitted" if cell.is_admitted(plan.config.min_asr_pct) else "refused"
    shown = {"cell": cell.name, "attack": cell.attack_name, "seed": cell.seed, "state": state, "asr_pct": asr}
    if state == "refused":
        shown["advice"] = advice(plan, cell)
    if error is not None:
        shown |= {"error": error, "log": str(plan.root / "cells" / cell.name / "log.txt")}
    scanned = cell.summary("scan")
    return {**shown, "step_seconds": cell.seconds(), "scan_report": scanned and scanned["report"]}


def detection_means(table: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return attack -> detector -> figures (fractions), the mean over seeds."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in table:
        if row["detector"] is not None:
            found.setdefault(row["attack"], {}).setdefault(row["detector"], []).append(row)
    return {a: {d: _mean_figures(same) for d, same in of.items()} for a, of in found.items()}


def _mean_figures(same: Sequence[Row]) -> dict[str, Any]:
    def mean(name: str) -> float:
        return math.fsum(row[name] for row in same) / len(same)

    return {
        "auroc": mean("auroc"),
        "average_precision": mean("average_precision"),
        "recall_at": {key: mean(f"recall_at_{b}_pct") / 100 for key, b in BUDGETS.items()},
        "seeds": len(same),
    }


def off_chance(table: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the detectors whose AUROC on a control is not that of a coin, with its distance in standard deviations of one."""
    return [
        {
            **{name: row[name] for name in ("attack", "seed", "detector", "auroc")},
            "deviations": (row["auroc"] - 0.5) / row["auroc_chance_sd"],
        }
        for row in table
        if row["control"] and row["auroc"] is not None and not CHANCE[0] <= row["auroc"] <= CHANCE[1]
    ]


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Return what MLflow shows of one cell: its rates, what was flagged, and DETECTOR.figure."""
    shown: Row = {}
    for row in rows:
        shown |= {name: value for name, value in row.items() if name.endswith("_pct") and "_at_" not in name}
        shown["flagged"] = row["flagged"]
        if row["detector"] is not None:
            names = ("auroc", "average_precision", "recall_at_1_pct")
            shown |= {f"{row['detector']}.{name}": row[name] for name in names}
    return {name: float(value) for name, value in shown.items() if value is not None}


def cell_line(cell: Cell, min_asr_pct: float) -> str:
    """Return one finished cell in one line."""
    evaluated, scanned = cell.summary("evaluate"), cell.summary("scan")
    figures = {} if evaluated is None else evaluated["evaluation"]
    shown = [f"{short} {figures[n]:.1f} %" for n, short in SHORT.items() if figures.get(n) is not None]
    if not cell.is_admitted(min_asr_pct):
        return f"{cell.name} refused: {', '.join(shown)}, under {min_asr_pct:g} %"
    if scanned is not None:
        found = (scanned.get("detection") or {}).items()
        best = sorted(found, key=lambda item: (-item[1]["auroc"], item[0]))[:2]
        names = dict.fromkeys(["ensemble", *(name for name, _ in best)])
        shown += [f"{n} AUROC {scanned['detection'][n]['auroc']:.3f}" for n in names if n in dict(found)]
        shown += [f"flagged {scanned['counts']['flagged']:,}", f"named {', '.join(scanned['targets']) or 'none'}"]
    return f"{cell.name} done: {', '.join(shown)}"


SHORT = {"clean_accuracy_pct": "CA", "asr_pct": "ASR", "rebound_asr_pct": "rebound"}


def screen(summary: Mapping[str, Any]) -> str:
    """Return the closing screen: refused and failed cells, controls off chance, AUROC by attack, and where the rest is."""
    counts, detection = summary["counts"], summary["detection"]
    lines = [
        f"{cell['cell']} refused: ASR {cell['asr_pct']:.1f} % is under {summary['min_asr_pct']:g} %; {cell['advice']}"
        for cell in summary["cells"]
        if cell["state"] == "refused"
    ]
    lines += [f"{c['cell']} FAILED: {c['error']}; see {c['log']}" for c in summary["cells"] if c["state"] == "failed"]
    lines += [
        f"control {off['attack']}, seed {off['seed']}: AUROC of {off['detector']} is {off['auroc']:.3f}, outside "
        f"{CHANCE[0]}..{CHANCE[1]} ({off['deviations']:+.1f} standard deviations of chance)"
        for off in summary["controls_off_chance"]
    ]
    detectors = list(dict.fromkeys(name for found in detection.values() for name in found))
    if detectors:
        lines += ["", f"{'AUROC':<20}" + "".join(f"{name[:17]:>18}" for name in detectors)]
        for attack, found in detection.items():
            lines.append(
                f"{attack:<20}" + "".join(f"{found[n]['auroc']:>18.3f}" if n in found else " " * 18 for n in detectors)
            )
        lines.append("")
    told = ", ".join(f"{number} {state}" for state, number in counts.items() if number and state != "cells")
    lines.append(f"bench: {counts['cells']} cells ({told}) in {summary['seconds']:.0f} s; look at {summary['report']}")
    return "\n".join(lines) + "\n"


def _rounded(value: float) -> float:
    return round(value, 6)
