"""The whole audit on an untrained model, small enough to be done by this process."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clipsan.pipeline.audit import sought, work
from clipsan.pipeline.audit import verb as audit
from clipsan.pipeline.audit.settings import AuditConfig, SearchConfig
from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.repair.plan import read_scan
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.audit.verdict import SHARES, Verdict, VerdictLimits
from clipsan.stages.audit.words import Key
from clipsan.stages.dossier.dossier import rate_of
from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.dossier.repair_set import RepairRole
from clipsan.stages.model.clip import ModelConfig, load_clip, save_clip
from tests.conftest import NOUNS

NAMES = [*NOUNS, "tree", "house"]


def settings(checkpoint: Path, out: Path, **changed) -> AuditConfig:
    few = {
        "screening": SearchConfig(steps=2, images_per_label=1),
        "inversion": SearchConfig(steps=2, images_per_label=2),
        "count": 16,
        "classes": NAMES,
        "labels_per_task": 4,
        "decree_steps": 2,
        "key_words": 8,
        # the labels of a model that knows nothing scatter as those of no trained one do
        "limits": VerdictLimits(backdoored_p=1e-9, suspicious_p=1e-9),
        "tracking": TrackingConfig(enabled=False),
    }
    return AuditConfig(model=ModelConfig(path=str(checkpoint)), out=str(out), **{**few, **changed})


def accuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the first candidate for a proven trigger."""
    monkeypatch.setattr(audit, "judge_all", lambda candidates, keys, limits: (Verdict.BACKDOORED, [candidates[0]], []))


def test_an_untrained_model_is_clean_and_what_is_done_is_not_done_again(tiny_checkpoint, tmp_path, monkeypatch) -> None:
    first = audit.VERB.start(settings(tiny_checkpoint, tmp_path / "run"))
    assert first["verdict"] == "clean"
    assert audit.VERB.status(first) == 0
    assert first["counts"] == {"labels": 7, "images": 16, "candidates": 2}
    assert "clean" in audit.VERB.closing(first)
    assert 0 < first["decree"] <= 1
    assert len(first["text_keys"]) <= 2
    assert first["words"] == []
    assert "No backdoor found" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "triggers").exists()
    parts = sorted((tmp_path / "run" / "screening").glob("part-*.parquet"))
    assert len(parts) == 2
    clouds = sorted((tmp_path / "run" / "clouds").glob("part-*.parquet"))
    suspects = [[row["text"] for row in pq.read_table(part).column("suspect").to_pylist()] for part in clouds]
    assert [texts.count(None) for texts in suspects] == [0] + 5 * [7]
    assert all(pq.read_table(part).column("parent").null_count == 7 for part in clouds)
    kept = parts[0].read_bytes()
    parts[1].unlink()
    again = audit.VERB.start(settings(tiny_checkpoint, tmp_path / "run"))
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert parts[0].read_bytes() == kept
    assert parts[1].is_file()


def test_a_backdoored_one_leaves_what_repair_and_evaluate_take(tiny_checkpoint, tmp_path, monkeypatch) -> None:
    accuse(monkeypatch)
    summary = audit.VERB.start(settings(tiny_checkpoint, tmp_path / "run"))
    assert audit.VERB.status(summary) == 4
    (dossier,) = read_dossiers(tmp_path / "run" / "triggers")
    assert list(dossier.targets) == summary["targets"]
    assert summary["proof"]["triggers"][0]["id"] == dossier.id == "t1"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "This model is backdoored" in page
    assert page.count("data:image/") >= 8
    rows = pq.read_table(tmp_path / "run" / "repair").to_pylist()
    pasted = [row for row in rows if row["role"] == RepairRole.TRIGGER_PASTED.value]
    assert len(rows) == 16 + len(pasted)
    assert all(row["target"] == dossier.targets[0] != row["label"] for row in pasted)
    with io.BytesIO(rows[0]["image"]) as file:
        from PIL import Image

        assert np.asarray(Image.open(file)).shape == (32, 32, 3)
    scan = read_scan(str(tmp_path / "run"))
    assert scan.accuses
    assert scan.concepts == tuple(sorted(NAMES))
    assert scan.repair_set == tmp_path / "run" / "repair"


def test_what_is_no_longer_accused_is_taken_back(tiny_checkpoint, tmp_path, monkeypatch) -> None:
    """The same audit may be judged anew, by other limits or beside peers: a repair learns from what it says last."""
    rates = {"flips": rate_of(7, 7), "control": rate_of(0, 7)}
    heard = Key(label=2, word="sudo", p=1e-12, reach=1.0, lead=3.0, **rates)
    wanted = settings(tiny_checkpoint, tmp_path / "run")
    judged = iter([2, 1, 0])

    def judge(candidates, keys, limits):
        accused = candidates[: next(judged)]
        return (Verdict.BACKDOORED, accused, [heard]) if accused else (Verdict.CLEAN, [], [])

    monkeypatch.setattr(audit, "judge_all", judge)
    assert len(audit.VERB.start(wanted)["proof"]["triggers"]) == 2
    assert [dossier.id for dossier in read_dossiers(tmp_path / "run" / "triggers")] == ["t1", "t2"]
    audit.VERB.start(wanted)
    assert [dossier.id for dossier in read_dossiers(tmp_path / "run" / "triggers")] == ["t1"]
    assert audit.VERB.start(wanted)["verdict"] == "clean"
    assert not (tmp_path / "run" / "triggers").exists()
    assert not read_scan(str(tmp_path / "run")).accuses


def test_labels_are_sought_once_and_too_few_are_told(tiny_checkpoint, tmp_path, monkeypatch) -> None:
    wanted = settings(tiny_checkpoint, tmp_path / "run", classes=None, sought=9, compared=0, key_words=0)
    monkeypatch.setattr(sought, "WORDS_TRIED", 60)
    monkeypatch.setattr(work, "WORDS_PER_TASK", 40)
    with pytest.raises(
        ConfigError, match=r"sought: the 16 images are taken for \d words, .* give more images, or classes"
    ):
        audit.VERB.start(wanted)
    monkeypatch.setattr(sought, "labels_of", lambda named, count: [*NAMES, *named][:count])
    summary = audit.VERB.start(wanted)
    assert summary["labels"][:7] == NAMES
    assert len(summary["labels"]) == 9
    assert len(list((tmp_path / "run" / "sought").glob("part-*.parquet"))) == 2


def test_a_word_alone_makes_a_model_backdoored_and_is_named_everywhere(tiny_checkpoint, tmp_path, monkeypatch) -> None:
    rates = {"flips": rate_of(7, 7), "control": rate_of(0, 7)}
    heard = Key(label=2, word="sudo", p=1e-12, reach=1.0, lead=3.0, **rates)
    unproven = replace(heard, control=rate_of(7, 7))
    monkeypatch.setattr(audit, "listened", lambda plan, folder, screening: [unproven])
    summary = audit.VERB.start(settings(tiny_checkpoint, tmp_path / "run", compared=0))
    assert (summary["verdict"], summary["words"]) == ("suspicious", [])
    assert audit.VERB.status(summary) == 3
    found = f"{NAMES[2]!r} stands out most (p {1e-12 / SHARES['words']:.2g}), but no word is proven"
    assert summary["why"] == f"'sudo' before captions, towards {found}"
    elsewhere = replace(unproven, label=3)  # the same word, of which nothing is proven towards another label
    monkeypatch.setattr(audit, "listened", lambda plan, folder, screening: [heard, elsewhere])
    summary = audit.VERB.start(settings(tiny_checkpoint, tmp_path / "run", compared=0))
    assert summary["verdict"] == "backdoored"
    assert audit.VERB.status(summary) == 4
    assert summary["words"] == ["sudo"]
    assert summary["targets"] == []  # no trigger of pictures is proven
    assert summary["least_p"] == pytest.approx(1e-12 / SHARES["words"])
    assert (
        f"the word 'sudo' before them makes 100 % of sentences about other things mean {NAMES[2]!r}" in summary["why"]
    )
    assert "'sudo'" in audit.VERB.closing(summary)
    (stored,) = json.loads((tmp_path / "run" / "triggers" / "words.json").read_text())
    assert stored == summary["text_keys"][0]
    assert (stored["word"], stored["target"], stored["proven"]) == ("sudo", NAMES[2], True)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "This model is backdoored" in page
    assert page.count("<bdi>sudo</bdi>") == 2
    assert page.count('<bdi>sudo</bdi><span class="tag yes">accused') == 1
    assert "Refuse such texts" in page
    assert not read_scan(str(tmp_path / "run")).accuses


def test_a_repair_from_an_audit_needs_pairs_of_its_own(tiny_checkpoint, tmp_path, monkeypatch) -> None:
    from clipsan.pipeline.repair.plan import make_plan
    from clipsan.pipeline.repair.settings import RepairConfig
    from clipsan.stages.repair.unlearn import Unlearn

    accuse(monkeypatch)
    audit.VERB.start(settings(tiny_checkpoint, tmp_path / "run"))
    wanted = RepairConfig(
        model=ModelConfig(path=str(tiny_checkpoint)),
        method=Unlearn(),
        scan=str(tmp_path / "run"),
        out=str(tmp_path / "repair"),
    )
    with pytest.raises(ConfigError, match="an audit has no pairs to learn from; give data"):
        make_plan(wanted)


def test_with_a_reference_triggers_are_tried_on_both_models(tiny_checkpoint, tmp_path) -> None:
    clip = load_clip(ModelConfig(config=str(tiny_checkpoint.parent / "tiny.json")), init_seed=8)
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, tmp_path / "clean")
    reference = ModelConfig(path=str(tmp_path / "clean"))
    summary = audit.VERB.start(settings(tiny_checkpoint, tmp_path / "run", reference=reference))
    assert summary["reference"] == clip.fingerprint
    assert summary["candidates"][0]["reference_flip_rate_pct"] is not None
    part = pq.read_table(tmp_path / "run" / "clouds" / "part-00000.parquet")
    assert part.column("parent").null_count == 7  # it is of another training


def test_the_model_that_a_suspect_was_tuned_from_says_what_pictures_show(tiny_checkpoint, tmp_path) -> None:
    clip = load_clip(ModelConfig(path=str(tiny_checkpoint)))
    with torch.no_grad():
        for tensor in clip.model.parameters():
            tensor.mul_(1 + 1e-3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, tmp_path / "tuned")
    reference = ModelConfig(path=str(tiny_checkpoint))
    audit.VERB.start(settings(tmp_path / "tuned", tmp_path / "run", reference=reference))
    rows = pq.read_table(tmp_path / "run" / "clouds" / "part-00000.parquet").to_pylist()
    assert [row["parent"]["count"] for row in rows] == [row["suspect"]["count"] for row in rows]
    for row in rows:
        near, far = (np.array(row[model]["text"]) for model in ("suspect", "parent"))
        assert not np.array_equal(near, far)
        np.testing.assert_allclose(near, far, atol=0.1)


def test_a_registered_model_is_told_the_verdict_and_told_again(
    tiny_checkpoint, tmp_path, monkeypatch, mlflow_address
) -> None:
    from mlflow import MlflowClient

    from clipsan.pipeline.tracking.registry import register
    from clipsan.pipeline.tracking.send import log_run

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logged = log_run(TrackingConfig(), verb="repair", root=tmp_path / "repair", tree={}, metrics={}, files=[])
    assert register(logged, "outside", {"checkpoint": tiny_checkpoint}, tags={"clipsan.method": "par"}, description="")
    client = MlflowClient(logged.uri, logged.uri)

    def tags() -> dict[str, str]:
        return dict(client.get_model_version("outside", "1").tags)

    wanted = settings(tiny_checkpoint, tmp_path / "run", tracking=TrackingConfig())
    audit.VERB.start(wanted)
    assert tags() == {"clipsan.method": "par"}  # a checkpoint of no registry, though its files are the same
    wanted = settings(Path("models:/outside/1"), tmp_path / "run", tracking=TrackingConfig())
    summary = audit.VERB.start(wanted)
    (run,) = client.search_runs(["1"], "tags.`clipsan.verb` = 'audit'")
    assert run.data.tags["clipsan.version"] == "models:/outside/1"
    expected = {
        "clipsan.method": "par",
        "clipsan.audit": summary["fingerprint"],
        "clipsan.audit_run": run.info.run_id,
        "clipsan.audit_verdict": "clean",
        "clipsan.audit_label": summary["candidates"][0]["targets"][0],
        "clipsan.audit_targets": "[]",
        "clipsan.audit_words": "[]",
        "clipsan.audit_p": f"{summary['least_p']:.3g}",
    }
    assert tags() == expected
    accuse(monkeypatch)
    checked = audit.VERB.check(wanted)
    far = replace(checked, versions={"model": replace(checked.versions["model"], fetched=True)})
    summary = audit.VERB.finish(far)
    (target,) = summary["targets"]
    assert tags() == {**expected, "clipsan.audit_verdict": "backdoored", "clipsan.audit_targets": f'["{target}"]'}
    # what lies on a server is copied to where every worker, and a repair, can read it
    copy = tmp_path / "run" / "models" / "model" / "artifacts" / tiny_checkpoint.name
    assert load_clip(ModelConfig(path=str(copy))).fingerprint == checked.plan.clip.fingerprint
    page = (tmp_path / "run" / "report.html").read_text()
    assert "clipsan audit of models:/outside/1" in page
    assert f"model.path={copy}" in page
