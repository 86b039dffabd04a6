"""Pictures of chosen pairs at the model's input size, fetched from the source once and kept for the passes that prove."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipsan.stages.decode import decode
from clipsan.stages.model.clip import Inputs, ModelConfig, resolve_model
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, read_unit

from ..core.cluster import ClusterConfig
from ..core.commit import missing_parts, part_path, read_part, write_part
from ..core.pass_old import Row, run_pass


class PixelWork:
    """Decodes the chosen pairs of a unit and commits their pixels."""

    def __init__(self, source: SourceConfig, model: ModelConfig, max_pixels: int, folder: Path, mark: str) -> None:
        self._source = source
        self._inputs = Inputs(resolve_model(model))
        self._max_pixels = max_pixels
        self._folder = folder
        self._mark = mark

    def run(self, piece: tuple[Unit, frozenset[str]]) -> Row:
        unit, wanted = piece
        uids: list[str] = []
        pixels: list[bytes] = []
        for pair in read_unit(self._source, unit):
            if pair.reject is None and pair.image is not None and pair.uid in wanted:
                rgb = decode(pair.image, self._max_pixels).rgb
                uids.append(pair.uid)
                pixels.append(self._inputs.preprocess(rgb).permute(1, 2, 0).contiguous().numpy().tobytes())
        table = pa.table({"uid": uids, "pixels": pa.array(pixels, pa.large_binary())})
        write_part(self._folder, unit.index, table, self._mark)
        return {"pairs": len(uids)}


def fetch_pixels(
    source: SourceConfig,
    units: Sequence[Unit],
    wanted: Mapping[int, Collection[str]],
    *,
    model: ModelConfig,
    max_pixels: int,
    folder: Path,
    mark: str,
    cluster: ClusterConfig,
) -> None:
    """Fetch what is not committed yet; `wanted` holds the uids by index of their unit."""
    todo = set(missing_parts(folder, wanted, mark))
    pieces = [(unit, frozenset(wanted[unit.index])) for unit in units if unit.index in todo]
    args = (source, model, max_pixels, folder, mark)
    for _ in run_pass("pictures", pieces, PixelWork, args, cluster=cluster, total=len(wanted)):
        pass


def read_pixels(folder: Path, uids: Sequence[str], size: int, parts: Sequence[int]) -> np.ndarray:
    """Return `[n, size, size, 3] uint8` of the uids, in their order, from the parts that hold them.

    Raises:
        KeyError: a uid was not fetched.
    """
    row_of = {uid: row for row, uid in enumerate(uids)}
    found = np.zeros((len(uids), size, size, 3), np.uint8)
    left = set(uids)
    for index in parts:
        if not part_path(folder, index).exists():
            continue
        table = read_part(folder, index)
        for uid, pixels in zip(table.column("uid").to_pylist(), table.column("pixels"), strict=True):
            if uid in left:
                found[row_of[uid]] = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(size, size, 3)
                left.discard(uid)
    if left:
        raise KeyError(f"{len(left)} pictures were not fetched, among them {min(left)}")
    return found
