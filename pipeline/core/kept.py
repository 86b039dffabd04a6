"""The model that this process has loaded last: the passes of a verb question the same one, and it is loaded once."""

import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Literal

from clipsan.stages.model.clip import Clip, ModelConfig, load_clip, resolve_model

_LOCK = threading.Lock()
_KEPT: dict[Hashable, Clip] = {}
"""At most one model, by where its weights lie, what stood there, and the device."""


def kept_clip(model: ModelConfig, device: str = "cpu", precision: Literal["f32", "bf16"] = "f32") -> Clip:
    """Return a model for forward passes, loaded or as it was loaded before; whoever trains one loads it himself.

    Raises:
        ModelError: see load_clip.
    """
    weights = resolve_model(model).weights
    files = [] if weights is None else [weights]
    if model.adapter is not None:
        files += sorted(path for path in Path(model.adapter).iterdir() if path.is_file())
    stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    key = (model, device, stamps)
    with _LOCK:
        if key not in _KEPT:
            _KEPT.clear()
            clip = load_clip(model, device)
            clip.model.requires_grad_(False)
            clip.fold()
            _KEPT[key] = clip
        return _KEPT[key].in_precision(precision)
