"""Globs, brace ranges, folders and links."""

from pathlib import Path

import pytest

from clipsan.stages.files import PathError
from clipsan.stages.listing import expand_braces, find, find_folders, list_folder, roots_of, takes_in


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def relative(found: list) -> list[str]:
    return [file.relative for file in found]


def test_braces() -> None:
    assert expand_braces("a{008..011}.tar") == ["a008.tar", "a009.tar", "a010.tar", "a011.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("{key}.tar") == ["{key}.tar"]
    with pytest.raises(PathError, match="backwards"):
        expand_braces("{9..1}")


def test_globs_folders_and_hidden_names(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.tar", "a/0.tar", "a/deep/2.TAR", "a/.tmp.tar", "_logs/3.tar", "a/x.txt", "a/0.tar.gz")
    assert relative(find(str(tmp_path), (".tar",))) == ["a/0.tar", "a/deep/2.TAR", "b/1.tar"]
    assert relative(find(f"{tmp_path}/*/*.tar", (".tar",))) == ["a/0.tar", "b/1.tar"]
    assert relative(find(f"{tmp_path}/**/[02].*", (".tar",))) == ["a/0.tar", "a/0.tar.gz", "a/deep/2.TAR"]
    assert relative(find(f"{tmp_path}/a/?.tar", (".tar",))) == ["0.tar"]
    assert relative(find(f"{tmp_path}/{{a,b}}/*.tar", (".tar",))) == ["a/0.tar", "b/1.tar"]
    assert relative(find([f"{tmp_path}/b/1.tar", f"{tmp_path}/a/0.tar"], (".tar",))) == ["a/0.tar", "b/1.tar"]
    assert find(f"{tmp_path}/a/0.tar", (".tar",))[0].size_bytes == 1


def test_a_root_does_not_depend_on_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a/0.tar")
    assert relative(find(f"{tmp_path}/*/*.tar", (".tar",))) == ["a/0.tar"]
    assert [folder.relative for folder in find_folders(f"{tmp_path}/*")] == ["a"]
    assert [folder.relative for folder in find_folders(f"{tmp_path}/a")] == [""]


def test_a_real_name_with_wildcard_characters_is_itself(tmp_path: Path) -> None:
    touch(tmp_path, "[x]/a.tar")
    assert relative(find(f"{tmp_path}/[x]/a.tar", (".tar",))) == ["a.tar"]


def test_a_name_with_braces_or_spaces_is_itself_where_it_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a{1,2}.tar", "a1.tar", "a2.tar", "{0..1}/x y.tar", "b1.tar", "b2.tar", "b 1.tar")
    assert relative(find(f"{tmp_path}/a{{1,2}}.tar", (".tar",))) == ["a{1,2}.tar"]
    assert relative(find(f"{tmp_path}/b{{1,2}}.tar", (".tar",))) == ["b1.tar", "b2.tar"]
    assert relative(find(f"{tmp_path}/b{{1, 1}}.tar", (".tar",))) == ["b 1.tar", "b1.tar"]
    assert relative(find(f"{tmp_path}/{{0..1}}", (".tar",))) == ["x y.tar"]
    assert [folder.path for folder in find_folders(f"{tmp_path}/{{0..1}}")] == [f"{tmp_path}/{{0..1}}"]
    assert roots_of(f"{tmp_path}/a{{1,2}}.tar") == [str(tmp_path)]


def test_a_missing_shard_of_a_range_is_listed_without_a_size(tmp_path: Path) -> None:
    touch(tmp_path, "0.tar", "2.tar")
    assert [file.size_bytes for file in find(f"{tmp_path}/{{0..2}}.tar", (".tar",))] == [1, None, 1]


@pytest.mark.parametrize("pattern", ["nothing.tar", "nothing/*.tar", "*.tar", "."])
def test_nothing_found_names_the_pattern(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "readme.txt")
    with pytest.raises(PathError, match=r"no \.tar file matches; check the path"):
        find(f"{tmp_path}/{pattern}", (".tar",))


def test_errors_name_path_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(PathError, match=r"http://.*download first"):
        find("http://example.org/a.tar", (".tar",))
    with pytest.raises(PathError, match="no such folder"):
        find_folders(f"{tmp_path}/missing")


def test_a_loop_of_links_ends_and_links_elsewhere_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.tar", "b/y.tar", "a/_z.tar")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/b").symlink_to(tmp_path / "b")
    (tmp_path / "a/broken").symlink_to(tmp_path / "none")
    assert relative(find(str(tmp_path / "a"), (".tar",))) == ["b/y.tar", "x.tar"]
    hidden = [entry.path for entry in list_folder(str(tmp_path / "a"), recursive=True, hidden=True) if entry.is_file]
    assert hidden == ["_z.tar", "b/y.tar", "x.tar"]


@pytest.mark.parametrize(
    ("pattern", "out", "inside"),
    [
        ("data", "data/run", True),
        ("data/", "data/deep/run", True),
        ("data", "data", True),
        ("data/**/*.tar", "data/run", True),
        ("{data,other}", "other/run", True),
        ("data", "data-run", False),
        ("data", "run", False),
        ("data/run/copy", "data/run", False),
        ("data/*.tar", "data/run", False),
        ("data/0.tar", "data/run", False),
    ],
)
def test_a_folder_that_is_listed_whole_takes_in_what_lies_below(
    pattern: str, out: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "data/0.tar", "other/1.tar", "data/run/copy/2.tar")
    monkeypatch.chdir(tmp_path)
    found = takes_in(pattern, str(tmp_path / out))
    assert found == (str(tmp_path / out.partition("/")[0]) if inside else None)
    assert takes_in(str(tmp_path / pattern), out) == found
