"""The files and folders that a user's patterns name: brace ranges, globs, listings, and when files were written."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from pyarrow import fs

from .files import (
    ADDRESS,
    PathError,
    absolute,
    file_info,
    is_address,
    join,
    kind,
    locate,
    parent,
    path_error,
    split_query,
)

WILDCARD = re.compile(r"[*?\[]")
ADDRESS_WILDCARD = re.compile(r"[*\[]")
"""In an address a question mark opens the query, so it is no wildcard there."""
USERINFO = re.compile(r"(?<=://)[^/]*@")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder of a listing."""

    path: str
    """Relative to the folder that was listed, with '/' between parts."""
    type: fs.FileType
    size: int | None
    time_ns: int | None = None
    """When it was written, in nanoseconds since 1970, where the file system says so."""

    @property
    def is_file(self) -> bool:
        return bool(self.type == fs.FileType.File)


@dataclass(frozen=True, slots=True)
class Found:
    """One file of a listing."""

    path: str
    """An absolute local path or an address: what `open_input` takes."""
    relative: str
    """Path relative to the root of the listing, with '/' between parts."""
    size_bytes: int | None
    """None: the path was asked for by name and does not exist."""


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..009}` (zero padded as its start) and `{a,b}`, left to right; other braces stay as they are.

    Raises:
        PathError: a range runs backwards.
    """
    for match in re.finditer(r"\{([^{}]*)\}", pattern):
        body = match[1]
        if span := re.fullmatch(r"(\d+)\.\.(\d+)", body):
            first, last = int(span[1]), int(span[2])
            if first > last:
                raise PathError(f"{pattern}: the range {match[0]} runs backwards; write the smaller number first")
            options = [f"{number:0{len(span[1])}d}" for number in range(first, last + 1)]
        elif "," in body:
            options = body.split(",")
        else:
            continue
        tails = expand_braces(pattern[match.end() :])
        return [pattern[: match.start()] + option + tail for option in options for tail in tails]
    return [pattern]


def _expanded(patterns: str | Sequence[str]) -> list[str]:
    """Return the patterns of a data set as absolute ones without brace ranges; a local file or folder of that very name is itself."""
    wanted = [patterns] if isinstance(patterns, str) else patterns
    named = [absolute(pattern) for pattern in wanted]
    return [
        one
        for pattern, name in zip(wanted, named, strict=True)
        for one in ([name] if "{" in name and os.path.lexists(name) else map(absolute, expand_braces(pattern)))
    ]


def roots_of(patterns: str | Sequence[str]) -> list[str]:
    """Return the folders in which the files of a data set lie, by its patterns alone: rows may name images below them."""
    roots = []
    for pattern in _expanded(patterns):
        wildcard = ADDRESS_WILDCARD if is_address(pattern) else WILDCARD
        base, query = split_query(pattern)
        fixed = _fixed(base, wildcard)
        is_file = fixed == base and "." in base.rpartition("/")[2]
        roots.append((fixed.rpartition("/")[0] if is_file else fixed) + query)
    return list(dict.fromkeys(roots))


def takes_in(patterns: str | Sequence[str], folder: str) -> str | None:
    """Return the folder that is listed to any depth, by a pattern that names it or by `**`, and in which another lies; None where none is.

    What is written to that other folder later would be listed with what is there now.
    """
    place = split_query(absolute(folder))[0].rstrip("/") + "/"
    for pattern in _expanded(patterns):
        base, deep = split_query(pattern)[0].rstrip("/"), "**" in pattern
        root = _fixed(base, ADDRESS_WILDCARD if is_address(pattern) else WILDCARD) if deep else base
        if place.startswith(root + "/") and (deep or kind(pattern) == fs.FileType.Directory):
            return root
    return None


def find(patterns: str | Sequence[str], suffixes: tuple[str, ...]) -> list[Found]:
    """List the files of a data set, sorted by their path relative to the data set's root.

    A pattern is a file, a folder (then all files below it with one of the suffixes), or a glob (`*`, `**`, `?`,
    `[ab]`; no `?` in addresses), each with brace ranges; what is there under that very name is meant, whatever characters it
    has. The root is the deepest folder above all patterns' wildcards:
    it does not depend on which files are there. Names that start with '.' or '_' are skipped in folders and globs.
    A file asked for by its full name that does not exist is listed without a size, so that the run can report it.

    Raises:
        PathError: no pattern matches any file, or the store cannot be reached.
    """
    with ThreadPoolExecutor(max_workers=16) as pool:  # a range over an object store is one request a shard
        matches = list(pool.map(lambda pattern: _match(pattern, suffixes), _expanded(patterns)))
    found = {path: size for _, files in matches for path, size in files.items()}
    if not any(size is not None for size in found.values()):
        kinds = " or ".join(suffix for suffix in suffixes if not suffix.endswith(("gz", ".bz2")))
        raise PathError(f"{_listed(patterns)}: no {kinds} file matches; check the path and the pattern")
    root = _common_folder([root for root, _ in matches])
    listing = [Found(path, _relative(path, root), size) for path, size in found.items()]
    return sorted(listing, key=lambda file: file.relative)


def find_folders(patterns: str | Sequence[str]) -> list[Found]:
    """List the folders that the patterns (folders or globs of folders, with brace ranges) match, sorted.

    `relative` is "" for a single folder.

    Raises:
        PathError: a folder does not exist, or a glob matches none.
    """
    roots: list[str] = []
    folders: list[str] = []
    for pattern in _expanded(patterns):
        if kind(pattern) == fs.FileType.Directory:
            roots.append(split_query(pattern)[0].rstrip("/"))
            folders.append(pattern)
            continue
        root, matches = _glob(pattern)
        if not matches:
            raise PathError(f"{pattern}: no such folder; name a folder of images")
        roots.append(root)
        folders += [path for path, info in matches if info.type == fs.FileType.Directory]
    if not folders:
        raise PathError(f"{_listed(patterns)}: matches files but no folder; name a folder of images")
    root = _common_folder(roots)
    found = {
        path: Found(path, "" if split_query(path)[0].rstrip("/") == root else _relative(path, root), None)
        for path in folders
    }
    return sorted(found.values(), key=lambda folder: folder.relative)


def list_folder(folder: str, recursive: bool, *, hidden: bool = False) -> list[Entry]:
    """Return files and folders below a folder, sorted; names that start with '.' or '_' only where `hidden` asks for them.

    A symbolic link to a folder above itself is left out: what it leads to is there already.

    Raises:
        PathError: the folder cannot be listed.
        Unreachable: its device or store does not answer.
    """
    filesystem, inner = locate(folder)
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            inside = list(_walk(inner, "", recursive, frozenset(map(_inode, Path(inner).resolve().parents))))
        else:
            infos = filesystem.get_file_info(fs.FileSelector(inner, recursive=recursive))
            prefix = inner.rstrip("/") + "/"
            inside = [Entry(i.path.removeprefix(prefix), i.type, i.size, i.mtime_ns) for i in infos]
    except OSError as error:
        raise path_error(folder, error) from error
    return sorted((i for i in inside if hidden or not is_hidden(i.path)), key=lambda info: info.path)


def _inode(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino


def _walk(folder: str, prefix: str, recursive: bool, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
    above = above | {_inode(Path(folder))}
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            try:
                facts = entry.stat()
            except OSError:  # a broken link
                yield Entry(path, fs.FileType.NotFound, None)
                continue
            if stat.S_ISDIR(facts.st_mode):
                if (facts.st_dev, facts.st_ino) in above:
                    continue
                yield Entry(path, fs.FileType.Directory, None)
                if recursive:
                    yield from _walk(entry.path, f"{path}/", recursive, above)
            else:
                regular = stat.S_ISREG(facts.st_mode)
                kind = fs.FileType.File if regular else fs.FileType.Unknown
                yield Entry(path, kind, facts.st_size, facts.st_mtime_ns)


def times(paths: Sequence[str]) -> dict[str, int | None]:
    """Return when each file was written, in nanoseconds since 1970; None where nothing says so, or there is no file.

    Raises:
        Unreachable: a store does not answer.
    """
    found: dict[str, int | None] = {}
    above: dict[str, list[str]] = {}
    for path in paths:
        if is_address(path):
            above.setdefault(parent(path), []).append(path)
        else:
            try:
                found[path] = Path(path).stat().st_mtime_ns
            except OSError:
                found[path] = None
    # One listing of a folder costs a store less than a question for each of its objects.
    for folder, inside in above.items():
        filesystem, inner = locate(folder)
        try:
            infos = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
        except OSError as error:
            raise path_error(folder, error) from error
        by_path = {info.path: info.mtime_ns for info in infos}
        found |= {path: by_path.get(locate(path)[1]) for path in inside}
    return found


def _match(pattern: str, suffixes: tuple[str, ...]) -> tuple[str, dict[str, int | None]]:
    """Return the root of one pattern (braces expanded) and its files with their sizes."""
    wildcard = ADDRESS_WILDCARD if is_address(pattern) else WILDCARD
    base = split_query(pattern)[0]
    has_wildcard = wildcard.search(base) is not None
    info = file_info(pattern)
    if info.type == fs.FileType.Directory:
        infos = list_folder(pattern, recursive=True)
        files = [i for i in infos if i.is_file and i.path.lower().endswith(suffixes)]
        return base.rstrip("/"), {join(pattern, i.path): i.size for i in files}
    if info.type == fs.FileType.File or not has_wildcard:
        return base.rpartition("/")[0], {pattern: info.size if info.is_file else None}
    root, matches = _glob(pattern)
    return root, {path: i.size for path, i in matches if i.is_file}


def _glob(pattern: str) -> tuple[str, list[tuple[str, Entry]]]:
    """Return the folder above the first wildcard, and what lies below it and matches."""
    wildcard = ADDRESS_WILDCARD if is_address(pattern) else WILDCARD
    base, query = split_query(pattern)
    fixed = _fixed(base, wildcard)
    rest = base[len(fixed) + 1 :]
    folder = (fixed or "/") + query
    if not rest or kind(folder) != fs.FileType.Directory:
        return fixed, []
    infos = list_folder(folder, recursive="/" in rest or "**" in rest)
    expression = re.compile(_glob_expression(rest))
    return fixed, [(join(folder, info.path), info) for info in infos if expression.fullmatch(info.path)]


def _fixed(base: str, wildcard: re.Pattern[str]) -> str:
    """Return the folder above the first wildcard."""
    return "/".join(takewhile(lambda part: not wildcard.search(part), base.split("/")))


def _glob_expression(glob: str) -> str:
    """Translate a glob to a regular expression: `*` and `?` stay inside one folder, `**/` crosses any number."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(piece: str) -> str:
        if piece in known:
            return known[piece]
        if piece.startswith("[") and piece.endswith("]"):
            inside = piece[1:-1].replace("\\", r"\\")
            return f"[{'^' + inside[1:] if inside.startswith('!') else inside}]"
        return re.escape(piece)

    return "".join(translate(piece) for piece in pieces)


def _common_folder(folders: list[str]) -> str:
    columns = zip(*(folder.split("/") for folder in folders), strict=False)
    return "/".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))


def _relative(path: str, root: str) -> str:
    """Return what stands below the root of a listing: it names a shard, so credentials of an address are no part of it."""
    base, root = (USERINFO.sub("", one) for one in (split_query(path)[0], root))
    if root and base.startswith(root + "/"):
        return base[len(root) + 1 :]
    return ADDRESS.sub("", base).lstrip("/")


def is_hidden(relative: str) -> bool:
    """Whether a part of a path starts with '.' or '_', as what Spark and macOS leave beside data."""
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _listed(patterns: str | Sequence[str]) -> str:
    return patterns if isinstance(patterns, str) else ", ".join(patterns)
