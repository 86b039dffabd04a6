"""The MLflow form of a repaired model ("models from code"): this file travels with the weights, nothing is pickled.

It needs open_clip alone, so the model can be served where clipsan is not installed; only a model with visual prompts needs
clipsan too.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import open_clip
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow knows more, among them PostScript, which it hands to an interpreter."""
BATCH = 64
"""Rows of a forward pass: a frame of any length is scored in the memory of one batch."""


class RepairedClip(PythonModel):
    """Embeds pictures and captions: columns `image` (bytes of a picture file) and `caption`, either or both."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint."""
        folder = Path(context.artifacts["checkpoint"])
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self._model: Any = model.eval()
        self._preprocess: Any = preprocess
        self._tokenize: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
        if "adapter" in context.artifacts:
            from clipsan.stages.model.clip import ModelConfig, load_clip

            clip = load_clip(ModelConfig(path=str(folder)))
            clip.take_adapter(Path(context.artifacts["adapter"]))
            self._model = clip.model

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Return the unit vectors, a list of numbers in `image_embedding` and `caption_embedding`."""
        found: dict[str, list[list[float]]] = {}
        with torch.inference_mode():
            if "image" in model_input:
                found["image_embedding"] = self._in_batches(self._images, list(model_input["image"]))
            if "caption" in model_input:
                found["caption_embedding"] = self._in_batches(self._captions, list(model_input["caption"]))
        return pd.DataFrame(found)

    def _in_batches(self, embed: Callable[[list[Any]], torch.Tensor], rows: list[Any]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(rows), BATCH):
            vectors += embed(rows[start : start + BATCH]).tolist()
        return vectors

    def _images(self, files: list[Any]) -> torch.Tensor:
        pictures = [Image.open(io.BytesIO(file), formats=FORMATS).convert("RGB") for file in files]
        pixels = torch.stack([self._preprocess(picture) for picture in pictures])
        found: torch.Tensor = self._model.encode_image(pixels, normalize=True)
        return found

    def _captions(self, captions: list[Any]) -> torch.Tensor:
        found: torch.Tensor = self._model.encode_text(self._tokenize(captions), normalize=True)
        return found


mlflow.models.set_model(RepairedClip())
