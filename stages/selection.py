"""A scan's lists of uids as a filter of a training: what the scan kept goes on, and nobody needs a second copy of the data.

A list is a sorted `(u8, u8)` array, 16 bytes a pair, searched by halves. On a local file system it is mapped into memory, so that
the processes of a loader share one copy; from an object store every process reads its own.
"""

import io
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from .files import PathError, absolute, is_address, join, open_input
from .samples import HEX_UID, UID_DTYPE, hash_uid, uid_rows
from .sources.common import JSON_SUFFIXES, hex_uid, printable

FLAGGED, ALLOWED, REJECTED = "flagged.npy", "allow.npy", "rejected.npy"
"""Files of a scan: the pairs that its clean copy leaves out, the others, and those that could not be scanned."""

T_co = TypeVar("T_co", covariant=True)


class UnknownPair(ValueError):
    """A pair is none of the scan's: it was added later, or its shard goes by another name here."""


class Dataset(Protocol[T_co]):
    """A map-style data set, such as torch's."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T_co: ...


class Selection:
    """What a scan says of each pair that a loader reads; a stage of a WebDataset pipeline, and `of` for map-style data sets.

    A pair is kept when the scan allowed it, and neither flagged nor rejected any pair of the same uid: of two pairs with one
    key in one shard the scan read the first, and a loader may come to the second. Pairs are known by shard and key, or by the
    uid of their own that they bring (DataComp), exactly as the scan knew them; a picture that was exchanged since under the
    same key is not noticed.
    """

    def __init__(self, folder: str, shards: Mapping[str, str], *, unknown: Literal["error", "drop"] = "error") -> None:
        """Open nothing yet.

        Args:
            folder: where the lists lie; a local path, s3:// or gs://.
            shards: path or address of each shard, as the loader names it -> its name in the scan.
            unknown: what becomes of a pair that is none of the scan's.
        """
        self._folder = folder
        self._shards = shards
        self._drops_unknown = unknown == "drop"
        self.counts: Counter[str] = Counter()
        """What became of the pairs that went through this process: kept, flagged, rejected, unknown."""

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Pass on the samples of a WebDataset pipeline that are kept; set it before what decodes, so that nothing is in vain.

        Raises:
            UnknownPair: a sample is none of the scan's.
        """
        return (sample for sample in samples if self.keeps(self.uid_of(sample)))

    def of(self, dataset: Dataset[T_co], uids: Sequence[str]) -> "Selected[T_co]":
        """Return a map-style data set of the rows that are kept.

        Args:
            dataset: whose row i is the pair `uids[i]`.
            uids: SHARD/KEY as in the scan's verdicts, or 32 hexadecimal digits.

        Raises:
            ValueError: there is not one uid for each row.
            UnknownPair: one is none of the scan's.
        """
        if len(uids) != len(dataset):
            raise ValueError(f"{len(uids):,} uids for {len(dataset):,} rows; give the uid of every row")
        return Selected(dataset, np.array([row for row, uid in enumerate(uids) if self.keeps(uid)], np.int64))

    def keeps(self, uid: str) -> bool:
        """Tell whether a pair stays, and count it.

        Raises:
            UnknownPair: it is none of the scan's.
        """
        found = self.fate(uid)
        if found == "unknown" and not self._drops_unknown:
            raise UnknownPair(
                f"{uid}: the scan in {self._folder} knows no such pair; scan the data as they are now, or drop what it does "
                'not know with unknown="drop"'
            )
        self.counts[found] += 1
        return found == "kept"

    def fate(self, uid: str) -> Literal["kept", "flagged", "rejected", "unknown"]:
        """Return what the scan says of a pair."""
        number = uid_rows([uid if HEX_UID.fullmatch(uid) else hash_uid(uid)])
        if _holds(self._lists.flagged, number):
            return "flagged"
        if _holds(self._lists.rejected, number):
            return "rejected"
        return "kept" if _holds(self._lists.allowed, number) else "unknown"

    def uid_of(self, sample: Mapping[str, Any]) -> str:
        """Return the uid of a WebDataset sample: its own, from its .json, else shard and key.

        Raises:
            UnknownPair: its shard is none of the scan's.
        """
        told = next((sample[suffix[1:]] for suffix in JSON_SUFFIXES if suffix[1:] in sample), None)
        own = hex_uid(_fields(told).get("uid"))
        if own is not None:
            return own
        url, key = str(sample["__url__"]), printable(str(sample["__key__"]).removeprefix("./"))
        shard = self._shard(url)
        if shard is None:
            raise UnknownPair(
                f"{url}: no shard of the scan in {self._folder}; name the shards that you read with data=..."
            )
        return f"{shard}/{key}"

    def _shard(self, url: str) -> str | None:
        words = shlex.split(url.removeprefix("pipe:")) if url.startswith("pipe:") else [url]
        places = (place for word in words for place in (word, absolute(word.removeprefix("file:"))))
        return next((self._shards[place] for place in places if place in self._shards), None)

    @cached_property
    def _lists(self) -> "_Lists":
        return _Lists(*(_read(join(self._folder, name)) for name in (FLAGGED, ALLOWED, REJECTED)))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lists out: a process of a loader opens them itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_lists"}


@dataclass(frozen=True, slots=True)
class Selected(Dataset[T_co]):
    """The rows of a map-style data set that a scan kept, in their order."""

    dataset: Dataset[T_co]
    rows: np.ndarray
    """`[n] int64`: which of its rows."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> T_co:
        return self.dataset[int(self.rows[index])]


@dataclass(frozen=True, slots=True)
class _Lists:
    flagged: np.ndarray
    allowed: np.ndarray
    rejected: np.ndarray


def _holds(uids: np.ndarray, wanted: np.ndarray) -> bool:
    at = int(np.searchsorted(uids, wanted)[0])
    return at < len(uids) and bool(uids[at] == wanted[0])


def _read(path: str) -> np.ndarray:
    try:
        if not is_address(path):
            found: np.ndarray = np.load(path, mmap_mode="r")
        else:
            with open_input(path) as file:
                found = np.load(io.BytesIO(file.read()))
    except Exception as error:  # NumPy's reader of headers raises nearly anything
        raise PathError(f"{path}: {error}; run the scan again with the same command, which writes its lists") from error
    if found.dtype != UID_DTYPE or found.ndim != 1:
        raise PathError(f"{path}: no list of uids; run the scan again with the same command, which writes its lists")
    return found


def _fields(value: object) -> Mapping[str, Any]:
    """Return the fields of a .json member, as bytes or decoded already; none when it is absent or broken."""
    if isinstance(value, (bytes, str)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}
