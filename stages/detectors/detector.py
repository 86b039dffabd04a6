"""How a detector is set: one class in one file, here or in an extension, named in `detectors.more`."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from ..registry import Family
from .streaming import Column, Columns, StreamingDetector


@dataclass(frozen=True, slots=True)
class TrustedMoments:
    """What is known of the trusted set."""

    count: int
    """Number of trusted pairs."""
    mean: np.ndarray
    """`[D] float64`."""
    covariance: np.ndarray
    """`[D, D] float64`."""
    sample: np.ndarray
    """`[T, D] float32`, trusted vectors drawn at random, for a threshold."""


class DetectorConfig(Family):
    """Settings of a detector. One that needs the pair alone derives from RowDetector instead."""

    __slots__ = ()

    @abstractmethod
    def build(self, pairs: int, trusted: TrustedMoments | None) -> StreamingDetector | None:
        """Return the detector; None where it needs a trusted set and there is none.

        Args:
            pairs: about how many there will be, to choose the size of a sketch.
            trusted: of the set that the scan was told to trust.
        """


class RowDetector(DetectorConfig):
    """A detector that learns nothing: its settings and one method, from the cache of some pairs to their scores."""

    __slots__ = ()
    reads: ClassVar[frozenset[str]]
    """Columns of the cache that `score` needs; `layer.*` stands for every layer column."""
    columns: ClassVar[Mapping[str, Column]]
    """Columns that `score` returns, and what they are."""

    @abstractmethod
    def score(self, table: pa.Table) -> Mapping[str, np.ndarray]:
        """Return the scores of the rows, `[n]` a column; higher is more suspicious."""

    def build(self, pairs: int, trusted: TrustedMoments | None) -> StreamingDetector:
        return Rows(self)


class Rows(StreamingDetector):
    """Scores each pair by itself."""

    def __init__(self, settings: RowDetector) -> None:
        self._settings = settings

    @property
    def name(self) -> str:
        return type(self._settings).__name__

    @property
    def reads(self) -> frozenset[str]:
        return self._settings.reads

    @property
    def columns(self) -> Mapping[str, Column]:
        return self._settings.columns

    def score(self, state: None, table: pa.Table) -> Columns:
        """Return the scores as float32.

        Raises:
            ValueError: they are not the columns that were declared, or not one value a row.
        """
        scores = {name: np.asarray(values, np.float32) for name, values in self._settings.score(table).items()}
        shapes = {name: values.shape for name, values in scores.items()}
        if shapes != dict.fromkeys(self.columns, (table.num_rows,)):
            raise ValueError(
                f"{self.name} gave {shapes} for {table.num_rows} pairs; it declares {', '.join(self.columns)}"
            )
        return scores
