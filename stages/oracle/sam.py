"""Segment-anything as an oracle: the official package's automatic mask generator over any of its checkpoints.

Kirillov et al., "Segment Anything", 2023, arXiv:2304.02643. A grid of points is put to the model, each gives three
masks, and those that the model rates low, that a small change of the threshold alters, or that repeat another are dropped.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything import modeling as sam_modeling
from segment_anything.utils.amg import MaskData, generate_crop_boxes

from ..stage import Count, Share, config
from .regions import Oracle, OracleConfig, Region
from .sam_layout import load_sam

CROPS_PER_BATCH = 4
"""Crops that the image encoder takes at once; fixed, so that a result never depends on the machine."""


@config
class MaskSettings:
    """How masks are asked for and which are kept; the defaults are those of the package, chosen for vit_h."""

    path: str
    """Checkpoint: a plain state dict, .pth, .pt or .safetensors."""
    points_per_side: Count = 32
    """Points along a side of the grid that is put to the model, in the image and in each crop."""
    points_per_batch: Count = 64
    """Points that go through the mask decoder at once; bounds the memory."""
    pred_iou_thresh: Annotated[float, Field(ge=0, lt=1)] = 0.88
    """Masks that the model itself rates no higher are dropped, a fraction."""
    stability_score_thresh: Share = 0.95
    """Masks that change more when their threshold moves are dropped, a fraction."""
    crop_n_layers: Annotated[int, Field(ge=0, le=3)] = 0
    """Times that the image is cut finer: layer n adds 4^n overlapping crops, 85 at most. For small things in large photos."""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)


@config
class SamConfig(MaskSettings, OracleConfig):
    """Segment-anything: vit_b, vit_l, vit_h or a small one, told by the shapes of its tensors."""

    kind: Literal["sam"] = "sam"

    def build(self, device: str = "cpu") -> Oracle:
        return MaskOracle(load_sam(Path(self.path)), self, device)


class CropPredictor(SamPredictor):
    """A predictor that encodes all crops of an image in batches before the generator asks for them one by one."""

    def __init__(self, model: sam_modeling.Sam) -> None:
        super().__init__(model)
        self._encoded: list[torch.Tensor] = []
        self._sizes: list[tuple[int, int]] = []

    @torch.no_grad()
    def encode(self, crops: list[np.ndarray]) -> None:
        """Encode crops `[H, W, 3] uint8`; `set_image` then takes them in this order."""
        resized = [torch.from_numpy(self.transform.apply_image(crop).copy()).permute(2, 0, 1) for crop in crops]
        self._sizes = [(int(tensor.shape[1]), int(tensor.shape[2])) for tensor in resized]
        self._encoded = []
        for start in range(0, len(crops), CROPS_PER_BATCH):
            batch = [
                self.model.preprocess(tensor.to(self.device)) for tensor in resized[start : start + CROPS_PER_BATCH]
            ]
            self._encoded += list(self.model.image_encoder(torch.stack(batch)).split(1))

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Make the next encoded crop the current one.

        Raises:
            IndexError: more crops are asked for than were encoded.
        """
        self.reset_image()
        self.original_size = image.shape[:2]
        self.features, self.input_size = self._encoded.pop(0), self._sizes.pop(0)
        self.is_image_set = True


class CropGenerator(SamAutomaticMaskGenerator):
    """The package's generator, whose table of crops has no second axis where no mask survives: it then fails on several crops."""

    def _process_crop(self, *given: Any) -> MaskData:
        found = super()._process_crop(*given)
        found["crop_boxes"] = found["crop_boxes"].reshape(-1, 4).long()
        return found


class MaskOracle:
    """The regions that a SAM-like model finds by itself."""

    def __init__(self, model: sam_modeling.Sam, settings: MaskSettings, device: str) -> None:
        self._predictor = CropPredictor(model.to(torch.device(device)).eval())
        self._generator = CropGenerator(
            model,
            points_per_side=settings.points_per_side,
            points_per_batch=settings.points_per_batch,
            pred_iou_thresh=settings.pred_iou_thresh,
            stability_score_thresh=settings.stability_score_thresh,
            crop_n_layers=settings.crop_n_layers,
        )
        self._generator.predictor = self._predictor

    def __call__(self, image: np.ndarray) -> list[Region]:
        """Return the regions of `[H, W, 3] uint8`, the surest first; each mask has the image's height and width.

        The quality of a region is the model's own estimate of the mask's IoU times the mask's stability, a fraction.

        Raises:
            ValueError: the image is not `[H, W, 3] uint8`.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is [H, W, 3] uint8, not {list(image.shape)} {image.dtype}")
        generator = self._generator
        boxes, _ = generate_crop_boxes(image.shape[:2], generator.crop_n_layers, generator.crop_overlap_ratio)
        self._predictor.encode([image[top:bottom, left:right] for left, top, right, bottom in boxes])
        # A threshold of 0 lets empty masks through; they are no regions.
        found = [
            Region(mask=record["segmentation"].astype(bool), quality=_quality(record))
            for record in generator.generate(image)
            if record["area"] > 0
        ]
        return sorted(found, key=lambda region: -region.quality)


def _quality(record: dict[str, float]) -> float:
    """The model's estimate is a regression and may lie a little outside 0 to 1."""
    return min(max(record["predicted_iou"] * record["stability_score"], 0.0), 1.0)
