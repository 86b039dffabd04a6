"""Walks the members of a tar by their headers: exact byte ranges, breaks reported, nothing skipped in silence."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BLOCK = 512
BUFFER_BYTES = 8 * 2**20
"""One read of the file: large, so that an object store streams and does not answer one request a member."""
MAX_EXTENDED_BYTES = 2**20
"""Limit on an extended header (a long name); what claims more is damage."""
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


class TarDamage(Exception):
    """The tar breaks at byte `offset`, the start of the member that cannot be read."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"broken at byte {offset}")
        self.offset = offset


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

    @property
    def stop(self) -> int:
        """First byte of the next header."""
        return self.data + padded(self.size)


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
    extended: dict[str, str] = {}
    while True:
        reader.seek(position)
        block = reader.read(BLOCK)
        if not any(block):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            raise TarDamage(begin) from error
        size = _size(info, extended, begin)
        data = position + BLOCK
        if data + size > reader.size:
            raise TarDamage(begin)
        position = data + padded(size)
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            extended |= _extended(reader, info.type, size, begin)
            continue
        if info.type in REGULAR and not info.name.endswith("/"):
            yield Member(extended.get("path", info.name), begin, data, size)
        elif info.type == tarfile.GNUTYPE_SPARSE:
            raise TarDamage(begin)
        extended = {}
        begin = position
    _check_end(reader, len(block), begin)


def _size(info: tarfile.TarInfo, extended: dict[str, str], begin: int) -> int:
    if info.type in WITHOUT_DATA:
        return 0
    size = info.size
    if "size" in extended:
        if not extended["size"].isdecimal():
            raise TarDamage(begin)
        size = int(extended["size"])
    if size < 0:
        raise TarDamage(begin)
    return size


def _extended(reader: ForwardReader, kind: bytes, size: int, begin: int) -> dict[str, str]:
    """Return path and size from an extended header that applies to the next member."""
    if size > MAX_EXTENDED_BYTES:
        raise TarDamage(begin)
    payload = reader.read(size)
    if kind == tarfile.GNUTYPE_LONGLINK:
        return {}
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": payload.rstrip(b"\0").decode("utf-8", "backslashreplace")}
    values = {}
    while payload.strip(b"\0"):
        # A pax record is "length key=value\n", and the length counts the whole record.
        digits = payload.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = payload[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or length > len(payload):
            raise TarDamage(begin)
        if key in (b"path", b"size"):
            values[key.decode()] = value.decode("utf-8", "backslashreplace")
        payload = payload[length:]
    return values


def _check_end(reader: ForwardReader, marker: int, begin: int) -> None:
    """Check that there is an end marker and that nothing but zeros follows it."""
    if marker < BLOCK:
        raise TarDamage(begin)
    while rest := reader.read(BUFFER_BYTES):
        if any(rest):
            raise TarDamage(begin)


def end_marker(length: int) -> bytes:
    """Return what ends a tar of `length` bytes: two zero blocks and padding to a whole record."""
    total = length + 2 * BLOCK
    return bytes(2 * BLOCK - total % -tarfile.RECORDSIZE)
