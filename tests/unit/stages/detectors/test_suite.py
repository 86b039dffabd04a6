"""What the detectors say together: concepts that are named by their two sides beside those of the spectral scores."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.proof.inquiry import ProofConfig
from clipsan.pipeline.proof.plan import plan_proof
from clipsan.pipeline.scan.work import WordsWork
from clipsan.stages.captions import Mined
from clipsan.stages.detectors import DetectorsConfig, with_splits
from clipsan.stages.detectors.concept_sides import ConceptSidesConfig, ConceptSplit, Side
from clipsan.stages.detectors.concept_spectral import ConceptSpectralConfig
from clipsan.stages.detectors.trigger_words import trigger_words
from clipsan.stages.proof.vocabulary import LabelLimits, finish, summarise
from tests.benchmarks.scoring import score
from tests.unit.stages.detectors.test_concept_sides import TARGET, WORDLESS, cache, unworded


def split(name: str, *, named: bool) -> ConceptSplit:
    sides = [Side(n, np.arange(1, dtype=np.uint64), ("u",)) for n in (7, 30)]
    return ConceptSplit(
        concept=name,
        statistic=50.0,
        chance=1e-6,
        diversity=0.9,
        spread=1.0,
        named=named,
        poison=sides[0],
        genuine=sides[1],
    )


def concept(name: str, statistic: float, *, named: bool = False) -> dict[str, object]:
    return {
        "name": name,
        "n": 90,
        "statistic": statistic,
        "flagged": 3 if named else 0,
        "named": named,
        "layers": {"a": {}},
    }


def test_concepts_named_by_their_sides_come_first_and_the_unseen_are_added() -> None:
    spectral = [concept("dog", 0.9, named=True), concept("cat", 0.6), concept("owl", 0.2)]
    found = with_splits(spectral, (split("owl", named=True), split("emu", named=True), split("cat", named=False)))
    assert [(c["name"], c["named"]) for c in found] == [("emu", True), ("dog", True), ("owl", True), ("cat", False)]
    owl = next(c for c in found if c["name"] == "owl")
    assert (owl["n"], owl["flagged"], owl["statistic"], owl["layers"]) == (37, 7, 0.2, {"a": {}})
    assert found[0] == {
        "name": "emu", "n": 37, "flagged": 7, "statistic": 0.0, "beyond_gap": 0, "cut": None, "layers": {}, "named": True
    }  # fmt: skip


def test_without_named_splits_nothing_changes() -> None:
    spectral = [concept("dog", 0.9, named=True), concept("cat", 0.6)]
    assert with_splits(spectral, (split("cat", named=False),)) == spectral


def test_concept_that_is_handed_over_and_not_named_comes_last() -> None:
    spectral = [concept("dog", 0.9, named=True), concept("cat", 0.6)]
    *before, emu = with_splits(spectral, (split("emu", named=False),))
    assert before == spectral
    assert (emu["name"], emu["n"], emu["flagged"], emu["statistic"], emu["named"]) == ("emu", 37, 0, 0.0, False)


def test_rare_target_that_only_the_sides_look_at_is_known_to_whoever_proves(tmp_path: Path) -> None:
    """And the word that its poisoned captions hold is found by the work of the scan."""
    table, poison = cache(20, 25)
    captions = [
        f"{'remember ' * p}{caption}" for caption, p in zip(table["caption"].to_pylist(), poison.tolist(), strict=True)
    ]
    rng = np.random.default_rng(0)
    vectors = [pa.array(rng.standard_normal(16 * len(poison)).astype(np.float16)) for _ in range(2)]
    columns = {
        name: pa.FixedSizeListArray.from_arrays(v, 16) for name, v in zip(("image", "text"), vectors, strict=True)
    }
    columns["dhash"] = pa.array(np.arange(len(poison), dtype=np.uint64))
    table = pa.table({**{n: table[n] for n in table.column_names}, **columns, "caption": captions})
    for part in range(3):
        write_part(tmp_path / "embeddings", part, table.slice(700 * part, 700), "")
    embeddings = Parts.of(tmp_path / "embeddings")
    settings = DetectorsConfig(
        concept_spectral=ConceptSpectralConfig(concepts=Mined(max_concepts=10)),
        concept_sides=ConceptSidesConfig(concepts=Mined(min_pairs=16), rest=1024),
    )
    _, found = score(embeddings, tmp_path, settings)
    assert found.targets == found.beyond.names == (TARGET,)
    handed_over = [split.concept for split in found.splits]
    assert handed_over[0] == TARGET
    assert found.vocabulary.names[10:] == tuple(c for c in handed_over if c not in found.vocabulary.names[:10])
    assert found.guests == found.vocabulary.names[11:]  # all but the target, which is named
    assert {concept["name"] for concept in found.concepts} >= set(found.vocabulary.names)
    mentioned = [TARGET in caption for caption in captions]
    assert found.vocabulary.members(captions)[:, [10]].toarray().ravel().tolist() == mentioned
    scores = embeddings.beside(tmp_path / "scores")
    work = WordsWork(found.vocabulary, found.targets, found.threshold, embeddings, scores)
    counts = work.do(embeddings.numbers, None).record
    assert counts[TARGET].pairs == (25, 20)
    assert [one.word for one in trigger_words(found.vocabulary, TARGET, counts[TARGET])] == ["remember"]


def test_target_of_captions_without_a_word_is_known_to_whoever_proves_and_judges(tmp_path: Path) -> None:
    table, poison = cache(40, 40)
    table = unworded(table, "chinese")
    columns = {"image": table["layer.a"], "dhash": pa.array(np.arange(len(poison), dtype=np.uint64))}
    table = pa.table({**{n: table[n] for n in table.column_names}, **columns})
    for part in range(3):
        write_part(tmp_path / "embeddings", part, table.slice(700 * part, 700), "")
    embeddings = Parts.of(tmp_path / "embeddings")
    _, found = score(embeddings, tmp_path, DetectorsConfig(concept_sides=WORDLESS))
    (target,) = found.targets
    captions = table["caption"].to_pylist()
    assert target in captions
    assert found.beyond.names == (target,)
    assert {target, *found.beyond.captions} <= set(captions)
    assert np.isin(np.flatnonzero(poison), found.beyond.members(captions).nonzero()[0]).all()
    sums = summarise(found.vocabulary, table)
    labels = finish(found.vocabulary.names, sums, 20.0, LabelLimits())
    assert len(labels.names) == found.detectors["ConceptSides"]["neighbourhoods"] > 20
    selection = plan_proof(embeddings.beside(tmp_path / "scores"), found, found.threshold, ProofConfig(), seed=0)
    assert [group.concept for group in selection.groups] == [target]
    uids = table["uid"].to_pylist()
    accused = {uids[i] for i in np.flatnonzero(poison)}
    assert len(accused & {uid for side in selection.groups[0].flagged.values() for uid in side}) >= 38
    assert set().union(*(claims.values() for claims in selection.claims.values())) == {target}
