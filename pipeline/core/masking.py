"""What may leave this process as text: no password, key or token, and no control sequence that a terminal would obey.

Settings name places, and places carry credentials: `s3://KEY:SECRET@bucket`, `https://user:password@host`, `?token=...`. They are
masked once, where the settings become a plain tree; run.yaml, the page, tracking.json and MLflow are made from that tree.
"""

import re
from typing import Any

from clipsan.stages.masking import MASK, masked

__all__ = ["MASK", "masked", "masked_tree", "one_line", "what_stopped"]

SAID = 500
"""Characters of an error that a table has room for; a log has the rest."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def masked_tree(tree: Any) -> Any:
    """Return a plain tree with every address in it masked."""
    if isinstance(tree, dict):
        return {key: masked_tree(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [masked_tree(value) for value in tree]
    return masked(tree) if isinstance(tree, str) else tree


def what_stopped(error: BaseException) -> str:
    """Return an error for a table: its kind and what it says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:SAID]}"


def one_line(text: object) -> str:
    """Return a text for a terminal: one line, masked, control characters written as escapes."""
    return _CONTROL.sub(
        lambda found: found.group().encode("unicode_escape").decode(), masked(" ".join(str(text).split()))
    )
