"""conf/README.md holds every setting of every verb as the code has it, and every field says what it means."""

import dataclasses
from typing import Annotated, Literal

import pytest
from pydantic import Field

from clipsan.pipeline.verbs import VERBS
from clipsan.stages.stage import config
from tests.reference import README, _gather, _table, fill, meanings, schemas


def test_the_document_holds_what_the_generator_gives() -> None:
    text = README.read_text(encoding="utf-8")
    assert fill(text) == text, "run: python -m tests.reference"


def test_a_document_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        fill("# Settings\n")


def test_every_verb_has_its_settings_and_every_field_its_meaning() -> None:
    assert set(schemas()) == set(VERBS)
    held: dict[str, type] = {}
    for schema in schemas().values():
        _gather(schema, held)
    silent = [
        f"{name}.{field.name}"
        for name, schema in held.items()
        for field in dataclasses.fields(schema)
        if not meanings(schema)[field.name]
    ]
    assert silent == []


@config
class Inner:
    """What a section holds."""

    kind: Literal["inner"] = "inner"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A share
    of all."""


@config
class Outer:
    """All kinds of fields."""

    need: str
    """Must be given."""
    inner: Inner = dataclasses.field(default_factory=Inner)
    """A section."""
    names: list[str] | None = None
    """Text, a|b."""
    when: dict[str, Literal["now", "then"]] = dataclasses.field(default_factory=dict)
    """By name."""


def test_a_field_is_shown_with_type_default_and_meaning() -> None:
    assert _table(Outer, {"names": ["x"]}).splitlines()[2:] == [
        "| `need` | text | required | Must be given. |",
        "| `inner` | [`inner`](#inner) | its own | A section. |",
        "| `names` | list of text or null | `[x]` | Text, a\\|b. |",
        "| `when` | names with `now` or `then` each | `{}` | By name. |",
    ]
    assert _table(Inner, {}).splitlines()[3] == "| `share` | number > 0 ≤ 1 | `0.5` | A share of all. |"
