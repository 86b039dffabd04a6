"""Early stop: clean accuracy after each epoch, and the rule that ends a training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clipsan.stages.evaluation.zero_shot import class_embeddings, predict
from clipsan.stages.model.clip import Clip

from .feed import Share, Table

BATCH = 64
"""Images of a forward pass."""


@dataclass(frozen=True, slots=True)
class StopRule:
    """Ends a training whose clean accuracy no longer rises."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    patience: int
    """Epochs in a row without a better accuracy."""
    min_gain_points: float
    """What counts as better, in percentage points."""

    def stops(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Tell from the records of all epochs so far."""
        best, since = -np.inf, 0
        for record in history:
            found = record["clean_accuracy_pct"]
            since = 0 if found >= best + self.min_gain_points else since + 1
            best = max(best, found)
        return since >= self.patience


class Accuracy:
    """Zero-shot accuracy on a fixed sample of labelled images, each worker predicting its part."""

    def __init__(self, rule: StopRule, table: Table, share: Share) -> None:
        self._rule = rule
        self._total = len(table)
        self._rows = table.take(np.arange(share.rank, len(table), share.world_size))
        self._world_size = share.world_size

    def pct(self, clip: Clip, device: torch.device) -> float:
        """Return the accuracy of the model as it is, in percent; its modules keep their modes."""
        modes = [(module, module.training) for module in clip.model.modules()]
        clip.model.eval()
        classes = class_embeddings(clip, self._rule.classes, self._rule.templates)
        hits = torch.zeros((), device=device)
        for start in range(0, len(self._rows), BATCH):
            features = clip.encode_images(self._rows.images[start : start + BATCH])[0]
            labels = self._rows.labels[start : start + BATCH].numpy()
            hits += float((predict(features, classes) == labels).sum())
        for module, mode in modes:
            module.training = mode
        if self._world_size > 1:
            torch.distributed.all_reduce(hits)
        return 100 * hits.item() / self._total
