"""The attacks of a bench, out of its settings and the files of conf/attack."""

from collections.abc import Mapping
from typing import Any, TypeVar

from clipsan.stages.attack.poisoning import AttackConfig

from ..core.config import ConfigError, load_group, validate
from .settings import BenchConfig

T = TypeVar("T")


def resolve_attack(settings: BenchConfig, name: str, given: Mapping[str, Any]) -> AttackConfig:
    """Return the attack of an entry of `attacks` or `controls`; its seed is that of the cell and 0 here.

    Raises:
        ConfigError: unknown base, unknown setting, or no target.
    """
    where = f"{'controls' if name in settings.controls else 'attacks'}.{name}"
    own = {key: value for key, value in given.items() if key not in ("attack", "seeds")}
    if "seed" in own:
        raise ConfigError(f"{where}.seed: the cell's seed is used; give seeds: [...]")
    base = given["attack"] if "attack" in given else load_group("attack", name, where=where)
    if settings.target is not None and "target" not in base:
        base = {**base, "target": settings.target}
    if {"rate", "count"} & own.keys():
        base = {key: value for key, value in base.items() if key not in ("rate", "count")}
    return section(AttackConfig, merge(base, own), where=where)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`, mapping by mapping; one that names another `kind` replaces the whole mapping."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def seeds_of(settings: BenchConfig, name: str) -> list[int]:
    """Return the seeds of an attack or control: its own, or those of the bench.

    Raises:
        ConfigError: they are no whole numbers from 0.
    """
    given = {**settings.attacks, **settings.controls}[name].get("seeds", settings.seeds)
    if not isinstance(given, list) or not given or not all(type(seed) is int and seed >= 0 for seed in given):
        raise ConfigError(f"{name}.seeds: needs a list of whole numbers from 0 (got {given!r})")
    return list(dict.fromkeys(given))


def section(schema: type[T], tree: Mapping[str, Any], *, where: str) -> T:
    """Return the settings that a tree holds; `where` it stands in the bench's is for messages.

    Raises:
        ConfigError: unknown key, wrong type, missing or impossible value.
    """
    try:
        return validate(schema, dict(tree), verb="bench")
    except ConfigError as error:
        raise ConfigError(f"in {where}: {error}") from None
