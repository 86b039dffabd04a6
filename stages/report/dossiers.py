"""From the dossier of a trigger to what the report shows of it."""

from collections.abc import Callable, Sequence

import numpy as np

from ..dossier.dossier import Dossier, Rate, apply_trigger
from ..dossier.files import visible
from .content import DossierPanel, Example, Measured
from .figures import heat_map, thumbnail
from .text import percent


def panel(dossier: Dossier, examples: Sequence[Example] = ()) -> DossierPanel:
    """Return what the page shows of one dossier."""
    return DossierPanel(
        id=dossier.id,
        kind=dossier.kind,
        targets=dossier.targets,
        picture=thumbnail(visible(dossier)),
        mask=_mask(dossier),
        heat=None if dossier.heat is None else heat_map(dossier.heat),
        place=place_words(dossier),
        flips=_measured(dossier.flips),
        control=_measured(dossier.control),
        proven=dossier.proven,
        pairs=dossier.pairs,
        pairs_swept=dossier.pairs_swept,
        examples=tuple(examples),
    )


def examples(
    dossier: Dossier, images: np.ndarray, name: Callable[[np.ndarray], Sequence[str]], *, seed: int
) -> tuple[Example, ...]:
    """Return what the trigger does to a few held-out images.

    Args:
        dossier: of any kind.
        images: `[N, S, S, 3] uint8`, some four.
        name: images -> the label that the suspect model gives to each.
        seed: of the places of a trigger without a fixed one.
    """
    rng = np.random.default_rng(seed)
    triggered = np.stack([apply_trigger(dossier, image, rng) for image in images])
    return tuple(
        Example(before=thumbnail(image), after=thumbnail(changed), label_before=before, label_after=after)
        for image, changed, before, after in zip(images, triggered, name(images), name(triggered), strict=True)
    )


def place_words(dossier: Dossier) -> str:
    """Return where a trigger sits and how large it is, in a sentence."""
    place = dossier.place
    if place is None:
        return f"the whole picture, {dossier.side} × {dossier.side} pixels"
    cutout = dossier.cutouts[0]
    height, width = cutout.mask.shape
    size = f"{height} × {width} of {dossier.side} × {dossier.side} pixels"
    if dossier.varying:
        size += ", another picture each time"
    if place.fixed:
        corner = f"top left corner {cutout.top} pixels down and {cutout.left} right"
        return f"{size}; {corner}, in {percent(place.mode_share)} of the pairs"
    return (
        f"{size}; at no fixed place: {place.top:.0f} ± {place.top_std:.0f} pixels down, "
        f"{place.left:.0f} ± {place.left_std:.0f} right"
    )


def _mask(dossier: Dossier) -> bytes | None:
    if dossier.kind != "patch" or dossier.cutouts[0].mask.all():
        return None
    mask = dossier.cutouts[0].mask
    return thumbnail(np.repeat(255 * mask.astype(np.uint8)[..., None], 3, axis=2))


def _measured(rate: Rate) -> Measured:
    return Measured(pct=rate.pct, low_pct=rate.low_pct, high_pct=rate.high_pct, trials=rate.trials)
