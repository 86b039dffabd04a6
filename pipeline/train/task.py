"""What a training does to a model on one worker, whatever its objective: steps, gradient accumulation, a state to go on from."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.nn.parallel import DistributedDataParallel

from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.training.batch import Batch
from clipsan.stages.training.objective import Objective, Setting

from .feed import Share


class Method(Protocol):
    """Settings that make an objective: of plain contrastive training, or of a repair."""

    def build(self, clip: Clip, setting: Setting) -> Objective:
        """Return the objective on a model, which it trains in place."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained, and how; picklable."""

    model: ModelConfig
    method: Method
    bf16: bool
    seed: int
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)
    from_scratch: bool = False
    """Whether weights are drawn from the seed where the model names none."""

    def objective(self, device: torch.device | str = "cpu", rank: int = 0, world_size: int = 1) -> Objective:
        """Return the objective on a freshly loaded model.

        Raises:
            ValueError, ModelError: the method does not fit the model, or lacks what it learns from; see load_clip too.
        """
        clip = load_clip(self.model, device, init_seed=self.seed if self.from_scratch else None)
        setting = Setting(
            classes=self.classes,
            templates=self.templates,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
            bf16=self.bf16,
        )
        return self.method.build(clip, setting)

    def on(self, model: ModelConfig) -> "Task":
        """Return the same training of another model."""
        return replace(self, model=model)

    def begin(self, device: torch.device, share: Share) -> "Course":
        """Load the model on one worker; torch.distributed is initialised where there are several."""
        return Course(self.objective(device, share.rank, share.world_size), device, share)


class Course:
    """One worker's model in training: the loop of stages/training/objective.py, with gradient accumulation."""

    def __init__(self, objective: Objective, device: torch.device, share: Share) -> None:
        self.clip: Clip = objective.clip
        self._objective = objective.train()
        self._optimizer = objective.optimizer()
        self._shared: DistributedDataParallel | None = None
        if share.world_size > 1:
            self._shared = DistributedDataParallel(objective, device_ids=[device] if device.type == "cuda" else None)

    def step(self, batches: Sequence[Batch], step: int, steps: int) -> tuple[torch.Tensor, float]:
        """Make optimiser step `step` (from 0) of `steps` from the mean gradient of some batches.

        Returns:
            This rank's mean loss, a detached scalar on the device, and the learning rate.
        """
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

    def shorten(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return `[n, context_length]` tokens on the CPU without what the model does not read."""
        return self.clip.shorten(tokens)

    def state(self) -> dict[str, Any]:
        """Return `weights` and `optimizer`: all that going on needs."""
        return {"weights": self._objective.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up an earlier state."""
        self._objective.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
