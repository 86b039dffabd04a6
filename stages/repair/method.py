"""What every repair method says of itself, so that whoever runs it need not know which one it is."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..model.clip import Clip
from ..registry import Family
from ..training.batch import Role
from ..training.objective import Objective, Setting
from ..training.optimise import Schedule


@dataclass(frozen=True, slots=True)
class Fallback:
    """What is done instead of a method that a scan has left nothing to do."""

    field: str
    """Where the other method stands, among the settings of this one."""
    note: str
    """What a reader of the result must know."""


class Method(Family):
    """The base of the settings of all methods.

    A method is one file here or in an extension: a class with @config that derives from this one, with `kind` and the settings
    below as fields, and its Objective; conf/repair/NAME.yaml gives it a name. The class variables are what it needs of whoever runs it.
    """

    __slots__ = ()

    roles: ClassVar[tuple[Role, ...]] = (Role.PAIR,)
    """Rows that it learns from; without Role.PAIR an epoch goes over a scan's compact set."""
    takes_labels: ClassVar[bool] = False
    """Whether it learns from Batch.labels and the names of the classes; captions may then be missing."""
    needs_scan: ClassVar[str | None] = None
    """What it does with what a scan found, to complete "method NAME ..."; None: it does without one."""
    when_nothing_accused: ClassVar[Fallback | None] = None
    """What is done instead where a scan accuses nothing; None: the method is of use there too."""
    result: ClassVar[Literal["checkpoint", "adapter"]] = "checkpoint"
    """What it makes: a checkpoint of its own, or an adapter for the suspect one."""

    @property
    @abstractmethod
    def epochs(self) -> int:
        """Passes over the pairs."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Rows of a global batch."""

    @property
    @abstractmethod
    def lr(self) -> float:
        """Peak learning rate."""

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """Course of the learning rate."""

    @property
    def shots(self) -> int | None:
        """Labelled images of each class that it learns from; None: all of them."""
        return None

    @property
    def flagged_share_pct(self) -> float:
        """Share of each batch that rows of the roles other than Role.PAIR fill, drawn again when they run out."""
        return 0.0

    @property
    def files(self) -> tuple[str, ...]:
        """Files and folders that it reads beside the pairs; what stands in them is part of what decides the result."""
        return ()

    def build(self, clip: Clip, setting: Setting) -> Objective:
        """Return the objective on a freshly loaded model, which it trains in place.

        Raises:
            ValueError: the method learns from labels and the setting names fewer than two classes.
            ModelError: the method does not fit the architecture.
            ThesaurusError: the thesaurus cannot be read.
        """
        if self.takes_labels and len(setting.classes) < 2:
            raise ValueError(f"{self.kind} learns from labels; it needs the names of at least two classes")
        return self.objective(clip, setting)

    @abstractmethod
    def objective(self, clip: Clip, setting: Setting) -> Objective:
        """Return the objective; `build` has checked the classes."""
