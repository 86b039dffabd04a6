"""What a format is, and what the readers and writers of all formats share: checks of a pair, slices, atomic files."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from ..files import LFS, LFS_POINTER, PathError, absolute, read_file, unreachable
from ..listing import Found, times
from ..registry import Family
from ..samples import HEX_UID, UNKNOWN, Origin, RawPair, Reject, Unit, seeded_hash
from ..stage import config

TRAINED_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp")
"""Suffixes that open_clip trains on, in the order in which it takes them."""
OTHER_SUFFIXES = (".jpe", ".jfif", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".jpx", ".image", ".img")
"""Suffixes of images that are read where a pair has none of TRAINED_SUFFIXES."""
IMAGE_SUFFIXES = (*TRAINED_SUFFIXES, *OTHER_SUFFIXES)
CAPTION_SUFFIXES = (".txt", ".caption", ".text", ".cap", ".caption.txt")
"""Suffixes of files that hold nothing but a caption, the one that open_clip reads first."""
JSON_SUFFIXES = (".json", ".captions.json", ".caption.json")
MAX_LABEL = 2**31 - 1
PIECES = 512
"""A data set of fewer units is cut into about as many pieces: several for each worker of a large machine."""
LEAST_ROWS = 128
"""Pairs of a piece at the least: fewer cost more to schedule and to commit than a fast model takes for them."""
MAX_DETAIL = 300
"""Characters of a detail: what a stranger's file makes of it stays readable."""


class SourceError(ValueError):
    """The source's configuration does not fit the files; the message names the file and the field to change."""


class SourceConfig(Family):
    """A data set of pairs in one format: where it lies, how its fields are found, and how it is read and written.

    A format is one file in this package, or in a module of an extension (see stages/registry.py), with a class that has
    the abstract methods below; conf/data/NAME.yaml gives its settings a name.
    """

    __slots__ = ()
    path: str | list[str]
    """Files, folders or globs; local, s3:// or gs://."""
    bytes_a_pair: ClassVar[int] = 8192
    """What a pair takes of a shard at the least, about: a small JPEG or PNG with its caption. For estimates alone."""
    on_the_fly: ClassVar[bool] = False
    """Whether the pairs are made as they are read, out of those of another data set."""

    @abstractmethod
    def list_units(self) -> list[Unit]:
        """Return the units of work of a data set, in an order that depends on names and sizes alone.

        Raises:
            stages.files.PathError: nothing matches, or the store cannot be reached.
            SourceError: a file does not have the columns that the source names, or a plan no longer fits its clean data.
        """

    @abstractmethod
    def read_unit(self, unit: Unit) -> Iterator[RawPair]:
        """Yield every pair of a unit exactly once, in the order of the source; unusable ones with `reject` set.

        A break in a shard is one record more, with reject SHARD_DAMAGED and a key that names the byte or row; what was
        read before it stays.

        Raises:
            stages.files.Unreachable: the shard is gone since it was listed, or its device, server or network does not give
                it: that is not the data's fault, and may pass.
        """

    @abstractmethod
    def open_writer(self, unit: Unit, folder: Path) -> "UnitWriter":
        """Return the context manager that writes pairs of a unit below `folder`, in the source's own format.

        Its `copy` and `replace` take pairs in the order in which `read_unit` yields them (leaving some out is fine) and
        return the uid that the pair has in the written data set.
        """

    def pieces(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units cut finer, for passes that keep many workers busy to their end; a format that cannot, as they are.

        Each piece lies in one unit, and all of them hold the same pairs in the same order. Where the cuts lie depends on the
        data alone, never on the workers.
        """
        return list(units)

    def about_pairs(self, units: Sequence[Unit]) -> int:
        """Return about how many pairs some units hold at the most, judged by the sizes of their shards."""
        size = sum({unit.shard: unit.size_bytes for unit in units}.values())
        return size // self.bytes_a_pair

    def times(self, units: Sequence[Unit]) -> dict[str, int | None]:
        """Return a number for each shard that changes when the shard is written anew; None where its store says nothing.

        Images that a table names are not looked at.
        """
        paths = {unit.shard: unit.path for unit in units}
        found = times(list(paths.values()))
        return {shard: found[path] for shard, path in paths.items()}

    def rewritten(self, folder: Path) -> "SourceConfig":
        """Return the source that reads what the writers wrote below `folder`."""
        return replace(self, path=str(folder))

    def content(self) -> dict[str, Any]:
        """Return what decides the pairs, for fingerprints: plain data without the place where the set lies.

        A block list counts by its content.
        """
        plain = asdict(replace(self, path=""))
        block = plain.get("block")
        if block is None:
            return plain
        return plain | {"block": sha256("\n".join(sorted(blocked_hashes(block))).encode()).hexdigest()}

    def absolute(self) -> Self:
        """Return the source with paths that hold in whatever folder a worker runs."""
        path = absolute(self.path) if isinstance(self.path, str) else [absolute(path) for path in self.path]
        return replace(self, path=path)


@config
class LabelCaptions:
    """Makes captions out of class names, the same for the same uid and seed."""

    templates: list[str]
    """Sentences with {} where the class name goes."""
    seed: int
    """Seed of the draw of template and synonym."""
    names: str | list[str] = "names"
    """Column with the comma-separated synonyms of the row's class, or a list of these by class index."""

    def __post_init__(self) -> None:
        if not self.templates or not all("{}" in template for template in self.templates):
            raise ValueError("templates needs at least one sentence, each with {} where the class name goes")

    def caption(self, uid: str, row_names: str | None, label: int | None) -> str | None:
        """Return the caption of one pair; None when its class has no name."""
        if isinstance(self.names, list):
            row_names = self.names[label] if label is not None and 0 <= label < len(self.names) else None
        synonyms = [name.strip() for name in (row_names or "").split(",") if name.strip()]
        if not synonyms:
            return None
        draw = int(seeded_hash([uid], self.seed, "captions from labels")[0])
        template = self.templates[(draw >> 32) % len(self.templates)]
        return template.replace("{}", synonyms[(draw & 0xFFFFFFFF) % len(synonyms)])


def settle_paths(source: SourceConfig) -> None:
    """Make the roots and the block list of a source being made absolute: they hold in whatever folder a worker runs."""
    if (roots := getattr(source, "roots", None)) is not None:
        object.__setattr__(source, "roots", [absolute(root) for root in roots])
    if (block := getattr(source, "block", None)) is not None:
        object.__setattr__(source, "block", absolute(block))


@dataclass(frozen=True, slots=True)
class Bad:
    """Why there is no usable image, caption or pair."""

    reject: Reject
    detail: str


def make_pair(
    unit: Unit,
    key: str,
    *,
    image: bytes | Bad,
    caption: object,
    duplicate: bool,
    label: int | None,
    native_uid: str | None,
    image_suffix: str,
    native: object,
    captions: Iterable[object] = (),
    no_caption: str = "",
    again: str = "",
    bad: Bad | None = None,
    origin: Origin = UNKNOWN,
) -> RawPair:
    """Build a pair and set its reject reason: a duplicate key first, then `bad`, then the image, then the caption.

    `image` is the bytes or why there are none. What is there is passed on even when the pair is rejected. Of
    `captions`, the whole list where the source has one, those that cannot be used are left out. `no_caption` says what
    stands where a caption was looked for, `again` what to do about a key that stood before.
    """
    text, bad_caption = check_caption(caption, no_caption)
    bad_image = image if isinstance(image, Bad) else check_image(image)
    if duplicate:
        bad = Bad(Reject.DUPLICATE_KEY, f"{unit.shard} has the key {key} before{again and '; '}{again}")
    bad = bad or bad_image or bad_caption
    return RawPair(
        shard=unit.shard,
        key=key,
        image=image if isinstance(image, bytes) else None,
        caption=text,
        reject=None if bad is None else bad.reject,
        detail="" if bad is None else shortened(bad.detail),
        label=label,
        native_uid=native_uid,
        image_suffix=image_suffix,
        native=native,
        captions=tuple(_usable(captions)),
        origin=origin,
    )


@lru_cache(maxsize=4)
def blocked_hashes(path: str) -> frozenset[str]:
    """Return the SHA-256 hashes of a block list: one a line in hexadecimal, what follows it and lines with # left out.

    Raises:
        SourceError: the file cannot be read, or a line holds no hash.
    """
    try:
        lines = read_file(path).decode("utf-8").splitlines()
    except (PathError, UnicodeDecodeError) as error:
        raise SourceError(f"block={path}: {error}") from error
    words = [line.split()[0].lower() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    wrong = next((word for word in words if not re.fullmatch(r"[0-9a-f]{64}", word)), None)
    if wrong is not None:
        raise SourceError(f"block={path}: {wrong[:80]!r} is no SHA-256; write one hash of 64 hexadecimal digits a line")
    return frozenset(words)


def check_hash(image: bytes | Bad, source: "Provenance", published: object) -> Bad | None:
    """Return what the image's hash says against it: another one is published for it, or the user blocks it."""
    if isinstance(image, Bad) or (source.sha256 is None and source.block is None):
        return None
    found = sha256(image).hexdigest()
    if source.block is not None and found in blocked_hashes(source.block):
        return Bad(Reject.BLOCKED, f"SHA-256 {found} stands in {source.block}")
    published = published.decode("ascii", "replace") if isinstance(published, bytes) else published
    if source.sha256 is None or not isinstance(published, str) or not published:
        return None
    if found != published.lower():
        told = f"the data set publishes SHA-256 {published[:64]}, the image has {found}"
        return Bad(Reject.BYTES_CHANGED, f"{told}; leave data.sha256 out where images were encoded again")
    return None


class Provenance(Protocol):
    """What a source says of the origin of its images."""

    @property
    def sha256(self) -> str | None: ...
    @property
    def block(self) -> str | None: ...


def shortened(detail: str) -> str:
    """Return a detail in one line that can be stored; where it is long its middle goes, because the remedy stands at its end."""
    line = " ".join(printable(detail).split())
    if len(line) <= MAX_DETAIL:
        return line
    half = (MAX_DETAIL - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def _usable(captions: Iterable[object]) -> Iterator[str]:
    for caption in captions:
        text, bad = check_caption(caption)
        if text is not None and bad is None:
            yield text


def check_image(data: bytes) -> Bad | None:
    """Return what is wrong with the bytes of an image, as far as that shows without decoding."""
    if not data:
        return Bad(Reject.IMAGE_EMPTY, "0 bytes")
    return Bad(Reject.IMAGE_UNREADABLE, LFS) if data.startswith(LFS_POINTER) else None


def check_caption(caption: object, missing: str = "") -> tuple[str | None, Bad | None]:
    """Return a caption that can be stored as UTF-8, and what is wrong with it.

    Lone surrogates (from JSON escapes, or where a text file was not UTF-8) count as not UTF-8. `missing` is the detail
    where there is none.
    """
    if caption is None:
        return None, Bad(Reject.CAPTION_MISSING, missing or "no caption")
    if not isinstance(caption, str | bytes):
        kind = type(caption).__name__
        return None, Bad(Reject.CAPTION_MISSING, f"the caption is no text but {kind}; give a text or a list of texts")
    data = text_bytes(caption) if isinstance(caption, str) else caption
    if data.startswith(LFS_POINTER):
        return None, Bad(Reject.CAPTION_MISSING, LFS)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {error.start} of the caption is not UTF-8; convert the text to UTF-8"
        return data.decode("utf-8", "replace"), Bad(Reject.CAPTION_NOT_UTF8, place)
    return text, None if text.strip() else Bad(Reject.CAPTION_EMPTY, "the caption holds no word")


def first_caption(value: Any) -> Any:
    """Return a caption, or of a list of captions the first that can be used; where none can, the first, which says why."""
    if not isinstance(value, list):
        return value
    return value[_first_usable(value)] if value else None


def with_caption(value: Any, caption: str) -> Any:
    """Return a caption, or a list of captions, with another one in the place of `first_caption` and of what stands before it."""
    return [caption, *value[_first_usable(value) + 1 :]] if isinstance(value, list) else caption


def _first_usable(captions: list[Any]) -> int:
    return next((i for i, caption in enumerate(captions) if check_caption(caption)[1] is None), 0)


def text_bytes(text: str) -> bytes:
    """Return the bytes that a text was read from, also where they were not UTF-8 and came as lone surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate of another origin, such as a JSON escape
        return text.encode("utf-8", "surrogatepass")


def printable(key: bytes | str) -> str:
    """Return a key that can be stored as UTF-8; bytes that are not are written as escapes."""
    data = text_bytes(key) if isinstance(key, str) else key
    return data.decode("utf-8", "backslashreplace")


def hex_uid(value: object) -> str | None:
    """Return the value when it is a 128-bit uid of 32 hexadecimal digits (DataComp), else None."""
    return value if isinstance(value, str) and HEX_UID.fullmatch(value) else None


def class_index(value: object) -> int | None:
    """Return a class index from a number or its text; None when it is neither, or more than 31 bits hold."""
    if isinstance(value, int):
        number = int(value)
    else:
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
        if not re.fullmatch(r"\s*-?[0-9]{1,10}\s*", text):
            return None
        number = int(text)
    return number if -MAX_LABEL <= number <= MAX_LABEL else None


def damaged(unit: Unit, place: str, detail: str) -> RawPair:
    """Return the record of a break in a shard; `place` names where."""
    return RawPair(
        shard=unit.shard,
        key=f"@{place}",
        image=None,
        caption=None,
        reject=Reject.SHARD_DAMAGED,
        detail=shortened(detail),
    )


def unopened(unit: Unit, place: str, error: PathError) -> RawPair:
    """Return the record of a shard that cannot be opened, as it could not when the units were listed.

    Raises:
        Unreachable: it was there then, so what is wrong is not its bytes.
    """
    if unit.size_bytes:
        raise unreachable(unit.path, error) from error
    return damaged(unit, place, str(error))


def explain(data: bytes, expected: str) -> str:
    """Return what a file is that is not what was expected, by its first bytes."""
    if not data:
        return f"an empty file and no {expected}; fetch it again"
    if data.startswith(LFS_POINTER):
        return LFS
    known = {
        b"BZh": "bzip2-compressed; unpack it",
        b"\xfd7zXZ\0": "xz-compressed; unpack it",
        b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it",
        b"PK\x03\x04": "a zip archive; repack it",
        b"\x1f\x8b": "gzip-compressed; unpack it",
        b"PAR1": "Parquet; use data=parquet",
        b"<": "a web page or XML (a failed download?); fetch it again",
    }
    for magic, words in known.items():
        if data.startswith(magic):
            return f"no {expected} but {words}"
    return f"no {expected}"


def slices(total: int, limit: int) -> list[tuple[int, int]]:
    """Cut `total` bytes or rows into equal slices of at most `limit`; the last is open (-1): a break may lie there."""
    count = max(1, -(-total // limit))
    bounds = [i * total // count for i in range(count)]
    return list(zip(bounds, [*bounds[1:], -1], strict=True))


def number_units(files: list[tuple[Found, list[tuple[int, int]]]]) -> list[Unit]:
    """Turn files and their slices into numbered units."""
    flat = [(file, start, stop) for file, cuts in files for start, stop in cuts]
    return [
        Unit(i, file.relative, file.path, start, stop, file.size_bytes or 0)
        for i, (file, start, stop) in enumerate(flat)
    ]


def rows_a_piece(total: int) -> int:
    """Return the rows of a piece of a data set of `total` rows: whole batches of the usual sizes."""
    return LEAST_ROWS * max(1, -(-total // (PIECES * LEAST_ROWS)))


def refined(units: Sequence[Unit], cuts: Callable[[Unit], Sequence[int]]) -> list[Unit]:
    """Return the units, each cut again at the positions within it that `cuts` names, and numbered anew."""
    found: list[Unit] = []
    for unit in units:
        inner = [at for at in cuts(unit) if at > unit.start and inside(unit, at)]
        found += [replace(unit, start=start, stop=stop) for start, stop in pairwise([unit.start, *inner, unit.stop])]
    return [replace(unit, index=index) for index, unit in enumerate(found)]


def thinned(units: Sequence[Unit], fine: Sequence[Unit]) -> list[Unit]:
    """Return the units, cut where those of a finer list of the same rows begin, at no more than about PIECES places."""
    starts: dict[tuple[str, str], list[int]] = {}
    for unit in fine[:: max(1, -(-len(fine) // PIECES))]:
        starts.setdefault((unit.path, unit.shard), []).append(unit.start)
    least = LEAST_ROWS // 2
    return refined(
        units,
        lambda unit: [
            at
            for at in starts.get((unit.path, unit.shard), ())
            if at >= unit.start + least and (unit.stop < 0 or at <= unit.stop - least)
        ],
    )


def inside(unit: Unit, position: int) -> bool:
    """Whether a byte or row belongs to the unit."""
    return unit.start <= position and (unit.stop < 0 or position < unit.stop)


def output_shard(unit: Unit) -> str:
    """Return the shard name of a unit in a written data set: its own, or one with the start for a slice."""
    shard = re.sub(r"\.tgz$", ".tar", unit.shard.removesuffix(".gz"))  # what is written is not compressed
    if unit.start == 0 and unit.stop < 0:
        return shard
    path = PurePosixPath(shard)
    return str(path.with_name(f"{path.stem}-{unit.start:012d}{path.suffix}"))


class UnitWriter(ABC):
    """Writes the pairs of one unit, in the order in which they were read, to `folder/shard`.

    A context manager: the file has a temporary name until a clean exit, and is removed (with the images that were
    written beside it) when the block raises. A unit without pairs still gives a valid
    file, unless its shard cannot be opened: then there is none.
    """

    def __init__(self, folder: Path, shard: str) -> None:
        self.folder = folder
        self.shard = shard
        """Shard of the written pairs."""
        self.path = folder / shard
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._beside: list[Path] = []
        self._rows = 0

    @abstractmethod
    def copy(self, pair: RawPair) -> str:
        """Write the pair as it stands in the source; returns its uid in the written data set."""

    @abstractmethod
    def replace(self, pair: RawPair, *, image: bytes, suffix: str, caption: str) -> str:
        """Write the pair with another image and caption, everything else kept; returns its uid in the written set.

        Args:
            pair: as `read_unit` gave it.
            image: encoded image.
            suffix: file suffix of the image's format (".png").
            caption: the new caption.
        """

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = False
        try:
            self._close()
            if kind is None and self._temporary.exists():
                self._temporary.replace(self.path)
            complete = kind is None
        finally:
            for path in [] if complete else [self._temporary, *self._beside]:
                path.unlink(missing_ok=True)

    def _write_beside(self, relative: str, data: bytes) -> None:
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        self._beside.append(path)
        path.write_bytes(data)

    def _row_uid(self, key: str | None) -> str:
        """Return the uid of the row that is being written: by its key, or by its number."""
        number = row_key(self._rows)
        self._rows += 1
        return f"{self.shard}/{number if key is None else key}"


def row_key(row: int) -> str:
    """Return the key of a row that has none of its own."""
    return f"{row:09d}"


def native_of(pair: RawPair) -> Any:
    """Return what the reader left for the writer.

    Raises:
        ValueError: the pair records a break in a shard; there is nothing to copy.
    """
    if pair.native is None:
        raise ValueError(f"{pair.uid} records a damaged shard: it cannot be written")
    return pair.native
