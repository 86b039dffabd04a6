"""The way from a suspect model's weights to the repaired ones."""

from dataclasses import dataclass

from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.repair.interpolate import Weights, between


@dataclass(frozen=True, slots=True)
class Line:
    """A model on its way from the suspect weights to the repaired ones."""

    clip: Clip
    start: Weights
    end: Weights

    @classmethod
    def of(cls, model: ModelConfig, repaired: Weights) -> "Line":
        """Return the way from a checkpoint to weights of its architecture."""
        clip = load_clip(model)
        start = {name: value.clone() for name, value in clip.model.state_dict().items()}
        return cls(clip, start, {name: repaired[name] for name in start})

    def at(self, share: float) -> Clip:
        """Return the model with that share of the way behind it; the object is the same each time."""
        self.clip.model.load_state_dict(between(self.start, self.end, share))
        return self.clip
