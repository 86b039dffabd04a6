"""Mutations of a file: the same bytes for the same seed, target and number."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

WORDS = (
    b"\x00", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00", b"\x00\x00\x00\x80",
    b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"9" * 30, b"9" * 4400, b"null", b"true", b"[]", b"{}", b"[" * 2000, b'{"a":' * 500,
    b'"', b"'", b"\n", b"\r\n", b"\t", b",", b";", b": ", b"- ", b"#", b"&a [*a,*a]", b"!!python/object/apply:os.system [id]",
    b"../../canary.png", b"/etc/passwd", b"file:///etc/passwd", b"~/.bashrc", b"s3://b/k?endpoint_override=127.0.0.1:1",
    b"http://127.0.0.1:1/x.png", b"<script>alert(1)</script>", b"\x1b]0;x\x07", b"\xe2\x80\xae", b"\xed\xa0\x80", b"\xc0\xaf",
    b"%00", b"\\ud800",
    b"12 path=../x\n", b"0 path=\n", b"GNU.sparse.major=1", b"cposix\nsystem\n(S'id'\ntR.", b"c__builtin__\neval\n",
)  # fmt: skip
"""What readers of these formats stumble over: ends of integers, depth, paths out of the folder, code, control characters."""
MOST_EDITS = 6


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, 1e308, float("nan"), float("-inf"), "", "x" * 5000, "../../x", "/", "/etc/passwd", "\0",
    "\ud800", "<script>alert(1)</script>", [], {}, [[[]]], {"kind": "os.system"}, ["a", 1, None], "9" * 5000,
)  # fmt: skip
"""What a field may hold that nobody expects there."""


def mutate(seeds: list[bytes], rng: np.random.Generator) -> bytes:
    """Return one of the seeds with one to MOST_EDITS edits; of JSON and YAML as often with other fields as with other bytes."""
    seed = seeds[int(rng.integers(len(seeds)))]
    if seed[:1] in (b"{", b"[", b"v") and rng.integers(2):
        return _with_other_fields(seed, rng)
    data = bytearray(seed)
    for _ in range(int(rng.integers(1, MOST_EDITS + 1))):
        _edit(data, seeds, rng)
    return bytes(data)


def _with_other_fields(seed: bytes, rng: np.random.Generator) -> bytes:
    """Exchange, drop or add fields of a tree, or of one line of it; what comes out is JSON, which is YAML, too."""
    lines = seed.splitlines()
    many = len(lines) > 1 and all(line.startswith(b"{") for line in lines)
    at = int(rng.integers(len(lines))) if many else 0
    try:
        tree = yaml.safe_load(lines[at] if many else seed)
    except yaml.YAMLError:
        return seed
    for _ in range(int(rng.integers(1, 4))):
        nodes = list(_nodes(tree))
        if not nodes:
            break
        node = nodes[int(rng.integers(len(nodes)))]
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key, value = keys[int(rng.integers(len(keys)))], VALUES[int(rng.integers(len(VALUES)))]
        match int(rng.integers(4)):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[f"{key}x"] = node[key]
            case _:
                node[key] = value
    text = json.dumps(tree).encode()
    return b"\n".join([*lines[:at], text, *lines[at + 1 :]]) if many else text


def _nodes(tree: Any) -> Iterator[Any]:
    """Yield the mappings and lists of a tree that hold something."""
    if isinstance(tree, (dict, list)) and tree:
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(value)


def _edit(data: bytearray, seeds: list[bytes], rng: np.random.Generator) -> None:
    size = len(data)
    at = int(rng.integers(size + 1))
    span = int(rng.integers(1, 2 + min(size, int(2 ** rng.integers(1, 12)))))
    match int(rng.integers(9)):
        case 0 if size:
            data[at % size] ^= 1 << int(rng.integers(8))
        case 1 if size:
            data[at % size] = int(rng.integers(256))
        case 2:
            del data[at : at + span]
        case 3:
            del data[at:]
        case 4:
            data[at:at] = data[at : at + span]
        case 5:
            data[at:at] = rng.bytes(min(span, 64))
        case 6:
            other = seeds[int(rng.integers(len(seeds)))]
            start = int(rng.integers(len(other) + 1))
            data[at : at + span] = other[start : start + span]
        case 7:
            word = WORDS[int(rng.integers(len(WORDS)))]
            data[at : at + len(word) * int(rng.integers(2))] = word
        case _:
            _number(data, rng)


def _number(data: bytearray, rng: np.random.Generator) -> None:
    """Exchange one of the numbers that stand in a text or a header for another."""
    digits = [i for i, byte in enumerate(data[:65536]) if 48 <= byte <= 57]
    if not digits:
        return
    start = digits[int(rng.integers(len(digits)))]
    stop = start
    while stop < len(data) and 48 <= data[stop] <= 57:
        stop += 1
    data[start:stop] = str(int(rng.integers(0, 2 ** int(rng.integers(1, 63))))).encode()
