"""clipsan from Python: a set is poisoned and scanned, and its verdicts are read as a table."""

import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest
import webdataset as wds

import clipsan
from clipsan import ConfigError, Finished, ParquetSource, PoisonConfig, WebDataset, poison, scan
from tests.conftest import write_shards

OFF = {"enabled": False}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("pairs"), shards=2, pairs=30)


def test_a_set_is_poisoned_and_scanned(pairs: Path, tiny_checkpoint: Path, tmp_path: Path, in_process: None) -> None:
    source = WebDataset(path=str(pairs))
    attack = {"target": "kite", "count": 6, "trigger": {"kind": "patch", "size_px": 8}}
    made = poison(data=source, attack=attack, out=tmp_path / "poison", tracking=OFF)
    assert made.folder == tmp_path / "poison"
    assert made.summary["counts"]["poisoned"] == made.table("manifest").num_rows == 6

    found = scan(
        "decision=budget",
        "decision.share=0.1",
        data={"kind": "webdataset", "path": str(made.folder / "data")},
        model={"path": str(tiny_checkpoint)},
        manifest=str(made.folder / "manifest.parquet"),
        out=tmp_path / "scan",
        tracking=OFF,
        **{"cluster.workers": 1},
    )
    verdicts = found.table("verdicts")
    assert verdicts.num_rows == found.summary["counts"]["pairs_in"] == 60
    assert pc.sum(pc.not_equal(verdicts["verdict"], "clean")).as_py() >= found.summary["counts"]["flagged"] >= 6
    assert {"embeddings", "scores", "verdicts"} <= set(found.tables)
    assert set(made.table("manifest")["uid"].to_pylist()) <= set(verdicts["uid"].to_pylist())
    kept = clipsan.select(found)
    shards = wds.SimpleShardList(sorted(str(path) for path in (made.folder / "data").glob("*.tar")))
    seen = [kept.uid_of(s) for s in wds.DataPipeline(shards, wds.tarfile_to_samples(), kept, wds.decode("pil"))]
    bad = [{"poison_suspect", "proven_trigger"}.isdisjoint(reasons) for reasons in verdicts["reasons"].to_pylist()]
    assert seen == verdicts.filter(bad)["uid"].to_pylist()
    assert kept.counts == {"kept": len(seen), "flagged": 60 - len(seen)}
    assert len(clipsan.select(tmp_path / "scan").of(verdicts["uid"], verdicts["uid"].to_pylist())) == len(seen)
    with pytest.raises(ConfigError, match=r"no \.tar file matches"):
        clipsan.select(found, data=str(tmp_path / "absent.tar"))
    with pytest.raises(ConfigError, match=r"no such table in .* there are .*verdicts"):
        found.table("verdict")
    assert Finished.of(tmp_path / "scan") == found
    with pytest.raises(ConfigError, match="no finished run"):
        Finished.of(tmp_path)


def test_a_configuration_object_holds_everything(pairs: Path, tmp_path: Path, in_process: None) -> None:
    attack = clipsan.AttackConfig(trigger={"kind": "patch", "size_px": 8}, target="kite", count=3)
    settings = PoisonConfig(
        data=WebDataset(path=str(pairs)),
        attack=attack,
        out=str(tmp_path / "poison"),
        tracking=clipsan.TrackingConfig(enabled=False),
    )
    assert poison(settings).summary["counts"]["poisoned"] == 3
    with pytest.raises(ConfigError, match="holds all settings"):
        poison(settings, "attack.count=4")
    with pytest.raises(ConfigError, match="takes a ScanConfig or a file of settings, not PoisonConfig"):
        scan(settings)


def test_what_must_be_changed_is_one_error(tmp_path: Path) -> None:
    for wrong, words in (
        ({"dta": {"kind": "parquet", "path": "x"}}, "dta: unknown key; did you mean data"),
        ({"decision": "magic"}, "there are"),
        ({"data": ParquetSource(path=str(tmp_path / "absent" / "*.parquet")), "model": {"path": "m"}}, "absent"),
    ):
        with pytest.raises(ConfigError, match=words):
            scan(out=tmp_path / "run", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no such configuration file"):
        scan(tmp_path / "mine.yaml")
    with pytest.raises(AttributeError, match="no attribute 'scam'"):
        _ = clipsan.scam
    assert not (tmp_path / "run").exists()


def test_every_class_is_there_and_importing_is_quick() -> None:
    for name in clipsan.CLASSES:
        assert getattr(clipsan, name).__name__ == name
    program = (
        "import sys, clipsan; heavy = {'torch', 'ray', 'mlflow', 'pyarrow', 'pydantic', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
