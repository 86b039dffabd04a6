"""The passes of the scan: what a worker does to one part."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.captions import Vocabulary
from clipsan.stages.detectors.density import DensityConfig, score_group
from clipsan.stages.detectors.ensemble import Ensemble
from clipsan.stages.detectors.streaming import StreamingDetector
from clipsan.stages.detectors.trigger_words import WordCounts, count_words, merge_words
from clipsan.stages.embed import FACT_FIELDS, Block, EmbedConfig, Embedder, Encoder, Preparer
from clipsan.stages.model.clip import Clip, Inputs, ModelConfig, resolve_model
from clipsan.stages.report.figures import overlay, thumbnail
from clipsan.stages.samples import Unit, seeded_hash
from clipsan.stages.sources import SourceConfig, read_unit
from clipsan.stages.verdicts import Judge

from ..core.commit import read_part
from ..core.kept import kept_clip
from ..core.parts import Parts, fill
from ..core.pass_ import Done, Work
from ..core.place import AnyPath
from ..data.pixels import Pictures, seen
from ..proof.views import Views

GROUP_ROWS = 65_536
"""Rows of a density super-group: 32 blocks of 2,048, about 0.5 GB as float32 at 512 dimensions, both modes."""


@dataclass(frozen=True)
class EmbedWork(Work):
    """Pass 1: the embeddings of a unit, and the pairs of it that have none; whole, or in two halves (see core.stream)."""

    source: SourceConfig
    model: ModelConfig
    settings: EmbedConfig
    device: str

    def open(self) -> Embedder:
        return Embedder(self._load(), self.settings)

    def do(self, piece: Unit, tools: Embedder) -> Done:
        embedded, rejected = tools(read_unit(self.source, piece))
        return Done(
            pairs=embedded.num_rows + rejected.num_rows,
            errors=rejected.num_rows,
            parts=(embedded,),
            rejected=rejected,
        )

    def open_reader(self) -> Preparer:
        return Preparer(Inputs(resolve_model(self.model)), self.settings, self.device)

    def read(self, piece: Unit, tools: Preparer) -> Iterator[Block]:
        return tools(read_unit(self.source, piece))

    def open_encoder(self) -> Encoder:
        return Encoder(self._load(), self.settings)

    def encode(self, block: Block, tools: Encoder) -> tuple[pa.Table, pa.Table]:
        return tools(block), block.rejected

    def _load(self) -> Clip:
        return kept_clip(self.model, self.device, self.settings.precision_on(self.device))


@dataclass(frozen=True)
class SummaryWork(Work):
    """One learning round: the summaries of a chunk of parts for each detector that still learns."""

    detectors: Sequence[StreamingDetector]
    states: Sequence[Any]
    table: Parts

    def do(self, piece: Sequence[int], tools: None) -> Done:
        summaries: list[Any] = []
        rows = 0
        wanted = read_by(self.detectors)
        for index in piece:
            table = self.table.read(index, wanted)
            rows += table.num_rows
            fresh = [d.summarise(s, table) for d, s in zip(self.detectors, self.states, strict=True)]
            summaries = merge_all(self.detectors, summaries, fresh) if summaries else fresh
        return Done(pairs=rows, record=summaries)


@dataclass(frozen=True)
class ShareWork(Work):
    """A share of the update of one detector."""

    detector: StreamingDetector
    common: Any
    shares: AnyPath

    def do(self, piece: int, tools: None) -> Done:
        share = read_part(self.shares, piece)
        return Done(pairs=share.num_rows, record=self.detector.work_out(self.common, share))


@dataclass(frozen=True)
class DensityWork(Work):
    """Density scores of one super-group under one permutation: block ranks, part by part."""

    settings: DensityConfig
    embeddings: Parts
    device: str = "cpu"

    def do(self, piece: tuple[int, Sequence[int]], tools: None) -> Done:
        permutation, parts = piece
        tables = [self.embeddings.read(index, ["uid", "caption", "image", "text"]) for index in parts]
        scores = pa.table(score_group(pa.concat_tables(tables), self.settings, permutation, self.device))
        ends = np.cumsum([table.num_rows for table in tables]).tolist()
        own = [scores.slice(end - table.num_rows, table.num_rows) for end, table in zip(ends, tables, strict=True)]
        return Done(pairs=scores.num_rows, parts=tuple(own))


def density_pieces(rows: Mapping[int, int], settings: DensityConfig) -> dict[tuple[str, ...], tuple[int, list[int]]]:
    """Return (permutation, parts) of every super-group, by the keys of the parts that it makes."""
    return {
        tuple(density_key(permutation, index) for index in parts): (permutation, parts)
        for permutation in range(settings.permutations)
        for parts in super_groups(rows, settings.seed, permutation)
    }


def density_key(permutation: int, index: int) -> str:
    """Return the name of a part's density scores under one permutation."""
    return f"perm-{permutation}/part-{index:05d}"


@dataclass(frozen=True, kw_only=True)
class ScoreWork(Work):
    """Pass 2: every detector's columns for one part."""

    detectors: Sequence[StreamingDetector]
    states: Sequence[Any]
    embeddings: Parts
    density: AnyPath
    permutations: int

    def do(self, piece: int, tools: None) -> Done:
        table = self.embeddings.read(piece, {"uid", "caption"} | read_by(self.detectors))
        columns: dict[str, Any] = {"uid": table.column("uid"), "caption": table.column("caption")}
        for detector, state in zip(self.detectors, self.states, strict=True):
            scores, texts = detector.tell(state, table)
            columns |= {name: np.asarray(v, np.float32) for name, v in scores.items()}
            columns |= {name: pa.array(said, pa.string()) for name, said in texts.items()}
            columns |= {name: pa.array(n, pa.int32()) for name, n in detector.tallies(state, table).items()}
        columns |= mean_ranks([read_part(self.density, density_key(p, piece)) for p in range(self.permutations)])
        return Done(pairs=table.num_rows, parts=(pa.table(columns),))


@dataclass(frozen=True)
class CombineWork(Work):
    """Adds the ensemble to the scores of one part."""

    ensemble: Ensemble
    state: Any
    raw: Parts

    def do(self, piece: int, tools: None) -> Done:
        table = self.raw.read(piece)
        for name, values in self.ensemble.score(self.state, table).items():
            table = table.append_column(name, pa.array(values, pa.float32()))
        return Done(pairs=table.num_rows, parts=(table.drop_columns("caption"),))


@dataclass(frozen=True)
class WordsWork(Work):
    """Counts the words of the named concepts' captions, over a run of parts; pairs are accused from `threshold` on."""

    vocabulary: Vocabulary
    concepts: Sequence[str]
    threshold: float
    embeddings: Parts
    scores: Parts

    def do(self, piece: Sequence[int], tools: None) -> Done:
        rows = 0
        counts: dict[str, WordCounts] = {}
        for index in piece:
            captions = self.embeddings.read(index, ["caption"]).column("caption").to_pylist()
            accused = self.scores.read(index, ["ensemble"]).column("ensemble").to_numpy() >= self.threshold
            fresh = count_words(self.vocabulary, self.concepts, captions, accused)
            counts = merge_words(counts, fresh) if counts else fresh
            rows += len(captions)
        return Done(pairs=rows, record=counts)


@dataclass(frozen=True)
class JudgeWork(Work):
    """The verdicts of one part."""

    judge: Judge
    views: Views
    embeddings: Parts
    scores: Parts

    def do(self, piece: int, tools: None) -> Done:
        table = self.embeddings.read(piece, [name for name, _ in FACT_FIELDS])
        scores = self.scores.read(piece)
        for name in scores.column_names[1:]:
            table = table.append_column(name, scores.column(name))
        for name, values in self.views.columns(piece, table.column("uid").to_pylist()).items():
            table = table.append_column(name, values)
        return Done(pairs=table.num_rows, parts=(self.judge(table),))


@dataclass(frozen=True)
class PictureWork(Work):
    """Fetches the pictures of a few pairs of one unit: uid -> thumbnail, and the same with what carries the claim on it."""

    pictures: Pictures
    model: ModelConfig
    masks: Mapping[str, np.ndarray]
    """Uid -> `[S, S] bool`, for some of them."""

    def open(self) -> Inputs | None:
        return Inputs(resolve_model(self.model)) if self.masks else None

    def do(self, piece: tuple[Unit, Sequence[str]], tools: Inputs | None) -> Done:
        unit, wanted = piece
        found = {
            pair.uid: (thumbnail(rgb), self._overlay(pair.uid, rgb, tools))
            for pair, rgb in self.pictures.of(unit, wanted)
        }
        return Done(pairs=len(found), record=found)

    def _overlay(self, uid: str, rgb: np.ndarray, inputs: Inputs | None) -> bytes | None:
        return None if inputs is None or uid not in self.masks else overlay(seen(inputs, rgb), self.masks[uid])


def read_by(detectors: Sequence[StreamingDetector]) -> frozenset[str]:
    """Return the columns that some detectors need, or patterns of them."""
    return frozenset().union(*(detector.reads for detector in detectors))


def merge_all(detectors: Sequence[StreamingDetector], left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
    """Merge the summaries of all learning detectors, pairwise."""
    return [d.merge(a, b) for d, a, b in zip(detectors, left, right, strict=True)]


def mean_ranks(permutations: Sequence[pa.Table]) -> dict[str, np.ndarray]:
    """Average each density column over the permutations, in their order."""
    if not permutations:
        return {}
    names = permutations[0].column_names
    return {
        name: np.mean([t.column(name).to_numpy().astype(np.float64) for t in permutations], axis=0).astype(np.float32)
        for name in names
    }


def super_groups(rows: Mapping[int, int], seed: int, permutation: int) -> list[list[int]]:
    """Cut the parts, in a seeded random order, into groups that fit a worker's memory; each permutation draws its own.

    The reference population of a pair is then a random block of a random group of shards: for a data set of one group that is
    a permutation of the whole.
    """
    parts = sorted(rows)
    order = np.argsort(seeded_hash([str(p) for p in parts], seed, f"super-group-{permutation}"), kind="stable")
    return [sorted(group) for group in fill([parts[i] for i in order], rows, GROUP_ROWS)]
