"""The table of the repairs: what each method leaves of the accuracy and of the backdoor."""

from tests.benchmarks.regimes import FINE_TUNED
from tests.benchmarks.results import Row
from tests.benchmarks.sections import Column, Section, Table

ORDER = (
    *("none", "finetune", "finetune-published", "cleanclip", "cleanclip-published", "cleanclip-supervised"),
    *("par", "par-2.15", "par-live", "par-published", "rvpt", "rvpt-published"),
    *("blind", "eftclip", "tbar", "project", "unlearn"),
)

SUSPECT = ("model", "attack", "seed", "cpu")
"""What names a suspect model."""


def by_attack(rows: list[Row]) -> list[Row]:
    """Return the rows suspect by suspect, itself first and clipsan's own repair last; none without a repair.

    A suspect is trained where it is repaired, so one attack may have one on each machine.
    """
    repaired = {tuple(row[name] for name in SUSPECT) for row in rows if row["method"] != ORDER[0]}
    shown = [
        {**row, "tower": str(row["model"]).removesuffix(FINE_TUNED)}
        for row in rows
        if tuple(row[name] for name in SUSPECT) in repaired
    ]
    return sorted(shown, key=lambda row: (*(str(row[name]) for name in SUSPECT), ORDER.index(str(row["method"]))))


REPAIR = Section(
    "repair",
    (
        Table(
            (
                Column("image tower", "tower"),
                Column("attack", "attack"),
                Column("seed", "seed"),
                Column("repair", "method"),
                Column("clean accuracy %", "clean_accuracy_pct", 1),
                Column("change, points", "clean_accuracy_change_points", 1),
                Column("ASR %", "asr_pct", 1),
                Column("accuracy under trigger %", "accuracy_under_trigger_pct", 1),
                Column("ASR % after 300 benign steps", "rebound_asr_pct", 1),
                Column("clean accuracy % then", "rebound_clean_accuracy_pct", 1),
                Column("retrieval R@10 %", "text_to_image_r10_pct", 1),
                Column("resistivity", "resistivity", 3),
                Column("seconds of training", "seconds", 0),
                Column("pairs", "pairs"),
                Column("steps", "steps"),
                Column("trained parameters", "trained_parameters"),
                Column("settings", "settings"),
                Column("measured on", "cpu"),
            ),
            by_attack,
        ),
    ),
)
