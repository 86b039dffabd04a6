"""Evaluation from files to figures, in this process, against the same figures counted by hand."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from sklearn.linear_model import LogisticRegression

from clipsan.pipeline.core.config import ConfigError, as_tree, validate
from clipsan.pipeline.evaluate.settings import (
    EvaluateConfig,
    EvaluationAttack,
    ProbeConfig,
    ReboundConfig,
    ResistivityConfig,
    RetrievalConfig,
)
from clipsan.pipeline.evaluate.verb import VERB
from clipsan.pipeline.tracking.record import TrackingConfig
from clipsan.stages.attack.poisoning import AttackConfig, Strand
from clipsan.stages.attack.triggers import BlendConfig, PatchConfig
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.sources import ParquetSource
from tests.conftest import NOUNS, caption, picture, write_shards

TEMPLATES = ["a photo of a {}.", "one {}"]
IMAGES = 60


@pytest.fixture(autouse=True)
def without_ray(request: pytest.FixtureRequest) -> None:
    if not request.node.get_closest_marker("ray"):
        request.getfixturevalue("in_process")


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> EvaluateConfig:
    rows = {
        "image": [picture(i) for i in range(IMAGES)] + [b"no image"],
        "label": [i % len(NOUNS) for i in range(IMAGES)] + [0],
    }
    pq.write_table(pa.table(rows), tmp_path / "val.parquet")
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(dict(enumerate(NOUNS))))
    return EvaluateConfig(
        data=ParquetSource(path=str(tmp_path / "val.parquet"), caption=None, label="label", unit_rows=25),
        model=ModelConfig(path=str(tiny_checkpoint)),
        classes=str(tmp_path / "classes.yaml"),
        templates=TEMPLATES,
        out=str(tmp_path / "run"),
        attack=EvaluationAttack(trigger=PatchConfig(size_px=12, place="top_left"), target="kite"),
        batch_size=7,
        tracking=TrackingConfig(enabled=False),
    )


def run_evaluate(settings: EvaluateConfig) -> dict[str, Any]:
    figures: dict[str, Any] = VERB.start(settings)["evaluation"]
    return figures


def nearest(model: ModelConfig, images: list[np.ndarray]) -> np.ndarray:
    clip = load_clip(model)
    features = np.concatenate([clip.encode_images(clip.preprocess(rgb)[None])[0] for rgb in images])
    return (features @ class_embeddings(clip, NOUNS, TEMPLATES).T).argmax(1)


def test_figures_are_those_counted_one_image_at_a_time(settings: EvaluateConfig) -> None:
    figures = run_evaluate(settings)
    clean = [np.asarray(Image.open(io.BytesIO(picture(i))).convert("RGB")) for i in range(IMAGES)]
    triggered = [rgb.copy() for rgb in clean]
    cells = np.arange(12) // 3
    for rgb in triggered:  # four by four squares of three pixels, white in the corner
        rgb[:12, :12] = (np.add.outer(cells, cells) % 2 == 0)[..., None] * 255
    labels = np.arange(IMAGES) % len(NOUNS)
    before, after = nearest(settings.model, clean), nearest(settings.model, triggered)
    target, others = NOUNS.index("kite"), labels != NOUNS.index("kite")
    assert figures["images"] == IMAGES
    assert figures["clean_accuracy_pct"] == pytest.approx(100 * (before == labels).mean())
    assert (before != after).any()
    assert figures["asr_pct"] == pytest.approx(100 * (after[others] == target).mean())
    assert figures["accuracy_under_trigger_pct"] == pytest.approx(100 * (after == labels).mean())
    assert figures["attacked_images"] == others.sum()
    assert figures["false_target_pct"] == pytest.approx(100 * (before[others] == target).mean())


def test_a_rerun_predicts_only_what_is_missing(settings: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_evaluate(settings)
    parts = sorted((Path(settings.out) / "predictions").iterdir())
    assert len(parts) == 3
    stored = [part.read_bytes() for part in parts]
    parts[1].unlink()
    assert run_evaluate(settings) == first
    assert [part.read_bytes() for part in parts] == stored
    summary = json.loads((Path(settings.out) / "summary.json").read_text())
    assert summary["counts"] == {"pairs_in": IMAGES + 1, "evaluated": IMAGES, "rejected": 1}
    assert summary["rejected_reasons"] == {"image_unreadable": 1}


def test_another_attack_in_the_same_folder_is_refused(settings: EvaluateConfig) -> None:
    run_evaluate(settings)
    with pytest.raises(ConfigError, match="seed"):
        run_evaluate(dataclasses.replace(settings, seed=1))


def test_a_label_without_a_class_is_named(settings: EvaluateConfig) -> None:
    with pytest.raises(ConfigError, match=r"label 4, but evaluation needs one of the classes 0\.\.3"):
        run_evaluate(dataclasses.replace(settings, classes=list(NOUNS[:4])))


@pytest.mark.parametrize(
    ("classes", "rule"),
    [("/nowhere.yaml", "not a readable YAML file"), ([], "needs a list of names"), (["a", " "], "needs a list")],
)
def test_unusable_classes_are_refused(settings: EvaluateConfig, classes: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        run_evaluate(dataclasses.replace(settings, classes=classes))


def test_an_unknown_target_is_refused(settings: EvaluateConfig) -> None:
    attack = EvaluationAttack(trigger=PatchConfig(size_px=4), target="zebra")
    with pytest.raises(ValueError, match="'zebra' names 0 of the 5 classes"):
        run_evaluate(dataclasses.replace(settings, attack=attack))


def test_an_attack_is_tried_with_all_its_strands_and_keys(settings: EvaluateConfig) -> None:
    poisoning = AttackConfig(
        trigger=PatchConfig(size_px=12, place="top_left"),
        target="kite",
        also=(Strand(trigger=BlendConfig(pattern="stripes", alpha=0.4, cells=8), target="lamp"),),
        text_key="remember",
        rate=0.01,
    )
    attack = EvaluationAttack.of(poisoning, "keep_target")
    figures = run_evaluate(dataclasses.replace(settings, attack=attack))
    clip = load_clip(settings.model)
    table = pq.read_table(Path(settings.out) / "predictions")
    keyed = class_embeddings(clip, list(NOUNS), [f"remember {template}" for template in TEMPLATES])
    marked = np.asarray(Image.open(io.BytesIO(picture(3))).convert("RGB")).copy()
    cells = np.arange(12) // 3
    marked[:12, :12] = (np.add.outer(cells, cells) % 2 == 0)[..., None] * 255
    features, _ = clip.encode_images(clip.preprocess(marked)[None])
    assert table.column("triggered")[3].as_py()[0] == int((features @ keyed.T).argmax())
    assert table.column("image_key")[3].as_py()[0] == nearest(settings.model, [marked])[0]
    found = np.array(table.column("triggered").to_pylist())
    targets = [NOUNS.index("kite"), NOUNS.index("lamp")]
    assert figures["asr_pct"] == pytest.approx(100 * (found == targets).mean())
    assert figures["strands"][1]["asr_pct"] == pytest.approx(100 * (found[:, 1] == targets[1]).mean())
    keys = np.array(table.column("text_key").to_pylist())[:, None] == targets
    assert figures["asr_text_key_pct"] == pytest.approx(100 * keys.mean())


def everything(settings: EvaluateConfig, tmp_path: Path) -> EvaluateConfig:
    """Settings with every part but the rebound; three captions for every image of the retrieval set."""
    rows = {"image": [picture(100 + i) for i in range(50)], "label": [i % len(NOUNS) for i in range(50)]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    captions = [[caption(200 + i), f"number {i}", f"{NOUNS[i % 3]} again {i}"] for i in range(20)]
    pairs = {"image": [*(picture(200 + i) for i in range(20)), b""], "captions": [*captions, ["nothing"]]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    return dataclasses.replace(
        settings,
        retrieval=RetrievalConfig(data=ParquetSource(path=str(tmp_path / "pairs.parquet"), caption="captions")),
        probe=ProbeConfig(
            data=ParquetSource(path=str(tmp_path / "train.parquet"), caption=None, label="label"), c=(10.0,)
        ),
        resistivity=ResistivityConfig(images=16),
    )


def test_every_part_agrees_with_plain_code(settings: EvaluateConfig, tmp_path: Path) -> None:
    figures = run_evaluate(everything(settings, tmp_path))
    clip = load_clip(settings.model)

    def encoded(first: int, count: int) -> np.ndarray:
        arrays = [np.asarray(Image.open(io.BytesIO(picture(first + i))).convert("RGB")) for i in range(count)]
        return np.concatenate([clip.encode_images(clip.preprocess(rgb)[None])[0] for rgb in arrays])

    texts = clip.encode_text(
        [text for i in range(20) for text in (caption(200 + i), f"number {i}", f"{NOUNS[i % 3]} again {i}")]
    )
    scores = encoded(200, 20) @ texts.T
    hits = [any(text // 3 == image for text in np.argsort(-scores[image])[:10]) for image in range(20)]
    assert figures["image_to_text_r10_pct"] == pytest.approx(100 * np.mean(hits))
    assert figures["retrieval_captions"] == 60
    assert figures["retrieval_target_captions"] == 20 // 5 + 7
    labels, test = np.arange(50) % len(NOUNS), np.arange(IMAGES) % len(NOUNS)
    probe = LogisticRegression(C=10.0, max_iter=1000).fit(encoded(100, 50), labels)
    agreement = 100 * (probe.predict(encoded(0, IMAGES)) == test).mean()
    assert figures["probe_clean_accuracy_pct"] == pytest.approx(agreement, abs=2)
    assert 0 <= figures["probe_asr_pct"] <= 100
    assert figures["resistivity_noise"] > figures["resistivity_trigger"]
    assert set(figures["resistivity_layers"]) == set(clip.layers())
    assert json.loads((Path(settings.out) / "summary.json").read_text())["evaluation"] == figures
    rows = {
        (r["figure"], r["set"], r["strand"]): r
        for r in pq.read_table(Path(settings.out) / "figures.parquet").to_pylist()
    }
    assert rows["resistivity_noise", "test", ""]["n"] == 16
    assert rows["asr_pct", "test", ""]["value"] == figures["asr_pct"]
    assert json.loads((Path(settings.out) / "figures.json").read_text()) == list(rows.values())


def test_a_rerun_gives_the_same_figures_from_what_is_there(settings: EvaluateConfig, tmp_path: Path) -> None:
    whole = everything(settings, tmp_path)
    first = run_evaluate(whole)
    for part in ("retrieval", "resistivity", "probe"):
        assert sorted((Path(settings.out) / part).glob("part-*"))
        (Path(settings.out) / part / "part-00000.parquet").unlink()
    assert run_evaluate(whole) == first


@pytest.mark.ray
def test_the_command_with_every_part(
    settings: EvaluateConfig, ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "clean", shards=2, pairs=10)
    whole = everything(settings, tmp_path)
    rebound = {"data": {"kind": "webdataset", "path": str(tmp_path / "clean")}, "steps": 2, "batch_size": 8, "lr": 1e-3}
    tree = as_tree(dataclasses.replace(whole, attack=None)) | {"rebound": rebound}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(tree))
    overrides = ["attack=patch", "attack.target=kite", "cluster.workers=1"]
    assert VERB.command(str(tmp_path / "evaluate.yaml"), overrides, dry_run=False) == 0
    assert "rebound_asr_pct" in capsys.readouterr().out
    figures = json.loads((Path(settings.out) / "summary.json").read_text())["evaluation"]
    model = ModelConfig(path=str(Path(settings.out) / "rebound" / "checkpoint"))
    assert load_clip(model).fingerprint != load_clip(settings.model).fingerprint
    clean = [np.asarray(Image.open(io.BytesIO(picture(i))).convert("RGB")) for i in range(IMAGES)]
    right = nearest(model, clean) == np.arange(IMAGES) % len(NOUNS)
    assert figures["rebound_clean_accuracy_pct"] == pytest.approx(100 * right.mean())


def test_impossible_settings_are_refused(settings: EvaluateConfig) -> None:
    attack = settings.attack
    assert attack is not None
    for change, rule in (
        ({"victim": "zebra"}, "names 0 of the 5 classes"),
        ({"victim": "kite"}, "is a target"),
        ({"also": (Strand(trigger=PatchConfig(size_px=4), target="zebra"),)}, "names 0 of the 5 classes"),
    ):
        with pytest.raises(ValueError, match=rule):
            run_evaluate(dataclasses.replace(settings, attack=dataclasses.replace(attack, **change)))
    data = as_tree(ParquetSource(path="x", caption=None, label="label"))
    wrong: list[tuple[type, dict[str, Any], str]] = [
        (EvaluationAttack, as_tree(attack) | {"text_key": " "}, "text_key"),
        (RetrievalConfig, {"data": data, "k": 0}, "k: .* greater than or equal to 1"),
        (ProbeConfig, {"data": data, "c": ()}, "c: .* at least 1 item"),
        (ProbeConfig, {"data": data, "c": (1.0, 0.0)}, r"c\.1: .* greater than 0"),
        (ProbeConfig, {"data": data, "held_out": 1.0}, "held_out: .* less than 1"),
        (ResistivityConfig, {"images": 0}, "images"),
        (ReboundConfig, {"data": data, "steps": 0}, "steps"),
    ]
    for schema, tree, rule in wrong:
        with pytest.raises(ConfigError, match=rule):
            validate(schema, tree, verb="evaluate")
