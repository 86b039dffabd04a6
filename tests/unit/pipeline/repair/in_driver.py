"""Rows and trainings without Ray, for tests of what a repair does around its training."""

import pickle
from typing import Any

import numpy as np

from clipsan.pipeline.repair.held import Columns
from clipsan.pipeline.train import data
from clipsan.pipeline.train.fit import PairSet


def columns_of(pairs: PairSet) -> Columns:
    """Return the rows of some pairs, read in this process."""
    batch: dict[str, Any] = {"unit": [pickle.dumps(unit) for unit in pairs.units]}
    parts = list(data._rows(batch, pairs.reading))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
