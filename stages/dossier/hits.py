"""The suspect model as a judge of flips."""

from collections.abc import Sequence

import numpy as np

from ..proof.disagreement import Suspect
from .dossier import Hits


def hits_of(suspect: Suspect) -> Hits:
    """Return what tells whether the suspect model takes images for a target."""
    labels = suspect.labels

    def hits(images: np.ndarray, targets: Sequence[str]) -> np.ndarray:
        probabilities = suspect(images)
        return np.asarray(np.any([labels.is_label(probabilities, labels.index(name)) for name in targets], axis=0))

    return hits
