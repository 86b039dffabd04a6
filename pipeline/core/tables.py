"""The tables of a run folder, by name."""

import pyarrow as pa

from .commit import parquet_table, read_part
from .place import AnyPath, below
from .run_folder import RunFolder


def table_names(folder: RunFolder) -> list[str]:
    """Return the names of the tables of a run: the folder of each pass, in the order in which passes began, and whole files.

    What only a rerun needs is left out.
    """
    known = (folder.embeddings, folder.scores, folder.verdicts, folder.rejected)
    names = [*(entry["folder"] for entry in folder.begun().values()), *(path.name for path in known)]
    parts = [
        name for name in dict.fromkeys(names) if not name.startswith(f"{folder.work.name}/") and _keys(folder, name)
    ]
    return list(dict.fromkeys([*parts, *sorted(path.stem for path in folder.root.glob("*.parquet"))]))


def read_table(folder: RunFolder, name: str) -> pa.Table:
    """Return one of these tables whole, its parts in the order of the data set.

    Raises:
        DamagedPartError: a part is not what was written.
    """
    whole = folder.root / f"{name}.parquet"
    if whole.is_file():
        return parquet_table(pa.BufferReader(whole.read_bytes()))
    parts = [read_part(folder.root, key).replace_schema_metadata(None) for key in _keys(folder, name)]
    return pa.concat_tables(parts, promote_options="default")


def _keys(folder: RunFolder, name: str) -> list[str]:
    """Return the keys of the parts below a folder, as seen from the run's root."""
    paths: list[AnyPath] = sorted((folder.root / name).rglob("part-*.parquet"))
    return [str(below(path, folder.root).with_suffix("")) for path in paths]
