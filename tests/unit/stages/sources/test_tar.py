"""The tar walk against Python's tarfile, and its breaks."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import BufferReader

from clipsan.stages.sources import tar
from clipsan.stages.sources.tar import ForwardReader, TarDamage, end_marker, members


def make_tar(files: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def walk(data: bytes) -> list[tuple[str, bytes]]:
    reader = ForwardReader(BufferReader(data))
    return [(member.name, data[member.data : member.data + member.size]) for member in members(reader)]


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)
FILES = st.lists(st.tuples(NAMES.filter(lambda name: not name.endswith("/")), st.binary(max_size=1500)), max_size=6)


@given(files=FILES, form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
@settings(max_examples=60, deadline=None)
def test_same_members_as_tarfile(files: list[tuple[str, bytes]], form: int) -> None:
    data = make_tar(files, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(info.name, archive.extractfile(info).read()) for info in archive if info.isreg()]
    assert walk(data) == expected


def test_members_tile_the_archive() -> None:
    data = make_tar([("a", b"1" * 700), ("long" * 60, b"2"), ("c", b"")])
    spans = [(member.offset, member.stop) for member in members(ForwardReader(BufferReader(data)))]
    assert spans[0][0] == 0
    assert [stop for _, stop in spans[:-1]] == [start for start, _ in spans[1:]]
    assert not any(data[spans[-1][1] :])


def test_directories_and_links_are_passed_over() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind in [("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    assert walk(stream.getvalue()) == [("a", b"")]


@pytest.mark.parametrize(
    ("damage", "offset"),
    [
        (lambda data: data[:0], 0),
        (lambda data: data[:1300], 1024),  # in the header of the second member
        (lambda data: data[:1600], 1024),  # in its content
        (lambda data: data[:1024], 1024),  # exactly between two members: no end marker
        (lambda data: data[:1024] + b"garbage!" * 500, 1024),
        (lambda data: data + data, 2048),  # two archives in one file: tar stops at the first end marker
        (lambda data: b"\x1f\x8b" + data, 0),
    ],
)
def test_a_break_is_reported_where_it_is(damage, offset: int) -> None:
    data = damage(make_tar([("a", b"1" * 300), ("b", b"2" * 300)]))
    with pytest.raises(TarDamage) as error:
        walk(data)
    assert error.value.offset == offset


def test_a_hostile_extended_header_is_damage() -> None:
    data = bytearray(make_tar([("n" * 200, b"1")]))
    data[512:520] = b"99999999"
    with pytest.raises(TarDamage):
        walk(bytes(data))


def test_reader_agrees_with_slicing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "BUFFER_BYTES", 16)
    data = bytes(range(256))
    reader = ForwardReader(BufferReader(data))
    for start, count in [(0, 5), (5, 20), (3, 4), (200, 10), (210, 1), (0, 256), (250, 20), (256, 4), (100, 16)]:
        reader.seek(start)
        assert reader.read(count) == data[start : start + count]


def test_end_marker_is_what_tarfile_writes() -> None:
    for count in (0, 1, 7, 20):
        data = make_tar([(str(i), b"x" * 600) for i in range(count)])
        length = 1536 * count
        assert data[length:] == end_marker(length)
