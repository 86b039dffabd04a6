"""Every limit of the proof can be set, is checked, and decides the fingerprint."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from clipsan.pipeline.core.config import ConfigError, as_tree, validate
from clipsan.pipeline.proof.inquiry import ProofConfig, proof_fingerprint
from clipsan.stages.dossier.limits import ProofLimits
from clipsan.stages.oracle import SuperpixelsConfig


def mark(settings: ProofConfig) -> str:
    return proof_fingerprint(settings, SuperpixelsConfig(), {"score": "scored", "decision": {}, "seed": 0})


def numbers(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(numbers(as_tree(ProofLimits()))), ids=".".join)
def test_another_limit_is_another_proof(path: tuple[str, ...]) -> None:
    value: Any = as_tree(ProofLimits())
    for name in path:
        value = value[name]
    changed: Any = [3] if isinstance(value, list) else value + 1 if isinstance(value, int) or value > 1 else value / 2
    for name in reversed(path):
        changed = {name: changed}
    settings = validate(ProofConfig, {"limits": changed}, verb="scan")
    assert mark(settings) != mark(ProofConfig())


@pytest.mark.parametrize("other", [{"score": "other"}, {"decision": {"kind": "budget"}}, {"seed": 1}], ids=str)
def test_what_decides_the_choice_of_pairs_decides_the_proof(other: dict[str, Any]) -> None:
    before: dict[str, Any] = {"score": "scored", "decision": {}, "seed": 0}
    found = proof_fingerprint(ProofConfig(), SuperpixelsConfig(), {**before, **other})
    assert found != proof_fingerprint(ProofConfig(), SuperpixelsConfig(), before)


def test_the_limits_of_the_pairs_decide_it_too() -> None:
    examine = ProofConfig().examine
    for other in (
        dataclasses.replace(examine, completed_on=5),
        dataclasses.replace(examine, box=dataclasses.replace(examine.box, area_price=60.0)),
    ):
        assert mark(ProofConfig(examine=other)) != mark(ProofConfig())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"warp": {"steps": 0}}, r"limits\.warp\.steps"),
        ({"groups": {"residual": {"strengths": []}}}, r"limits\.groups\.residual\.strengths"),
        ({"rivals": {"shared": 1.5}}, r"limits\.rivals\.shared"),
        ({"carriers": {"shrinkage": 0}}, r"limits\.carriers\.shrinkage"),
        ({"patches": {"likeness": {"ties": 0.1}}}, r"limits\.patches\.likeness\.ties"),
    ],
)
def test_a_wrong_limit_is_named_in_one_line(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        validate(ProofConfig, {"limits": limits}, verb="scan")
    assert "\n" not in str(refused.value)
