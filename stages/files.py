"""Local paths and s3:// or gs:// addresses: what they mean, opening and reading, and errors that say what to do."""

import errno
import hashlib
import io
import os
import posixpath
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from pyarrow import fs

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS = "this is a git-lfs pointer and not the file; run `git lfs pull`"
MAX_FILE_BYTES = 256 * 2**20
"""No image or member of a pair is larger; what is, is never read into memory."""


class PathError(ValueError):
    """A path cannot be used; the message names it and what to do about it."""


class FileTooLarge(PathError):
    """The file has more than MAX_FILE_BYTES."""


class Unreachable(PathError):
    """A device, a server or the network does not give a file now, or a shard is gone that was there: no fault of its bytes.

    Whoever reads may try again, and otherwise leaves the work undone: it is never taken for damage.
    """


PASSING = frozenset(
    {
        *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT),
        *(errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    }
)
"""Errors of the system that say nothing of a file itself."""
STORE_ERROR = re.compile(r"AWS Error|google::cloud|curl|HTTP", re.IGNORECASE)
"""How pyarrow's clients of stores begin to say what went wrong; errors in what was read name none of them."""
DENIED = re.compile(r"ACCESS_DENIED|HTTP status 40[134]|PERMISSION_DENIED|NOT_FOUND")
"""What a store answers about one object and will answer again."""


def is_passing(error: OSError) -> bool:
    """Whether an error is one of a device, a server or the network: pyarrow's decoders raise OSError for damage, too."""
    if error.errno is not None:
        return error.errno in PASSING
    return STORE_ERROR.search(str(error)) is not None and DENIED.search(str(error)) is None


def is_address(path: str) -> bool:
    """Whether the path is an address with a scheme, such as s3://bucket/key, and not a local path."""
    return ADDRESS.match(path) is not None


def absolute(path: str) -> str:
    """Return an absolute local path, or the address as it is (file:// becomes a local path)."""
    path = path.removeprefix("file://")
    # Not Path.resolve: a shard keeps the name by which it was asked for, also through a symbolic link.
    return path if is_address(path) else posixpath.normpath(Path(path).expanduser().absolute())


def split_query(path: str) -> tuple[str, str]:
    """Split an address into what stands before the query and the query with its question mark ("" for local paths)."""
    if not is_address(path):
        return path, ""
    base, mark, query = path.partition("?")
    return base, mark + query


def join(folder: str, relative: str) -> str:
    """Append a relative path to a local folder or an address, before the address's query."""
    base, query = split_query(folder)
    return f"{base.rstrip('/')}/{relative}{query}"


def parent(path: str) -> str:
    """Return the folder of a path or address, with the same query."""
    base, query = split_query(path)
    return base.rstrip("/").rpartition("/")[0] + query


def resolve(table: str, image: str, roots: Sequence[str] = ()) -> str | None:
    """Return where an image named in a table lies: as written when absolute, else relative to the table's folder.

    None when it lies neither below that folder nor below one of `roots`, or brings a query of its own: a row comes from
    a stranger, and with a query it could send a signed request to any host. Symbolic links are not looked at here (`is_contained`).
    """
    bases = [parent(table), *roots]
    if image.startswith("file://"):
        image = image.removeprefix("file://").removeprefix("localhost")
        if not image.startswith("/"):
            return None
    if is_address(image):
        place = _normal(image)
    elif image.startswith("/"):
        place = posixpath.normpath(image)
    else:
        place = _normal(split_query(bases[0])[0].rstrip("/") + "/" + image)
    if "?" in image and is_address(place):
        return None
    for base in bases:
        folder, query = split_query(base)
        folder = folder.rstrip("/")
        if place.startswith(folder + "/"):
            return place + query
    return None


def _normal(path: str) -> str:
    """Return a path or address without '.' and '..'; in an address they never leave the bucket."""
    match = re.match(r"([a-z][a-z0-9+.-]+://[^/]*)(/.*)?$", path, re.DOTALL)
    if match is None:
        return posixpath.normpath(path)
    return match[1] + posixpath.normpath(match[2] or "/")


def is_contained(place: str, table: str, roots: Sequence[str] = ()) -> bool:
    """Whether a local file still lies below the table's folder or one of `roots` when symbolic links are followed."""
    if is_address(place):
        return True
    real = os.path.realpath(place)
    return any(real.startswith(_real(base)) for base in (parent(table), *roots) if not is_address(base))


@lru_cache(maxsize=256)
def _real(folder: str) -> str:
    return os.path.realpath(folder).rstrip("/") + "/"


def spellings(path: str) -> list[str]:
    """Return a path as written and, where they differ, composed and decomposed: macOS writes é as two characters."""
    if path.isascii():
        return [path]
    return list(dict.fromkeys([path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]))


@lru_cache(maxsize=64)
def _bucket(scheme: str, netloc: str, query: str) -> fs.FileSystem:
    # One client a bucket and a process: making one may cost several requests.
    return fs.FileSystem.from_uri(f"{scheme}://{netloc}{query}")[0]


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path and the path inside it.

    An s3 address takes pyarrow's options as a query: s3://bucket/key?region=eu-west-1&endpoint_override=host:9000&scheme=http.

    Raises:
        PathError: the scheme is not supported, or the store cannot be reached.
    """
    path = absolute(path)
    if not is_address(path):
        return fs.LocalFileSystem(), path
    base, query = split_query(path)
    try:
        parts = urlsplit(base)
    except ValueError as error:
        raise PathError(f"{path!r}: {error}; correct the address") from error
    if parts.scheme not in ("s3", "gs", "gcs"):
        raise PathError(f"{path}: no support for {parts.scheme}://; use a local path, s3:// or gs:// (download first)")
    try:
        filesystem = _bucket(parts.scheme, parts.netloc, query)
    except (OSError, ValueError) as error:
        raise PathError(f"{path}: {_one_line(error)}; check the address, its options and your credentials") from error
    inner = base.removeprefix(f"{parts.scheme}://").rpartition("@")[2]
    return filesystem, inner.rstrip("/")


def open_input(path: str) -> Any:
    """Open a file for random access; returns a pyarrow NativeFile.

    Raises:
        PathError: there is no such file, or it cannot be opened.
        Unreachable: its device or store does not answer.
    """
    filesystem, inner = locate(path)
    try:
        return filesystem.open_input_file(inner)
    except FileNotFoundError as error:
        raise PathError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise path_error(path, error) from error
    except ValueError as error:  # a name that no file can have
        raise PathError(f"{path!r}: {_one_line(error)}; check the path and your permissions") from error


def path_error(path: str, error: OSError) -> PathError:
    """Return an error of opening or reading as `Unreachable` or, where the file itself is at fault, as a `PathError` with a remedy."""
    if is_passing(error):
        return unreachable(path, error)
    return PathError(f"{path!r}: {_one_line(error)}; check the path and your permissions")


def unreachable(path: str, error: Exception) -> Unreachable:
    """Return an error as one of the device, the server or the network, or of a file that is gone."""
    return Unreachable(f"{path}: {_one_line(error).removeprefix(f'{path}: ')}")


def open_text(path: str) -> io.TextIOWrapper:
    """Open a text file with line ends untouched; bytes that are not UTF-8 become lone surrogates.

    A byte order mark chooses UTF-16, and is left out; a gzipped file is unpacked, whatever its name says.

    Raises:
        PathError: as `open_input`.
    """
    file = open_input(path)
    start = file.read(2)
    file.seek(0)
    if start == b"\x1f\x8b":
        file = pa.CompressedInputStream(file, "gzip")
        peeked = open_input(path)
        with peeked, pa.CompressedInputStream(peeked, "gzip") as unpacked:
            try:
                start = unpacked.read(2)
            except OSError:
                start = b""
    encoding = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb": "utf-8-sig"}.get(start, "utf-8")
    errors = "replace" if encoding == "utf-16" else "surrogateescape"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")


def read_file(path: str) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        FileTooLarge: it has more than MAX_FILE_BYTES.
        PathError: it does not exist, cannot be read, or is no regular file (a device or a pipe could block for ever).
        Unreachable: its device or store does not answer.
    """
    if not is_address(path):
        return _read_local(path)
    with open_input(path) as file:
        try:
            if file.size() > MAX_FILE_BYTES:
                raise FileTooLarge(f"{path}: {file.size()} bytes, more than {MAX_FILE_BYTES}; it is not read")
            return bytes(file.read())
        except OSError as error:
            raise path_error(path, error) from error


def _read_local(path: str) -> bytes:
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise PathError(f"{path}: not a regular file; name a file")
        if status.st_size > MAX_FILE_BYTES:
            raise FileTooLarge(f"{path}: {status.st_size} bytes, more than {MAX_FILE_BYTES}; it is not read")
        return Path(path).read_bytes()
    except OSError as error:
        raise path_error(path, error) from error
    except ValueError as error:  # a path with a NUL character or a lone surrogate
        if isinstance(error, PathError):
            raise
        raise PathError(f"{path!r}: {error}; correct the path") from error


def read_array(path: Path) -> np.ndarray:
    """Return an array of numbers that `np.save` wrote; nothing in it is run, and no memory is taken that the file does not fill.

    Raises:
        ValueError: it is none.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # what reads the header raises nearly anything
        raise ValueError(f"{path.name} is no array: {error}") from error
    if not isinstance(mapped, np.ndarray) or mapped.dtype.kind not in "bfiu":
        raise ValueError(f"{path.name} is no array of numbers")
    return np.array(mapped)


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, or of the names and contents of all files of a folder but what is hidden or lies in a hidden
    folder."""
    path = Path(path)
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    inside = {file.relative_to(path): file for file in path.rglob("[!.]*") if file.is_file()}
    names = {str(name): file for name, file in inside.items() if not any(part.startswith(".") for part in name.parts)}
    told = [f"{name}\n{hashlib.sha256(names[name].read_bytes()).hexdigest()}\n" for name in sorted(names)]
    return hashlib.sha256("".join(told).encode("utf-8", "surrogateescape")).hexdigest()


def fetched(address: str) -> Path:
    """Return a copy of a file or folder of an object store on this machine, made where there is none of the same content yet.

    Copies lie in a folder of this user's alone below the system's for temporary files, each named by address, sizes and times.

    Raises:
        PathError: nothing is there, or it cannot be read; or the folder for copies is another user's.
    """
    filesystem, inner = locate(address)
    found = file_info(address)
    if found.type == fs.FileType.NotFound:
        raise PathError(f"{address}: no such file or folder; check the address")
    is_file = found.type == fs.FileType.File
    infos = [found] if is_file else filesystem.get_file_info(fs.FileSelector(inner, recursive=True))
    objects = sorted((info.path, info.size, str(info.mtime)) for info in infos if info.type == fs.FileType.File)
    name = posixpath.basename(inner)
    home = _copies() / hashlib.sha256(repr((address, objects)).encode()).hexdigest()[:32]
    if home.is_dir():
        return home / name
    fresh = Path(tempfile.mkdtemp(prefix="fetching-", dir=_copies()))
    for path, _, _ in objects:
        local = fresh / name if is_file else fresh / name / path.removeprefix(f"{inner}/")
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            fs.copy_files(path, str(local), source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
        except OSError as error:
            raise PathError(f"{address}: {_one_line(error)}; check the address and your permissions") from error
    try:
        fresh.rename(home)
    except OSError:  # another process was faster
        shutil.rmtree(fresh)
    return home / name


def _copies() -> Path:
    home = Path(tempfile.gettempdir()) / f"clipsan-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    facts = home.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PathError(f"{home}: not a folder of this user alone; remove it, or set TMPDIR to another place")
    return home


def kind(path: str) -> fs.FileType:
    """Return whether a path is a file, a folder, or nothing (`pyarrow.fs.FileType`)."""
    return file_info(path).type


def file_info(path: str) -> fs.FileInfo:
    """Return type, size and time of a file or folder; its type is NotFound where there is none.

    Raises:
        PathError: its store does not answer.
    """
    filesystem, inner = locate(path)
    try:
        return filesystem.get_file_info(inner)
    except OSError as error:
        raise PathError(f"{path}: {_one_line(error)}; check the address, its options and your credentials") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
