"""What the workers of `clipsan audit` do: a chunk of labels of the screening, and the close look at one label."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.audit.decree import decree
from clipsan.stages.audit.displacement import Clouds, descends, nearest
from clipsan.stages.audit.judge import Judge
from clipsan.stages.audit.prove import prove
from clipsan.stages.audit.pull import Pulled, pull, split
from clipsan.stages.model.clip import ModelConfig, load_clip

from ..core.pass_ import Done, Work
from .settings import AuditConfig, SearchConfig

SCREENED_SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("kind", pa.string()),
        ("cosine", pa.float64()),
        ("genuine", pa.float64()),
        ("margin", pa.float64()),
        ("flips_pct", pa.float64()),
        ("spread", pa.float64()),
        ("trials", pa.int32()),
        ("trigger", pa.binary()),
    ]
)
"""One row a label and kind; the trigger as NumPy's bytes, `[S, S, 4] float16`."""
RATE = pa.struct([("pct", pa.float64()), ("low_pct", pa.float64()), ("high_pct", pa.float64()), ("trials", pa.int32())])
PROVEN_SCHEMA = pa.schema(
    [*(field for field in SCREENED_SCHEMA), ("flips", RATE), ("control", RATE), ("transferred", RATE)]
)
"""One row a candidate; `transferred` is null without a reference."""

CLOUD = pa.struct([("count", pa.int64()), ("sum", pa.list_(pa.float64())), ("text", pa.list_(pa.float32()))])
CLOUDS_SCHEMA = pa.schema([("suspect", CLOUD), ("parent", CLOUD)])
"""One row a label, in their order. `parent` is null unless the reference is the model that the suspect was tuned from; the labels' texts
stand in the first piece alone, null in the others."""

BESIDE_SCHEMA = pa.schema([("json", pa.string())])
"""One row: what a figure beside the verdict is."""
DECREE_BATCH = 32
WORDS_PER_TASK = 1000


@dataclass(frozen=True)
class SearchWork(Work):
    """Seeks triggers towards some labels; a piece is (kind, labels)."""

    settings: AuditConfig
    names: tuple[str, ...]
    pictures: np.ndarray

    def open(self) -> dict[str, Judge]:
        models = {"suspect": self.settings.model, "reference": self.settings.reference}
        return {name: self._judge(model) for name, model in models.items() if model is not None}

    def do(self, piece: Any, tools: dict[str, Judge]) -> Done:
        kind, labels = piece
        # with a reference there is no need to hold back: what any model lets happen takes a trigger nowhere
        tight = "reference" not in tools
        found, arrays = self._pull(tools, kind, labels, self.settings.screening, tight=tight)
        rows = [row(one, array) for one, array in zip(found, arrays, strict=True)]
        return Done(pairs=len(labels), parts=(pa.Table.from_pylist(rows, schema=SCREENED_SCHEMA),))

    def _judge(self, model: ModelConfig) -> Judge:
        clip = load_clip(model, "cuda" if self.settings.cluster.gpus_per_worker > 0 else "cpu")
        return Judge(clip, self.names, self.settings.templates)

    def _pull(
        self, tools: dict[str, Judge], kind: str, labels: Sequence[int], search: SearchConfig, *, tight: bool = False
    ) -> tuple[list[Pulled], list[np.ndarray]]:
        return pull(
            tools["suspect"],
            kind,
            labels,
            self.pictures,
            steps=search.steps,
            per_label=search.images_per_label,
            seed=self.settings.seed,
            reference=tools.get("reference"),
            tight=tight,
        )


@dataclass(frozen=True)
class CloudWork(SearchWork):
    """Sums up what is taken for each label among some pictures; a piece is a range of them.

    What a picture shows is said by the model that the suspect was tuned from, where that is the reference, else by the suspect.
    """

    def do(self, piece: Any, tools: dict[str, Judge]) -> Done:
        start, stop = piece
        texts = {name: np.asarray(judge.labels.cpu(), np.float32) for name, judge in tools.items()}
        names = {"suspect": "suspect"}
        if "reference" in tools and descends(texts["suspect"], texts["reference"]):
            names["parent"] = "reference"
        seen = {name: tools[model].seen(self.pictures[start:stop]) for name, model in names.items()}
        teller = "parent" if "parent" in names else "suspect"
        said = nearest(seen[teller], texts[names[teller]])
        rows: dict[str, list[Any]] = {name: [None] * len(self.names) for name in CLOUDS_SCHEMA.names}
        for name, model in names.items():
            clouds = Clouds.of(seen[name], said, len(self.names))
            told = list(texts[model]) if start == 0 else [None] * len(self.names)
            rows[name] = [
                {"count": count, "sum": sums, "text": text}
                for count, sums, text in zip(clouds.counts, clouds.sums, told, strict=True)
            ]
        return Done(pairs=stop - start, parts=(pa.table(rows, schema=CLOUDS_SCHEMA),))


@dataclass(frozen=True)
class ProofWork(SearchWork):
    """Seeks the trigger of one candidate for longer, and tries it on the images that it was not sought on."""

    def do(self, piece: Any, tools: dict[str, Judge]) -> Done:
        kind, (label,) = piece
        judge = tools["suspect"]
        (found,), (array,) = self._pull(tools, kind, (label,), self.settings.inversion)
        _, tried = split(self.pictures)
        array = array.astype(np.float16).astype(np.float32)
        reference = tools.get("reference")
        proof = prove(judge, kind, array, label, tried, reference=reference, seed=self.settings.seed)
        rates = {
            "flips": asdict(proof.dossier.flips),
            "control": asdict(proof.dossier.control),
            "transferred": None if proof.transferred is None else asdict(proof.transferred),
        }
        table = pa.Table.from_pylist([row(found, array) | rates], schema=PROVEN_SCHEMA)
        return Done(pairs=1, parts=(table,))


def word_pieces(words: Sequence[str]) -> dict[int, Sequence[str]]:
    """Return the pieces of a work that goes through words."""
    return {i: words[at : at + WORDS_PER_TASK] for i, at in enumerate(range(0, len(words), WORDS_PER_TASK))}


@dataclass(frozen=True)
class SuspectWork(SearchWork):
    """What needs no reference."""

    def open(self) -> dict[str, Judge]:
        return {"suspect": self._judge(self.settings.model)}


@dataclass(frozen=True)
class BesideWork(SuspectWork):
    """DECREE's score of the image tower, a figure that stands beside the verdict."""

    def do(self, piece: Any, tools: dict[str, Judge]) -> Done:
        settings = self.settings
        found = decree(
            tools["suspect"], self.pictures, steps=settings.decree_steps, batch=DECREE_BATCH, seed=settings.seed
        )
        table = pa.Table.from_pylist([{"json": json.dumps(found)}], schema=BESIDE_SCHEMA)
        return Done(pairs=1, parts=(table,))


def row(found: Pulled, array: np.ndarray) -> dict[str, Any]:
    """Return a row of SCREENED_SCHEMA."""
    file = io.BytesIO()
    np.save(file, array.astype(np.float16))
    return {**asdict(found), "trigger": file.getvalue()}


def trigger_of(stored: bytes) -> np.ndarray:
    """Return `[S, S, 4] float32` of what `row` stored."""
    return np.asarray(np.load(io.BytesIO(stored), allow_pickle=False), np.float32)
