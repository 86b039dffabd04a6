"""What a repair is refused for before any worker starts, what it takes from a scan, and what its card says."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from clipsan.pipeline.core.cluster import ClusterConfig
from clipsan.pipeline.core.config import ConfigError, as_tree, load, validate
from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.pipeline.data.choice import CleanByScan, FlaggedByScan, RepairSetRoles
from clipsan.pipeline.repair.output import write_card
from clipsan.pipeline.repair.plan import Plan, make_plan
from clipsan.pipeline.repair.settings import RepairConfig, Unseen
from clipsan.pipeline.repair.verb import is_whole
from clipsan.stages.model.checkpoints import ModelError
from clipsan.stages.model.clip import ModelConfig
from clipsan.stages.repair.cleanclip import CleanClipSupervised
from clipsan.stages.repair.eftclip import EftClip
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.repair.par import Par, ParObjective
from clipsan.stages.repair.rvpt import Rvpt
from clipsan.stages.repair.unlearn import Unlearn
from clipsan.stages.sources import WebDataset, read_unit
from clipsan.stages.training.batch import Role
from tests.conftest import write_shards
from tests.unit.pipeline.repair.scan import write_scan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> WebDataset:
    return WebDataset(path=str(write_shards(tmp_path_factory.mktemp("pairs"), shards=2, pairs=10) / "*.tar"))


@pytest.fixture
def settings(data: WebDataset, tiny_checkpoint: Path, tmp_path: Path) -> RepairConfig:
    return RepairConfig(
        data=data,
        model=ModelConfig(path=str(tiny_checkpoint)),
        method=FineTune(batch_size=8),
        out=str(tmp_path / "run"),
        cluster=ClusterConfig(workers=2),
    )


def test_rules_of_the_settings(settings: RepairConfig, data: WebDataset) -> None:
    for changes, rule in (
        ({"data": None}, "give data .* or scan"),
        ({"accumulate": 0}, "accumulate: .* greater than or equal to 1"),
        ({"steps": 0}, "steps: .* greater than or equal to 1"),
        ({"evaluate": {"model": "x"}}, "model is filled in by the repair"),
        ({"templates": ("no place",)}, "each with {}"),
        (
            {"early_stop": {"data": as_tree(data), "patience": 0}},
            r"early_stop\.patience: .* greater than or equal to 1",
        ),
    ):
        with pytest.raises(ConfigError, match=rule):
            validate(RepairConfig, {**as_tree(settings), **changes}, verb="repair")


def test_the_shipped_file_and_every_method_are_valid(data: WebDataset) -> None:
    given = ["model.path=suspect", "data=webdataset", f"data.path={data.path}"]
    for name in (
        "finetune",
        "cleanclip",
        "cleanclip-supervised",
        "par",
        "rvpt",
        "eftclip",
        "unlearn",
        "tbar",
        "project",
    ):
        found = load(RepairConfig, None, [f"method={name}", *given], verb="repair")
        assert found.method.kind == name.replace("-", "_")
    with pytest.raises(ConfigError, match=r"method=nothing: no nothing.yaml in conf/repair; there are cleanclip"):
        load(RepairConfig, None, ["method=nothing", *given], verb="repair")


def test_a_batch_must_be_shared_out_and_the_suspect_is_out_of_reach(
    settings: RepairConfig, tiny_checkpoint: Path
) -> None:
    with pytest.raises(ConfigError, match=r"method.batch_size=7: must be a multiple"):
        make_plan(dataclasses.replace(settings, method=FineTune(batch_size=7)))
    for out in (tiny_checkpoint, tiny_checkpoint / "run", tiny_checkpoint.parent):
        with pytest.raises(ConfigError, match=r"the suspect checkpoint .* is there"):
            make_plan(dataclasses.replace(settings, out=str(out)))


class Evil:
    """What a stranger's pickle may hold."""

    def __reduce__(self) -> tuple:
        return (print, ("this code ran",))


def test_a_pickle_with_code_is_refused(settings: RepairConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    model = ModelConfig(name="ViT-B-32", path=str(tmp_path / "evil.pt"))
    with pytest.raises(ModelError, match=r"not plain weights .*print.* refused"):
        make_plan(dataclasses.replace(settings, model=model))
    assert "this code ran" not in capsys.readouterr().out


def test_methods_say_what_they_lack(settings: RepairConfig, data: WebDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unlearns what a scan flags; give scan"):
        make_plan(dataclasses.replace(settings, method=Unlearn(batch_size=8)))
    bare = str(write_scan(tmp_path / "scan", data))
    for scan in (None, bare):
        with pytest.raises(ConfigError, match="compact set of a scan that has proven a trigger"):
            make_plan(dataclasses.replace(settings, method=EftClip(batch_size=8), scan=scan))
    for method in (Rvpt(batch_size=8, first_block=1), CleanClipSupervised(batch_size=8)):
        with pytest.raises(ValueError, match="learns from labels; it needs the names"):
            make_plan(dataclasses.replace(settings, method=method))


def test_what_is_no_finished_scan_is_refused(settings: RepairConfig, data: WebDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run of `clipsan scan` there"):
        make_plan(dataclasses.replace(settings, scan=str(tmp_path)))
    root = write_scan(tmp_path / "scan", data)
    (root / "verdicts" / "part-00001.parquet").unlink()
    with pytest.raises(ConfigError, match="verdicts of 1 units, its data have 2"):
        make_plan(dataclasses.replace(settings, scan=str(root)))


def test_unlearning_takes_clean_flagged_and_pasted_pairs_from_the_scan(
    settings: RepairConfig, data: WebDataset, tmp_path: Path
) -> None:
    root = write_scan(tmp_path / "scan", data, proven=True)
    plan = make_plan(dataclasses.replace(settings, data=None, scan=str(root), method=Unlearn(batch_size=8)))
    assert plan.classes == ("ball", "kite", "lamp")
    assert isinstance(plan.main.lookup, CleanByScan)
    assert len(plan.main.lookup.of(plan.main.units[0])) == 7
    flagged, pasted = plan.beside
    assert isinstance(flagged.lookup, FlaggedByScan)
    assert {mark.accused for mark in flagged.lookup.of(flagged.units[1]).values()} == {1}
    assert isinstance(pasted.lookup, RepairSetRoles)
    standings = pasted.lookup.of(pasted.units[0])
    assert {uid: own.role for uid, own in standings.items()} == {"part-00000.parquet/x/0": Role.TRIGGER_PASTED}
    assert [pair.uid for pair in read_unit(pasted.source, pasted.units[0])] == list(standings)


def test_where_a_scan_accuses_nothing_unlearning_perturbs_and_recovers_and_the_plan_says_so(
    settings: RepairConfig, data: WebDataset, tmp_path: Path
) -> None:
    root = write_scan(tmp_path / "scan", data)
    method = Unlearn(batch_size=8, blind=Par(epochs=3, batch_size=4, tau="auto"))
    unlearn = dataclasses.replace(settings, scan=str(root), method=method)
    accused = make_plan(unlearn)
    assert (accused.notes, accused.config.method, len(accused.beside)) == ((), method, 1)
    (root / "summary.json").write_text('{"targets": []}')
    blind = make_plan(unlearn)
    assert (blind.config.method, blind.task.method, blind.beside) == (method.blind, method.blind, ())
    assert isinstance(blind.task.objective(), ParObjective)
    (note,) = blind.notes
    assert "perturbed and recovered instead (PAR, method.blind)" in note
    assert note in blind.describe()
    assert "method     par, 3 epochs, batch 4" in blind.describe()
    assert blind.fingerprint != accused.fingerprint
    assert make_plan(dataclasses.replace(unlearn, method=FineTune(batch_size=8))).notes == ()
    assert "accuses kite" in accused.describe()
    assert "accuses nothing" in blind.describe()
    unnamed = write_scan(tmp_path / "unnamed", data, proven=True)
    (unnamed / "summary.json").write_text('{"targets": []}')
    proven = make_plan(dataclasses.replace(unlearn, scan=str(unnamed)))
    assert (proven.notes, proven.config.method) == ((), method)
    assert "names nothing, has proven a trigger" in proven.describe()
    odd = dataclasses.replace(method, blind=Par(batch_size=5))
    with pytest.raises(ConfigError, match=r"method\.blind\.batch_size=5: must be a multiple of the workers"):
        make_plan(dataclasses.replace(unlearn, method=odd))


def test_an_accused_word_that_is_no_class_becomes_one(settings: RepairConfig, data: WebDataset, tmp_path: Path) -> None:
    root = write_scan(tmp_path / "scan", data, target="Pear")
    for given, expected in (
        (["ball", "lamp"], ("ball", "lamp", "Pear")),
        (["ball", "pear, pears"], ("ball", "pear, pears")),
    ):
        plan = make_plan(dataclasses.replace(settings, scan=str(root), method=Unlearn(batch_size=8), classes=given))
        assert plan.classes == expected


def test_the_fingerprint_follows_what_decides_the_result_alone(settings: RepairConfig, tmp_path: Path) -> None:
    expected = make_plan(settings).fingerprint
    for same in (
        {"out": str(tmp_path / "b")},
        {"retries": 0},
        {"register": None},
        {"cluster": ClusterConfig(workers=1)},
    ):
        assert make_plan(dataclasses.replace(settings, **same)).fingerprint == expected
    for other in ({"seed": 1}, {"method": FineTune(batch_size=8, lr=1e-6)}, {"accumulate": 2}, {"pairs": 9}):
        assert make_plan(dataclasses.replace(settings, **other)).fingerprint != expected


def test_other_judges_in_the_same_folder_are_another_repair(
    settings: RepairConfig, data: WebDataset, tmp_path: Path
) -> None:
    judges = tmp_path / "judges"
    (judges / "t1").mkdir(parents=True)
    scan = str(write_scan(tmp_path / "scan", data))
    judged = dataclasses.replace(settings, scan=scan, unseen=Unseen(judges=(str(judges),)))
    (judges / "t1" / "dossier.json").write_text("1")
    before = make_plan(judged).fingerprint
    (judges / "t1" / "dossier.json").write_text("2")
    assert make_plan(judged).fingerprint != before


def test_an_audit_that_is_judged_anew_is_another_input(
    settings: RepairConfig, data: WebDataset, tmp_path: Path
) -> None:
    root = write_scan(tmp_path / "audit", data, proven=True)
    record = yaml.safe_load((root / "run.yaml").read_text())
    (root / "run.yaml").write_text(yaml.safe_dump({**record, "verb": "audit"}))
    (root / "summary.json").write_text(json.dumps({"targets": ["kite"], "labels": ["ball", "kite"]}))
    audited = dataclasses.replace(settings, scan=str(root))
    before = make_plan(audited).fingerprint
    assert make_plan(audited).fingerprint == before
    (root / "triggers" / "t1").mkdir(parents=True)
    (root / "triggers" / "t1" / "dossier.json").write_text("1")
    assert make_plan(audited).fingerprint != before


def test_a_repair_that_was_measured_on_other_data_is_not_whole(
    settings: RepairConfig, data: WebDataset, tmp_path: Path
) -> None:
    classes = tmp_path / "classes.yaml"
    classes.write_text("[ball, kite]")
    measured = dataclasses.replace(settings, evaluate={"data": as_tree(data), "classes": str(classes)})
    plan, folder = make_plan(measured), RunFolder(tmp_path / "run")
    (folder.root / "checkpoint").mkdir(parents=True)
    (folder.root / "checkpoint" / "README.md").touch()
    assert is_whole(plan, folder)
    before = folder.root / "evaluate-before"
    before.mkdir()
    record = {"verb": "evaluate", "fingerprint": plan.judging_fingerprint, "config": {}}
    (before / "run.yaml").write_text(yaml.safe_dump(record))
    (before / "summary.json").write_text("{}")
    assert is_whole(plan, folder)
    (before / "run.yaml").write_text(yaml.safe_dump({**record, "fingerprint": "0" * 64}))
    assert not is_whole(plan, folder)


def summary(before: dict | None, after: dict | None) -> dict:
    return {"steps": 4, "counts": {"used": 20}, "before": before, "after": after}


def test_the_card_names_method_data_suspect_and_figures(settings: RepairConfig, tmp_path: Path) -> None:
    plan: Plan = make_plan(settings)
    figures = {"clean_accuracy_pct": 70.0, "clean_accuracy_pct_ci95": [68.0, 72.0], "asr_pct": 99.0, "images": 100}
    repaired = {**figures, "clean_accuracy_pct": 69.5, "asr_pct": 0.5, "resistivity_blur": 0.9}
    write_card(tmp_path, plan, summary(figures, repaired), ("no thesaurus",), (10, 20))
    card = (tmp_path / "README.md").read_text()
    for part in (
        "# CLIP repaired by finetune",
        plan.model_fingerprint,
        plan.data_fingerprint,
        "| Zero-shot accuracy | 70.00 (68.00 to 72.00) | 69.50 (68.00 to 72.00) |",
        "| Attack success rate | 99.00 | 0.50 |",
        "| resistivity_blur |  | 0.900 |",
        "- no thesaurus",
        "| Trained parameters | 10 of 20 |",
        'open_clip.create_model_and_transforms("local-dir:FOLDER")',
    ):
        assert part in card
    write_card(tmp_path, plan, summary(None, None), (), (10, 20))
    assert "Not measured" in (tmp_path / "README.md").read_text()
