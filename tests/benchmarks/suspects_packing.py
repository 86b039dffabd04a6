"""Trained models in few bytes, to be carried between machines: what they changed in the model that they were trained from.

Weights are rounded to steps of a share of their spread and packed by their entropy: 4 bits for a change, 8 for a model from scratch. A
model's figures are measured on what its bytes give back, so the rounded one is the model. Of the token embeddings only the rows
are carried whose tokens were in training; the others are those of the model before (they have learned nothing).
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

State = Mapping[str, torch.Tensor]

EMBEDDING = "token_embedding.weight"
SMALL = 2048
"""Tensors with fewer elements are carried whole."""
STEPS_OF_CHANGE, STEPS_FROM_SCRATCH = 4, 64
"""Steps in one standard deviation."""
MOST = 2**15 - 1


@dataclass(frozen=True, slots=True)
class Packed:
    """One model, or another small result."""

    facts: dict[str, Any]
    """What it is; plain data."""
    body: bytes

    def dumps(self) -> bytes:
        """Return it as bytes that tell their own length."""
        facts = json.dumps(self.facts).encode()
        return struct.pack("<QQ", len(facts), len(self.body)) + facts + self.body

    @classmethod
    def loads(cls, data: bytes) -> "list[Packed]":
        """Return all that stand in a file, one behind the other."""
        found, place = [], 0
        while place < len(data):
            facts, body = struct.unpack_from("<QQ", data, place)
            place += 16
            found.append(cls(json.loads(data[place : place + facts]), data[place + facts : place + facts + body]))
            place += facts + body
        return found


def pack(state: State, before: State | None, used: np.ndarray, facts: Mapping[str, Any]) -> Packed:
    """Pack a model.

    Args:
        state: its weights.
        before: those that it was trained from; None: from scratch.
        used: the tokens that were in training.
        facts: of the model.
    """
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, tensor in state.items():
        value = tensor.detach().cpu().numpy()
        entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)}
        if name == EMBEDDING:
            entry |= {"how": "rows", "step": _step(value[used], STEPS_FROM_SCRATCH)}
            blob = _squeezed(used.astype("<i4").tobytes()) + _rounded(value[used], entry["step"])
        elif value.size < SMALL or value.dtype != np.float32:
            entry["how"] = "whole"
            blob = _squeezed(value.tobytes())
        else:
            change = value if before is None else value - before[name].cpu().numpy()
            entry |= {
                "how": "value" if before is None else "change",
                "step": _step(change, STEPS_FROM_SCRATCH if before is None else STEPS_OF_CHANGE),
            }
            blob = _rounded(change, entry["step"])
        tensors.append(entry | {"bytes": len(blob)})
        blobs.append(blob)
    return Packed({**facts, "tensors": tensors}, b"".join(blobs))


def unpack(packed: Packed, before: State) -> dict[str, torch.Tensor]:
    """Return the weights of a packed model; `before` are those it was trained from, or for one from scratch any of its shape."""
    state: dict[str, torch.Tensor] = {}
    place = 0
    for entry in packed.facts["tensors"]:
        blob = packed.body[place : place + entry["bytes"]]
        place += entry["bytes"]
        old = before[entry["name"]].cpu().numpy()
        shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
        if entry["how"] == "whole":
            value = np.frombuffer(_parts(blob)[0], dtype).reshape(shape).copy()
        elif entry["how"] == "rows":
            rows, low, high = _parts(blob)
            used = np.frombuffer(rows, "<i4")
            value = old.copy()
            value[used] = _values(low, high, entry["step"]).reshape(len(used), *shape[1:])
        else:
            value = _values(*_parts(blob), entry["step"]).reshape(shape)
            value = value + old if entry["how"] == "change" else value
        state[entry["name"]] = torch.from_numpy(np.ascontiguousarray(value, dtype))
    return state


def _step(values: np.ndarray, steps: int) -> float:
    spread, largest = float(values.std()), float(np.abs(values).max(initial=0.0))
    return max(spread / steps, largest / MOST, 1e-30)


def _rounded(values: np.ndarray, step: float) -> bytes:
    number = np.rint(values.astype(np.float64).ravel() / step).astype(np.int64)
    folded = np.where(number < 0, -2 * number - 1, 2 * number).astype("<u2")  # small whatever the sign
    planes = folded.view(np.uint8).reshape(-1, 2)
    return _squeezed(planes[:, 0].tobytes()) + _squeezed(planes[:, 1].tobytes())


def _values(low: bytes, high: bytes, step: float) -> np.ndarray:
    folded = np.frombuffer(low, np.uint8).astype(np.int64) | (np.frombuffer(high, np.uint8).astype(np.int64) << 8)
    number = np.where(folded % 2, -(folded + 1) // 2, folded // 2)
    return (number * step).astype(np.float32)


def _squeezed(data: bytes) -> bytes:
    packer = zlib.compressobj(
        6, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY if len(data) > 2**16 else zlib.Z_DEFAULT_STRATEGY
    )
    squeezed = packer.compress(data) + packer.flush()
    return struct.pack("<Q", len(squeezed)) + squeezed


def _parts(blob: bytes) -> list[bytes]:
    found, place = [], 0
    while place < len(blob):
        (length,) = struct.unpack_from("<Q", blob, place)
        found.append(zlib.decompress(blob[place + 8 : place + 8 + length]))
        place += 8 + length
    return found
