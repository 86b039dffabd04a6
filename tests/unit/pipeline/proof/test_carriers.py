"""What the search of the data set makes of a pair that looks as if it carried several triggers."""

from typing import Any

from clipsan.pipeline.proof.carriers import first_confirmed


def test_every_trigger_is_tried_until_one_carries_the_claim() -> None:
    tried: list[str] = []

    def check(trigger: str) -> dict[str, Any]:
        tried.append(trigger)
        return {"confirmed": trigger in ("t2", "t4")}

    hits = [("t3", 9.0), ("t2", 5.0), ("t4", 1.0)]
    assert first_confirmed(hits, check) == {"trigger_id": "t2", "score": 5.0, "confirmed": True}
    assert tried == ["t3", "t2"]


def test_a_pair_that_rests_on_none_has_the_row_of_the_likeliest() -> None:
    hits = [("t3", 9.0), ("t1", 5.0)]
    assert first_confirmed(hits, lambda _: {"confirmed": False}) == {
        "trigger_id": "t3",
        "score": 9.0,
        "confirmed": False,
    }
