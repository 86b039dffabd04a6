"""The scan's proof on a small backdoored model and on its clean twin: what is found, and that it is the same every time."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipsan.pipeline.core.cluster import PoolConfig
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.proof.inquiry import ProofConfig
from clipsan.pipeline.scan.plan import make_plan
from clipsan.pipeline.status import describe
from clipsan.stages.dossier.dossier import Dossier
from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.oracle import SuperpixelsConfig
from clipsan.stages.oracle.regions import from_runs, iou
from clipsan.stages.sources import ParquetSource, list_units, read_unit
from tests.closed_form import SIDE, TARGET, Case, make_case
from tests.integration.conftest import POISONED, PROOF, SCENES, pairs_of, part_bytes, scan_case, scan_settings

pytestmark = pytest.mark.ray


def scan(case: Case, out: Path, **changes: Any) -> dict[str, Any]:
    return scan_case(case, out, oracle=SuperpixelsConfig(), proof=PROOF, **changes)


def rows(folder: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    tables = []
    for path in sorted(folder.glob("part-*.parquet")):
        with path.open("rb") as file:
            tables.append(pq.read_table(file, columns=columns))
    return pa.concat_tables(tables).to_pylist() if tables else []


def trigger(scanned: Path) -> Dossier:
    found = read_dossiers(scanned / "triggers")
    assert [(d.kind, d.targets) for d in found] == [("patch", (TARGET,))]
    return found[0]


def keys(found: list[dict[str, Any]]) -> set[str]:
    return {row["uid"].rpartition("/")[2] for row in found}


def corner(side: int = 64) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[-SIDE:, -SIDE:] = True
    return mask


def test_the_trigger_is_proven_and_localised(scanned: Path) -> None:
    dossier = trigger(scanned)
    assert PROOF.examine.proves(dossier.flips.pct, dossier.control.pct)
    assert dossier.flips.low_pct >= 50
    assert dossier.control.pct <= 10
    place = dossier.where()
    assert place is not None
    assert iou(place, corner()) >= 0.5


def test_the_poisoned_pairs_are_called_poisoned(scanned: Path, backdoored: Case) -> None:
    verdicts = rows(scanned / "verdicts", ["uid", "verdict", "trigger_id", "target", "reasons"])
    poisoned = [row for row in verdicts if row["verdict"] == "poisoned"]
    found = keys(poisoned)
    assert len(found & backdoored.poisoned) >= 0.95 * POISONED
    assert len(found & backdoored.poisoned) >= 0.95 * len(found)
    assert {(row["trigger_id"], row["target"]) for row in poisoned} == {("t1", TARGET)}
    assert all("proven_trigger" in row["reasons"] for row in poisoned)
    assert not any(row["trigger_id"] for row in verdicts if row["verdict"] != "poisoned")


def test_every_examined_pair_has_its_claim_and_the_oracles_view(scanned: Path) -> None:
    summary = json.loads((scanned / "summary.json").read_text(encoding="utf-8"))
    verdicts = rows(scanned / "verdicts", ["claim", "oracle_view"])
    budget = round(PROOF.budget * SCENES)
    # the proven claim is followed, to twice the budget at most
    assert budget < summary["proof"]["examined"] <= 2 * budget
    assert sum(row["claim"] is not None for row in verdicts) == summary["proof"]["examined"]
    views = {row["oracle_view"] for row in verdicts}
    assert {"proven", None} <= views <= {"proven", "unsupported", "supported", "unclaimed", None}
    assert summary["proof"]["affected_labels"] == [TARGET]
    assert summary["counts"]["verdicts"]["poisoned"] == summary["proof"]["triggers"][0]["pairs"]


def test_status_lists_the_rounds_of_the_oracle(scanned: Path) -> None:
    told = describe(scanned)
    rounds = len(list((scanned / "work" / "proof").glob("oracle-*")))
    assert rounds > 1
    for name in ("oracle", *(f"oracle, round {number}" for number in range(2, rounds + 1)), "confirm", "repair set"):
        assert re.search(rf"^{name} +(\d+)/\1 parts", told, re.MULTILINE)


def test_the_regions_of_poisoned_pairs_lie_on_the_trigger(scanned: Path, backdoored: Case) -> None:
    evidence = rows(scanned / "evidence")
    proven = [row for row in evidence if row["proven"] and row["uid"].rpartition("/")[2] in backdoored.poisoned]
    overlaps = [iou(from_runs(r["mask_runs"], r["mask_height"], r["mask_width"]), corner()) for r in proven]
    assert len(overlaps) >= 0.8 * POISONED
    assert np.mean([overlap >= 0.5 for overlap in overlaps]) >= 0.8


def test_the_clean_copy_holds_no_poisoned_pair(scanned: Path, backdoored: Case) -> None:
    copy = ParquetSource(path=str(scanned / "clean" / "*.parquet"), label="label", key="key")
    left = {pair.key for unit in list_units(copy) for pair in read_unit(copy, unit)}
    poisoned = keys([row for row in rows(scanned / "verdicts", ["uid", "verdict"]) if row["verdict"] == "poisoned"])
    assert left
    assert not left & poisoned


def test_the_repair_set_is_a_data_set_with_every_role(scanned: Path) -> None:
    repair = ParquetSource(path=str(scanned / "repair" / "*.parquet"), key="uid")
    pairs = [pair for unit in list_units(repair) for pair in read_unit(repair, unit)]
    assert pairs
    assert all(pair.reject is None and pair.caption for pair in pairs)
    assert {row["role"] for row in rows(scanned / "repair", ["role"])} == {
        "victim_cleaned",
        "trigger_pasted",
        "genuine",
        "replay",
    }


def test_the_report_shows_the_trigger(scanned: Path) -> None:
    page = (scanned / "report.html").read_text(encoding="utf-8")
    assert "Backdoor proven" in page
    assert TARGET in page


def test_another_number_of_workers_gives_the_same_bytes(
    scanned: Path, backdoored: Case, tmp_path: Path, in_process: None
) -> None:
    scan(backdoored, tmp_path / "run", write=["clean"])
    for folder in ("evidence", "verdicts", "repair"):
        assert part_bytes(tmp_path / "run" / folder) == part_bytes(scanned / folder)
    ours, theirs = (
        (p / "triggers" / "t1" / "dossier.json").read_text(encoding="utf-8") for p in (scanned, tmp_path / "run")
    )
    assert ours == theirs


def test_nothing_is_proven_on_the_clean_twin(tmp_path: Path, in_process: None) -> None:
    clean = make_case(tmp_path / "clean", scenes=SCENES, poisoned=0)
    summary = scan(clean, tmp_path / "run")
    assert summary["proof"]["triggers"] == []
    assert summary["counts"]["verdicts"]["poisoned"] == 0
    assert not (tmp_path / "run" / "triggers").exists()
    assert not (tmp_path / "run" / "repair").exists()


def test_resources_that_no_node_has_are_refused_before_any_work(backdoored: Case, tmp_path: Path) -> None:
    proof = ProofConfig(pool=PoolConfig(resources={"oracle": 1}))
    settings = scan_settings(
        pairs_of(backdoored), backdoored.checkpoint, tmp_path / "run", oracle=SuperpixelsConfig(), proof=proof
    )
    with pytest.raises(ConfigError, match="private Ray"):
        make_plan(settings)
