"""From proven regions to dossiers of patches: which of them show one trigger, and what it looks like."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from ..oracle.regions import iou
from ..samples import seeded_hash
from ..stage import Count, Positive, Share, config
from .dossier import rate
from .match import Cutout
from .patch import Alike, Patch, Place
from .sightings import LikenessLimits, Sighting, likeness, read_sightings


@config
class PatchLimits:
    """Which proven regions show one trigger."""

    min_members: Count = 5
    """Fewer regions make no dossier."""
    min_likeness: Share = 0.85
    """Regions with a trigger of ours, cut badly on purpose, lie above this in 9 pairs of 10; crops of lemons in 1 of 20."""
    min_mutual: Share = 0.8
    """Mean likeness over all pairs of members: one smooth region in the middle must not gather strangers around it."""
    compared: Count = 64
    """Regions of a label that are compared each with each; the others are compared with the medoids only."""
    min_iou: Share = 0.5
    """Regions agree in place from this intersection over union on."""
    size_ratio: Annotated[float, Field(ge=1)] = 1.25
    """And in size where no side is longer than the other's by more than this factor."""
    min_share: Share = 0.5
    """Regions that do not look alike make a dossier only where this share of them agree in place, or else in size."""
    kept_pictures: Count = 8
    """Pictures of a varying patch that it is shown and applied with."""
    fixed_share: Share = 0.8
    """A trigger sits at one place where this share of its members does."""
    agreement: Positive = 24.0
    """Mean deviation in levels up to which members agree on a pixel; what they do not agree on is background."""
    min_agreed: Share = 0.25
    """Where they agree on less of the medoid's region than this share, the region stays whole."""
    likeness: LikenessLimits = field(default_factory=LikenessLimits)
    """How two regions are compared."""


@dataclass(frozen=True, slots=True)
class Group:
    """Members of one dossier, the medoid first."""

    members: list[Sighting]
    shifts: list[tuple[int, int]]
    """How far each member's trigger lies below and right of the medoid's, in pixels; empty if they do not look alike."""
    likenesses: list[float]
    """Of the medoid and each other member."""


def find_patches(evidence: pa.Table, *, seed: int, limits: PatchLimits) -> list[Patch]:
    """Return the patches among the proven regions, without ids; see `dossier.number`.

    For each claim: regions that look alike (`likeness`) gather around the one with the most others like it, at least
    `min_members`, each region in one group only; stars, not connected components, because chains of slightly similar
    crops would join what nobody takes for one picture. Of regions that look like no other one, those at one place, else
    those of one size, make a dossier with a varying picture (fresh stripes, fresh noise). Genuine crops of an object agree
    in neither, or seldom; all the same, no dossier is proven before `Patch.verified` says so.

    Args:
        evidence: the rows of examined pairs, of any order.
        seed: of the choice of regions that are compared.
        limits: of the search.
    """
    by_claim: dict[str, list[Sighting]] = defaultdict(list)
    for sighting in read_sightings(evidence):
        by_claim[sighting.claim].append(sighting)
    found: list[Patch] = []
    for claim, sightings in sorted(by_claim.items()):
        groups, rest = _alike(sightings, seed, limits)
        found += [_same_picture(claim, group, limits) for group in groups]
        agreeing = _same_place_or_size(rest, len(sightings), limits)
        found += [_varying(claim, members, fixed, limits) for members, fixed in agreeing]
    return found


def _alike(sightings: list[Sighting], seed: int, limits: PatchLimits) -> tuple[list[Group], list[Sighting]]:
    draw = seeded_hash([s.uid for s in sightings], seed, "oracle.cluster")
    order = np.argsort(draw, kind="stable")
    first = [sightings[i] for i in sorted(order[: limits.compared])]
    others = [sightings[i] for i in sorted(order[limits.compared :])]
    size = len(first)
    score = np.eye(size)
    shift = np.zeros((size, size, 2), int)
    for i in range(size):
        for j in range(i + 1, size):
            value, down, right = likeness(first[i], first[j], limits.likeness)
            score[i, j] = score[j, i] = value
            shift[i, j], shift[j, i] = (down, right), (-down, -right)
    groups: list[Group] = []
    free = np.ones(size, bool)
    while free.any():
        near = (score >= limits.min_likeness) & free[None] & free[:, None]
        # Of several with as many others like it the one that is most like them is the medoid.
        medoid = int(np.lexsort((-(score * near).sum(1), -near.sum(1)))[0])
        rows: list[int] = [medoid, *(j for j in np.flatnonzero(near[medoid]).tolist() if j != medoid)]
        mutual = score[np.ix_(rows, rows)]
        if len(rows) < 2 or mutual[~np.eye(len(rows), dtype=bool)].mean() < limits.min_mutual:
            free[medoid] = False
            continue
        shifts = [(int(shift[medoid, j, 0]), int(shift[medoid, j, 1])) for j in rows]
        groups.append(Group([first[j] for j in rows], shifts, [float(score[medoid, j]) for j in rows[1:]]))
        free[rows] = False
    for sighting in others:
        matches = [likeness(group.members[0], sighting, limits.likeness) for group in groups]
        if matches and max(matches)[0] >= limits.min_likeness:
            best = matches.index(max(matches))
            groups[best].members.append(sighting)
            groups[best].shifts.append(matches[best][1:])
            groups[best].likenesses.append(matches[best][0])
    large = [group for group in groups if len(group.members) >= limits.min_members]
    taken = {member.uid for group in large for member in group.members}
    return large, [s for s in sightings if s.uid not in taken]


def _same_place_or_size(rest: list[Sighting], claimed: int, limits: PatchLimits) -> list[tuple[list[Sighting], bool]]:
    """Return at most one group of regions that agree in place, or else in size, and whether it is the place."""
    needed = max(limits.min_members, limits.min_share * claimed)
    if len(rest) < needed:
        return []
    strongest = sorted(rest, key=lambda s: (s.control_flips - s.flips, s.uid))
    for fixed in (True, False):
        stars = [[b for b in strongest if _agree(a, b, fixed, limits)] for a in strongest[: limits.compared]]
        star = max(stars, key=len)
        if len(star) >= needed:
            return [(star, fixed)]
    return []


def _agree(a: Sighting, b: Sighting, place: bool, limits: PatchLimits) -> bool:
    if place:
        return iou(a.mask, b.mask) >= limits.min_iou
    sides = zip(a.box[2:], b.box[2:], strict=True)
    return all(max(x, y) <= limits.size_ratio * min(x, y) for x, y in sides)


def _same_picture(claim: str, group: Group, limits: PatchLimits) -> Patch:
    medoid = group.members[0]
    top, left, height, width = medoid.box
    corners = np.array([(top + down, left + right) for down, right in group.shifts])
    pixels = np.zeros((len(corners), height, width, 3))
    cover = np.zeros((len(corners), height, width), bool)
    for i, (member, corner) in enumerate(zip(group.members, corners, strict=True)):
        rows, columns = corner[0] + np.arange(height), corner[1] + np.arange(width)
        side = len(member.mask)
        inside = np.ix_((rows >= 0) & (rows < side), (columns >= 0) & (columns < side))
        source = np.ix_(rows[(rows >= 0) & (rows < side)], columns[(columns >= 0) & (columns < side)])
        cover[i][inside] = member.mask[source]
        pixels[i][inside] = member.picture[source]
    count = np.maximum(cover.sum(0), 1)
    mean = (pixels * cover[..., None]).sum(0) / count[..., None]
    deviation = (np.abs(pixels - mean).mean(-1) * cover).sum(0) / count
    agreed = (cover.sum(0) >= len(corners) / 2) & (deviation <= limits.agreement)
    mask = cover[0]
    if agreed.sum() >= limits.min_agreed * mask.sum():
        mask = agreed
    picture = np.where(cover[0][..., None], pixels[0], mean).round().astype(np.uint8)
    mode, place = _place(corners, len(medoid.mask), limits.fixed_share)
    cutout, trimmed = _trim(picture, mean.round().astype(np.uint8), mask, *mode)
    place = dataclasses.replace(place, top=place.top + cutout.top - mode[0], left=place.left + cutout.left - mode[1])
    limit = len(medoid.mask) - np.array(cutout.mask.shape)
    inside_top, inside_left = np.clip([cutout.top, cutout.left], 0, limit).tolist()
    cutout = dataclasses.replace(cutout, top=inside_top, left=inside_left)
    alike = Alike(mean=trimmed, likeness=float(np.median(group.likenesses)))
    return _patch(claim, group.members, (cutout,), place, alike)


def _trim(picture: np.ndarray, mean: np.ndarray, mask: np.ndarray, top: int, left: int) -> tuple[Cutout, np.ndarray]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cutout = Cutout(picture=picture[box], mask=mask[box], top=top + int(rows[0]), left=left + int(columns[0]))
    return cutout, mean[box]


def _varying(claim: str, members: list[Sighting], fixed: bool, limits: PatchLimits) -> Patch:
    corners = np.array([member.box[:2] for member in members])
    place = dataclasses.replace(_place(corners, len(members[0].mask), limits.fixed_share)[1], fixed=fixed)
    shown = tuple(_cutout(member) for member in members[: limits.kept_pictures])
    return _patch(claim, members, shown, place, None)


def _cutout(sighting: Sighting) -> Cutout:
    top, left, height, width = sighting.box
    box = np.s_[top : top + height, left : left + width]
    return Cutout(picture=sighting.picture[box], mask=sighting.mask[box], top=top, left=left)


def _place(corners: np.ndarray, side: int, fixed_share: float) -> tuple[tuple[int, int], Place]:
    """Return the most frequent corner of `[n, 2] int` and the statistics; corners up to 1/32 of a side apart are one place."""
    reach = max(1, side // 32)
    near = (np.abs(corners[:, None] - corners[None]) <= reach).all(-1)
    mode = int(near.sum(1).argmax())
    there = corners[near[mode]]
    share = float(near[mode].mean())
    top, left = (int(v) for v in np.round(np.median(there, axis=0)))
    spread = corners.std(axis=0)
    return (top, left), Place(
        fixed=share >= fixed_share,
        top=float(corners[:, 0].mean()),
        left=float(corners[:, 1].mean()),
        top_std=float(spread[0]),
        left_std=float(spread[1]),
        mode_share=share,
    )


def _patch(
    claim: str, members: Sequence[Sighting], cutouts: tuple[Cutout, ...], place: Place, alike: Alike | None
) -> Patch:
    trials = np.array([m.trials for m in members])
    return Patch(
        id="",
        targets=(claim,),
        side=len(members[0].mask),
        flips=rate(np.array([m.flips for m in members]), trials),
        control=rate(np.array([m.control_flips for m in members]), trials),
        uids=tuple(sorted(m.uid for m in members)),
        cutouts=cutouts,
        place=place,
        heat=np.asarray(np.mean([m.mask for m in members], axis=0), np.float32),
        alike=alike,
    )
