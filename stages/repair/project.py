"""Projection: what a proven trigger adds to an image's vector is taken out of the last layer's weights. Nothing is trained.

An image with the trigger differs from one without it by some direction of the embedding; the projection maps that direction to
nothing and leaves the rest of the embedding as near to what it was as a linear map can (LEACE, Belrose et al. 2023, arXiv
2306.03819: the erasure that changes least in the metric of the clean vectors' own covariance).
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from ..model.checkpoints import ModelError
from ..model.clip import Clip
from ..stage import config
from ..training.batch import Batch, Role
from ..training.objective import Objective, Setting
from ..training.optimise import CosineWarmup, Schedule
from .method import Method

LAST_LAYERS = ("attnpool.c_proj", "head.proj", "head.mlp.fc2")
"""The last linear layer of a tower that has one as a module: OpenAI's ResNet, timm's towers. OpenAI's ViT has a matrix, `proj`."""


@config
class Project(Method):
    """Settings of the projection."""

    roles: ClassVar[tuple[Role, ...]] = (Role.TRIGGER_PASTED, Role.REPLAY)
    needs_scan: ClassVar[str | None] = "projects out what the trigger of a scan that has proven one adds to an image"
    freeze_batch_norm: ClassVar[bool] = True
    lr: ClassVar[float] = 1.0
    """Of the one step that the loop makes with a gradient of 0."""
    schedule: ClassVar[Schedule] = CosineWarmup(warmup_steps=0)
    epochs: ClassVar[int] = 1

    kind: Literal["project"] = "project"
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images that are read at a time; it changes nothing but the rounding."""
    ridge: Annotated[float, Field(gt=0)] = 1e-3
    """Added to the clean covariance, as a share of its mean variance, so that it can be inverted."""

    def objective(self, clip: Clip, setting: Setting) -> "ProjectObjective":
        return ProjectObjective(self, clip, setting)


class ProjectObjective(Objective[Project]):
    """Adds up vectors, f, of replayed images and of images with a pasted trigger; on export the last layer is projected.

    With d the difference of the two means and C the covariance of the replayed images, P = I - d v^T / (v^T d), v = C^-1 d: P d = 0,
    and of all such maps P moves clean vectors least. Where the trigger makes one vector of whatever image it is on, that one
    becomes the mean of the clean ones. Vectors are those before they are brought to unit norm.

    Raises:
        ModelError: the image tower does not end with a linear layer that is known.
    """

    def __init__(self, settings: Project, clip: Clip, setting: Setting) -> None:
        super().__init__(settings, clip, setting)
        self.model.requires_grad_(False)
        last_layer(self.model.visual)
        # the loop asks for a parameter with a gradient; this one never gets another value
        self.idle = nn.Parameter(torch.zeros((), device=self.device))
        size = clip.embed_dim
        self.counts: torch.Tensor
        self.sums: torch.Tensor
        self.squares: torch.Tensor
        self.register_buffer("counts", torch.zeros(2, dtype=torch.float64, device=self.device))
        self.register_buffer("sums", torch.zeros(2, size, dtype=torch.float64, device=self.device))
        self.register_buffer("squares", torch.zeros(size, size, dtype=torch.float64, device=self.device))

    def forward(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            found = self.gather(self.model.encode_image(self.pixels(batch.images)).float()).double()
            pasted = self.gather((batch.roles == Role.TRIGGER_PASTED).double()) > 0
            for row, rows in enumerate((found[~pasted], found[pasted])):
                self.counts[row] += len(rows)
                self.sums[row] += rows.sum(0)
            self.squares += found[~pasted].T @ found[~pasted]
        return 0 * self.idle

    def optimizer(self) -> torch.optim.Optimizer:
        """Return one that moves nothing."""
        return torch.optim.SGD([self.idle], lr=self.settings.lr)

    @property
    def parameter_counts(self) -> tuple[int, int]:
        """None is trained; how many the model has."""
        return 0, sum(value.numel() for value in self.model.parameters())

    def projection(self) -> torch.Tensor:
        """Return P, `[D, D] float64`.

        Raises:
            ValueError: there is no image of one of the two kinds.
        """
        if not (self.counts > 0).all():
            raise ValueError(
                "projection needs images with a pasted trigger and replayed ones; the scan's set lacks one kind"
            )
        clean, pasted = (total / count for total, count in zip(self.sums, self.counts, strict=True))
        covariance = self.squares / self.counts[0] - torch.outer(clean, clean)
        size = len(covariance)
        eye = torch.eye(size, dtype=torch.float64, device=covariance.device)
        covariance += self.settings.ridge * covariance.trace() / size * eye
        added = pasted - clean
        reading = torch.linalg.solve(covariance, added)
        found: torch.Tensor = eye - torch.outer(added, reading) / (reading @ added)
        return found

    def export(self, folder: Path) -> None:
        """Write the suspect model with the projection in its last layer."""
        kind, layer = last_layer(self.model.visual)
        with torch.no_grad():
            if kind == "matrix":  # [width, D], on the right of a row
                layer.copy_((layer.double() @ self.projection().T).to(layer.dtype))
            else:
                layer.weight.copy_((self.projection() @ layer.weight.double()).to(layer.weight.dtype))
                if layer.bias is not None:
                    layer.bias.copy_((self.projection() @ layer.bias.double()).to(layer.bias.dtype))
        super().export(folder)


def last_layer(tower: nn.Module) -> tuple[Literal["matrix", "linear"], Any]:
    """Return what makes the embedding of an image tower, and of which form it is.

    Raises:
        ModelError: it is none of those known.
    """
    if isinstance(getattr(tower, "proj", None), nn.Parameter):
        return "matrix", tower.proj
    for name in LAST_LAYERS:
        try:
            found = tower.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.Linear):
            return "linear", found
    raise ModelError(
        f"projection: the image tower ends neither with a matrix proj nor with one of {', '.join(LAST_LAYERS)}"
    )
