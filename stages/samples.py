"""The data contract: one image-text pair, its identity, and why a pair is rejected."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Reject(StrEnum):
    """Why a pair cannot be scanned. Its value is what stands in rejected/."""

    IMAGE_MISSING = "image_missing"
    IMAGE_EMPTY = "image_empty"
    IMAGE_UNREADABLE = "image_unreadable"
    """The bytes are no image, whatever the file name says."""
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_TOO_LARGE = "image_too_large"
    """More pixels in the header than the limit: a decompression bomb, never decoded."""
    DECODE_TIMEOUT = "decode_timeout"
    """Decoding the image takes longer than the limit."""
    WORKER_DIED = "worker_died"
    """The image kills the process that decodes it."""
    CAPTION_MISSING = "caption_missing"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_NOT_UTF8 = "caption_not_utf8"
    DUPLICATE_KEY = "duplicate_key"
    """A later pair of the same shard with a key that was already taken; the first one stays."""
    AMBIGUOUS = "ambiguous"
    """Readers would take different files for this pair: a key with two pictures, or headers that contradict each other."""
    HIDDEN_NAME = "hidden_name"
    """An image below a name that starts with a dot, such as the ._ files of macOS."""
    BYTES_CHANGED = "bytes_changed"
    """The image is not the one whose hash the data set publishes."""
    BLOCKED = "blocked"
    """The image's hash stands in the user's block list."""
    SHARD_DAMAGED = "shard_damaged"
    """The shard ends or breaks here; what follows in it cannot be read. One record for each break."""


CAPTION_REJECTS = (Reject.CAPTION_MISSING, Reject.CAPTION_EMPTY, Reject.CAPTION_NOT_UTF8)
"""No reason to leave an image out where its label is what counts."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of work and of commit: one shard, or a bounded slice of a large one."""

    index: int
    """Position in the data set's fixed order; names the committed file."""
    shard: str
    """Path relative to the data set's root, with '/' between parts; part of every uid."""
    path: str
    """Where to read it: an absolute local path, or a URI that pyarrow understands."""
    start: int
    """First byte (tar: of a member's header) or row of the slice."""
    stop: int
    """Byte or row after the last one; -1: to the end."""
    size_bytes: int
    """Size of the whole shard, for the fingerprint and for estimates."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a pair came from, as its data set says; nothing here is checked. What is not said is None."""

    id: str | None = None
    url: str | None = None
    sha256: str | None = None
    """Of the image as it was downloaded, which may have been encoded again since."""


UNKNOWN = Origin()


@dataclass(frozen=True, slots=True)
class RawPair:
    """One pair as it stands in the shard, undecoded."""

    shard: str
    key: str
    image: bytes | None
    caption: str | None
    reject: Reject | None = None
    """Set by the reader when the pair is already known to be unusable."""
    detail: str = ""
    """What is wrong with a rejected pair; after the last semicolon what the user can do, the same words for the same cause."""
    label: int | None = None
    """Class index, where the data set has one."""
    captions: tuple[str, ...] = ()
    """All captions that can be used, where the data set lists several; else empty, and `caption` is the only one."""
    native_uid: str | None = None
    """The data set's own 128-bit hexadecimal uid (DataComp), where it has one."""
    origin: Origin = UNKNOWN
    """Where the pair came from; for readers of the verdicts alone."""
    image_suffix: str = ""
    """File suffix of the image in the source (".jpg"), or "" when it has none."""
    native: object = None
    """What the source's own writer needs to copy the pair byte for byte; opaque to everyone else."""

    @property
    def uid(self) -> str:
        """Stable identity: shard and key. Independent of the order of reading and of the number of workers."""
        return f"{self.shard}/{self.key}"

    @property
    def uid_hex(self) -> str:
        """32 hexadecimal digits: the data set's own uid where it has one, else a hash of `uid`."""
        return self.native_uid or hash_uid(self.uid)


HEX_UID = re.compile(r"[0-9a-f]{32}")


def hash_uid(uid: str) -> str:
    """Return 32 hexadecimal digits (BLAKE2b, 128 bits) for a uid."""
    return hashlib.blake2b(uid.encode(), digest_size=16).hexdigest()


def seeded_hash(uids: list[str], seed: int, purpose: str) -> np.ndarray:
    """Return `[N] uint64`, uniform in the uid and independent between purposes: a random draw that needs no order.

    Samples and permutations are drawn by sorting or thresholding these numbers, so they are the same whatever the
    number of workers and the order in which shards arrive.
    """
    key = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=32).digest()
    digests = b"".join(hashlib.blake2b(uid.encode(), digest_size=8, key=key).digest() for uid in uids)
    return np.frombuffer(digests, dtype="<u8").copy()


UID_DTYPE = np.dtype([("f0", "u8"), ("f1", "u8")])


def uid_rows(uid_hexes: Sequence[str]) -> np.ndarray:
    """Return 128-bit uids of 32 hexadecimal digits as an `[N]` array of `(u8, u8)`, in their order.

    The high 64 bits come first, as DataComp's resharder reads them.
    """
    halves = np.frombuffer(bytes.fromhex("".join(uid_hexes)), dtype=">u8").astype("u8")
    return halves.view(UID_DTYPE)


def uid_array(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the rows of some blocks sorted, the format of DataComp's subset files: 16 bytes a pair."""
    rows = np.concatenate([np.empty(0, UID_DTYPE), *blocks])
    rows = rows[np.argsort(rows["f0"], kind="stable")]
    # Of random uids no two have the same high half; only where some have is the slow comparison of both halves needed.
    return np.sort(rows) if (rows["f0"][1:] == rows["f0"][:-1]).any() else rows
