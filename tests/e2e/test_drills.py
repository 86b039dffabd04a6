"""The drills of the table of faults: each ends as it must, with the bytes of a scan that nothing disturbed."""

from pathlib import Path

import pytest

from tests.benchmarks.drills import DRILLS, Drill, DrillError, Place, drill, prepare

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return prepare(tmp_path_factory.mktemp("drills"))


@pytest.mark.parametrize("one", DRILLS, ids=lambda one: one.fault)
def test_a_fault_costs_time_alone(one: Drill, place: Place) -> None:
    row = drill(one, place)
    assert row["same_bytes"] is (True if one.same_bytes else None)


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({one.fault for one in DRILLS}) == len(DRILLS)


def test_a_scan_with_other_bytes_is_no_success(place: Place) -> None:
    def nothing(place: Place, out: Path) -> float:
        out.mkdir()
        return 1.0

    with pytest.raises(DrillError, match="files differ from an undisturbed scan's"):
        drill(Drill("nothing scanned", "", "", nothing), place)
