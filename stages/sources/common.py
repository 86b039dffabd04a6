"""What a format is, and what the readers and writers of all formats share: checks of a pair, slices, atomic files."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, ClassVar, Self

from ..files import Found, absolute
from ..registry import Family
from ..samples import HEX_UID, RawPair, Reject, Unit, seeded_hash
from ..stage import config

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


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
        read before it stays. Errors of a device or a network in the middle of a tar are raised: they are not the data's.
        """

    @abstractmethod
    def open_writer(self, unit: Unit, folder: Path) -> "UnitWriter":
        """Return the context manager that writes pairs of a unit below `folder`, in the source's own format.

        Its `copy` and `replace` take pairs in the order in which `read_unit` yields them (leaving some out is fine) and
        return the uid that the pair has in the written data set.
        """

    def rewritten(self, folder: Path) -> "SourceConfig":
        """Return the source that reads what the writers wrote below `folder`."""
        return replace(self, path=str(folder))

    def content(self) -> dict[str, Any]:
        """Return what decides the pairs, for fingerprints: plain data without the place where the set lies."""
        return asdict(replace(self, path=""))

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


def make_pair(
    unit: Unit,
    key: str,
    *,
    image: bytes | Reject,
    caption: bytes | str | None,
    duplicate: bool,
    label: int | None,
    native_uid: str | None,
    image_suffix: str,
    native: object,
    captions: Iterable[object] = (),
) -> RawPair:
    """Build a pair and set its reject reason: a duplicate key first, then the image, then the caption.

    `image` is the bytes or why there are none. What is there is passed on even when the pair is rejected. Of
    `captions`, the whole list where the source has one, those that cannot be used are left out.
    """
    text, caption_reject = check_caption(caption)
    if isinstance(image, Reject):
        image_reject: Reject | None = image
    else:
        image_reject = None if image else Reject.IMAGE_EMPTY
    return RawPair(
        shard=unit.shard,
        key=key,
        image=image if isinstance(image, bytes) else None,
        caption=text,
        reject=Reject.DUPLICATE_KEY if duplicate else image_reject or caption_reject,
        label=label,
        native_uid=native_uid,
        image_suffix=image_suffix,
        native=native,
        captions=tuple(_usable(captions)),
    )


def _usable(captions: Iterable[object]) -> Iterator[str]:
    for caption in captions:
        text, reject = check_caption(caption if isinstance(caption, str | bytes) else None)
        if text is not None and reject is None:
            yield text


def check_caption(caption: bytes | str | None) -> tuple[str | None, Reject | None]:
    """Return a caption that can be stored as UTF-8, and what is wrong with it.

    Lone surrogates (from JSON escapes, or where a text file was not UTF-8) count as not UTF-8.
    """
    if caption is None:
        return None, Reject.CAPTION_MISSING
    data = text_bytes(caption) if isinstance(caption, str) else caption
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace"), Reject.CAPTION_NOT_UTF8
    return text, None if text.strip() else Reject.CAPTION_EMPTY


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
    """Return a class index from a number or its text; None when it is neither."""
    if isinstance(value, int):
        return int(value)
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return int(text) if text.strip().lstrip("-").isdecimal() and text.isascii() else None


def damaged(unit: Unit, place: str) -> RawPair:
    """Return the record of a break in a shard; `place` names where."""
    return RawPair(shard=unit.shard, key=f"@{place}", image=None, caption=None, reject=Reject.SHARD_DAMAGED)


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


def inside(unit: Unit, position: int) -> bool:
    """Whether a byte or row belongs to the unit."""
    return unit.start <= position and (unit.stop < 0 or position < unit.stop)


def output_shard(unit: Unit) -> str:
    """Return the shard name of a unit in a written data set: its own, or one with the start for a slice."""
    if unit.start == 0 and unit.stop < 0:
        return unit.shard
    path = PurePosixPath(unit.shard)
    return str(path.with_name(f"{path.stem}-{unit.start:012d}{path.suffix}"))


class UnitWriter(ABC):
    """Writes the pairs of one unit, in the order in which they were read, to `folder/shard`.

    A context manager: the file has a temporary name until a clean exit, and is removed (with the images that were
    written beside it) when the block raises. A unit without pairs still gives a valid file, the mark of its commit.
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
        try:
            self._close()
            if kind is None:
                self._temporary.replace(self.path)
        finally:
            if kind is not None:
                for path in [self._temporary, *self._beside]:
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
