"""WebDataset: tars with the members of a pair next to each other, as img2dataset, CC3M and CC12M have them."""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..files import MAX_FILE_BYTES, PathError, find, open_input
from ..samples import RawPair, Reject, Unit
from ..stage import config
from .common import (
    IMAGE_SUFFIXES,
    SourceConfig,
    UnitWriter,
    class_index,
    damaged,
    hex_uid,
    inside,
    make_pair,
    native_of,
    number_units,
    output_shard,
    slices,
)
from .tar import BUFFER_BYTES, ForwardReader, Member, TarDamage, end_marker, members, padded

NAME = re.compile(r"((?:.*/)?[^./][^./]*)(\.[^/]+)", re.DOTALL)
"""Key and suffix as the webdataset library splits a name: at the first dot after the last slash."""


@config
class WebDataset(SourceConfig):
    """Tars of `key.jpg` (or .png, .webp, ...) with `key.txt` and/or `key.json`, and `key.cls` for a class index.

    The caption is the .txt member, or the caption field of the .json member where there is no .txt. A pair's members
    stand next to each other in the tar. A 32-digit hexadecimal `uid` in the .json is the pair's own uid (DataComp).
    """

    path: str | list[str]
    """Tars, folders or globs, with {00000..00999} ranges; local, s3:// or gs://."""
    kind: Literal["webdataset"] = "webdataset"
    caption: str = "caption"
    """Field of the .json member that holds the caption, or a list of captions: then the first, and for retrieval all."""
    unit_bytes: int = 256 * 2**20
    """A larger tar is cut into slices of at most this many bytes, each a unit of work."""

    def __post_init__(self) -> None:
        if self.unit_bytes < 1:
            raise ValueError("unit_bytes must be at least 1")

    def list_units(self) -> list[Unit]:
        """Return the tars, or slices of large ones, sorted by shard and offset."""
        files = find(self.path, (".tar",))
        return number_units([(file, slices(file.size_bytes or 0, self.unit_bytes)) for file in files])

    def read_unit(self, unit: Unit) -> Iterator[RawPair]:
        """Yield the pairs whose first header lies in the unit.

        Every slice walks the headers from the start of the tar, because a key that an earlier slice has is a duplicate.
        """
        try:
            file = open_input(unit.path)
        except PathError:
            yield damaged(unit, f"byte-{unit.start}")
            return
        with file:
            reader = ForwardReader(file)
            walk = _groups(reader, unit)
            while True:
                try:
                    group = next(walk, None)
                except TarDamage as damage:
                    if inside(unit, damage.offset):
                        yield damaged(unit, f"byte-{damage.offset}")
                    return
                if group is None:
                    return
                if group.is_pair and inside(unit, group.offset):
                    yield _pair(self, unit, group)

    def open_writer(self, unit: Unit, folder: Path) -> UnitWriter:
        """Return the writer of a unit."""
        return WebDatasetWriter(self, unit, folder)


@dataclass(slots=True)
class Group:
    """Consecutive members with the same key."""

    key: str
    duplicate: bool
    members: dict[str, Member] = field(default_factory=dict)
    """By suffix, in the order of the tar."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """Contents of the members that a pair is made of; empty for a group of another slice."""

    @property
    def offset(self) -> int:
        return next(iter(self.members.values())).offset

    @property
    def image(self) -> str | None:
        """Suffix of the first image."""
        return next((suffix for suffix in self.members if suffix in IMAGE_SUFFIXES), None)

    @property
    def is_pair(self) -> bool:
        """False for stray members (a licence, a mask alone) that are not part of any pair."""
        return self.image is not None or any(suffix in self.members for suffix in (".txt", ".json"))


def _groups(reader: ForwardReader, unit: Unit) -> Iterator[Group]:
    """Yield groups up to the unit's end, then raise the damage, if any, that ended the walk."""
    seen: set[str] = set()
    group: Group | None = None
    damage: TarDamage | None = None
    walk = members(reader)
    while True:
        try:
            member = next(walk, None)
        except TarDamage as error:
            damage, member = error, None
        if member is None:
            break
        match = NAME.fullmatch(member.name)
        if match is None:
            continue
        key, suffix = match[1].removeprefix("./"), match[2].lower()
        if group is None or key != group.key or suffix in group.members:
            if group is not None:
                yield group
            if 0 <= unit.stop <= member.offset:
                return
            group = Group(key, duplicate=key in seen)
            seen.add(key)
        group.members[suffix] = member
        wanted = suffix in IMAGE_SUFFIXES or suffix in (".txt", ".json", ".cls")
        if wanted and group.offset >= unit.start and member.size <= MAX_FILE_BYTES:
            reader.seek(member.data)
            group.contents[suffix] = reader.read(member.size)
    if group is not None:
        yield group
    if damage is not None:
        raise damage


def _pair(source: WebDataset, unit: Unit, group: Group) -> RawPair:
    fields = _json(group.contents.get(".json"))
    caption: Any = group.contents.get(".txt")
    if caption is None:
        caption = first(fields.get(source.caption))
    if caption is None and not fields and not _is_utf8(group.contents.get(".json", b"")):
        caption = group.contents[".json"]  # the caption may be what is not UTF-8: reported as that, not as missing
    image: bytes | Reject = Reject.IMAGE_MISSING
    if group.image is not None:
        image = group.contents.get(group.image, Reject.IMAGE_TOO_LARGE)
    return make_pair(
        unit,
        group.key,
        image=image,
        caption=caption if isinstance(caption, str | bytes) else None,
        duplicate=group.duplicate,
        label=class_index(group.contents[".cls"]) if ".cls" in group.contents else None,
        native_uid=hex_uid(fields.get("uid")),
        image_suffix=group.image or "",
        native=tuple(group.members.items()),
        captions=listed if isinstance(listed := fields.get(source.caption), list) else (),
    )


def _json(data: bytes | None) -> dict[str, Any]:
    """Return the fields of a .json member; none when it is absent or broken."""
    try:
        fields = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def first(value: Any) -> Any:
    """Return a value, or the first of a list of values."""
    return (value[0] if value else None) if isinstance(value, list) else value


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class WebDatasetWriter(UnitWriter):
    """Copies members byte for byte, headers included; a replaced pair gets new headers with the old times and modes."""

    def __init__(self, source: WebDataset, unit: Unit, folder: Path) -> None:
        super().__init__(folder, output_shard(unit))
        self._source = source
        self._input_path = unit.path

    def _open(self) -> None:
        self._input = open_input(self._input_path)
        self._reader = ForwardReader(self._input)
        self._file = self._temporary.open("wb")

    def _close(self) -> None:
        self._file.write(end_marker(self._file.tell()))
        self._file.close()
        self._input.close()

    def copy(self, pair: RawPair) -> str:
        for _, member in native_of(pair):
            self._copy_member(member)
        return f"{self.shard}/{pair.key}"

    def replace(self, pair: RawPair, *, image: bytes, suffix: str, caption: str) -> str:
        parts: list[tuple[str, Member]] = list(native_of(pair))
        suffixes = [old for old, _ in parts]
        fields = _json(self._content(dict(parts).get(".json")))
        has_field = source_has_caption(fields, self._source.caption)
        for old, member in parts:
            stem = member.name[: -len(old)]
            if old == pair.image_suffix:
                self._write_member(member, stem + suffix, image)
            elif old == suffix:
                continue  # a second image, whose name the new one takes
            elif old == ".txt":
                self._write_member(member, member.name, caption.encode())
            elif old == ".json" and has_field:
                value = fields[self._source.caption]
                fields[self._source.caption] = [caption, *value[1:]] if isinstance(value, list) else caption
                self._write_member(
                    member, member.name, json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
                )
            else:
                self._copy_member(member)
        member = parts[0][1]
        stem = member.name[: -len(suffixes[0])]
        if not pair.image_suffix:
            self._write_member(member, stem + suffix, image)
        if ".txt" not in suffixes and not has_field:
            self._write_member(member, f"{stem}.txt", caption.encode())
        return f"{self.shard}/{pair.key}"

    def _content(self, member: Member | None) -> bytes | None:
        if member is None or member.size > MAX_FILE_BYTES:
            return None
        self._reader.seek(member.data)
        return self._reader.read(member.size)

    def _copy_member(self, member: Member) -> None:
        self._reader.seek(member.offset)
        left = member.stop - member.offset
        while left:
            # The padding of the last member of a cut tar may be missing in the source.
            data = self._reader.read(min(left, BUFFER_BYTES)) or bytes(left)
            self._file.write(data)
            left -= len(data)

    def _write_member(self, like: Member, name: str, data: bytes) -> None:
        self._reader.seek(like.data - 512)
        info = tarfile.TarInfo.frombuf(self._reader.read(512), "utf-8", "backslashreplace")
        info.name, info.size, info.pax_headers = name, len(data), {}
        self._file.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "backslashreplace"))
        self._file.write(data + bytes(padded(len(data)) - len(data)))


def source_has_caption(fields: dict[str, Any], name: str) -> bool:
    """Whether the .json member holds a caption, or a list of them."""
    return isinstance(first(fields.get(name)), str)
