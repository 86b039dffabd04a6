"""Where a run folder lies: on a local or shared file system, or on an object store, `s3://bucket/run` or `gs://bucket/run`.

An object is put whole or not at all, so that nothing has a temporary name there; a store has no folders, so none are made.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from pyarrow import fs

from clipsan.stages.files import PathError, absolute, is_address, join, kind, locate, parent, split_query
from clipsan.stages.listing import list_folder

from .config import ConfigError
from .masking import masked


class Facts(NamedTuple):
    """What a store knows of an object."""

    st_size: int
    st_mtime: float
    """Seconds since 1970."""

    @property
    def st_mtime_ns(self) -> int:
        return int(self.st_mtime * 1e9)


@dataclass(frozen=True, slots=True, order=True)
class ObjectPath:
    """A path on an object store, with those methods of pathlib's that a run folder needs."""

    address: str
    """s3://bucket/key or gs://bucket/key, with the store's options as a query (see stages.files.locate)."""

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, relative: str | Path) -> "ObjectPath":
        return ObjectPath(join(self.address, str(relative)))

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(split_query(self.address)[0])

    @property
    def name(self) -> str:
        return self._pure.name

    @property
    def stem(self) -> str:
        return self._pure.stem

    @property
    def parent(self) -> "ObjectPath":
        return ObjectPath(parent(self.address))

    def relative_to(self, other: "ObjectPath") -> PurePosixPath:
        """Return the path below another one.

        Raises:
            ValueError: it does not lie there.
        """
        return self._pure.relative_to(other._pure)

    def is_file(self) -> bool:
        return bool(kind(self.address) == fs.FileType.File)

    def is_dir(self) -> bool:
        """Whether any object lies below it."""
        return bool(kind(self.address) == fs.FileType.Directory)

    def exists(self) -> bool:
        return bool(kind(self.address) != fs.FileType.NotFound)

    def stat(self) -> Facts:
        """Return size and time of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        filesystem, inner = locate(self.address)
        info = filesystem.get_file_info(inner)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(f"{self}: no such object")
        return Facts(int(info.size or 0), info.mtime.timestamp() if info.mtime is not None else 0.0)

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield what lies directly below, in alphabetical order."""
        return (self / entry.path for entry in list_folder(self.address, recursive=False, hidden=True))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield what lies below and fits a pattern, a folder for each of its parts, in alphabetical order."""
        first, _, rest = pattern.partition("/")
        for found in self.iterdir() if self.is_dir() else ():
            if fnmatchcase(found.name, first):
                yield from found.glob(rest) if rest else (found,)

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield all objects at any depth below whose names fit a pattern, in alphabetical order."""
        for entry in list_folder(self.address, recursive=True, hidden=True) if self.is_dir() else ():
            if entry.is_file and fnmatchcase(entry.path.rpartition("/")[2], pattern):
                yield self / entry.path

    def open(self, mode: str = "rb") -> Any:
        """Open an object for reading at any place; a pyarrow NativeFile."""
        assert mode == "rb"
        filesystem, inner = locate(self.address)
        return filesystem.open_input_file(inner)

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return bytes(file.read())

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Put an object: whole, in place of one that is there."""
        filesystem, inner = locate(self.address)
        with filesystem.open_output_stream(inner) as sink:
            sink.write(content)

    def upload(self, file: Path) -> None:
        """Put a local file, in pieces that need no memory for the whole; it appears when the last one is there."""
        filesystem, inner = locate(self.address)
        fs.copy_files(str(file), inner, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)

    def is_symlink(self) -> bool:
        return False

    def remove_tree(self) -> None:
        """Delete all objects below."""
        filesystem, inner = locate(self.address)
        with suppress(FileNotFoundError):
            filesystem.delete_dir(inner)


AnyPath = Path | ObjectPath
"""A file or folder, wherever it lies."""


def place_of(path: str | AnyPath) -> AnyPath:
    """Return the place that a setting names.

    Raises:
        ConfigError: an address of an unknown kind, or one with credentials in it, which every file of the run would repeat.
    """
    text = str(path).removeprefix("file://")
    if not is_address(text):
        return Path(text).expanduser().resolve()
    if masked(text) != text:
        raise ConfigError(
            f"{masked(text)}: an address of a run folder holds no credentials; give them in the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS) or by the role of the machine"
        )
    try:
        locate(text)
    except PathError as error:
        raise ConfigError(str(error)) from error
    base, query = split_query(absolute(text))
    return ObjectPath(base.rstrip("/") + query)


def below(path: AnyPath, root: AnyPath) -> PurePath:
    """Return a path relative to another one.

    Raises:
        ValueError: it does not lie there.
    """
    if isinstance(path, ObjectPath) and isinstance(root, ObjectPath):
        return path.relative_to(root)
    if isinstance(path, Path) and isinstance(root, Path):
        return path.relative_to(root)
    raise ValueError(f"{path} does not lie in {root}")


def is_below(path: AnyPath, root: AnyPath) -> bool:
    """Whether a path lies in another one, or is it."""
    try:
        below(path, root)
    except ValueError:
        return False
    return True


def remove(path: AnyPath) -> None:
    """Remove a file, if it is there."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    filesystem, inner = locate(path.address)
    with suppress(FileNotFoundError):
        filesystem.delete_file(inner)


def remove_tree(folder: AnyPath) -> None:
    """Remove a folder and all that lies in it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.remove_tree()


@contextmanager
def written(path: AnyPath) -> Iterator[Path]:
    """Give a local file or folder to write, which stands in its place when the block ends without an error.

    On a file system it is the place itself. On a store its objects are put one by one, those that describe the others (.json) last.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="clipsan-") as scratch:
        local = Path(scratch) / path.name
        yield local
        if local.is_file():
            path.upload(local)
            return
        files = [found for found in local.rglob("*") if found.is_file()]
        for file in sorted(files, key=lambda file: (file.suffix == ".json", file)):
            (path / str(file.relative_to(local))).upload(file)


@contextmanager
def read_here(root: AnyPath, names: list[str] | None = None) -> Iterator[Path]:
    """Give a local folder with some files and folders of another one, or with all of it; the folder itself where it is local."""
    if isinstance(root, Path):
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="clipsan-") as scratch:
        for name in [""] if names is None else names:
            found = root / name if name else root
            objects = [found] if found.is_file() else list(found.rglob("*"))
            for one in objects:
                local = Path(scratch) / below(one, root)
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(one.read_bytes())
        yield Path(scratch)
