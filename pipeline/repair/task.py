"""A repair method as a task of the training loop."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.repair import Batch, Objective, RepairConfig, Setting, build

from ..train.feed import Share


@dataclass(frozen=True, slots=True)
class RepairTask:
    """A method and what it knows of the run."""

    model: ModelConfig
    method: RepairConfig
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    bf16: bool
    seed: int

    def objective(self, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1) -> Objective:
        """Return the method on a freshly loaded suspect model.

        Raises:
            ValueError, ModelError: see stages.repair.build and load_clip.
        """
        setting = Setting(
            classes=self.classes,
            templates=self.templates,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
            bf16=self.bf16,
        )
        return build(self.method, load_clip(self.model, device), setting)

    def on(self, model: ModelConfig) -> "RepairTask":
        """Return the same method for another model."""
        return replace(self, model=model)

    def begin(self, device: torch.device, share: Share) -> "RepairCourse":
        """Load the suspect model on one worker."""
        return RepairCourse(self.objective(device, share.rank, share.world_size), device, share)


class RepairCourse:
    """One worker's model in repair: the loop of stages/repair/objective.py, with gradient accumulation."""

    def __init__(self, objective: Objective, device: torch.device, share: Share) -> None:
        self.clip: Clip = objective.clip
        self._objective = objective.train()
        self._optimizer = objective.optimizer()
        self._shared: DistributedDataParallel | None = None
        if share.world_size > 1:
            self._shared = DistributedDataParallel(objective, device_ids=[device] if device.type == "cuda" else None)

    def step(self, batches: Sequence[Batch], step: int, steps: int) -> tuple[torch.Tensor, float]:
        rate = self._objective.rate(step, steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._objective.device)
        for number, batch in enumerate(batches, 1):
            # the workers exchange gradients once a step, with the last batch
            quiet = self._shared is not None and number < len(batches)
            with self._shared.no_sync() if quiet and self._shared is not None else nullcontext():
                loss = (self._shared or self._objective)(batch) / len(batches)
                loss.backward()
            total += loss.detach()
        self._optimizer.step()
        self._objective.after_step()
        return total, rate

    def state(self) -> dict[str, Any]:
        return {"weights": self._objective.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self._objective.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
