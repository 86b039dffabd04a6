"""Configuration: groups, overrides, and one clear line for everything that can be wrong."""

from typing import Annotated, Literal

import pydantic
import pytest

from clipsan.pipeline.core import config as module
from clipsan.pipeline.core.config import ConfigError, as_tree, load
from clipsan.stages.stage import config


@config
class Small:
    kind: Literal["small"] = "small"
    side_px: int = 3

    def __post_init__(self) -> None:
        if self.side_px < 1:
            raise ValueError("side_px must be at least 1")


@config
class Large:
    kind: Literal["large"] = "large"
    weight: float


@config
class Verb:
    shape: Annotated[Small | Large, pydantic.Discriminator("kind")]
    out: str
    names: list[str] = module.dataclasses.field(default_factory=list)


@pytest.fixture
def conf(tmp_path, monkeypatch):
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "small.yaml").write_text("kind: small\nside_px: 5\n")
    (tmp_path / "shape" / "large.yaml").write_text("kind: large\nweight: 1e-3\n")
    (tmp_path / "verb.yaml").write_text("shape: small\nout: here\n")
    monkeypatch.setattr(module, "conf_folder", lambda: tmp_path)
    return tmp_path


def test_a_group_is_read_from_its_file(conf):
    assert load(Verb, None, [], verb="verb") == Verb(shape=Small(side_px=5), out="here")


def test_overrides_apply_in_order_and_after_the_group(conf):
    loaded = load(Verb, None, ["shape=large", "shape.weight=0.5", "names=[a, b]", "out=there"], verb="verb")
    assert loaded == Verb(shape=Large(weight=0.5), out="there", names=["a", "b"])


@pytest.mark.parametrize("text", ["{a,b}", "{00..09}", "data/a #1.tar", "a{1,2}.tar", "[ab].tar", "{a,b}/*.tar"])
def test_a_pattern_of_files_is_a_text(text, conf):
    assert load(Verb, None, [f"out={text}"], verb="verb").out == text


def test_a_mapping_to_nothing_that_is_written_out_is_one(conf):
    tree = {}
    module.apply_override(tree, "decision={value: null}")
    assert tree == {"decision": {"value": None}}


def test_groups_inside_lists_are_read_from_their_files(conf):
    tree = module._resolve_groups({"more": [{"shape": "small"}, {"shape": {"kind": "large"}}]}, where="")
    assert tree == {"more": [{"shape": {"kind": "small", "side_px": 5}}, {"shape": {"kind": "large"}}]}
    with pytest.raises(ConfigError, match=r"more\.0\.shape=round"):
        module._resolve_groups({"more": [{"shape": "round"}]}, where="")


def test_numbers_in_scientific_notation_are_numbers(conf):
    assert load(Verb, None, ["shape=large"], verb="verb").shape == Large(weight=0.001)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shape.sid_px=4"], "side_px"),
        (["oout=x"], "oout: unknown key; did you mean out"),
        (["shape.side_px=wide"], "shape.small.side_px"),
        (["shape.side_px=0"], "side_px must be at least 1"),
        (["shape=round"], "there are large, small"),
        (["shape=large", "shape.weight=null"], "shape.large.weight"),
        (["out"], "key.path=value"),
        (["out.x=1"], "out is a value"),
        (["shape.kind=cube"], "shape"),
        (["shape={side_px: 3}"], "shape: needs a `kind`, one of small, large"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(conf, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(Verb, None, overrides, verb="verb")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_required_field_is_named(conf):
    (conf / "verb.yaml").write_text("shape: small\n")
    with pytest.raises(ConfigError, match="out: is required"):
        load(Verb, None, [], verb="verb")


def test_a_missing_or_broken_file_is_named(conf):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(Verb, str(conf / "absent.yaml"), [], verb="verb")
    (conf / "verb.yaml").write_text("shape: [small\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(Verb, None, [], verb="verb")


def test_a_tree_rebuilds_the_configuration(conf):
    loaded = load(Verb, None, ["shape=large"], verb="verb")
    assert module.validate(Verb, as_tree(loaded), verb="verb") == loaded
