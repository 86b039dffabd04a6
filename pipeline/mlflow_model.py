"""The MLflow form of a repaired model ("models from code"): this file travels with the weights, nothing is pickled.

It needs open_clip alone, so the model can be served where clipsan is not installed; only a model with visual prompts needs
clipsan too.
"""

import io
from pathlib import Path
from typing import Any

import mlflow
import open_clip
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image


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
            from stages.clip_model import ModelConfig, load_clip
            from stages.repair.prompts import load_adapter

            clip = load_clip(ModelConfig(path=str(folder)))
            load_adapter(clip, Path(context.artifacts["adapter"]))
            self._model = clip.model

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Return the unit vectors, a list of numbers in `image_embedding` and `caption_embedding`."""
        found: dict[str, list[list[float]]] = {}
        with torch.inference_mode():
            if "image" in model_input:
                pictures = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in model_input["image"]]
                pixels = torch.stack([self._preprocess(picture) for picture in pictures])
                found["image_embedding"] = self._model.encode_image(pixels, normalize=True).tolist()
            if "caption" in model_input:
                tokens = self._tokenize(list(model_input["caption"]))
                found["caption_embedding"] = self._model.encode_text(tokens, normalize=True).tolist()
        return pd.DataFrame(found)


mlflow.models.set_model(RepairedClip())
