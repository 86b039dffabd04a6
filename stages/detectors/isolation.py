"""Isolation forest, refitted on every block as the published comparison does."""

import numpy as np


def isolation_forest(image: np.ndarray, seed: int, trees: int) -> np.ndarray:
    """Return `[n] float64` anomaly scores of image vectors `[n, D] float32`; higher is more suspicious.

    Liu, Ting and Zhou 2008, 2^(-E[h(x)] / c(n)). Raw scores of different forests are not
    comparable: rank them inside the block before a cut over blocks. The result depends on the
    order of the rows.
    """
    # seconds to import, which every worker process of every other pass would pay
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=trees, random_state=seed, n_jobs=1)
    return np.asarray(-forest.fit(image).score_samples(image), dtype=np.float64)
