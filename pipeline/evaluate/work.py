"""What the workers of `clipsan evaluate` do to one unit of images."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from clipsan.stages.attack.triggers import Trigger
from clipsan.stages.decode import BadImage, decode
from clipsan.stages.embed import REJECTED_SCHEMA
from clipsan.stages.evaluation.linear_probe import Probe
from clipsan.stages.evaluation.resistivity import resistivity
from clipsan.stages.evaluation.zero_shot import label_ranks, predict
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.samples import CAPTION_REJECTS, RawPair, Reject, Unit, seeded_hash
from clipsan.stages.sources import SourceConfig, read_unit

from ..core.config import ConfigError
from ..core.pass_ import Done, Work
from .settings import EvaluateConfig

CLASS_LIST = pa.list_(pa.int32())
VECTOR = pa.list_(pa.float32())

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("label", pa.int32()),
        ("clean", pa.int32()),
        ("clean_rank", pa.int32()),
        ("triggered", CLASS_LIST),
        ("image_key", CLASS_LIST),
        ("text_key", pa.int32()),
        ("probe_clean", pa.int32()),
        ("probe_triggered", CLASS_LIST),
    ]
)
"""One row an image; lists hold one class a strand. Null where the evaluation has no attack, text key or probe."""
FEATURES_SCHEMA = pa.schema([("uid", pa.string()), ("label", pa.int32()), ("image", VECTOR)])
"""One row an image of the probe's training set."""
RETRIEVAL_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("image", VECTOR),
        ("triggered", VECTOR),
        ("captions", pa.list_(pa.string())),
        ("texts", VECTOR),
    ]
)
"""One row an image; `triggered` holds a vector a strand and `texts` a vector a caption, end to end."""
RESISTIVITY_SCHEMA = pa.schema(
    [("uid", pa.string()), ("probe", pa.string()), ("layer", pa.string()), ("cosine", pa.float64())]
)
"""One row an image, probe and layer."""


class Pictures:
    """From a pair to the model's inputs, clean and triggered."""

    def __init__(self, settings: EvaluateConfig, clip: Clip) -> None:
        self._settings = settings
        self._clip = clip
        attack = settings.attack
        self._triggers = (
            []
            if attack is None
            else [(s.trigger.when_used().build(), s.trigger.on_model_input) for s in attack.strands]
        )

    def read(self, pair: RawPair, *, captioned: bool = False) -> np.ndarray:
        """Return the pair's image as `[H, W, 3] uint8`, resized as `settings.image` says.

        Raises:
            BadImage: it cannot be used, or its caption cannot and it must be `captioned`.
        """
        if pair.reject is not None and (captioned or pair.reject not in CAPTION_REJECTS):
            raise BadImage(pair.reject, "")
        if pair.image is None:
            raise BadImage(Reject.IMAGE_MISSING, "")
        return self._settings.image.resize(decode(pair.image, self._settings.max_pixels).rgb)

    def clean(self, rgb: np.ndarray) -> torch.Tensor:
        """Return the model's input `[3, S, S] uint8` for an image of `read`."""
        return self._clip.preprocess(self._stored(rgb))

    def triggered(self, rgb: np.ndarray, uid: str) -> list[torch.Tensor]:
        """Return the inputs with each strand's trigger; none without an attack. What a trigger draws depends on the uid."""
        draw = int(seeded_hash([uid], self._settings.seed, "evaluate.trigger")[0])
        return [
            self._triggered(trigger, on_input, rgb, np.random.default_rng([draw, i]))
            for i, (trigger, on_input) in enumerate(self._triggers)
        ]

    def _triggered(self, trigger: Trigger, on_input: bool, rgb: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        if on_input:
            seen = np.ascontiguousarray(self.clean(rgb).permute(1, 2, 0).numpy())
            return torch.from_numpy(np.ascontiguousarray(trigger(seen, rng)[0].transpose(2, 0, 1)))
        return self._clip.preprocess(self._stored(trigger(rgb, rng)[0]))

    def views(self, rgb: np.ndarray, uid: str) -> list[torch.Tensor]:
        """Return the clean input and the triggered ones."""
        return [self.clean(rgb), *self.triggered(rgb, uid)]

    def _stored(self, rgb: np.ndarray) -> np.ndarray:
        """The pixels as they come back from a file of the configured codec."""
        path = self._settings.image
        return rgb if path.codec == "png" else decode(path.encode(rgb), rgb.shape[0] * rgb.shape[1]).rgb


Batch = Sequence[tuple[RawPair, list[torch.Tensor]]]
"""Pairs with their clean and triggered inputs."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a process keeps for the units that it measures."""

    clip: Clip
    pictures: Pictures

    def features(self, batch: Batch) -> list[np.ndarray]:
        """Return `[B, D] float32` for each view of the pairs: clean first, then each strand."""
        views = zip(*(images for _, images in batch), strict=True)
        return [self.clip.encode_images(torch.stack(view))[0] for view in views]


@dataclass(frozen=True, kw_only=True)
class UnitWork(Work):
    """Reads a unit and measures its pairs in batches."""

    schema: ClassVar[pa.Schema]

    settings: EvaluateConfig
    data: SourceConfig
    model: ModelConfig

    def open(self) -> Tools:
        clip = load_clip(self.model, "cuda" if self.settings.cluster.gpus_per_worker > 0 else "cpu")
        return Tools(clip, Pictures(self.settings, clip))

    def do(self, piece: Unit, tools: Tools) -> Done:
        tables = [self.schema.empty_table()]
        bad: list[dict[str, Any]] = []
        batch: list[tuple[RawPair, list[torch.Tensor]]] = []
        for pair in read_unit(self.data, piece):
            try:
                inputs = self._inputs(pair, tools.pictures)
            except BadImage as error:
                names = {name: getattr(pair, name) for name in ("uid", "uid_hex", "shard", "key")}
                bad.append({**names, "reason": error.reason.value, "detail": str(error)})
                continue
            if inputs is not None:
                batch.append((pair, inputs))
            if len(batch) == self.settings.batch_size:
                tables.append(self._table(batch, tools))
                batch = []
        if batch:
            tables.append(self._table(batch, tools))
        table = pa.concat_tables(tables)
        rejected = pa.Table.from_pylist(bad, schema=REJECTED_SCHEMA)
        return Done(pairs=table.num_rows + len(bad), errors=len(bad), parts=(table,), rejected=rejected)

    @abstractmethod
    def _inputs(self, pair: RawPair, pictures: Pictures) -> list[torch.Tensor] | None:
        """Return the model's inputs `[3, S, S] uint8` for a pair, or None when it plays no part.

        Raises:
            BadImage: the pair cannot be used.
        """

    @abstractmethod
    def _table(self, batch: Batch, tools: Tools) -> pa.Table:
        """Return the rows of a batch."""


@dataclass(frozen=True, kw_only=True)
class PredictWork(UnitWork):
    """Predicts the class of every labelled image, clean and triggered."""

    schema = PREDICTIONS_SCHEMA

    classes: np.ndarray
    """`[C, D] float32` from class_embeddings."""
    keyed: np.ndarray | None
    """The same with the text key in front of every prompt; None without a key."""
    probe: Probe | None

    def _inputs(self, pair: RawPair, pictures: Pictures) -> list[torch.Tensor]:
        rgb = pictures.read(pair)
        check_label(pair, len(self.classes))
        return pictures.views(rgb, pair.uid)

    def _table(self, batch: Batch, tools: Tools) -> pa.Table:
        clean, *triggered = tools.features(batch)
        labels = np.array([pair.label for pair, _ in batch], np.int64)
        columns: dict[str, Any] = {
            "uid": [pair.uid for pair, _ in batch],
            "label": labels,
            "clean": predict(clean, self.classes),
            "clean_rank": label_ranks(clean, self.classes, labels),
        }
        if triggered:
            plain = _by_strand([predict(features, self.classes) for features in triggered])
            columns["triggered"] = plain
            if self.keyed is not None:
                columns["triggered"] = _by_strand([predict(features, self.keyed) for features in triggered])
                columns["image_key"] = plain
                columns["text_key"] = predict(clean, self.keyed)
        if self.probe is not None:
            columns["probe_clean"] = self.probe.predict(clean)
            if triggered:
                columns["probe_triggered"] = _by_strand([self.probe.predict(features) for features in triggered])
        nothing = [None] * len(batch)
        arrays = [pa.array(columns.get(field.name, nothing), field.type) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)


@dataclass(frozen=True, kw_only=True)
class FeatureWork(UnitWork):
    """Encodes the labelled images that a probe is trained on."""

    schema = FEATURES_SCHEMA

    classes: int

    def _inputs(self, pair: RawPair, pictures: Pictures) -> list[torch.Tensor]:
        rgb = pictures.read(pair)
        check_label(pair, self.classes)
        return [pictures.clean(rgb)]

    def _table(self, batch: Batch, tools: Tools) -> pa.Table:
        (features,) = tools.features(batch)
        labels = pa.array([pair.label for pair, _ in batch], pa.int32())
        return pa.Table.from_arrays([_uids(batch), labels, _vectors(list(features))], schema=self.schema)


@dataclass(frozen=True, kw_only=True)
class RetrievalWork(UnitWork):
    """Encodes captioned images, clean and triggered, and all of their captions."""

    schema = RETRIEVAL_SCHEMA

    def _inputs(self, pair: RawPair, pictures: Pictures) -> list[torch.Tensor]:
        return pictures.views(pictures.read(pair, captioned=True), pair.uid)

    def _table(self, batch: Batch, tools: Tools) -> pa.Table:
        clean, *triggered = tools.features(batch)
        captions = [list(pair.captions) or [pair.caption or ""] for pair, _ in batch]
        texts = tools.clip.encode_text([text for own in captions for text in own])
        ends = np.cumsum([len(own) for own in captions])[:-1]
        marked = np.concatenate(triggered, axis=1) if triggered else np.zeros((len(batch), 0), np.float32)
        arrays = [
            _uids(batch),
            _vectors(list(clean)),
            _vectors(list(marked)),
            pa.array(captions, pa.list_(pa.string())),
            _vectors([own.ravel() for own in np.split(texts, ends)]),
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)


@dataclass(frozen=True, kw_only=True)
class ResistivityWork(UnitWork):
    """Measures perturbation resistivity on the sample: the images whose draw is at most the cut."""

    schema = RESISTIVITY_SCHEMA

    cut: int
    layers: list[str]

    def _inputs(self, pair: RawPair, pictures: Pictures) -> list[torch.Tensor] | None:
        if int(resistivity_draws([pair.uid], self.settings.seed)[0]) > self.cut:
            return None
        try:
            rgb = pictures.read(pair)
        except BadImage:  # its draw is below the cut, but the prediction pass has rejected it
            return None
        return pictures.views(rgb, pair.uid)

    def _table(self, batch: Batch, tools: Tools) -> pa.Table:
        clean, *triggered = (torch.stack(view) for view in zip(*(images for _, images in batch), strict=True))
        uids = [pair.uid for pair, _ in batch]
        draws = [int(draw) for draw in resistivity_draws(uids, self.settings.seed)]
        found = resistivity(tools.clip, clean, triggered, draws, self.layers)
        rows = [
            {"uid": uid, "probe": probe, "layer": layer, "cosine": float(cosine)}
            for probe, layers in found.items()
            for layer, cosines in layers.items()
            for uid, cosine in zip(uids, cosines, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=self.schema)


def resistivity_draws(uids: list[str], seed: int) -> np.ndarray:
    """Return `[N] uint64`: the smallest make the sample, and each seeds the image's probes."""
    return seeded_hash(uids, seed, "evaluate.resistivity")


def check_label(pair: RawPair, classes: int) -> None:
    """Raise ConfigError unless the pair's label is one of the classes."""
    if pair.label is None or not 0 <= pair.label < classes:
        raise ConfigError(
            f"{pair.uid}: label {pair.label}, but evaluation needs one of the classes 0..{classes - 1}; "
            "name the label column or member in data, and every class in classes"
        )


def _by_strand(classes: list[np.ndarray]) -> list[list[int]]:
    """Turn one `[B]` a strand into one list a row."""
    rows: list[list[int]] = np.stack(classes, axis=1).tolist()
    return rows


def _uids(batch: Batch) -> pa.Array:
    return pa.array([pair.uid for pair, _ in batch], pa.string())


def _vectors(rows: list[np.ndarray]) -> pa.Array:
    """Return lists of float32, one a row, without a detour through Python numbers."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(rows).astype(np.float32)))
