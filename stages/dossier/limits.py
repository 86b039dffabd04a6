"""Every limit of the proof that is no plain setting of it: what is looked for, and from which figure on something counts."""

from dataclasses import field

from ..proof.affected import AffectedLimits
from ..proof.features import FeatureLimits
from ..proof.selection import ChoiceLimits
from ..proof.survival import SurvivalLimits
from ..proof.vocabulary import LabelLimits
from ..stage import config
from .carriers import CarrierLimits
from .dossier import StandingLimits
from .find_patches import PatchLimits
from .find_warp import WarpLimits
from .groups import GroupLimits
from .rivals import RivalLimits


@config
class ProofLimits:
    """In the order in which they come to bear; the defaults are those of every published figure.

    A limit says where it comes from; one that says nothing was set by hand, to be far from what is common on either side.
    """

    choice: ChoiceLimits = field(default_factory=ChoiceLimits)
    """Which pairs and groups are looked at."""
    labels: LabelLimits = field(default_factory=LabelLimits)
    """What the suspect model can answer."""
    affected: AffectedLimits = field(default_factory=AffectedLimits)
    """Which labels have a trigger by their pairs' proofs."""
    patches: PatchLimits = field(default_factory=PatchLimits)
    """Which proven regions show one patch."""
    groups: GroupLimits = field(default_factory=GroupLimits)
    """Which triggers lie over all pictures of a group."""
    survival: SurvivalLimits = field(default_factory=SurvivalLimits)
    """On which variants of its pictures a concept's claim is weighed."""
    warp: WarpLimits = field(default_factory=WarpLimits)
    """Which warps are searched among."""
    features: FeatureLimits = field(default_factory=FeatureLimits)
    """How what sets a concept's sides apart inside the model is tried on other pictures."""
    standing: StandingLimits = field(default_factory=StandingLimits)
    """Which proven triggers are believed."""
    rivals: RivalLimits = field(default_factory=RivalLimits)
    """Which of two accounts of one trigger stays."""
    carriers: CarrierLimits = field(default_factory=CarrierLimits)
    """Who of the data set carries it."""
