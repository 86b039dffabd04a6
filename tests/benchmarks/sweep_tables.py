"""The table of the sweeps: what is recommended without knowing the attack, and what early stopping saves."""

from tests.benchmarks.results import Row
from tests.benchmarks.sections import Column, Section, Table


def by_attack(rows: list[Row]) -> list[Row]:
    """Return the rows attack by attack."""
    return sorted(rows, key=lambda row: (str(row["attack"]), str(row["method"]), row["model_seed"], row["seed"]))


SWEEP = Section(
    "sweep",
    (
        Table(
            (
                Column("attack", "attack"),
                Column("repair", "method"),
                Column("seed", "seed"),
                Column("trials", "trials"),
                Column("ASR % before", "before_asr_pct", 1),
                Column("ASR % recommended", "recommended_asr_pct", 1),
                Column("ASR % best trial", "best_asr_pct", 1),
                Column("gap, points", "gap_points", 1),
                Column("accuracy % before", "before_accuracy_pct", 1),
                Column("accuracy % recommended", "recommended_accuracy_pct", 1),
                Column("steps, ASHA to grid", "compute_ratio", 2),
                Column("seconds, ASHA to grid", "seconds_ratio", 2),
            ),
            by_attack,
        ),
    ),
)
