"""The filter of a training that a finished scan gives."""

from dataclasses import replace
from typing import Any, Literal

from clipsan.stages.selection import Selection
from clipsan.stages.sources import SourceConfig, list_units

from ..core.config import validate
from ..core.place import AnyPath
from ..core.run_folder import finished_scan

_SOURCE: Any = SourceConfig


def selection(scan: str | AnyPath, *, data: str | list[str] | None, unknown: Literal["error", "drop"]) -> Selection:
    """Return what a scan says of its pairs; see `clipsan.select`.

    Raises:
        ConfigError: no finished scan is there.
        ValueError, OSError: the shards are not there, or cannot be listed.
    """
    folder, record = finished_scan(str(scan))
    source = validate(_SOURCE, record["config"]["data"], verb="scan")
    source = source if data is None else replace(source, path=data)
    return Selection(str(folder.root), {unit.path: unit.shard for unit in list_units(source)}, unknown=unknown)
