"""One suspicious pair under the oracle: what it claims, which region carries the claim, and whether that is proven."""

import io
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from ..model.clip import Clip
from ..oracle.regions import Oracle, Region, to_runs
from ..stage import Count, Fraction, Seed, Share, config
from .disagreement import Disagreement, RegionLabeller, Suspect, disagree, without
from .localise import Box, BoxLimits, box_mask, causal_score, complete, tighten
from .transplant import Flips, count_flips
from .vocabulary import Labels

EVIDENCE_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("claim", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("supported", pa.list_(pa.string())),
        ("region_labels", pa.list_(pa.string())),
        ("unsupported", pa.list_(pa.string())),
        ("box_top", pa.int32()),
        ("box_left", pa.int32()),
        ("box_height", pa.int32()),
        ("box_width", pa.int32()),
        ("mask_runs", pa.list_(pa.int32())),
        ("mask_height", pa.int32()),
        ("mask_width", pa.int32()),
        ("probability", pa.float32()),
        ("probability_without", pa.float32()),
        ("flips", pa.int32()),
        ("control_flips", pa.int32()),
        ("trials", pa.int32()),
        ("proven", pa.bool_()),
        ("region_png", pa.binary()),
    ]
)
"""One row an examined pair; pixels are those of the model's input. `trials` is 0 where no region carries the claim, and
where the one that does is too large for a trigger or not needed for the claim; `control_flips` is null where too few
images flipped for the control to matter."""

REGION_COLUMNS = (
    *("box_top", "box_left", "box_height", "box_width", "mask_runs", "mask_height", "mask_width"),
    *("probability_without", "region_png"),
)
"""Null where no region carries the claim."""


@config
class ExamineConfig:
    """How a pair is examined and what counts as proof."""

    top_labels: Count = 3
    """Most labels that CLIP is taken to claim of the whole image."""
    least_probability: Share = 0.05
    """Smallest p(y|x) of a claimed label."""
    regions: Count = 48
    """Most regions of an image that are looked at; the oracle's surest ones."""
    support: Fraction = 0.5
    """A label keeps at least this share of its probability without any one small region when it is supported; a trigger
    takes more away."""
    held_out: int = 36
    """Images onto which a region is pasted: `completed_on` to find its whole extent, the others to count flips."""
    completed_on: Annotated[int, Field(ge=0)] = 4
    """Held-out images that help to find a region's extent and so have no vote on whether it is a trigger."""
    accept: Share = 0.5
    """Smallest share of held-out images that a trigger of any kind flips (EftCLIP as we reconstruct it)."""
    control_at_most: Share = 0.1
    """Largest share that its control may flip."""
    max_trigger_area: Fraction = 0.15
    """Largest share of an image that a trigger covers, a fraction: only the removal of regions up to it counts against a
    label, and only such regions are pasted. On a clean model the objects that flip half of the
    held-out images cover more (.17 to .65)."""
    box: BoxLimits = field(default_factory=BoxLimits)
    """How the box around what carries the claim is found."""
    seed: Seed = 0
    """Of the control's place."""

    def __post_init__(self) -> None:
        if self.held_out <= self.completed_on:
            raise ValueError(f"held_out must be above {self.completed_on}: those only help to find a region's extent")
        if self.control_at_most >= self.accept:
            raise ValueError("control_at_most and accept: the first must be below the second")

    def proves(self, flips_pct: float, control_pct: float) -> bool:
        """Tell whether a trigger that flips so many held-out images, and its control so many, is proven; of any kind."""
        return flips_pct >= 100 * self.accept and control_pct <= 100 * self.control_at_most


class Examiner:
    """Examines pairs; holds the models. A pair's record depends on the pair and the held-out images alone."""

    def __init__(
        self,
        clip: Clip,
        oracle: Oracle,
        labels: Labels,
        held_out: np.ndarray,
        settings: ExamineConfig,
        labeller: RegionLabeller | None = None,
    ) -> None:
        """Look at the held-out images once.

        Args:
            clip: the suspect model.
            oracle: segments images at the model's input size.
            labels: of the data set, for this model.
            held_out: `[K, S, S, 3] uint8` clean-looking images at the model's input size; the first
                `settings.held_out` are used.
            settings: limits.
            labeller: a trusted model that names crops; without one, support is causal.

        Raises:
            ValueError: there are fewer held-out images than asked for, or they have another size.
        """
        size = clip.image_size
        if held_out.shape[1:] != (size, size, 3) or held_out.dtype != np.uint8:
            raise ValueError(f"held-out images are [K, {size}, {size}, 3] uint8, not {held_out.shape} {held_out.dtype}")
        if len(held_out) < settings.held_out:
            raise ValueError(f"{settings.held_out} held-out images are wanted, and there are {len(held_out)}")
        self._clip = clip
        self._oracle = oracle
        self._labels = labels
        self._suspect = Suspect(clip, labels)
        self._settings = settings
        self._labeller = labeller
        self._held_out = held_out[: settings.held_out]
        self._held_out_p = self._suspect(self._held_out)

    def examine(self, uid: str, rgb: np.ndarray, claim: str) -> dict[str, Any]:
        """Return the record of one pair, a row of EVIDENCE_SCHEMA.

        Where some region alone gives the claim and its removal takes it away, the best such region is tightened to a box and
        pasted onto held-out images that are not of that label. With a trusted labeller Algorithm 1 decides whether that is
        done: a claim that the labeller bears out is no accusation. Support that is causal alone knows nothing of the picture
        that the suspect model does not, so without a labeller every claim is tested.

        Args:
            uid: of the pair.
            rgb: `[H, W, 3] uint8`, as decoded.
            claim: the concept that the statistics accuse.

        Raises:
            ValueError: the claim is no label.
        """
        settings, labels = self._settings, self._labels
        label = labels.index(claim)
        image = np.ascontiguousarray(self._clip.preprocess(rgb).numpy().transpose(1, 2, 0))
        regions = self._oracle(image)[: settings.regions]
        found = disagree(
            self._suspect,
            image,
            regions,
            label,
            top_labels=settings.top_labels,
            least_probability=settings.least_probability,
            small_area=settings.max_trigger_area,
            support=settings.support,
            labeller=self._labeller,
        )
        row = {
            "uid": uid,
            "claim": claim,
            "labels": self._named(found.claimed),
            "supported": self._named(found.supported),
            "region_labels": self._named(found.region_labels),
            "unsupported": self._named(found.unsupported),
            "probability": float(labels.claimed(found.probability[None], label)[0]),
        }
        contested = self._labeller is None or bool(labels.same[label][found.unsupported].any())
        start = self._carrier(found, regions, label) if contested else None
        return row | (self._no_region() if start is None else self._proof(found, uid, image, start, label))

    def _carrier(self, found: Disagreement, regions: Sequence[Region], label: int) -> Region | None:
        """Return region j*: of those that alone give the label and whose removal takes it away, the fullest account.

        [R] EftCLIP takes the region of highest probability; any window around the trigger reaches nearly 1.
        """
        labels = self._labels
        whole = float(labels.claimed(found.probability[None], label)[0])
        shown, removed = (labels.claimed(p, label) for p in (found.probability_alone, found.probability_without))
        carries = labels.is_label(found.probability_alone, label) & (removed < self._settings.support * whole)
        if not carries.any():
            return None
        scores = causal_score(shown, removed, np.array([r.area for r in regions]), self._settings.box.area_price)
        return regions[int(np.where(carries, scores, -np.inf).argmax())]

    def _proof(self, found: Disagreement, uid: str, image: np.ndarray, start: Region, label: int) -> dict[str, Any]:
        """Tighten the region, paste it if it can be a trigger, and return the second half of the record.

        [R] A trigger is small and needed: what is too large, or leaves the claim standing when it is removed, is a part
        of what the picture shows.
        """
        settings, labels = self._settings, self._labels
        whole = float(labels.claimed(found.probability[None], label)[0])
        onto = self._held_out[~labels.is_label(self._held_out_p, label)]

        def look(box: Box) -> tuple[np.ndarray, float, bool]:
            mask = box_mask(box, image.shape[0])
            removed = float(labels.claimed(self._suspect(without(image, mask[None])), label)[0])
            return mask, removed, mask.mean() <= settings.max_trigger_area and removed < settings.support * whole

        box = tighten(self._suspect, image, start.box, label, settings.box)
        mask, removed, can_be = look(box)
        if can_be:
            box = complete(self._suspect, image, box, label, onto[: settings.completed_on], settings.box)
            mask, removed, can_be = look(box)
        flips = Flips(0, 0, None)
        if can_be:
            onto = onto[settings.completed_on :]
            flips = count_flips(self._suspect, image, mask, label, onto, settings.accept, uid, settings.seed)
        return {
            "box_top": box[0],
            "box_left": box[1],
            "box_height": box[2],
            "box_width": box[3],
            "mask_runs": to_runs(mask),
            "mask_height": mask.shape[0],
            "mask_width": mask.shape[1],
            "probability_without": removed,
            "flips": flips.flips,
            "control_flips": flips.control_flips,
            "trials": flips.trials,
            "proven": proven(flips, settings),
            "region_png": cut_out(image, mask),
        }

    def _no_region(self) -> dict[str, Any]:
        nothing: dict[str, Any] = dict.fromkeys(REGION_COLUMNS)
        return nothing | {"flips": 0, "control_flips": None, "trials": 0, "proven": False}

    def _named(self, labels: list[int]) -> list[str]:
        return [self._labels.names[i] for i in labels]


def proven(flips: Flips, settings: ExamineConfig) -> bool:
    """Tell whether what pasting did proves a trigger."""
    if flips.control_flips is None:
        return False
    return settings.proves(100 * flips.flips / flips.trials, 100 * flips.control_flips / flips.trials)


def transplant_proves(
    suspect: Suspect,
    image: np.ndarray,
    mask: np.ndarray,
    label: int,
    onto: np.ndarray,
    settings: ExamineConfig,
    uid: str,
) -> bool:
    """Tell whether what the mask `[S, S] bool` shows of `[S, S, 3] uint8` makes the label of `[K, S, S, 3] uint8`.

    Pictures that have the label already say nothing; an equal area of another place of the image, drawn by `uid`, is the
    control.
    """
    usable = onto[~suspect.says(onto, label)]
    return proven(count_flips(suspect, image, mask, label, usable, settings.accept, uid, settings.seed), settings)


def cut_out(image: np.ndarray, mask: np.ndarray) -> bytes:
    """Return the image `[S, S, 3] uint8` as a PNG that is transparent outside the mask `[S, S] bool`."""
    pixels = np.where(mask[..., None], image, np.uint8(0))
    opaque = mask.astype(np.uint8) * 255
    file = io.BytesIO()
    Image.fromarray(np.dstack([pixels, opaque])).save(file, format="png")
    return file.getvalue()


def evidence_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return records as a table of EVIDENCE_SCHEMA."""
    return pa.Table.from_pylist(list(rows), schema=EVIDENCE_SCHEMA)
