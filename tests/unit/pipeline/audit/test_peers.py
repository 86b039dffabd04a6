"""Audits of clean models beside a suspect's: what does not fit is refused in a line, and what they say joins the verdict."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from clipsan.pipeline.audit import verb as audit
from clipsan.pipeline.audit.plan import make_plan
from clipsan.pipeline.audit.settings import AuditConfig
from clipsan.pipeline.core.commit import read_part, write_part
from clipsan.pipeline.core.config import ConfigError
from clipsan.stages.audit.verdict import VerdictLimits
from clipsan.stages.model.clip import ModelConfig, load_clip, save_clip
from tests.unit.pipeline.audit.test_verb import NAMES, settings

PLANTED = 4
"""Label of the suspect whose trigger works."""


def tuned(checkpoint: Path, out: Path, seed: int) -> Path:
    """Write a model near another, as one that was tuned from it is."""
    clip = load_clip(ModelConfig(path=str(checkpoint)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in clip.model.parameters():
            tensor.mul_(1 + 1e-3 * torch.randn(tensor.shape, generator=generator))
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, out)
    return out


@pytest.fixture(scope="module")
def audited(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and their audits, of a suspect and of three clean ones."""
    home = tmp_path_factory.mktemp("peers")
    for seed, name in enumerate(["suspect", "clean-1", "clean-2", "clean-3"]):
        tuned(tiny_checkpoint, home / name, seed)
        audit.VERB.start(given(home, name))
    return home


def given(home: Path, name: str = "suspect", **changed) -> AuditConfig:
    return settings(home / name, home / "audits" / name, **changed)


def peers_of(home: Path, *names: str) -> tuple[str, ...]:
    return tuple(str(home / "audits" / name) for name in names)


THREE = ("clean-1", "clean-2", "clean-3")


def test_peers_are_read_and_nothing_else_is_done_anew(audited: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(audited / "audits" / "suspect", out)
    before = {path: path.read_bytes() for path in out.rglob("part-*.parquet")}
    alone = json.loads((out / "summary.json").read_text())
    assert alone["peers"] == []
    summary = audit.VERB.start(settings(audited / "suspect", out, peers=peers_of(audited, *THREE)))
    assert summary["peers"] == [load_clip(ModelConfig(path=str(audited / name))).fingerprint for name in THREE]
    assert summary["fingerprint"] == alone["fingerprint"]
    assert "stands out most among the others or beside 3 clean models (p" in summary["why"]
    assert all(candidate["beyond"] is not None for candidate in summary["candidates"])
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "in the 3 clean models that were given" in (out / "report.html").read_text()
    assert "peers      3 clean models" in make_plan(given(audited, peers=peers_of(audited, *THREE))).describe()


def spread(home: Path, values: np.ndarray) -> None:
    """Write how evenly triggers work into a finished screening."""
    for path in sorted((home / "screening").glob("part-*.parquet")):
        key = int(path.stem.removeprefix("part-"))
        rows = [{**row, "spread": float(values[row["label"]])} for row in read_part(path.parent, key).to_pylist()]
        schema = pq.read_schema(path)
        fingerprint = schema.metadata[b"clipsan.fingerprint"].decode()
        table = type(read_part(path.parent, key)).from_pylist(rows, schema=schema.remove_metadata())
        path.unlink()
        write_part(path.parent, key, table, fingerprint)


def test_the_label_that_no_clean_model_shows_is_named_and_inverted(audited: Path, tmp_path: Path) -> None:
    home = tmp_path / "peers"
    shutil.copytree(audited, home)
    rng = np.random.default_rng(0)
    # labels of every model differ, and one of the suspect is taken more evenly than that of any other
    usual = np.log(np.array([0.5, 0.1, 0.05, 0.3, 0.2, 0.4, 0.25]))
    for name in ("suspect", *THREE):
        logs = usual + 0.02 * rng.standard_normal(len(NAMES))
        if name == "suspect":
            logs[PLANTED] -= 1.0
        spread(home / "audits" / name, np.exp(logs))
    limits = VerdictLimits(backdoored_p=0.01, suspicious_p=0.05)
    alone = audit.VERB.start(given(home, limits=limits))
    assert alone["candidates"][0]["targets"] == [NAMES[2]]
    beside = audit.VERB.start(given(home, limits=limits, peers=peers_of(home, *THREE)))
    candidate = beside["candidates"][0]
    assert candidate["targets"] == [NAMES[PLANTED]]
    assert candidate["p"] == beside["least_p"] < 1e-3
    assert beside["verdict"] != "clean"
    assert repr(NAMES[PLANTED]) in beside["why"]


def test_what_is_no_finished_audit_is_refused(audited: Path, tmp_path: Path) -> None:
    def refused(*roots: Path, match: str) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            make_plan(given(audited, peers=tuple(str(root) for root in roots)))
        assert "\n" not in str(caught.value)

    refused(tmp_path, match="^peers: .*no run.yaml there")
    copy = tmp_path / "copy"
    shutil.copytree(audited / "audits" / "clean-1", copy)
    (copy / "summary.json").unlink()
    refused(copy, match=f"^peers: {copy}: that audit is not finished")
    record = yaml.safe_load((copy / "run.yaml").read_text())
    (copy / "run.yaml").write_text(yaml.safe_dump({**record, "verb": "scan"}))
    refused(copy, match=f"^peers: {copy} holds a run of `clipsan scan`, and no audit")
    audits = audited / "audits"
    refused(audits / "suspect", match="is an audit of the suspect itself")
    refused(audits / "clean-1", match="^peers: 1 clean model, and how much they scatter is seen of 2 at least")
    refused(
        audits / "clean-1", audits / "clean-2", audits / "clean-1", match="is of the same model as .*clean-1; name each"
    )
    damaged = tmp_path / "damaged"
    shutil.copytree(audits / "clean-1", damaged)
    part = damaged / "clouds" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    refused(damaged, audits / "clean-2", match="^peers: .*part-00000.parquet is damaged")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 3}, "with another seed;"),
        ({"classes": NAMES[:-1]}, "with other labels;"),
        ({"compared": 700}, "with another compared;"),
    ],
)
def test_peers_that_were_audited_otherwise_are_refused(audited: Path, changed: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^peers: .*clean-1 was made {told} audit that model as this one"):
        make_plan(given(audited, peers=peers_of(audited, *THREE), **changed))


def test_peers_without_a_reference_do_not_fit_an_audit_with_one(audited: Path, tiny_checkpoint: Path) -> None:
    reference = ModelConfig(path=str(tiny_checkpoint))
    with pytest.raises(ConfigError, match="clean-1 was made without a reference; audit that model as this one"):
        make_plan(given(audited, peers=peers_of(audited, *THREE), reference=reference))


def test_peers_of_another_version_or_other_images_are_refused(audited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipsan.pipeline.audit.plan.AUDIT_VERSION", 0)
    with pytest.raises(ConfigError, match="was made with other images or by another version of clipsan"):
        make_plan(given(audited, peers=peers_of(audited, *THREE)))


def test_peers_of_another_training_are_refused(audited: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    clip = load_clip(ModelConfig(config=str(tiny_checkpoint.parent / "tiny.json")), init_seed=8)
    save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, tmp_path / "stranger")
    stranger = settings(tmp_path / "stranger", tmp_path / "run", peers=peers_of(audited, *THREE))
    with pytest.raises(ConfigError, match="clean-1 is of a model that was not tuned from the one"):
        make_plan(stranger)


def test_peers_need_the_images_by_which_their_kinship_is_told(audited: Path) -> None:
    with pytest.raises(ValueError, match="compared=0"):
        given(audited, peers=peers_of(audited, *THREE), compared=0)
