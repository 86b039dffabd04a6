"""Where a pair came from, as its data set says: ids, addresses and hashes under the names that collectors give them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..masking import masked
from ..samples import Origin
from .common import text_bytes

IDS = ("uid", "id", "sample_id", "image_id", "key")
"""DataComp's and COYO's, LAION's, COCO's, img2dataset's number of the pair."""
URLS = ("url", "image_url")
HASHES = ("sha256",)
"""img2dataset's, DataComp's: of the image as it was downloaded, before it was resized."""
NAMES = (*IDS, *URLS, *HASHES)
MAX_ID = 128
MAX_URL = 2048
"""Characters: a stranger's fields take bounded room in the verdicts."""


def origin_columns(present: Sequence[str]) -> list[str]:
    """Return the columns of a table that say where a pair came from; case plays no part. One that stands twice says nothing."""
    return [name for name in present if name.lower() in NAMES and present.count(name) == 1]


def origin_of(fields: Mapping[str, Any]) -> Origin:
    """Return what the fields of a pair say of its origin: of each kind the first that is there, bounded, and without credentials."""
    found: dict[str, str] = {}
    for name, value in fields.items():
        text = _text(value) if isinstance(name, str) and name.lower() in NAMES else None
        if text:
            found.setdefault(name.lower(), text)

    def first(names: tuple[str, ...], limit: int) -> str | None:
        return next((masked(found[name])[:limit] for name in names if name in found), None)

    return Origin(first(IDS, MAX_ID), first(URLS, MAX_URL), first(HASHES, 64))


def _text(value: Any) -> str | None:
    """Return an id as printable text of bounded length; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | bytes | int):
        return None
    if isinstance(value, int):
        return str(value) if abs(value) < 10**MAX_ID else None
    data = text_bytes(value[: 4 * MAX_URL]) if isinstance(value, str) else value[: 4 * MAX_URL]
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in data.decode("utf-8", "replace")
    ).strip()
