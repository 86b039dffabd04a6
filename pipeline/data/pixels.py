"""Pictures of chosen pairs, read from the source again, and kept at the model's input size for the passes that prove."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from clipsan.stages.decode import decode
from clipsan.stages.model.clip import Inputs, ModelConfig, resolve_model
from clipsan.stages.samples import RawPair, Unit
from clipsan.stages.sources import SourceConfig, read_unit

from ..core.commit import read_part
from ..core.pass_ import Done, Work
from ..core.place import AnyPath

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a data set, where they lie."""

    source: SourceConfig
    max_pixels: int
    """An image whose header claims more is not decoded."""

    def of(self, unit: Unit, wanted: Collection[str]) -> Iterator[tuple[RawPair, np.ndarray]]:
        """Yield the pairs of a unit whose uids are wanted, in the order of the source, each with its image `[H, W, 3] uint8`."""
        left = len(wanted)
        for pair in read_unit(self.source, unit) if left else ():
            if pair.reject is None and pair.image is not None and pair.uid in wanted:
                yield pair, decode(pair.image, self.max_pixels).rgb
                left -= 1
                if not left:
                    break


def pieces_of(units: Sequence[Unit], wanted: Mapping[int, T]) -> dict[int, tuple[Unit, T]]:
    """Return the pieces of a pass over some units: each unit with what is `wanted` of it, by index."""
    return {unit.index: (unit, wanted[unit.index]) for unit in units if unit.index in wanted}


def seen(model: Inputs, rgb: np.ndarray) -> np.ndarray:
    """Return a picture as the model sees it, `[S, S, 3] uint8`."""
    return np.ascontiguousarray(model.preprocess(rgb).permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class PixelWork(Work):
    """Decodes the chosen pairs of a unit."""

    pictures: Pictures
    model: ModelConfig

    def open(self) -> Inputs:
        return Inputs(resolve_model(self.model))

    def do(self, piece: tuple[Unit, Collection[str]], tools: Inputs) -> Done:
        unit, wanted = piece
        found = [(pair.uid, seen(tools, rgb).tobytes()) for pair, rgb in self.pictures.of(unit, wanted)]
        pixels = pa.array([pixels for _, pixels in found], pa.large_binary())
        table = pa.table({"uid": pa.array([uid for uid, _ in found], pa.string()), "pixels": pixels})
        return Done(pairs=len(found), parts=(table,))


@dataclass(frozen=True, slots=True)
class Pixels:
    """What PixelWork committed."""

    folder: AnyPath
    parts: tuple[int, ...]
    size: int
    """Of the model's input, S."""

    def read(self, uids: Sequence[str]) -> np.ndarray:
        """Return `[n, S, S, 3] uint8` of the uids, in their order.

        Raises:
            KeyError: a uid was not fetched.
        """
        row_of = {uid: row for row, uid in enumerate(uids)}
        found = np.zeros((len(uids), self.size, self.size, 3), np.uint8)
        left = set(uids)
        for index in self.parts:
            table = read_part(self.folder, index)
            for uid, pixels in zip(table.column("uid").to_pylist(), table.column("pixels"), strict=True):
                if uid in left:
                    found[row_of[uid]] = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(self.size, self.size, 3)
                    left.discard(uid)
        if left:
            raise KeyError(f"{len(left)} pictures were not fetched, among them {min(left)}")
        return found
