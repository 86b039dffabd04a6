"""A poisoned data set without a copy: the clean pairs, poisoned as they are read, by a plan that `clipsan poison` wrote.

The plan fixes everything that needs a look at all pairs (which draws are poisoned, which natural captions there are), so
that every pair can be made alone, with the same pixels and caption that a copy would hold. Uids are those of the clean set.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal

import pydantic

from ..attack.poisoning import AttackConfig, ImagePath
from ..attack.treatment import Treatment
from ..files import PathError, digest
from ..files import absolute as absolute_path
from ..samples import RawPair, Unit
from ..stage import config
from .common import SourceConfig, SourceError, UnitWriter


@config
class PoisonedSource(SourceConfig):
    """Pairs of a clean data set, poisoned on the fly; labels stay."""

    path: str
    """The plan.json that `clipsan poison copy_data=false` wrote."""
    kind: Literal["poisoned"] = "poisoned"
    on_the_fly: ClassVar[bool] = True

    def list_units(self) -> list[Unit]:
        """Return the units of the clean data, once they are known to be as the plan describes them.

        Raises:
            SourceError: there is no usable plan, or its clean data changed or are gone.
        """
        plan = load_plan(self.path)
        remedy = "put the clean data back, or run `clipsan poison` again with another `out`"
        try:
            found = plan.data.list_units()
        except (PathError, SourceError) as error:
            raise SourceError(f"{self.path}: the plan's clean data cannot be read ({error}); {remedy}") from error
        if [replace(unit, path="") for unit in found] != [replace(unit, path="") for unit in plan.units]:
            raise SourceError(f"{self.path}: {plan.data.path} changed since the plan was made; {remedy}")
        # A worker finds the plan from the unit alone, in whatever folder it runs.
        return [replace(unit, path=absolute_path(self.path)) for unit in found]

    def pieces(self, units: Sequence[Unit]) -> list[Unit]:
        return load_plan(self.path).data.pieces(units)

    def times(self, units: Sequence[Unit]) -> dict[str, int | None]:
        """Return those of the clean data; of the plan its content decides (see `content`)."""
        plan = load_plan(self.path)
        return plan.data.times(plan.units)

    def read_unit(self, unit: Unit) -> Iterator[RawPair]:
        """Yield every pair of a unit of `list_units`: treated where the plan changes it, else the clean pair itself."""
        opened = _open(unit.path)
        plan, treatment = opened.plan, opened.treatment
        for pair in plan.data.read_unit(plan.units[unit.index]):
            # A clean image that would come out with the same pixels is not decoded and encoded again.
            treated = None if plan.image.keeps_pixels and not treatment.chooses(pair) else treatment(pair)
            if treated is None:
                yield pair
            else:
                yield replace(
                    pair,
                    image=treated.image,
                    image_suffix=treated.suffix,
                    caption=treated.caption,
                    captions=(treated.caption, *pair.captions[1:]) if pair.captions else (),
                    native=_Changed(pair),
                )

    def open_writer(self, unit: Unit, folder: Path) -> UnitWriter:
        """Return the writer of the clean data's format."""
        return PoisonedWriter(unit, folder)

    def rewritten(self, folder: Path) -> SourceConfig:
        """Return the source that reads what the writers wrote: files of the clean data's format, poisoned."""
        return load_plan(self.path).data.rewritten(folder)

    def content(self) -> dict[str, Any]:
        """Return what the plan does as plain data, without paths; files of a trigger count by their content."""
        plan = load_plan(self.path)
        return {
            "kind": self.kind,
            "version": plan.version,
            "clean": plan.data.content(),
            "attack": asdict(_map_files(plan.attack, digest)),
            "image": asdict(plan.image),
            "cut": plan.cut,
            "captions": list(plan.captions),
        }


@config
class PoisonPlan:
    """Everything that decides a poisoned data set. What is not in here follows from a pair's uid."""

    version: Literal[1] = 1
    """Of the plan's form."""
    data: SourceConfig
    """The clean pairs."""
    attack: AttackConfig
    """What is done."""
    image: ImagePath
    """What every image goes through."""
    cut: int
    """Largest draw that is poisoned (`stages.attack.poisoning.place_draw_cut`)."""
    captions: tuple[str, ...]
    """Natural captions that contain a target; none unless the attack draws from them."""
    units: tuple[Unit, ...]
    """The clean data as they were."""

    def __post_init__(self) -> None:
        if self.data.on_the_fly:
            raise ValueError("data must be the clean data set itself, not another plan")


def plan_text(plan: PoisonPlan) -> str:
    """Return the content of plan.json, its paths made absolute."""
    plan = replace(plan, data=plan.data.absolute(), attack=_map_files(plan.attack, absolute_path))
    return json.dumps(asdict(plan), indent=1, allow_nan=False) + "\n"


def load_plan(path: str) -> PoisonPlan:
    """Read a plan.

    Raises:
        SourceError: there is no plan at the path, or it cannot be used.
    """
    return _open(path).plan


@dataclass(frozen=True, slots=True)
class _Changed:
    """What a treated pair carries for the writer."""

    clean: RawPair


class PoisonedWriter(UnitWriter):
    """Writes pairs of a unit in the format of the clean data, as they were read: poisoned."""

    def __init__(self, unit: Unit, folder: Path) -> None:
        plan = load_plan(unit.path)
        self._inner = plan.data.open_writer(plan.units[unit.index], folder)
        super().__init__(folder, self._inner.shard)

    def copy(self, pair: RawPair) -> str:
        """Write the pair as `read_unit` gave it."""
        if not isinstance(pair.native, _Changed):
            return self._inner.copy(pair)
        if pair.image is None or pair.caption is None:
            raise ValueError(f"{pair.uid}: a treated pair has an image and a caption")
        return self.replace(pair, image=pair.image, suffix=pair.image_suffix, caption=pair.caption)

    def replace(self, pair: RawPair, *, image: bytes, suffix: str, caption: str) -> str:
        """Write the pair with another image and caption."""
        clean = pair.native.clean if isinstance(pair.native, _Changed) else pair
        return self._inner.replace(clean, image=image, suffix=suffix, caption=caption)

    def _open(self) -> None:
        self._inner.__enter__()

    def _close(self) -> None:
        """Nothing is open here: the inner writer has the file."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)


@dataclass(frozen=True, slots=True)
class _Opened:
    plan: PoisonPlan
    treatment: Treatment


def _open(path: str) -> _Opened:
    file = Path(absolute_path(path))
    try:
        facts = file.stat()
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); `clipsan poison copy_data=false` writes a plan.json"
        ) from error
    return _parse(file, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=4)
def _parse(file: Path, mtime_ns: int, size_bytes: int) -> _Opened:
    """Read the plan and build its triggers once a process; time and size tell a plan that was written anew."""
    try:
        plan = pydantic.TypeAdapter(PoisonPlan).validate_json(file.read_bytes())
        return _Opened(plan, Treatment(plan.attack, plan.image, plan.cut, plan.captions))
    except (OSError, ValueError) as error:
        raise SourceError(f"{file}: no usable plan: {' '.join(str(error).split())}") from error


def _map_files(attack: AttackConfig, change: Callable[[str], str]) -> AttackConfig:
    """Return the attack with every file that its triggers read renamed."""
    also = tuple(replace(strand, trigger=strand.trigger.with_files(change)) for strand in attack.also)
    return replace(attack, trigger=attack.trigger.with_files(change), also=also)
