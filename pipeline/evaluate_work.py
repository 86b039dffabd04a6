"""What the workers of `clipsan evaluate` do to one unit of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.commit import write_part
from pipeline.config import ConfigError
from pipeline.evaluate_settings import EvaluateConfig
from pipeline.passes import Row
from stages.clip_model import Clip, ModelConfig, load_clip
from stages.decode import BadImage, decode
from stages.embed import REJECTED_SCHEMA
from stages.evaluation.attack_success import Predictions
from stages.evaluation.zero_shot import label_ranks, predict
from stages.samples import RawPair, Reject, Unit, seeded_hash
from stages.sources import read_unit
from stages.triggers import build_trigger

CAPTION_REJECTS = (Reject.CAPTION_MISSING, Reject.CAPTION_EMPTY, Reject.CAPTION_NOT_UTF8)
"""No reason to leave an image out where its label is what counts."""

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("label", pa.int32()),
        ("clean", pa.int32()),
        ("clean_rank", pa.int32()),
        ("triggered", pa.list_(pa.int32())),
        ("image_key", pa.list_(pa.int32())),
        ("text_key", pa.int32()),
    ]
)
"""One row an image; lists hold one class a strand. See Predictions; null where the attack has no such thing."""


class Pictures:
    """From a pair to the model's inputs, clean and triggered."""

    def __init__(self, settings: EvaluateConfig, clip: Clip) -> None:
        self._settings = settings
        self._clip = clip
        attack = settings.attack
        self._triggers = [] if attack is None else [build_trigger(strand.trigger) for strand in attack.strands]

    def read(self, pair: RawPair) -> np.ndarray:
        """Return the pair's image as `[H, W, 3] uint8`, resized as `settings.image` says.

        Raises:
            BadImage: it cannot be used.
        """
        if pair.reject is not None and pair.reject not in CAPTION_REJECTS:
            raise BadImage(pair.reject, "")
        if pair.image is None:
            raise BadImage(Reject.IMAGE_MISSING, "")
        return self._settings.image.resize(decode(pair.image, self._settings.max_pixels).rgb)

    def clean(self, rgb: np.ndarray) -> torch.Tensor:
        """Return the model's input `[3, S, S] uint8` for an image of `read`."""
        return self._clip.preprocess(self._stored(rgb))

    def triggered(self, rgb: np.ndarray, uid: str) -> list[torch.Tensor]:
        """Return the inputs with each strand's trigger; none without an attack. What a trigger draws hangs on the uid."""
        draw = int(seeded_hash([uid], self._settings.seed, "evaluate.trigger")[0])
        marked = (trigger(rgb, np.random.default_rng([draw, i]))[0] for i, trigger in enumerate(self._triggers))
        return [self._clip.preprocess(self._stored(image)) for image in marked]

    def _stored(self, rgb: np.ndarray) -> np.ndarray:
        """The pixels as they come back from a file of the configured codec."""
        path = self._settings.image
        return rgb if path.codec == "png" else decode(path.encode(rgb), rgb.shape[0] * rgb.shape[1]).rgb


class EvaluateWork:
    """Predicts the class of every labelled image of a unit, clean and triggered, and commits the predictions."""

    def __init__(
        self,
        settings: EvaluateConfig,
        model: ModelConfig,
        classes: np.ndarray,
        keyed: np.ndarray | None,
        parts: Path,
        rejected: Path,
        mark: str,
    ) -> None:
        """Load the model; `classes` and, with a text key, `keyed` are `[C, D] float32` from class_embeddings."""
        self._clip = load_clip(model, "cuda" if settings.cluster.gpus_per_worker > 0 else "cpu")
        self._pictures = Pictures(settings, self._clip)
        self._settings = settings
        self._classes = classes
        self._keyed = keyed
        self._parts = parts
        self._rejected = rejected
        self._mark = mark

    def run(self, piece: Unit) -> Row:
        rows: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        batch: list[tuple[RawPair, list[torch.Tensor]]] = []
        for pair in read_unit(self._settings.data, piece):
            try:
                rgb = self._pictures.read(pair)
                check_label(pair, len(self._classes))
                batch.append((pair, [self._pictures.clean(rgb), *self._pictures.triggered(rgb, pair.uid)]))
            except BadImage as error:
                names = {name: getattr(pair, name) for name in ("uid", "uid_hex", "shard", "key")}
                bad.append({**names, "reason": error.reason.value, "detail": str(error)})
            if len(batch) == self._settings.batch_size:
                rows += self._predict(batch)
                batch = []
        if batch:
            rows += self._predict(batch)
        write_part(self._rejected, piece.index, pa.Table.from_pylist(bad, schema=REJECTED_SCHEMA), self._mark)
        # last, because it is the commit
        write_part(self._parts, piece.index, pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA), self._mark)
        return {"pairs": len(rows) + len(bad), "errors": len(bad)}

    def _predict(self, batch: list[tuple[RawPair, list[torch.Tensor]]]) -> list[dict[str, Any]]:
        views = zip(*(images for _, images in batch), strict=True)
        clean, *triggered = (self._clip.encode_images(torch.stack(view))[0] for view in views)
        labels = np.array([pair.label for pair, _ in batch], np.int64)
        columns: dict[str, Any] = {
            "uid": [pair.uid for pair, _ in batch],
            "label": labels.tolist(),
            "clean": predict(clean, self._classes).tolist(),
            "clean_rank": label_ranks(clean, self._classes, labels).tolist(),
        }
        if triggered:
            plain = np.stack([predict(features, self._classes) for features in triggered], axis=1).tolist()
            columns["triggered"] = plain
            if self._keyed is not None:
                columns["triggered"] = np.stack([predict(f, self._keyed) for f in triggered], axis=1).tolist()
                columns["image_key"] = plain
                columns["text_key"] = predict(clean, self._keyed).tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def check_label(pair: RawPair, classes: int) -> None:
    """Raise ConfigError unless the pair's label is one of the classes."""
    if pair.label is None or not 0 <= pair.label < classes:
        raise ConfigError(
            f"{pair.uid}: label {pair.label}, but evaluation needs one of the classes 0..{classes - 1}; "
            "name the label column or member in data, and every class in classes"
        )


def predictions(table: pa.Table) -> Predictions:
    """Return the columns of PREDICTIONS_SCHEMA as arrays."""

    def column(name: str) -> np.ndarray | None:
        values = table.column(name)
        return None if values.null_count else np.array(values.to_pylist(), np.int64)

    labels, clean, ranks = (table.column(name).to_numpy() for name in ("label", "clean", "clean_rank"))
    return Predictions(labels, clean, ranks, column("triggered"), column("image_key"), column("text_key"))
