"""Addresses, images named in tables, and files that cannot be read."""

import hashlib
from pathlib import Path

import pytest

from clipsan.stages.files import PathError, digest, join, parent, read_file, resolve


def test_errors_name_path_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="not a regular file"):
        read_file("/dev/zero")
    with pytest.raises(PathError, match=r"missing\.jpg"):
        read_file(f"{tmp_path}/missing.jpg")


def test_addresses_keep_their_query() -> None:
    folder = "s3://bucket/data?region=eu-west-1"
    assert join(folder, "a/0.tar") == "s3://bucket/data/a/0.tar?region=eu-west-1"
    assert parent("s3://bucket/data/0.tar?region=x") == "s3://bucket/data?region=x"
    assert resolve("s3://bucket/data/t.csv?region=x", "img/1.jpg") == "s3://bucket/data/img/1.jpg?region=x"


def test_a_relative_image_stays_in_its_folder() -> None:
    assert resolve("/data/set/t.csv", "img/../1.jpg") == "/data/set/1.jpg"
    assert resolve("/data/set/t.csv", "../secret.jpg") is None
    assert resolve("/data/set/t.csv", "img/../../secret.jpg") is None
    assert resolve("/data/set/t.csv", "/data/set/img/1.jpg") == "/data/set/img/1.jpg"


def test_an_image_lies_below_a_root_that_the_user_named() -> None:
    table = "/data/set/t.csv"
    for image in ("/other/1.jpg", "../../other/1.jpg", "file:///other/1.jpg", "img/../../../other/1.jpg"):
        assert resolve(table, image) is None
        assert resolve(table, image, ["/other"]) == "/other/1.jpg"
    for image in (
        "file://~/1.jpg",
        "file://host/1.jpg",
        "s3://set/1.jpg?endpoint_override=evil:80",
        "http://x/1.jpg",
        "http://[",
    ):
        assert resolve(table, image, ["/other", "s3://set"]) is None
    assert resolve(table, "s3://set/1.jpg", ["s3://set?region=x"]) == "s3://set/1.jpg?region=x"
    assert resolve(table, "s3://set/../other/1.jpg", ["s3://other"]) is None
    assert resolve("s3://set/t/a.csv?region=x", "../1.jpg", ["s3://set?region=x"]) == "s3://set/1.jpg?region=x"


def test_a_digest_is_of_names_and_contents_but_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "t" / "sub").mkdir(parents=True)
    (tmp_path / "t" / "a").write_bytes(b"one")
    (tmp_path / "t" / "sub" / "b").write_bytes(b"two")
    before = digest(tmp_path / "t")
    (tmp_path / "t" / ".seen").write_bytes(b"x")
    (tmp_path / "t" / "sub" / ".looked").mkdir()
    (tmp_path / "t" / "sub" / ".looked" / "b").write_bytes(b"x")
    assert digest(tmp_path / "t") == before
    (tmp_path / "t" / "sub" / "b").rename(tmp_path / "t" / "sub" / "c")
    renamed = digest(tmp_path / "t")
    (tmp_path / "t" / "sub" / "c").write_bytes(b"three")
    assert len({before, renamed, digest(tmp_path / "t")}) == 3
    assert digest(tmp_path / "t" / "a") == hashlib.sha256(b"one").hexdigest()
