"""Plain contrastive training as a task of the loop: what `clipsan train` does with a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.repair.objective import Batch
from clipsan.stages.training.contrastive import (
    AugmentConfig,
    ContrastiveTask,
    Schedule,
    adamw,
    augment,
    clip_loss,
    train_step,
)

from .feed import Share


@dataclass(frozen=True, slots=True)
class PlainTask:
    """See TrainConfig for what the settings mean."""

    model: ModelConfig
    lr: float
    schedule: Schedule
    weight_decay: float
    bf16: bool
    augment: AugmentConfig
    seed: int

    def begin(self, device: torch.device, share: Share) -> "PlainCourse":
        """Load the model, or draw its weights from the seed."""
        return PlainCourse(self, load_clip(self.model, device, init_seed=self.seed), device, share)


class PlainCourse:
    """One worker's model in plain contrastive training."""

    def __init__(self, task: PlainTask, clip: Clip, device: torch.device, share: Share) -> None:
        self.clip = clip
        self._task = task
        network = ContrastiveTask(clip.model.train(), clip.preprocess_cfg["mean"], clip.preprocess_cfg["std"])
        network = network.to(device)
        self._optimizer = adamw(network, task.lr, task.weight_decay)
        self._network: torch.nn.Module = network
        if share.world_size > 1:
            self._network = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
        self._loss = clip_loss(share.rank, share.world_size)

    def step(self, batches: Sequence[Batch], step: int, steps: int) -> tuple[torch.Tensor, float]:
        (batch,) = batches
        rate = self._task.schedule.rate(step, steps, self._task.lr)
        pixels = augment(batch.images, batch.rows, batch.total, self._task.augment, batch.seed)
        loss = train_step(
            self._network, self._loss, self._optimizer, pixels, batch.tokens, lr=rate, bf16=self._task.bf16
        )
        return loss, rate

    def state(self) -> dict[str, Any]:
        return {"weights": self.clip.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.clip.model.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
