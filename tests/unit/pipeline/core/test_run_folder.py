"""Run folders: opened for what made them, refused for anything else; status reads committed files alone."""

import json
import os
from types import SimpleNamespace

import pyarrow as pa
import pytest
import yaml

from clipsan.pipeline.core.commit import FingerprintError, write_part, write_text
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.core.run_folder import flatten, open_run, write_summary
from clipsan.pipeline.status import describe
from clipsan.pipeline.tracking.record import TrackingConfig, metrics_of
from clipsan.pipeline.tracking.send import log_run
from clipsan.pipeline.verbs import VERBS, verb_of


def start(tmp_path, fingerprint="f" * 64, verb="scan", k=16):
    return open_run(
        str(tmp_path / "run"),
        verb=verb,
        tree={"out": "run", "density": {"k": k}},
        fingerprint=fingerprint,
    )


def test_the_same_run_may_go_on(tmp_path):
    assert start(tmp_path).root == start(tmp_path).root
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["config"]["density"] == {"k": 16}


def test_other_settings_are_refused_and_named(tmp_path):
    start(tmp_path)
    with pytest.raises(FingerprintError, match=r"density\.k"):
        start(tmp_path, fingerprint="e" * 64, k=32)
    with pytest.raises(FingerprintError, match="the model, a file that the settings name, or clipsan itself"):
        start(tmp_path, fingerprint="e" * 64)


def test_another_verb_and_a_strange_folder_are_refused(tmp_path):
    start(tmp_path)
    with pytest.raises(ConfigError, match="clipsan scan"):
        start(tmp_path, verb="poison")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(ConfigError, match="not empty"):
        open_run(str(tmp_path / "mine"), verb="scan", tree={}, fingerprint="m")


@pytest.mark.parametrize(
    "verb", [verb for verb in (verb_of(name) for name in VERBS) if not verb.on_stores], ids=lambda verb: verb.name
)
def test_a_verb_whose_folder_cannot_lie_on_an_object_store_says_so(verb):
    plan = SimpleNamespace(config=SimpleNamespace(out="s3://bucket/run"))
    with pytest.raises(ConfigError, match="file system"):
        verb._place(plan)


def test_what_a_killed_run_left_unfinished_is_cleared(tmp_path):
    folder = start(tmp_path)
    left = folder.root / "scores" / ".part-00000.parquet.0badcafe-4711-00000000.tmp"
    left.parent.mkdir()
    left.touch()
    start(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "verb: scan", "verb: scan\nfingerprint: 3\nconfig: {}", "\0"])
def test_a_run_yaml_that_clipsan_did_not_write_is_one_line(tmp_path, text):
    start(tmp_path).run_yaml.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml: (not valid YAML|holds no run)"):
        start(tmp_path)


def test_status_leaves_out_a_damaged_part(tmp_path):
    folder = start(tmp_path)
    write_text(folder.passes, json.dumps({"embed": {"folder": "embeddings", "parts": 2}}))
    for index in range(2):
        path = write_part(folder.embeddings, index, pa.table({"uid": ["a"]}), "m")
    path.write_bytes(path.read_bytes()[:-3])
    assert "embed     1/2 parts" in describe(folder.root)


def test_status_tells_parts_rate_and_rejections(tmp_path):
    folder = start(tmp_path)
    passes = {"embed": {"folder": "embeddings", "parts": 3}, "score": {"folder": "scores", "parts": 3}}
    write_text(folder.passes, json.dumps(passes))
    for index, second in ((0, 100), (1, 110)):
        path = write_part(folder.embeddings, index, pa.table({"uid": [str(i) for i in range(50)]}), "m")
        os.utime(path, (second, second))
    write_part(folder.rejected, 0, pa.table({"reason": ["image_empty", "image_empty", "caption_empty"]}), "m")
    text = describe(folder.root)
    assert "embed     2/3 parts, 100 rows, 5 rows/s, about 10 s left" in text
    assert "score     0/3 parts" in text
    assert "rejected  caption_empty 1, image_empty 2" in text
    assert "not finished" in text
    write_summary(folder, {"seconds": 12.0, "counts": {"pairs_in": 103}, "report": "run/report.html"})
    assert "finished in 12 s" in describe(folder.root)


def test_status_of_a_story_tells_its_steps(tmp_path):
    folder = start(tmp_path, verb="run")
    open_run(str(folder.root / "scan"), verb="scan", tree={}, fingerprint="a" * 64)
    write_text(folder.root / "scan/work/passes.json", json.dumps({"embed": {"folder": "embeddings", "parts": 3}}))
    lines = describe(folder.root).splitlines()
    assert lines[0].startswith("run  ")
    assert f"  scan  {folder.root / 'scan'}  fingerprint aaaaaaaaaaaa" in lines
    assert "  embed     0/3 parts" in lines


def test_status_of_no_run_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"no run\.yaml"):
        describe(tmp_path)


def test_a_tree_flattens_to_dotted_names_and_numbers_to_metrics():
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": "x"}) == {"a.b": 1, "a.c": [1, 2], "d": "x"}
    assert metrics_of({"counts": {"in": 3}, "name": "x", "auroc": 0.5}) == {"counts.in": 3.0, "auroc": 0.5}


def test_a_run_is_logged_to_the_local_store(tmp_path):
    import mlflow

    folder = start(tmp_path)
    where = log_run(
        TrackingConfig(),
        verb="scan",
        root=folder.root,
        tree={"k": 16},
        metrics={"auroc": 0.75},
        files=[folder.run_yaml],
    )
    uri, run_id = where.uri, where.run_id
    assert uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = mlflow.MlflowClient(uri).get_run(run_id)
    assert run.data.params == {"k": "16"}
    assert run.data.metrics == {"auroc": 0.75}
    assert run.info.status == "FINISHED"
    assert (tmp_path / "mlartifacts").is_dir()


def test_a_percentage_out_of_range_is_never_written(tmp_path):
    folder = start(tmp_path)
    with pytest.raises(ValueError, match=r"evaluation\.asr_pct: 9900\.0 is outside \[0, 100\]"):
        write_summary(folder, {"evaluation": {"asr_pct": 9900.0}})
    assert not folder.summary.exists()


def test_a_server_that_is_away_costs_no_result(tmp_path, capsys):
    folder = start(tmp_path)
    settings = TrackingConfig(uri="http://127.0.0.1:9")
    assert log_run(settings, verb="scan", root=folder.root, tree={}, metrics={}, files=[]) is None
    assert "took no log" in capsys.readouterr().err
    assert sorted(p.name for p in folder.root.iterdir()) == ["run.yaml", "tracking.json"]
