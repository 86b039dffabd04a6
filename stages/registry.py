"""Families of configurations: a data format, a trigger, an oracle, a repair or a detector is one class in one file.

The base class of a family stands in the family's package; a class that derives from it, has a `kind` and is made with
`@config` belongs to the family. Nothing lists the kinds: the files of the package are looked through, and after them the
modules of other people, which clipsan learns of in two ways:

- an installed distribution names them as entry points of the group `clipsan.extensions` (as a pytest plugin does), or
- the variable CLIPSAN_EXTENSIONS names modules that can be imported, with commas between them.

The workers of a cluster must be able to import the same modules: install the distribution on the nodes, or give the
modules to the job as its working_dir.
"""

import operator
import os
import pkgutil
from abc import ABC, abstractmethod
from functools import lru_cache, reduce
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Self

import pydantic
from pydantic_core import CoreSchema

EXTENSIONS = "CLIPSAN_EXTENSIONS"
"""Variable with the names of modules to import, beside those of the entry points."""
GROUP = "clipsan.extensions"


class ExtensionError(ValueError):
    """A module of an extension cannot be used; the message says which, and why."""


class Family(ABC):
    """Base of a family's base class. As the type of a field, pydantic reads it as the union of all kinds of the family."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]
    """Of every member; the base classes themselves are no dataclasses."""
    _members: ClassVar[dict[str, type[Any]]]
    """Kind -> class, as far as they have been imported."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name of the kind, in YAML and in messages: a field `kind: Literal["name"] = "name"`."""

    def __init_subclass__(cls) -> None:
        if Family in cls.__bases__:
            cls._members = {}

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """Return the classes of the family by their kind, in alphabetical order.

        Raises:
            ExtensionError: a module of an extension cannot be imported.
        """
        root = next(c for c in cls.__mro__ if Family in c.__bases__)
        package = import_module(root.__module__.rpartition(".")[0])
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)
        _load_extensions(os.environ.get(EXTENSIONS, ""))
        return dict(sorted(cls._members.items()))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        if Family not in cls.__bases__:
            return handler(source)
        union: Any = reduce(operator.or_, cls.kinds().values())
        return handler.generate_schema(Annotated[union, pydantic.Discriminator("kind")])


def register(member: type[Family]) -> None:
    """Make a finished configuration class one of its family.

    Raises:
        ExtensionError: the family has another class of this kind.
    """
    kind = member.__dataclass_fields__["kind"].default
    other = member._members.get(kind)
    if other is not None and (other.__module__, other.__qualname__) != (member.__module__, member.__qualname__):
        raise ExtensionError(
            f"{member.__module__}.{member.__qualname__}: kind {kind!r} is taken by {other.__module__}.{other.__qualname__}; "
            "give it another name"
        )
    member._members[kind] = member


@lru_cache(maxsize=4)
def _load_extensions(named: str) -> None:
    """Import the modules of extensions, those of the entry points first; once a process."""
    modules = {point.value.partition(":")[0]: f"entry point {point.name}" for point in entry_points(group=GROUP)}
    modules |= {name.strip(): EXTENSIONS for name in named.split(",") if name.strip()}
    for module, where in modules.items():
        try:
            import_module(module)
        except Exception as error:
            raise ExtensionError(f"{where}: module {module} cannot be imported ({error})") from error
