"""Credentials in addresses are masked whole; what is no credential stays."""

import pytest

from clipsan.pipeline.core.masking import masked, masked_tree, one_line


@pytest.mark.parametrize(
    "text",
    [
        "s3://CANARY:CANARY@bucket/key",
        "s3://CANARY:CAN/ARY@bucket/key",
        "s3://CANARY:CAN@ARY@bucket/key",
        "http://CANARY@host:5000/path",
        "https://user:CANARY@host:5000/path?x=1",
        "s3://bucket/x?access_key=CANARY&secret_key=CANARY&region=eu",
        "https://host/x?X-Amz-Signature=CANARY&X-Amz-Credential=CANARY/2024",
        "https://account.blob/x?sv=1&sig=CANARY%3D",
        "gs://bucket/x?Token=CANARY#end",
        "cannot open 's3://CANARY:CANARY@bucket/a b' or 'https://u:CANARY@host/': no",
        "postgresql+psycopg://mlflow:CANARY@db:5432/mlflow",
    ],
)
def test_no_part_of_a_credential_is_left(text: str) -> None:
    assert "CANARY" in text
    assert "CAN" not in masked(text)
    assert "ARY" not in masked(text)
    assert "***" in masked(text)
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/x?region=eu-central-1&endpoint_override=http://localhost:9000",
        "/data/me@home/x.tar",
        "http://host:5000/a@b",
        "gs://bucket/name@v1",
        "sqlite:////home/me/mlflow.db",
        "a key: value, user@host",
        "",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert masked(text) == text


def test_a_tree_is_masked_wherever_an_address_stands() -> None:
    tree = {"data": {"path": ["s3://K:S@b/x", 3, None]}, "tracking": {"uri": "http://u:p@h"}, "seed": 1}
    assert masked_tree(tree) == {
        "data": {"path": ["s3://***@b/x", 3, None]},
        "tracking": {"uri": "http://***@h"},
        "seed": 1,
    }


def test_a_line_for_a_terminal_has_no_control_sequence() -> None:
    assert one_line("a\n b\x1b[31m\x07\x9b\u202e s3://k:s@b") == "a b\\x1b[31m\\x07\\x9b\\u202e s3://***@b"
    assert one_line(ValueError("K\u00f6ln \u732b")) == "K\u00f6ln \u732b"
