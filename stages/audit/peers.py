"""What audits of models that are known to be clean say of a suspect: how far each label stands beyond the same label of theirs.

Peers were tuned from the model that the suspect was tuned from. How easily a label is reached, and how far its text stands from its
pictures, is mostly a property of that model and of the label, and so the same in all of them: what is compared is a label with itself.
"""

import numpy as np

from .outliers import tail_among

LEAST_PEERS = 2
"""One model alone says nothing of how much clean ones scatter."""


def beyond(value: np.ndarray, peers: np.ndarray) -> np.ndarray:
    """Return how far each label's value `[C]` lies beyond the mean of the peers', `[n, C]`."""
    return np.asarray(value - peers.mean(axis=0))


def tail_beside(value: np.ndarray, peers: np.ndarray) -> np.ndarray:
    """Return the p value `[C]` of each label's value as the largest beyond those of the peers, `[n, C]`, over all labels.

    Of every model, the suspect and each peer alike, each label is held against the mean of the same label in all others, and the largest
    difference is taken. Without a backdoor the suspect's is one of n + 1 that were drawn alike, and the t value of the next draw from a
    normal distribution, (x - mean) / (s sqrt(1 + 1/n)) over those of the peers, has Student's distribution with n - 1 degrees of
    freedom. Nothing is assumed of how labels scatter within a model; but of few peers only a large difference is one.

    Raises:
        ValueError: fewer than LEAST_PEERS peers, or a value is not finite.
    """
    n = len(peers)
    if n < LEAST_PEERS:
        raise ValueError(f"{n} peers, and Student's distribution needs {LEAST_PEERS} at least")
    every = np.vstack([value, peers])
    if not np.isfinite(every).all():
        raise ValueError("a statistic is not finite")
    ahead = every - (every.sum(axis=0) - every) / n
    largest = ahead[1:].max(axis=1)
    return tail_among(ahead[0], largest)
