"""What is said of the audits follows from the rows."""

from tests.benchmarks.audit_tables import finding, finding_beside, guarded
from tests.benchmarks.results import Row


def row(attack: str, score: float, verdict: str, *, asr: float | None = 95.0, label: str = "star") -> Row:
    clean = attack == "clean"
    return {
        "model": "vit",
        "attack": attack,
        "seed": 1,
        "reference": False,
        "asr_pct": None if clean else asr,
        "verdict": verdict,
        "score": score,
        "target": None if clean else "star",
        "label": label,
        "decree": 0.1 if clean else 0.2,
    }


def test_an_attack_that_does_not_work_is_not_counted() -> None:
    rows = [
        row("patch", 0.5, "backdoored"),
        row("sig", 0.3, "suspicious", label="moon"),
        row("wanet", 0.0, "clean", asr=40.0),
        row("clean", 0.4, "suspicious"),
        row("clean", 0.1, "clean"),
    ]
    said = finding(rows)
    assert said.startswith("Without a reference: AUROC of the verdict's score 0.750, of DECREE's 0.000;")
    assert (
        "of 2 backdoored models 1 are called so, 1 suspicious, 1 by the right label; of 2 clean ones 0 and 1." in said
    )


def test_with_a_reference_the_excess_is_held_against_that_of_other_clean_models() -> None:
    def beside(attack: str, model: str, excess: float) -> Row:
        return row(attack, 1.0, "clean") | {"reference": True, "model": model, "excess": excess}

    clean = [beside("clean", "vit", excess) for excess in (0.30, 0.31, 0.32)]
    # t of .9 is .59 / (.01 sqrt(4 / 3)) = 51, of .315 .43, with 2 degrees of freedom; a ResNet has no clean one beside it
    rows = [beside("patch", "vit", 0.9), beside("sig", "vit", 0.315), *clean, beside("blend", "resnet", 0.1)]
    said = finding(rows)
    assert said.startswith("With a reference: AUROC of the verdict's score 0.500,")
    assert said.endswith("with p at most .05 1 of 2 backdoored ones and 0 of 3 clean ones.")


def test_beside_clean_models_what_was_made_after_all_choices_is_told_apart() -> None:
    def beside(attack: str, score: float, verdict: str, *, fresh: bool, peers: int) -> Row:
        return row(attack, score, verdict) | {"fresh": fresh, "peers": peers}

    rows = [
        beside("patch", 3.0, "backdoored", fresh=False, peers=3),
        beside("clean", 1.0, "clean", fresh=False, peers=2),
        beside("patch", 1.4, "suspicious", fresh=True, peers=5),
        beside("clean", 1.5, "suspicious", fresh=True, peers=4),
    ]
    said = finding_beside(rows)
    assert said.count("Without a reference, ") == 2
    assert "the models above, each beside 2 to 3 other clean ones: AUROC of the verdict's score 1.000;" in said
    assert (
        "models made after all choices, each beside 4 to 5 other clean ones: AUROC of the verdict's score 0.000;"
        in said
    )
    assert said.endswith(
        "of 1 backdoored models 0 are called so, 1 suspicious, 1 of these by the right label; of 1 clean ones 0 and 1."
    )
    assert "AUROC" not in finding_beside(rows[:1])
    assert finding_beside([]) == ""


def test_of_one_sort_alone_nothing_is_said() -> None:
    assert finding([row("patch", 0.5, "backdoored")]) == ""


def test_rates_of_guards_are_over_pictures_of_attacks_that_work() -> None:
    def guard(caught: float, *, asr: float = 95.0) -> Row:
        return {
            "asr_pct": asr,
            "false_alarms_pct": 2.0,
            "clean": 100,
            "caught_pct": caught,
            "triggered": 50,
        }

    assert guarded([guard(90.0), guard(40.0), guard(0.0, asr=30.0)]) == (
        "Over 2 models whose attack works: 2.0 % of clean scenes are flagged, 65 % of those with the true trigger; "
        "of the worst model 40 %."
    )
    assert guarded([]) == ""
