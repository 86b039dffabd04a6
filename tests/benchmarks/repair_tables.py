"""README's table of the repairs: what each method leaves of the accuracy and of the backdoor."""

from tests.benchmarks.results import Row
from tests.benchmarks.sections import Column, Section, Table
from tests.benchmarks.zoo import FINE_TUNED

ORDER = ("none", "finetune", "cleanclip", "cleanclip-supervised", "par", "rvpt", "eftclip", "unlearn")


def by_attack(rows: list[Row]) -> list[Row]:
    """Return the rows attack by attack, the suspect model first and clipsan's own repair last; no attack without a repair."""
    repaired = {(row["model"], row["attack"], row["seed"]) for row in rows if row["method"] != ORDER[0]}
    shown = [
        {**row, "tower": str(row["model"]).removesuffix(FINE_TUNED)}
        for row in rows
        if (row["model"], row["attack"], row["seed"]) in repaired
    ]
    return sorted(
        shown, key=lambda row: (*(str(row[n]) for n in ("tower", "attack", "seed")), ORDER.index(str(row["method"])))
    )


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
            ),
            by_attack,
        ),
    ),
)
