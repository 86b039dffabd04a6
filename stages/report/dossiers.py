"""From the dossier of a trigger to what the report shows of it."""

from collections.abc import Callable, Sequence

import numpy as np

from ..dossier.dossier import Dossier, Rate
from .content import DossierPanel, Example, Measured
from .figures import heat_map, thumbnail


def panel(dossier: Dossier, examples: Sequence[Example] = ()) -> DossierPanel:
    """Return what the page shows of one dossier; a scan writes none that is not proven."""
    stencil, heat = dossier.stencil(), dossier.found_at()
    return DossierPanel(
        id=dossier.id,
        kind=dossier.kind,
        targets=dossier.targets,
        picture=thumbnail(dossier.picture()),
        mask=None if stencil is None else thumbnail(np.repeat(255 * stencil.astype(np.uint8)[..., None], 3, axis=2)),
        heat=None if heat is None else heat_map(heat),
        place=dossier.words(),
        flips=_measured(dossier.flips),
        control=_measured(dossier.control),
        proven=True,
        pairs=dossier.pairs,
        carriers=dossier.carriers,
        examples=tuple(examples),
        words=dossier.trigger_words,
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
    triggered = np.stack([dossier.apply(image, rng) for image in images])
    return tuple(
        Example(before=thumbnail(image), after=thumbnail(changed), label_before=before, label_after=after)
        for image, changed, before, after in zip(images, triggered, name(images), name(triggered), strict=True)
    )


def _measured(rate: Rate) -> Measured:
    return Measured(pct=rate.pct, low_pct=rate.low_pct, high_pct=rate.high_pct, trials=rate.trials)
