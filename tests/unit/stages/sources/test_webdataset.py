"""WebDataset tars, local and on S3: pairs, slices, cuts, duplicates."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsan.stages.files import PathError
from clipsan.stages.samples import Reject
from clipsan.stages.sources import TableSource, WebDataset, list_units
from tests.unit.stages.sources.helpers import ASSETS, facts, needs_assets, read_all, write_tar


def test_webdataset_pairs_of_every_kind(tmp_path: Path) -> None:
    uid = "0123456789abcdef" * 2
    files = [
        ("a.jpg", b"A"), ("a.txt", b"cat"), ("a.cls", b"7\n"),
        ("a.json", json.dumps({"uid": uid, "caption": "x"}).encode()),
        ("d/b.PNG", b"B"), ("d/b.json", b'{"caption": "dog", "uid": "no hex"}'),
        ("c.mask.png", b"M"), ("c.webp", b"C"), ("c.json", b'{"caption": [null, "first", "second"]}'),
        ("readme", b"no pair"), ("licence.md", b"no pair"),
        ("e.jpeg", b"E"), ("f.txt", b"text alone"), ("g.jpg", b""), ("g.txt", b"empty image"),
        ("h.jpg", b"H"), ("h.txt", b" \n\t"), ("i.jpg", b"I"), ("i.txt", b"caf\xe9"),
        ("j.jpg", b"J"), ("j.json", b'{"caption": "\\ud800"}'), ("k.jpg", b"K"), ("k.json", b'{"caption": "\xff"}'),
        ("l.jpg", b"L"), ("l.json", b"{broken"),
        ("a.jpg", b"A2"), ("a.txt", b"again"), ("m.jpg", b"M"), ("m.txt", b"one"), ("m.jpg", b"M2"), ("m.txt", b"two"),
        ("n.\xe4.jpg", b"N"), ("n.txt", "\u00e4\u4e2d".encode()),
    ]  # fmt: skip
    write_tar(tmp_path / "s.tar", files)
    pairs = read_all(WebDataset(path=str(tmp_path)))
    assert facts(pairs) == [
        ("a", b"A", "cat", None, 7),
        ("d/b", b"B", "dog", None, None),
        ("c", b"C", "first", None, None),
        ("e", b"E", None, Reject.CAPTION_MISSING, None),
        ("f", None, "text alone", Reject.IMAGE_MISSING, None),
        ("g", b"", "empty image", Reject.IMAGE_EMPTY, None),
        ("h", b"H", " \n\t", Reject.CAPTION_EMPTY, None),
        ("i", b"I", "caf\ufffd", Reject.CAPTION_NOT_UTF8, None),
        ("j", b"J", "\ufffd\ufffd\ufffd", Reject.CAPTION_NOT_UTF8, None),
        ("k", b"K", '{"caption": "\ufffd"}', Reject.CAPTION_NOT_UTF8, None),
        ("l", b"L", None, Reject.CAPTION_MISSING, None),
        ("a", b"A2", "again", Reject.DUPLICATE_KEY, None),
        ("m", b"M", "one", None, None),
        ("m", b"M2", "two", Reject.DUPLICATE_KEY, None),
        ("n", None, "\u00e4\u4e2d", Reject.IMAGE_MISSING, None),
    ]
    assert pairs[0].uid_hex == uid
    assert pairs[1].native_uid is None
    assert (pairs[0].uid, pairs[1].image_suffix) == ("s.tar/a", ".png")
    assert [pair.captions for pair in pairs[:3]] == [(), (), ("first", "second")]


def shard(count: int) -> list[tuple[str, bytes]]:
    return [(f"{i:03d}{s}", b"%d" % i * (i % 400 + 1)) for i in range(count) for s in (".jpg", ".txt")]


@pytest.mark.parametrize("cut", [0.999, 0.6, 0.501, 0.2])
@pytest.mark.parametrize("unit_bytes", [10**9, 5000])
def test_a_cut_tar_keeps_what_lies_before_the_cut(tmp_path: Path, cut: float, unit_bytes: int) -> None:
    path = write_tar(tmp_path / "s.tar", shard(40))
    whole = read_all(WebDataset(path=str(path)))
    data = path.read_bytes()
    length = len(data.rstrip(b"\0"))
    path.write_bytes(data[: int(length * cut)])
    pairs = read_all(WebDataset(path=str(path), unit_bytes=unit_bytes))
    breaks = [pair for pair in pairs if pair.reject == Reject.SHARD_DAMAGED]
    assert len(breaks) == 1
    assert breaks[0].key.startswith("@byte-")
    good = [pair for pair in pairs if pair.reject is None]
    assert facts(good) == facts(whole)[: len(good)]
    assert len(good) >= int(len(whole) * cut) - 3
    # Beside the good pairs and the break there is at most the half pair at the cut.
    assert [pair.reject for pair in pairs if pair not in good and pair not in breaks] in ([], [Reject.CAPTION_MISSING])


def test_a_missing_shard_is_a_record_and_nothing_at_all_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", shard(2))
    pairs = read_all(WebDataset(path=f"{tmp_path}/{{0..1}}.tar"))
    assert [pair.reject for pair in pairs] == [None, None, Reject.SHARD_DAMAGED]
    assert pairs[-1].uid == "1.tar/@byte-0"
    with pytest.raises(PathError, match=r"no \.tar file"):
        list_units(WebDataset(path=f"{tmp_path}/x"))


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"),
        st.sets(st.sampled_from([".jpg", ".png", ".txt", ".json", ".x"]), min_size=1),
        st.integers(0, 2000),
    ),
    max_size=25,
)


@given(groups=MEMBERS, unit_bytes=st.integers(1, 20_000), cut=st.integers(0, 40_000) | st.none())
@settings(max_examples=40, deadline=None)
def test_slices_partition_a_tar_exactly(
    tmp_path_factory: pytest.TempPathFactory, groups: list, unit_bytes: int, cut: int | None
) -> None:
    path = tmp_path_factory.mktemp("slices") / "s.tar"
    write_tar(path, [(key + suffix, b"x" * size) for key, suffixes, size in groups for suffix in sorted(suffixes)])
    if cut is not None:
        path.write_bytes(path.read_bytes()[:cut])
    whole = read_all(WebDataset(path=str(path)))
    sliced = read_all(WebDataset(path=str(path), unit_bytes=unit_bytes))
    assert facts(sliced) == facts(whole)
    if cut is None:
        # Neighbours with the same key and different suffixes are one pair; every other run of members is its own.
        runs: list[tuple[str, set[str]]] = []
        for key, suffixes, _ in groups:
            for suffix in sorted(suffixes):
                if runs and runs[-1][0] == key and suffix not in runs[-1][1]:
                    runs[-1][1].add(suffix)
                else:
                    runs.append((key, {suffix}))
        assert [pair.key for pair in whole] == [key for key, suffixes in runs if suffixes != {".x"}]


def test_units_are_numbered_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b/0.tar", "a/1.tar", "a/0.tar"):
        write_tar(tmp_path / name, shard(10))
    units = list_units(WebDataset(path=f"{tmp_path}/**/*.tar", unit_bytes=16_000))
    assert [unit.index for unit in units] == list(range(len(units)))
    assert [unit.shard for unit in units] == ["a/0.tar"] * 2 + ["a/1.tar"] * 2 + ["b/0.tar"] * 2
    assert (units[0].stop, units[1].start, units[1].stop) == (15_360, 15_360, -1)


@needs_assets
@pytest.mark.parametrize(("pattern", "count"), [("flickr1k-0000{0..3}.tar", 1000), ("coco-val128.tar", 128)])
def test_real_tars(pattern: str, count: int) -> None:
    pairs = read_all(WebDataset(path=str(ASSETS / pattern)))
    assert len({pair.uid for pair in pairs}) == count
    assert {pair.reject for pair in pairs} == {None}
    assert all(pair.image.startswith(b"\xff\xd8\xff") for pair in pairs)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Query options of a local S3 server with an empty bucket `data`."""
    server = pytest.importorskip("moto.server", reason="moto[s3,server] is not installed")
    threaded = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    threaded.start()
    host, port = threaded.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/data", method="PUT"))
    yield f"scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    threaded.stop()


def test_s3(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")

    def put(name: str, data: bytes) -> None:
        host = s3.split("endpoint_override=")[1].split("&")[0]
        headers = {"Content-Type": "application/octet-stream"}
        urllib.request.urlopen(urllib.request.Request(f"http://{host}/data/{name}", data, headers, method="PUT"))

    local = write_tar(tmp_path / "0.tar", shard(30))
    for name in ("set/0.tar", "set/1.tar"):
        put(name, local.read_bytes())
    put("set/_SUCCESS", b"")
    put("t/img/a.jpg", b"a")
    put("t/t.csv", b"image,caption\nimg/a.jpg,cat\nimg/b.jpg,dog\n")
    expected = facts(read_all(WebDataset(path=str(local))))
    for pattern in ("set", "set/*.tar", "set/{0..1}.tar"):
        source = WebDataset(path=f"s3://data/{pattern}?{s3}", unit_bytes=20_000)
        assert facts(read_all(source)) == expected * 2, pattern
        assert {unit.shard for unit in list_units(source)} == {"0.tar", "1.tar"}
    assert [pair.reject for pair in read_all(TableSource(path=f"s3://data/t?{s3}"))] == [None, Reject.IMAGE_MISSING]
    with pytest.raises(PathError, match=r"no \.tar file"):
        list_units(WebDataset(path=f"s3://data/other/*.tar?{s3}"))
