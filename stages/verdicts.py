"""From scores and proofs to verdicts: where the cut lies, what it means, and why a pair is set apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pydantic

from .captions import NO_WORDS, Vocabulary
from .stage import Fraction, Share, Weight, config, part_of


class Verdict(StrEnum):
    """What the scan says of a pair."""

    CLEAN = "clean"
    SUSPECT = "suspect"
    """Odd, for the reasons given; that alone proves nothing."""
    POISONED = "poisoned"
    """It carries a trigger that was proven: put onto other pictures it makes the model say the target, and without it the model
    no longer says it of this one."""


class Reason(StrEnum):
    """Why a pair is set apart."""

    PROVEN_TRIGGER = "proven_trigger"
    """It carries a proven trigger."""
    POISON_SUSPECT = "poison_suspect"
    """The ensemble of detectors puts it above the cut."""
    MISMATCHED_CAPTION = "mismatched_caption"
    """The suspect model itself finds image and caption unrelated, far below the bulk of pairs."""
    NEAR_DUPLICATE = "near_duplicate"
    """The same picture (by difference hash) stands in the set with other pairs; where most pictures do, as each of COCO's stands there
    with five captions, with more of them than is usual, or with the same caption."""
    PLACEHOLDER = "placeholder"
    """An almost uniform picture, or one picture (the same difference hash) under many captions: a dead link's stand-in. One that
    comes back with the same few captions is a near-duplicate; so are copies that were encoded so differently that they hash apart."""
    OUTLIER = "outlier"
    """Its embedding lies in a sparser place than its neighbours', by two density scores at once."""
    SHARED_UID = "shared_uid"
    """Another pair with the same uid is kept out of the clean copy, and a list of uids cannot tell the two apart."""


ACCUSING = frozenset({Reason.POISON_SUSPECT.value, Reason.PROVEN_TRIGGER.value})
"""Reasons that accuse a pair of poison, by the statistics or by proof; the others only say that it is odd."""


@config
class OddLimits:
    """From which figure on a pair is odd."""

    placeholder_copies: Annotated[int, pydantic.Field(ge=3)] = 20
    """Pairs with one picture. That of a dead link comes back for hundreds of captions; a popular photo, or two pictures that
    hash alike, for a few."""
    placeholder_caption_share: Share = 0.1
    """Share of the pairs with such a picture that may have the caption of this one. A dead link's stand-in has captions of all
    kinds, a picture that was published many times has the same few."""
    uniform_std: Weight = 3.0
    """Standard deviation of the pixel values (0 to 255) under which a picture shows nothing."""
    mismatch_probability: Share = 0.99
    """Of the low component of the CLIP scores, where these fall into two."""
    outlier_rank: Share = 0.999
    """Mean block rank under several permutations: about one pair in a thousand by construction, so this reason alone accuses
    nobody."""


@config
class BudgetDecision:
    """Flag a fixed share of the pairs, the most suspicious first: for a review of known size."""

    kind: Literal["budget"] = "budget"
    share: Fraction = 0.01
    """Share of all scanned pairs, a fraction."""


@config
class ThresholdDecision:
    """Flag what lies above a score: for unattended cleaning."""

    kind: Literal["threshold"] = "threshold"
    value: float | None = None
    """Ensemble score; null takes the calibrated threshold of the ensemble."""


Decision = Annotated[BudgetDecision | ThresholdDecision, pydantic.Discriminator("kind")]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the decision cuts, in words for the report."""

    value: float
    """A pair is flagged when its ensemble score is at least this."""
    meaning: str


def place_cut(
    ensemble: np.ndarray, decision: BudgetDecision | ThresholdDecision, calibrated: float, calibration: str
) -> Cut:
    """Place the cut.

    Args:
        ensemble: `[N] float32`, the ensemble score of every scanned pair.
        decision: budget or threshold.
        calibrated: the ensemble's own threshold.
        calibration: what that threshold means, one sentence.
    """
    if isinstance(decision, ThresholdDecision):
        if decision.value is not None:
            return Cut(decision.value, f"Flagged: ensemble score at least {decision.value:g}, a threshold set by hand.")
        return Cut(calibrated, f"Flagged: ensemble score at least {calibrated:g}. {calibration}")
    count = max(1, part_of(decision.share, len(ensemble)))
    if not len(ensemble):
        return Cut(np.inf, "Nothing was scanned.")
    value = float(np.partition(ensemble, len(ensemble) - count)[len(ensemble) - count])
    ties = int((ensemble >= value).sum()) - count
    more = f", and {ties:,} that score the same as the last of them" if ties else ""
    meaning = (
        f"Flagged: the {count:,} most suspicious pairs, {100 * decision.share:g} % of those scanned{more}. "
        "A review budget flags that share on clean data too."
    )
    return Cut(value, meaning)


def usual_copies(image_duplicates: np.ndarray) -> float:
    """Return how many pairs the usual picture stands in, from `image_duplicates` `[N] float32`: half of all pictures, each counted once,
    stand in no more. It is 1 but where most pictures stand in the set several times, each time with another caption: that is the set's
    form, and no pair is odd for it."""
    if not len(image_duplicates):
        return 1.0
    copies = np.rint(np.expm1(np.sort(image_duplicates).astype(np.float64)))
    pictures = np.cumsum(1 / np.maximum(copies, 1))
    return float(copies[np.searchsorted(pictures, pictures[-1] / 2 - 1e-6)])


class Judge:
    """Writes the verdict of each pair from its facts and scores."""

    reads: ClassVar[frozenset[str]] = frozenset(
        {
            "uid",
            "uid_hex",
            "shard",
            "key",
            "caption",
            "pixel_std",
            "ensemble",
            "clip_mixture",
            "image_duplicates",
            "pair_duplicates",
            "slof",
            "dao",
            "concept",
            "trigger_id",
        }
    )
    adds: ClassVar[frozenset[str]] = frozenset({"verdict", "reasons", "target"})

    def __init__(
        self,
        cut: float,
        targets: frozenset[str],
        mixture_speaks: bool,
        limits: OddLimits,
        triggers: Mapping[str, str] | None = None,
        beyond: Vocabulary = NO_WORDS,
        copies: float = 1.0,
    ) -> None:
        """Set what the scan knows of the data set as a whole.

        Args:
            cut: ensemble score from which a pair is flagged.
            targets: concepts that are named.
            mixture_speaks: whether the CLIP score has two separate components at all.
            limits: from which figure on a pair is odd.
            triggers: target of each proven trigger, by its id.
            beyond: of named concepts that the column `concept` does not know: flagged pairs that mention one are taken for its.
            copies: pairs with one picture that are usual (`usual_copies`).
        """
        self._cut = cut
        self._targets = targets
        self._mixture_speaks = mixture_speaks
        self._limits = limits
        self._triggers = triggers or {}
        self._beyond = beyond
        self._copies = copies

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with `verdict`, `reasons` and `target`; `trigger_id` is null where no trigger is proven."""
        triggers = table.column("trigger_id").to_pylist()
        column = {name: table.column(name).to_numpy(zero_copy_only=False) for name in self.reads & _NUMERIC}
        copies, limits = np.expm1(column["image_duplicates"]), self._limits
        own = np.maximum(1, limits.placeholder_caption_share * copies + 1e-3)
        many = (copies >= limits.placeholder_copies - 0.5) & (column["pair_duplicates"] <= own)
        masks = {
            Reason.PROVEN_TRIGGER: np.array([trigger is not None for trigger in triggers], bool),
            Reason.POISON_SUSPECT: column["ensemble"] >= self._cut,
            Reason.MISMATCHED_CAPTION: (column["clip_mixture"] >= limits.mismatch_probability) & self._mixture_speaks,
            Reason.PLACEHOLDER: (column["pixel_std"] < limits.uniform_std) | many,
            Reason.NEAR_DUPLICATE: ((copies >= self._copies + 0.5) | (column["pair_duplicates"] > 1)) & ~many,
            Reason.OUTLIER: (column["slof"] >= limits.outlier_rank) & (column["dao"] >= limits.outlier_rank),
        }
        reasons = [[r.value for r, mask in masks.items() if mask[i]] for i in range(table.num_rows)]
        verdict = [_verdict(found).value for found in reasons]
        accused = table.column("concept").to_pylist()
        flagged = masks[Reason.POISON_SUSPECT]
        if self._beyond.names:
            rows = np.flatnonzero(flagged)
            captions = table.column("caption").take(pa.array(rows)).to_pylist()
            pairs, concepts = self._beyond.members(captions).nonzero()
            for pair, concept in zip(pairs[::-1].tolist(), concepts[::-1].tolist(), strict=True):
                accused[rows[pair]] = self._beyond.names[concept]  # the first of a caption's own stays
            table = table.set_column(table.column_names.index("concept"), "concept", pa.array(accused, pa.string()))
        named = [c if flag and c in self._targets else None for c, flag in zip(accused, flagged, strict=True)]
        target = [self._triggers.get(t, n) if t is not None else n for t, n in zip(triggers, named, strict=True)]
        table = table.append_column("verdict", pa.array(verdict, pa.string()))
        table = table.append_column("reasons", pa.array(reasons, pa.list_(pa.string())))
        return table.append_column("target", pa.array(target, pa.string()))


def _verdict(reasons: list[str]) -> Verdict:
    if Reason.PROVEN_TRIGGER.value in reasons:
        return Verdict.POISONED
    return Verdict.SUSPECT if reasons else Verdict.CLEAN


_NUMERIC = {"pixel_std", "ensemble", "clip_mixture", "image_duplicates", "pair_duplicates", "slof", "dao"}
