"""The reference of all settings in conf/README.md, made of the configuration classes: `python -m tests.reference` writes it.

What stands between `<!-- reference -->` and `<!-- /reference -->` is replaced: a table a verb, then one for each class that a
setting holds. Type, default and meaning are read off the code: annotation, default, and the docstring below the field.
"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from clipsan.pipeline.core.config import as_tree, conf_folder
from clipsan.pipeline.verbs import VERBS, verb_of

README = Path(__file__).resolve().parents[1] / "conf" / "README.md"
MARKED = re.compile(r"(?<=<!-- reference -->\n).*?(?=<!-- /reference -->)", re.S)
PLAIN = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Path: "path",
    Any: "any",
}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def schemas() -> dict[str, type[Any]]:
    """Verb -> its configuration class."""
    return {name: verb_of(name).config for name in VERBS}


def reference() -> str:
    """Return the Markdown of all verbs and of all classes that their settings hold."""
    verbs = schemas()
    parts = [_verb(name, schema) for name, schema in verbs.items()]
    held: dict[str, type[Any]] = {}
    for schema in verbs.values():
        _gather(schema, held)
    inner = {name: schema for name, schema in held.items() if schema not in verbs.values()}
    parts.append("## Sections\n\nWhat the settings above hold, by the name of the class.\n")
    parts += [_section(schema) for _, schema in sorted(inner.items(), key=lambda item: item[0].casefold())]
    return "\n".join(parts)


def fill(text: str) -> str:
    """Return the document with the reference made anew.

    Raises:
        ValueError: it has no place for one.
    """
    if not MARKED.search(text):
        raise ValueError("there is no <!-- reference --> with its <!-- /reference -->")
    return MARKED.sub(lambda _: "\n" + reference(), text)


def _verb(name: str, schema: type[Any]) -> str:
    file = conf_folder() / f"{name}.yaml"
    given: Mapping[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    head = f"## clipsan {name}\n\n{VERBS[name].text[:1].upper()}{VERBS[name].text[1:]}. [{file.name}]({file.name}) opens with its commands."
    return f"{head}\n\n{_table(schema, given)}"


def _section(schema: type[Any]) -> str:
    told = " ".join((inspect.getdoc(schema) or "").split("\n\n")[0].split())
    return f"### {schema.__name__}\n\n{_cell(told)}\n\n{_table(schema, {})}"


def _table(schema: type[Any], given: Mapping[str, Any]) -> str:
    hints = typing.get_type_hints(schema, include_extras=True)
    rows = [
        f"| `{field.name}` | {_type(hints[field.name])} | {_default(field, given)} | {_cell(meanings(schema)[field.name])} |"
        for field in dataclasses.fields(schema)
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


@cache
def meanings(schema: type[Any]) -> dict[str, str]:
    """Field of a configuration class -> the docstring below it, on one line; of `kind` what it is for."""
    found: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                told = after.value if isinstance(after, ast.Expr) else None
                text = told.value if isinstance(told, ast.Constant) else ""
                found[field.target.id] = " ".join(str(text).split())
    if "kind" in found:
        found["kind"] = found["kind"] or "Which of its family this is."
    return found


def _default(field: dataclasses.Field[Any], given: Mapping[str, Any]) -> str:
    if field.name in given:
        value = given[field.name]
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        if dataclasses.is_dataclass(value):
            return "its own"
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return "required"
    shown = yaml.safe_dump(as_tree(value), default_flow_style=True, width=10**6, allow_unicode=True)
    return f"`{shown.strip().removesuffix('...').strip()}`".replace("|", "\\|")


def _type(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return _type(arguments[0]) + "".join(f" {limit}" for limit in _limits(arguments[1:]))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a section" if arguments[1] is Any else f"names with {_type(arguments[1])} each"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if len(arguments) > 1 and arguments[-1] is not Ellipsis:
            return "[" + ", ".join(map(_type, arguments)) + "]"
        return f"list of {_type(arguments[0])}"
    members = _classes(hint)
    if members:
        return " or ".join(f"[`{_kind(member)}`](#{member.__name__.casefold()})" for member in members)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(f"`{member.value}`" for member in hint)
    return PLAIN[hint]


def _limits(metadata: Sequence[Any]) -> Iterator[str]:
    for item in metadata:
        for limit in item.metadata if isinstance(item, FieldInfo) else [item]:
            yield from (f"{sign} {getattr(limit, name):g}" for name, sign in LIMITS.items() if hasattr(limit, name))


def _classes(hint: Any) -> list[type[Any]]:
    """The configuration classes of an annotation: itself, the members of its family, or those that it is made of."""
    if isinstance(hint, type) and hasattr(hint, "kinds"):
        return [hint] if dataclasses.is_dataclass(hint) else list(hint.kinds().values())
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for argument in get_args(hint) for found in _classes(argument)]


def _kind(schema: type[Any]) -> str:
    return next((str(field.default) for field in dataclasses.fields(schema) if field.name == "kind"), schema.__name__)


def _gather(schema: type[Any], held: dict[str, type[Any]]) -> None:
    if schema.__name__ in held:
        assert held[schema.__name__] is schema, f"two configuration classes are named {schema.__name__}"
        return
    held[schema.__name__] = schema
    for hint in typing.get_type_hints(schema, include_extras=True).values():
        for member in _classes(hint):
            _gather(member, held)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> int:
    """Write the reference into conf/README.md."""
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
