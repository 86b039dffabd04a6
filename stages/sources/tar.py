"""Walks the members of a tar by their headers: exact byte ranges, breaks reported, nothing skipped in silence."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .common import explain

BLOCK = 512
BUFFER_BYTES = 8 * 2**20
"""One read of the file: large, so that an object store streams and does not answer one request a member."""
MAX_END_BYTES = 2**30
"""So much behind the end marker is looked through for what does not belong there; zeros compress to next to nothing."""
MAX_EXTENDED_BYTES = 2**20
"""Limit on an extended header (a long name); what claims more is damage."""
MAX_DIGITS = 20
EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
BROKEN_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)
"""What damage raises; other errors of the system are those of a device or a network."""
WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


class TarDamage(Exception):
    """The tar breaks at byte `offset`, the start of the member that cannot be read; `detail` says how."""

    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(f"broken at byte {offset}: {detail}")
        self.offset = offset
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar, by its place."""

    name: str
    offset: int
    """First byte of its first header, extended headers included."""
    data: int
    """First byte of its content."""
    size: int
    """Bytes of content."""
    conflict: str = ""
    """How its headers contradict each other, so that another reader may give it another name or length."""

    @property
    def stop(self) -> int:
        """First byte of the next header."""
        return self.data + padded(self.size)


class Gunzipped:
    """The contents of a gzipped file, to be read mostly forwards; where the compressed data break, it ends."""

    def __init__(self, file: Any) -> None:
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self._broken = False

    def size(self) -> int:
        """Return a length that nothing exceeds: the real one is not known before the end."""
        return 2**62

    def seek(self, position: int) -> None:
        """Go to a byte of the contents."""
        self._broken = False
        try:
            self._gzip.seek(position)
        except BROKEN_GZIP:
            self._broken = True

    def read(self, count: int) -> bytes:
        """Return the next bytes, fewer only at the end."""
        pieces: list[bytes] = []
        while count and not self._broken:
            try:
                piece = self._gzip.read1(min(count, 2**16))
            except BROKEN_GZIP:
                self._broken = True
                break
            if not piece:
                break
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


def open_reader(file: Any) -> "ForwardReader":
    """Return the reader of a tar, or of a gzipped one, whatever its name says."""
    start = file.read(2)
    file.seek(0)
    return ForwardReader(Gunzipped(file) if start == b"\x1f\x8b" else file)


class ForwardReader:
    """Reads a random-access file mostly forwards, through one large buffer."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._buffer = b""
        self._start = 0
        self._position = 0
        self.size: int = file.size()

    def seek(self, position: int) -> None:
        """Go to a byte; costs nothing until the next read."""
        self._position = position

    def read(self, count: int) -> bytes:
        """Return the next bytes, fewer only at the end of the file."""
        begin = self._position - self._start
        if not (begin >= 0 and begin + count <= len(self._buffer)):
            self._fill(count)
            begin = self._position - self._start
        data = self._buffer[begin : begin + count]
        self._position += len(data)
        return data

    def _fill(self, count: int) -> None:
        kept = self._position - self._start
        end = self._start + len(self._buffer)
        # The tail of the buffer is kept when reading on from it, so that no byte is fetched twice.
        tail = self._buffer[kept:] if 0 <= kept <= len(self._buffer) else b""
        self._file.seek(end if tail else self._position)
        self._buffer = tail + self._file.read(max(count - len(tail), BUFFER_BYTES))
        self._start = self._position


def padded(size: int) -> int:
    """Return the size rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def members(reader: ForwardReader) -> Iterator[Member]:
    """Yield the regular files of a tar in order; between two steps the caller may read elsewhere.

    Old, ustar, GNU and pax headers are read; directories, links and devices are passed over. Extended headers are
    parsed here and not by `tarfile`, which ends without an error at a broken header in the middle of a file.

    Raises:
        TarDamage: a header is broken, a member is cut, the end marker is missing, or data follows it.
    """
    position = begin = 0
    extended = _Extended()
    for_all = ""
    while True:
        reader.seek(position)
        block = reader.read(BLOCK)
        if not any(block):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except (tarfile.HeaderError, ValueError) as error:
            detail = "the file is cut inside a header" if len(block) < BLOCK else "no tar header"
            raise TarDamage(begin, explain(block, "tar") if begin == 0 and position == 0 else detail) from error
        size = _size(info, extended, begin)
        data = position + BLOCK
        if data + size > reader.size:
            raise TarDamage(begin, f"the file is cut inside {info.name!r}")
        position = data + padded(size)
        if info.type in EXTENDED:
            extended.add(_records(reader, info.type, size, begin))
            if position - begin > 4 * MAX_EXTENDED_BYTES:
                raise TarDamage(begin, "extended headers without end")
            continue
        if info.type == tarfile.XGLTYPE:
            told = _Extended()
            told.add(_records(reader, info.type, size, begin))
            if told.paths or told.sizes or told.is_sparse:
                for_all = "a global header names or measures the members"
        elif info.type == tarfile.GNUTYPE_SPARSE:
            raise TarDamage(begin, f"{info.name!r} is a sparse file; write the tar without --sparse")
        elif info.type in REGULAR and not info.name.endswith("/"):
            yield Member(
                extended.paths[0] if extended.paths else info.name,
                begin,
                data,
                size,
                for_all or extended.conflict(info.size),
            )
        extended = _Extended()
        begin = position
    _check_end(reader, len(block), begin)


class _Extended:
    """What the extended headers before a member say of it."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.sizes: list[str] = []
        self.is_sparse = False

    def add(self, records: list[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            text = value.decode("utf-8", "backslashreplace")
            if key == b"path":
                self.paths.append(text)
            elif key == b"size":
                self.sizes.append(text)
            elif key.startswith(b"GNU.sparse"):
                self.is_sparse = True

    def conflict(self, size: int) -> str:
        """Return how the headers contradict each other or the size in the plain one; "" where they agree."""
        if len(set(self.paths)) > 1:
            return "extended headers give two names"
        # A writer leaves 0 in the plain header when the size does not fit into it.
        if len({int(one) for one in self.sizes} | ({size} if size and self.sizes else set())) > 1:
            return "headers give two sizes"
        return "it is a sparse file" if self.is_sparse else ""


def _size(info: tarfile.TarInfo, extended: _Extended, begin: int) -> int:
    if info.type in WITHOUT_DATA:
        return 0
    size = info.size
    for text in extended.sizes:
        if not (text.isdecimal() and text.isascii() and len(text) <= MAX_DIGITS):
            raise TarDamage(begin, f"a size of {text[:20]!r} in an extended header")
        size = int(text)
    if size < 0:
        raise TarDamage(begin, f"a size of {size}")
    return size


def _records(reader: ForwardReader, kind: bytes, size: int, begin: int) -> list[tuple[bytes, bytes]]:
    """Return the records of an extended header, a GNU long name as that of a path."""
    if size > MAX_EXTENDED_BYTES:
        raise TarDamage(begin, f"an extended header of {size} bytes")
    payload = reader.read(size)
    if kind == tarfile.GNUTYPE_LONGLINK:
        return []
    if kind == tarfile.GNUTYPE_LONGNAME:
        return [(b"path", payload.partition(b"\0")[0])]
    records = []
    place, end = 0, len(payload.rstrip(b"\0"))
    while place < end:
        # A pax record is "length key=value\n", and the length counts the whole record.
        digits = payload[place : place + MAX_DIGITS + 1].partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) <= MAX_DIGITS else 0
        record = payload[place : place + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not key or not equals or len(record) < length:
            raise TarDamage(begin, "a broken extended header")
        records.append((key, value))
        place += length
    return records


def _check_end(reader: ForwardReader, marker: int, begin: int) -> None:
    """Check that there is an end marker and that nothing but zeros follows it."""
    if marker < BLOCK:
        empty = begin == 0 and marker == 0
        raise TarDamage(begin, explain(b"", "tar") if empty else "the end marker is missing: the file is cut")
    looked = 0
    while looked < MAX_END_BYTES and (rest := reader.read(BUFFER_BYTES)):
        looked += len(rest)
        if any(rest):
            raise TarDamage(begin, "data follow the end marker, and readers differ on them; repack the tar")


def end_marker(length: int) -> bytes:
    """Return what ends a tar of `length` bytes: two zero blocks and padding to a whole record."""
    total = length + 2 * BLOCK
    return bytes(2 * BLOCK - total % -tarfile.RECORDSIZE)
