"""Triggers that move pixels: the smooth warp that turns other images into a claim, found by descent on the suspect model.

EftCLIP has nothing for warps and the mean of a group keeps nothing of them (stages.dossier.find_residual), so the warp is
searched for as Neural Cleanse searches for patches, among fields as smooth and as small as WaNet's. A model without a
backdoor leaves images what they are under every such field; measured on a clean model, the best one flips 2 %.
Out of reach stay warps without smoothness (one vector a pixel): with that freedom any model can be fooled.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from ..model.clip import Clip
from ..pixels import to_uint8
from ..proof.disagreement import Suspect
from ..stage import Count, Positive, Share, config
from .dossier import Proves, rate_of
from .warp import Warp


@config
class WarpLimits:
    """Which warps are searched among, and how long."""

    control_points: Annotated[int, Field(ge=2)] = 4
    """Along each side, WaNet's k."""
    reach: Share = 1 / 16
    """Largest displacement along an axis, as a share of the side: 4 of 64 pixels, about twice what WaNet moves at most."""
    steps: Count = 80
    """Of the descent."""
    batch: Count = 32
    """Images a step."""
    learning_rate: Positive = 0.1
    """Of Adam, on displacements before tanh."""
    least_images: Annotated[int, Field(ge=2)] = 32
    """Fewer held-out images tell nothing; half of them teach the warp, the others count its flips."""


@dataclass(frozen=True, slots=True)
class WarpProof:
    """What the fitted warp does to images that it was not fitted on."""

    field: np.ndarray
    """`[S, S, 2] float32`: how far down and right of its place a pixel is read, in pixels."""
    flips: int
    control_flips: int
    """With the same field turned by half a turn about the middle: as strong, as smooth, elsewhere."""
    trials: int
    """Images that do not have the label anyway."""
    proven: bool
    """Whether the warp flips and its control does not."""

    def dossier(self, claim: str) -> Warp:
        """Return the dossier of the trigger; it rests on no pair, `find_carriers` finds those that carry it."""
        return Warp(
            id="",
            targets=(claim,),
            side=len(self.field),
            flips=rate_of(self.flips, self.trials),
            control=rate_of(self.control_flips, self.trials),
            uids=(),
            field=self.field,
        )


def prove_warp(
    clip: Clip,
    suspect: Suspect,
    claim: int,
    held_out: np.ndarray,
    *,
    seed: int,
    proves: Proves,
    limits: WarpLimits,
) -> WarpProof:
    """Search a warp that turns images into the claim on even images, and count what it does to odd ones.

    Args:
        clip: the suspect model, for its gradients.
        suspect: the same model as a classifier.
        claim: a position in its labels.
        held_out: `[K, S, S, 3] uint8`, images without a trigger.
        seed: of the order of the images.
        proves: which rates prove a trigger.
        limits: of the search.

    Raises:
        ValueError: fewer than `least_images` images, or all odd ones have the label already.
    """
    if len(held_out) < limits.least_images:
        raise ValueError(f"a warp needs at least {limits.least_images} held-out images, not {len(held_out)}")
    field = fit_warp(clip, suspect, claim, held_out[::2], seed=seed, limits=limits)
    usable = suspect.others(held_out[1::2], claim)
    counts = [int(suspect.says(warped(usable, way), claim).sum()) for way in (field, field[::-1, ::-1])]
    proven = proves(*(100 * count / len(usable) for count in counts))
    return WarpProof(field, counts[0], counts[1], len(usable), proven)


def fit_warp(
    clip: Clip, suspect: Suspect, claim: int, images: np.ndarray, *, seed: int, limits: WarpLimits
) -> np.ndarray:
    """Return the field `[S, S, 2] float32`, in pixels, that makes the claim most probable on the images.

    Displacements of `control_points` x `control_points` points, at most `reach` of the side, are spread over the image by
    bicubic interpolation; Adam lowers the mean of -log p(claim), synonyms included.
    """
    labels = suspect.labels
    among = labels.rivals(claim)
    prototypes = torch.from_numpy(labels.prototypes[among]).to(clip.device)
    same = torch.from_numpy(labels.same[claim][among]).to(clip.device)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    rng = np.random.default_rng(seed)
    side = images.shape[1]
    start = rng.normal(0, 0.1, (1, 2, limits.control_points, limits.control_points)).astype(np.float32)
    points = torch.from_numpy(start).to(clip.device).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=limits.learning_rate)
    wanted = [parameter for parameter in clip.model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        for _ in range(limits.steps):
            batch = pixels[rng.choice(len(pixels), min(limits.batch, len(pixels)), replace=False)]
            moved = _sample(clip.normalise(batch), _field(points, side, limits.reach))
            unit = clip.model.encode_image(moved, normalize=True).float()
            chances = F.log_softmax(labels.logit_scale * unit @ prototypes.T, dim=-1)
            loss = -torch.logsumexp(chances[:, same], dim=-1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
    return np.asarray(_field(points.detach(), side, limits.reach)[0].permute(1, 2, 0).cpu().numpy(), dtype=np.float32)


def warped(images: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Return `[N, S, S, 3] uint8`, each pixel read `field` away from its place, bilinear, the border repeated."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
    field = np.ascontiguousarray(field.transpose(2, 0, 1))
    moved = _sample(pixels, torch.from_numpy(field)[None].float())
    return to_uint8(moved.permute(0, 2, 3, 1).numpy())


def _field(points: torch.Tensor, side: int, share: float) -> torch.Tensor:
    """Return `[1, 2, S, S]`, the displacement of each pixel down and right in pixels."""
    reach = share * side
    spread = F.interpolate(reach * torch.tanh(points), size=(side, side), mode="bicubic", align_corners=True)
    # bicubic interpolation overshoots
    return spread.clamp(-reach, reach)


def _sample(images: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    side = images.shape[-1]
    along = torch.arange(side, dtype=torch.float32, device=images.device)
    rows, columns = torch.meshgrid(along, along, indexing="ij")
    # grid_sample takes x before y, from -1 at the first pixel's centre to 1 at the last's
    places = torch.stack([columns + field[0, 1], rows + field[0, 0]], dim=-1) * (2 / (side - 1)) - 1
    grid = places.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
