"""What a user is told about data that cannot be read: names that were found, and the setting that is likely to help."""

from collections import Counter
from collections.abc import Iterable, Mapping

CAPTION_NAMES = (
    "caption",
    "text",
    "captions",
    "texts",
    "alt",
    "alt_text",
    "title",
    "prompt",
    "description",
    "sentence",
)
IMAGE_NAMES = ("image", "filepath", "file_name", "filename", "image_path", "path", "img", "jpg", "url")
ONE_ROW = "one row: "
"""Begins the detail of a break that cost a row and not what follows it."""
SHOWN = 8
"""So many names are listed."""


def list_names(names: Iterable[str]) -> str:
    """Return names as a list for a message, cut where there are many."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(name[:60] for name in every[:SHOWN]) + more


def likely(names: Iterable[str], known: tuple[str, ...]) -> str | None:
    """Return the name that is most likely meant: the first of the known ones that is there, whatever its case."""
    by_fold = {name.strip().casefold(): name for name in reversed(list(names))}
    return next((by_fold[word] for word in known if word in by_fold), None)


def json_hint(fields: Mapping[str, object], caption: str, where: str) -> str:
    """Return why fields give no caption, and which one to name."""
    if caption in fields:
        kind = type(fields[caption]).__name__
        return f"{caption} in the {where} is {'null' if kind == 'NoneType' else f'no text but {kind}'}"
    texts = [name for name, value in fields.items() if isinstance(value, str | list)]
    name = likely(texts, CAPTION_NAMES) or next((name for name in texts if " " in str(fields[name])), None)
    remedy = f"set data.caption={name}" if name is not None else "name the field of the caption with data.caption="
    return f"the {where} has {list_names(fields)}; {remedy}"


def likely_remedy(rejected: Iterable[tuple[str, str]], pairs: int) -> str | None:
    """Return what is likely to help where more than half of all pairs are rejected for one cause.

    Args:
        rejected: reason and detail of every rejected pair (`stages.samples.RawPair.detail`).
        pairs: all pairs, the rejected ones among them.
    """
    causes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    reasons: Counter[str] = Counter()
    for reason, detail in rejected:
        cause = detail.rpartition("; ")[2]
        causes[cause] += 1
        reasons[reason] += 1
        examples.setdefault(cause, f"{reason}: {detail}")
    if not causes:
        return None
    cause, count = causes.most_common(1)[0]
    if 2 * count > pairs and cause:
        return f"{count:,} of {pairs:,} pairs are rejected for one cause, {examples[cause]}"
    reason, count = reasons.most_common(1)[0]
    if 2 * count <= pairs:
        return None
    return f"{count:,} of {pairs:,} pairs are rejected as {reason}"
