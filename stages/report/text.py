"""How the report writes numbers and names."""

import math

from markupsafe import Markup, escape

THIN = "\u202f"
"""Narrow space that does not break, between a number and its unit."""

DETECTORS = {
    "k_distance": "k-distance",
    "slof": "SLOF",
    "dao": "DAO",
    "lid": "LID",
    "clip_score": "CLIP score",
    "clip_mixture": "CLIP score mixture",
    "lorex": "LoREx",
}

KINDS = {
    "patch": "a patch",
    "residual": "added to the whole picture",
    "texture": "drawn anew over every picture",
    "warp": "a warp of the whole picture",
}


def count(number: int) -> str:
    """Return a count with thousands separated: 10,000."""
    return f"{number:,}"


def score(value: float) -> str:
    """Return a score with three digits, or a dash where the detector had nothing to say."""
    return "–" if math.isnan(value) else f"{value:.3g}"


def percent(fraction: float) -> str:
    """Return a fraction in [0, 1] as percent: one decimal, two below 0.1 %.

    0 % and 100 % are said only when they are exact.

    Raises:
        ValueError: outside [0, 1]; a value that is percent already ends up here too.
    """
    if math.isnan(fraction):
        return "–"
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction lies in [0, 1], got {fraction}")
    if fraction in (0, 1):
        return f"{100 * fraction:.0f}{THIN}%"
    if fraction < 0.0001:
        return f"<{THIN}0.01{THIN}%"
    if fraction < 0.001:
        return f"{100 * fraction:.2f}{THIN}%"
    return f"{min(100 * fraction, 99.9):.1f}{THIN}%"


def duration(seconds: float) -> str:
    """Return a time span in the two units that matter: 8.4 s, 3 min 20 s, 1 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60}{THIN}min"


def detector_label(name: str) -> str:
    """Return a score column's name as people write it."""
    return DETECTORS.get(name, name.replace("_", " "))


def reason_label(reason: str) -> str:
    """Return a reason or a reject code as words."""
    return reason.replace("_", " ")


def kind_label(kind: str) -> str:
    """Return what a kind of trigger does, in words."""
    return KINDS.get(kind, kind)


def rich(content: str) -> Markup:
    """Return escaped text in which `like this` is code; a backtick without partner stays what it is."""
    parts = content.split("`")
    if len(parts) % 2 == 0:
        return escape(content)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )
