"""WebDataset: tars with the members of a pair next to each other, as img2dataset, CC3M and CC12M have them."""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..files import MAX_FILE_BYTES, PathError, Unreachable, is_address, open_input, unreachable
from ..listing import find
from ..samples import RawPair, Reject, Unit, hash_uid
from ..stage import Count, config
from .common import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    JSON_SUFFIXES,
    PIECES,
    TRAINED_SUFFIXES,
    Bad,
    SourceConfig,
    UnitWriter,
    check_hash,
    class_index,
    damaged,
    first_caption,
    hex_uid,
    inside,
    make_pair,
    native_of,
    number_units,
    output_shard,
    printable,
    refined,
    settle_paths,
    shortened,
    slices,
    unopened,
    with_caption,
)
from .hints import json_hint, list_names
from .origin import origin_of
from .tar import ForwardReader, Member, TarDamage, end_marker, members, open_reader, padded

NAME = re.compile(r"((?:.*/)?[^./][^./]*)(\.[^/]+)", re.DOTALL)
"""Key and suffix as the webdataset library splits a name: at the first dot after the last slash."""
SUFFIXES = (".tar", ".tar.gz", ".tgz")
SORT = "if its other half stands elsewhere in the tar, repack it with `tar --sort=name`"
PIECE_BYTES = 2 * 2**20
"""Of a piece, at the least."""
TAR_PIECES = 16
"""Pieces of one tar, at the most: each walks the headers from the start of the tar."""
UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")


@config
class WebDataset(SourceConfig):
    """Tars of `key.jpg` (or .png, .webp, ...) with `key.txt` and/or `key.json`, and `key.cls` for a class index.

    Of a key's pictures the one that open_clip trains on is read; a key with two of its kinds is rejected. The caption
    is the .txt member (or .caption, .text, .cap), or the caption field of the .json member where there is none. A pair's
    members stand next to each other in the tar, which may be gzipped. A 32-digit hexadecimal `uid` in the .json is the
    pair's own uid (DataComp).
    """

    path: str | list[str]
    """Tars, folders or globs, with {00000..00999} ranges; local, s3:// or gs://."""
    kind: Literal["webdataset"] = "webdataset"
    caption: str = "caption"
    """Field of the .json member that holds the caption, or a list of captions: then the first with a word, and for retrieval all."""
    image: str | None = None
    """Suffix of the picture (.input.jpg); null: what open_clip reads of .jpg, .png, .jpeg, .webp, else another known one."""
    text: str | None = None
    """Suffix of the caption (.outputs.txt); null: .txt, else .caption, .text, .cap or .caption.txt."""
    sha256: str | None = None
    """Field of the .json member with the SHA-256 of the image as it stands in the tar; another image is rejected."""
    block: str | None = None
    """File with the SHA-256 of images to reject, one a line."""
    unit_bytes: Count = 256 * 2**20
    """A larger tar is cut into slices of at most this many bytes, each a unit of work."""

    def __post_init__(self) -> None:
        settle_paths(self)
        for name in (self.image, self.text):
            if name is not None and not re.fullmatch(r"\.[^/]+", name):
                raise ValueError(f"{name!r} is no suffix; write it from its first dot on, such as .input.jpg")

    def list_units(self) -> list[Unit]:
        """Return the tars, or slices of large ones, sorted by shard and offset; a gzipped one is a single unit."""
        files = find(self.path, SUFFIXES)
        cuts = [[(0, -1)] if _gzipped(self, file) else slices(file.size_bytes or 0, self.unit_bytes) for file in files]
        return number_units(list(zip(files, cuts, strict=True)))

    def pieces(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units cut finer; of a gzipped tar, or one on an object store, what lies before a cut would be read again."""
        if len(units) >= PIECES:
            return list(units)
        least = max(PIECE_BYTES, -(-sum({unit.path: unit.size_bytes for unit in units}.values()) // PIECES))
        whole = {
            path
            for path in {unit.path for unit in units}
            if is_address(path) or _is_compressed(path) or _holds_gzip(path)
        }

        def cuts(unit: Unit) -> list[int]:
            size = (unit.stop if unit.stop >= 0 else unit.size_bytes) - unit.start
            limit = max(least, unit.size_bytes // TAR_PIECES)
            return [] if unit.path in whole else [unit.start + start for start, _ in slices(size, limit)]

        return refined(units, cuts)

    def read_unit(self, unit: Unit) -> Iterator[RawPair]:
        """Yield the pairs whose first header lies in the unit.

        Every slice walks the headers from the start of the tar, because a key that an earlier slice has is a duplicate.
        """
        try:
            file = open_input(unit.path)
        except PathError as error:
            yield unopened(unit, f"byte-{unit.start}", error)
            return
        names, dotted = _Names(self), set[str]()
        with file:
            reader = open_reader(file)
            try:
                for group in _groups(reader, unit, names):
                    yield from _pairs(self, unit, group, reader, names, dotted)
            except TarDamage as damage:
                if inside(unit, damage.offset):
                    yield damaged(unit, f"byte-{damage.offset}", damage.detail)

    def open_writer(self, unit: Unit, folder: Path) -> UnitWriter:
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
    is_hidden: bool = False
    """A single image whose name starts with a dot."""

    @property
    def offset(self) -> int:
        return next(iter(self.members.values())).offset


@dataclass(frozen=True, slots=True)
class Part:
    """A member that a pair is made of."""

    suffix: str
    member: Member
    content: bytes | None
    """None for the picture, which the pair itself holds, and for what is too large to be read."""


def _gzipped(source: WebDataset, file: Any) -> bool:
    if _is_compressed(file.relative):
        return True
    if (file.size_bytes or 0) <= source.unit_bytes:
        return False
    return _holds_gzip(file.path)


def _is_compressed(name: str) -> bool:
    return name.lower().endswith(SUFFIXES[1:])


def _holds_gzip(path: str) -> bool:
    try:
        with open_input(path) as opened:
            return bool(opened.read(2) == b"\x1f\x8b")
    except Unreachable:
        raise
    except OSError as error:
        raise unreachable(path, error) from error
    except PathError:
        return False


class _Names:
    """Which suffixes are pictures, captions and fields, under the source's settings."""

    def __init__(self, source: WebDataset) -> None:
        self.trained = TRAINED_SUFFIXES if source.image is None else (source.image.lower(),)
        self.images = IMAGE_SUFFIXES if source.image is None else self.trained
        self.captions = CAPTION_SUFFIXES if source.text is None else (source.text.lower(),)
        self.read = frozenset((*self.images, *self.captions, *JSON_SUFFIXES, ".cls"))
        self.makes_pair = self.read - {".cls"}

    def last(self, suffix: str) -> str:
        """Return the known suffix at the end of one with several dots; "" where there is none."""
        last = "." + suffix.rpartition(".")[2]
        return last if suffix.count(".") > 1 and last in (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, *JSON_SUFFIXES) else ""


def _groups(reader: ForwardReader, unit: Unit, names: _Names) -> Iterator[Group]:
    """Yield groups up to the unit's end, then raise the damage, if any, that ended the walk."""
    seen: set[str] = set()
    group: Group | None = None
    damage: TarDamage | None = None
    try:
        for member in members(reader):
            match = NAME.fullmatch(member.name)
            if match is None:
                if member.name.rpartition("/")[2].startswith(".") and member.name.lower().endswith(IMAGE_SUFFIXES):
                    yield Group(member.name, duplicate=False, members={"": member}, is_hidden=True)
                continue
            key, suffix = match[1].removeprefix("./"), match[2].lower()
            if group is None or key != group.key or suffix in group.members:
                if group is not None:
                    yield group
                if 0 <= unit.stop <= member.offset:
                    return
                group = Group(key, duplicate=key in seen)
                seen.add(key)
            if suffix in names.read and (group.offset if group.members else member.offset) >= unit.start:
                content = _content(reader, member)
                if content is not None:
                    group.contents[suffix] = content
            group.members[suffix] = member
    except TarDamage as error:
        damage = error
    if group is not None and group.members:
        yield group
    if damage is not None:
        raise damage


def _content(reader: ForwardReader, member: Member) -> bytes | None:
    """Return a member's content; None for one that is too large to be read.

    Raises:
        TarDamage: the file ends before it does.
    """
    if member.size > MAX_FILE_BYTES:
        return None
    reader.seek(member.data)
    content = reader.read(member.size)
    if len(content) < member.size:
        raise TarDamage(member.offset, f"the file is cut inside {member.name!r}")
    return content


def _pairs(
    source: WebDataset, unit: Unit, group: Group, reader: ForwardReader, names: _Names, dotted: set[str]
) -> Iterator[RawPair]:
    """Yield the pairs of a group; more than one where the keys of the tar hold dots."""
    if not inside(unit, group.offset):
        if not group.is_hidden:
            dotted.update(_dotted_keys(group, names))
        return
    if group.is_hidden:
        bad = Bad(Reject.HIDDEN_NAME, "a name that starts with a dot, which webdataset passes over")
        yield _rejected(unit, group, printable(group.key), bad)
        return
    keyed = _dotted_keys(group, names)
    if not names.makes_pair.isdisjoint(group.members):
        yield _pair(source, unit, group, names)
    elif not keyed:
        images = [suffix for suffix in group.members if names.last(suffix) in IMAGE_SUFFIXES]
        if images:
            detail = f"the key has {list_names(group.members)}, and the key of a webdataset ends at its first dot"
            text = next((suffix for suffix in group.members if names.last(suffix) not in ("", *IMAGE_SUFFIXES)), "")
            remedy = f"set data.image={images[0]}" + (f" data.text={text}" if text else "")
            for suffix in images:
                key = group.key if len(images) == 1 else group.key + suffix
                yield _rejected(unit, group, key, Bad(Reject.IMAGE_MISSING, f"{detail}; {remedy}"))
    for key, parts in keyed.items():
        contents = {suffix: data for suffix, member in parts.items() if (data := _content(reader, member)) is not None}
        yield _pair(source, unit, Group(key, key in dotted, parts, contents), names)
        dotted.add(key)


def _dotted_keys(group: Group, names: _Names) -> dict[str, dict[str, Member]]:
    """Return key -> members by suffix for names that make pairs when their key ends at the last dot.

    Where there is a whole pair among them, half ones are pairs to reject; an image whose name goes on where the key of a
    pair ends (c.mask.png beside c.png) belongs to that pair.
    """
    found: dict[str, dict[str, Member]] = {}
    for suffix, member in group.members.items():
        if suffix not in names.read and (last := names.last(suffix)):
            found.setdefault(group.key + member.name[: -len(last)][-(len(suffix) - len(last)) :], {})[last] = member
    whole = {key for key, parts in found.items() if _is_whole(parts)}
    if not whole or not names.makes_pair.isdisjoint(group.members):
        return {key: found[key] for key in found if key in whole}
    return {key: parts for key, parts in found.items() if not any(key.startswith(f"{one}.") for one in whole)}


def _is_whole(parts: dict[str, Member]) -> bool:
    texts = (*CAPTION_SUFFIXES, *JSON_SUFFIXES)
    return not parts.keys().isdisjoint(IMAGE_SUFFIXES) and not parts.keys().isdisjoint(texts)


def _rejected(unit: Unit, group: Group, key: str, bad: Bad) -> RawPair:
    parts = tuple(Part(suffix, member, None) for suffix, member in group.members.items())
    return RawPair(
        shard=unit.shard,
        key=key,
        image=None,
        caption=None,
        reject=bad.reject,
        detail=shortened(bad.detail),
        native=parts,
    )


def _pair(source: WebDataset, unit: Unit, group: Group, names: _Names) -> RawPair:
    picture, bad = _picture(group, names)
    text = next((suffix for suffix in names.captions if suffix in group.members), None)
    json_name = next((suffix for suffix in JSON_SUFFIXES if suffix in group.members), None)
    data = group.contents.get(json_name or "")
    fields = _json(data)
    value: Any = group.contents.get(text or "")
    if value is None:
        value = first_caption(fields.get(source.caption))
    if value is None and data is not None and not fields and not _is_utf8(data):
        value = data  # the caption may be what is not UTF-8: reported as that, not as missing
    image: bytes | Bad = _no_picture(group, names)
    if picture is not None:
        member = group.members[picture]
        too_large = Bad(Reject.IMAGE_TOO_LARGE, f"{member.size} bytes, more than {MAX_FILE_BYTES}; it is not read")
        image = group.contents.get(picture, too_large)
    used = (picture, text, json_name, ".cls")
    parts = tuple(
        Part(suffix, member, None if suffix == picture else group.contents.get(suffix))
        for suffix, member in group.members.items()
        if suffix in used
    )
    conflict = next((f"{p.member.name}: {p.member.conflict}" for p in parts if p.member.conflict), "")
    if conflict:
        bad = Bad(Reject.AMBIGUOUS, f"{conflict}, so that readers take it for different files; repack the tar")
    half = picture is None or (text is None and json_name is None)
    return make_pair(
        unit,
        group.key,
        image=image,
        caption=value,
        duplicate=group.duplicate,
        label=class_index(group.contents[".cls"]) if ".cls" in group.contents else None,
        native_uid=hex_uid(fields.get("uid")),
        image_suffix=picture or "",
        native=parts,
        captions=listed if isinstance(listed := fields.get(source.caption), list) else (),
        no_caption=_no_caption(source, group, names, fields, data),
        again=SORT if half else "only the first pair of a key is used",
        bad=bad or check_hash(image, source, fields.get(source.sha256 or "")),
        origin=origin_of(fields),
    )


def _picture(group: Group, names: _Names) -> tuple[str | None, Bad | None]:
    """Return the suffix of the picture that a trainer reads, and what is wrong where there are two."""
    for known in (names.trained, names.images):
        found = [suffix for suffix in known if suffix in group.members]
        if len(found) > 1:
            told = f"the key has two pictures, {list_names(found)}, and trainers differ on which they read"
            return found[0], Bad(Reject.AMBIGUOUS, f"{told}; name one with data.image={found[0]}")
        if found:
            return found[0], None
    return None, None


def _no_picture(group: Group, names: _Names) -> Bad:
    others = [suffix for suffix in group.members if suffix not in names.read]
    remedy = f"name the suffix of the picture with data.image={others[0]}" if others else SORT
    return Bad(Reject.IMAGE_MISSING, f"the key has {list_names(group.members)} and no picture; {remedy}")


def _no_caption(source: WebDataset, group: Group, names: _Names, fields: dict[str, Any], data: bytes | None) -> str:
    if fields:
        return json_hint(fields, source.caption, ".json")
    if data is not None:
        return "the .json is broken or holds no fields; mend it or add a .txt"
    others = [s for s in group.members if s not in names.read and names.last(s) not in IMAGE_SUFFIXES]
    remedy = f"name the suffix of the caption with data.text={others[0]}" if others else SORT
    return f"the key has {list_names(group.members)} and no caption; {remedy}"


def _json(data: bytes | None) -> dict[str, Any]:
    """Return the fields of a .json member; none when it is absent or broken."""
    try:
        fields = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class WebDatasetWriter(UnitWriter):
    """Writes the members that were scanned, with the bytes that were scanned, under safe names and fresh headers.

    Headers are made anew from name, size, time and mode. Those of an ordinary tar come out as they were, so that its
    members are copied byte for byte; nothing else of a stranger's header, and no member that was not looked at, goes on.
    """

    def __init__(self, source: WebDataset, unit: Unit, folder: Path) -> None:
        super().__init__(folder, output_shard(unit))
        self._source = source
        self._input_path = unit.path

    def _open(self) -> None:
        self._input: Any = None
        try:
            self._input = open_input(self._input_path)
        except PathError:
            return  # read_unit reports it; there is nothing to write
        self._reader = open_reader(self._input)
        self._file = self._temporary.open("wb")

    def _close(self) -> None:
        if self._input is not None:
            self._file.write(end_marker(self._file.tell()))
            self._file.close()
            self._input.close()

    def copy(self, pair: RawPair) -> str:
        key = safe_key(pair)
        for part in native_of(pair):
            content = pair.image if part.suffix == pair.image_suffix else part.content
            if content is not None:
                self._write(part.member, self._name(pair, key, part, part.suffix), content)
        return f"{self.shard}/{key}"

    def replace(self, pair: RawPair, *, image: bytes, suffix: str, caption: str) -> str:
        key = safe_key(pair)
        parts: tuple[Part, ...] = native_of(pair)
        names = _Names(self._source)
        fields = next((_json(part.content) for part in parts if part.suffix in JSON_SUFFIXES), {})
        has_field = isinstance(first_caption(fields.get(self._source.caption)), str)
        suffix = suffix if self._source.image is None else self._source.image
        for part in parts:
            if part.suffix == pair.image_suffix:
                self._write(part.member, self._name(pair, key, part, suffix), image)
            elif part.suffix in names.captions:
                self._write(part.member, self._name(pair, key, part, part.suffix), caption.encode())
            elif part.suffix in JSON_SUFFIXES and has_field:
                fields[self._source.caption] = with_caption(fields[self._source.caption], caption)
                text = json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
                self._write(part.member, self._name(pair, key, part, part.suffix), text)
            elif part.content is not None:
                self._write(part.member, self._name(pair, key, part, part.suffix), part.content)
        if not pair.image_suffix:
            self._write(parts[0].member, self._name(pair, key, parts[0], suffix), image)
        if not has_field and not any(part.suffix in names.captions for part in parts):
            self._write(parts[0].member, self._name(pair, key, parts[0], self._source.text or ".txt"), caption.encode())
        return f"{self.shard}/{key}"

    def _name(self, pair: RawPair, key: str, part: Part, suffix: str) -> str:
        """Return the name of a member: as it was where it is safe and the suffix stays, with ./ and the suffix's case."""
        old = part.member.name
        if key != pair.key:
            return key + suffix
        stem = old[: -len(part.suffix)]
        return old if suffix == part.suffix else stem + suffix

    def _write(self, like: Member, name: str, data: bytes) -> None:
        self._file.write(self._header(like, name, len(data)))
        self._file.write(data + bytes(padded(len(data)) - len(data)))

    def _header(self, like: Member, name: str, size: int) -> bytes:
        self._reader.seek(like.offset)
        old = self._reader.read(like.data - like.offset)
        if name == like.name and size == like.size and not like.conflict:
            with tarfile.TarFile(fileobj=io.BytesIO(old + bytes(1024)), errors="surrogateescape") as archive:
                info = archive.next()
            forms: tuple[Literal[0, 1, 2], ...] = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
            if info is not None and info.isreg() and any(_serialised(info, form) == old for form in forms):
                return old
        info = tarfile.TarInfo.frombuf(old[-512:], "utf-8", "backslashreplace")
        info.name, info.size, info.pax_headers = name, size, {}
        info.type, info.linkname = tarfile.REGTYPE, ""
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "backslashreplace")


def _serialised(info: tarfile.TarInfo, form: Literal[0, 1, 2]) -> bytes:
    try:
        return info.tobuf(form, "utf-8", "surrogateescape")
    except ValueError:
        return b""


def safe_key(pair: RawPair) -> str:
    """Return a key that leads to no other folder and holds no control character; the pair's own where it is so."""
    parts = pair.key.split("/")
    kept = [UNSAFE.sub("_", part) for part in parts if part not in ("", ".", "..")]
    return pair.key if kept == parts else "/".join([*kept[:-1], f"{kept[-1] if kept else ''}-{hash_uid(pair.uid)[:8]}"])
