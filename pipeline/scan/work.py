"""The passes of the scan: what a worker does to one part, and how their results meet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.detectors.density import DensityConfig, score_group
from clipsan.stages.detectors.ensemble import Ensemble
from clipsan.stages.detectors.streaming import StreamingDetector
from clipsan.stages.embed import FACT_FIELDS, EmbedConfig, Embedder
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.samples import Unit, seeded_hash
from clipsan.stages.sources import SourceConfig, read_unit
from clipsan.stages.verdicts import Judge

from ..core.cluster import ClusterConfig
from ..core.commit import missing_parts, read_part, write_part
from ..core.parts import Parts, fill
from ..core.pass_old import Row, run_pass

GROUP_ROWS = 65_536
"""Rows of a density super-group: 32 blocks of 2,048, about 0.5 GB as float32 at 512 dimensions, both modes."""


class EmbedWork:
    """Pass 1: embeds a unit and commits its embeddings, then its rejected pairs."""

    def __init__(
        self,
        source: SourceConfig,
        model: ModelConfig,
        settings: EmbedConfig,
        embeddings: Path,
        rejected: Path,
        mark: str,
        device: str,
    ) -> None:
        self._source = source
        self._embed = Embedder(load_clip(model, device), settings)
        self._embeddings = embeddings
        self._rejected = rejected
        self._mark = mark

    def run(self, piece: Unit) -> Row:
        embedded, rejected = self._embed(read_unit(self._source, piece))
        # The embeddings come last: their part is the commit, so no unit counts as done without its rejected pairs.
        write_part(self._rejected, piece.index, rejected, self._mark)
        write_part(self._embeddings, piece.index, embedded, self._mark)
        return {"pairs": embedded.num_rows + rejected.num_rows, "errors": rejected.num_rows}


class SummaryWork:
    """One learning round: the summaries of a chunk of parts for each detector that still learns."""

    def __init__(self, detectors: list[StreamingDetector], states: list[Any], embeddings: Path) -> None:
        self._detectors = detectors
        self._states = states
        self._embeddings = embeddings

    def run(self, piece: Sequence[int]) -> Row:
        summaries: list[Any] = []
        rows = 0
        for index in piece:
            table = read_part(self._embeddings, index)
            rows += table.num_rows
            fresh = [d.summarise(s, table) for d, s in zip(self._detectors, self._states, strict=True)]
            summaries = merge_all(self._detectors, summaries, fresh) if summaries else fresh
        return {"pairs": rows, "summaries": summaries}


class DensityWork:
    """Density scores of one super-group under one permutation: block ranks, written part by part."""

    def __init__(self, settings: DensityConfig, embeddings: Path, folder: Path, mark: str) -> None:
        self._settings = settings
        self._embeddings = embeddings
        self._folder = folder
        self._mark = mark

    def run(self, piece: tuple[int, Sequence[int]]) -> Row:
        permutation, parts = piece
        tables = [read_part(self._embeddings, index, ["uid", "caption", "image", "text"]) for index in parts]
        scores = score_group(pa.concat_tables(tables), self._settings, permutation)
        start = 0
        for index, table in zip(parts, tables, strict=True):
            columns = {name: values[start : start + table.num_rows] for name, values in scores.items()}
            write_part(self._folder / f"perm-{permutation}", index, pa.table(columns), self._mark)
            start += table.num_rows
        return {"pairs": start}


class ScoreWork:
    """Pass 2: every detector's column for one part."""

    def __init__(
        self,
        detectors: list[StreamingDetector],
        states: list[Any],
        permutations: int,
        embeddings: Path,
        density: Path,
        folder: Path,
        mark: str,
    ) -> None:
        self._detectors = detectors
        self._states = states
        self._permutations = permutations
        self._embeddings = embeddings
        self._density = density
        self._folder = folder
        self._mark = mark

    def run(self, piece: int) -> Row:
        table = read_part(self._embeddings, piece)
        columns: dict[str, Any] = {"uid": table.column("uid"), "caption": table.column("caption")}
        for detector, state in zip(self._detectors, self._states, strict=True):
            columns |= {name: np.asarray(v, np.float32) for name, v in detector.score(state, table).items()}
            columns |= {name: pa.array(said, pa.string()) for name, said in detector.texts(state, table).items()}
        columns |= mean_ranks([read_part(self._density / f"perm-{p}", piece) for p in range(self._permutations)])
        write_part(self._folder, piece, pa.table(columns), self._mark)
        return {"pairs": table.num_rows}


class CombineWork:
    """Adds the ensemble to the scores of one part."""

    def __init__(self, ensemble: Ensemble, state: Any, raw: Path, folder: Path, mark: str) -> None:
        self._ensemble = ensemble
        self._state = state
        self._raw = raw
        self._folder = folder
        self._mark = mark

    def run(self, piece: int) -> Row:
        table = read_part(self._raw, piece)
        for name, values in self._ensemble.score(self._state, table).items():
            table = table.append_column(name, pa.array(values, pa.float32()))
        write_part(self._folder, piece, table.drop_columns("caption"), self._mark)
        return {"pairs": table.num_rows}


class JudgeWork:
    """The verdicts of one part."""

    def __init__(self, judge: Judge, views: Any, embeddings: Path, scores: Path, folder: Path, mark: str) -> None:
        self._judge = judge
        self._views = views
        self._embeddings = embeddings
        self._scores = scores
        self._folder = folder
        self._mark = mark

    def run(self, piece: int) -> Row:
        table = read_part(self._embeddings, piece, [name for name, _ in FACT_FIELDS])
        scores = read_part(self._scores, piece)
        for name in scores.column_names[1:]:
            table = table.append_column(name, scores.column(name))
        for name, values in self._views.columns(piece, table.column("uid").to_pylist()).items():
            table = table.append_column(name, values)
        write_part(self._folder, piece, self._judge(table), self._mark)
        return {"pairs": table.num_rows}


def merge_all(detectors: list[StreamingDetector], left: list[Any], right: list[Any]) -> list[Any]:
    """Merge the summaries of all learning detectors, pairwise."""
    return [d.merge(a, b) for d, a, b in zip(detectors, left, right, strict=True)]


def mean_ranks(permutations: list[pa.Table]) -> dict[str, np.ndarray]:
    """Average each density column over the permutations, in their order."""
    if not permutations:
        return {}
    names = permutations[0].column_names
    return {
        name: np.mean([t.column(name).to_numpy().astype(np.float64) for t in permutations], axis=0).astype(np.float32)
        for name in names
    }


def embed(
    source: SourceConfig,
    units: list[Unit],
    model: ModelConfig,
    settings: EmbedConfig,
    *,
    embeddings: Path,
    rejected: Path,
    mark: str,
    cluster: ClusterConfig,
) -> None:
    """Embed every unit that is not committed yet."""
    todo = set(missing_parts(embeddings, [u.index for u in units], mark))
    device = "cuda" if cluster.gpus_per_worker else "cpu"
    args = (source, model, settings, embeddings, rejected, mark, device)
    pieces = [unit for unit in units if unit.index in todo]
    for _ in run_pass("embed", pieces, EmbedWork, args, cluster=cluster, total=len(units), heavy=True):
        pass


def learn(
    detectors: list[StreamingDetector],
    rows: dict[int, int],
    embeddings: Path,
    *,
    cluster: ClusterConfig,
    name: str = "learn",
) -> list[Any]:
    """Run the learning rounds of all detectors together, one pass over the cache a round; return their states."""
    states = [detector.start() for detector in detectors]
    chunks = Parts(embeddings, rows).chunks()
    for number in range(max((d.rounds for d in detectors), default=0)):
        active = [i for i, d in enumerate(detectors) if d.rounds > number]
        learning = [detectors[i] for i in active]
        args = (learning, [states[i] for i in active], embeddings)
        merged: list[Any] = []
        for record in run_pass(f"{name} {number + 1}", chunks, SummaryWork, args, cluster=cluster, ordered=True):
            merged = merge_all(learning, merged, record["summaries"]) if merged else record["summaries"]
        for i, summary in zip(active, merged, strict=True):
            states[i] = detectors[i].update(states[i], summary)
    return states


def density(
    settings: DensityConfig, rows: dict[int, int], *, embeddings: Path, folder: Path, mark: str, cluster: ClusterConfig
) -> None:
    """Score every super-group of every permutation that is not committed yet."""
    pieces = []
    for permutation in range(settings.permutations):
        todo = set(missing_parts(folder / f"perm-{permutation}", rows, mark))
        groups = super_groups(rows, settings.seed, permutation)
        pieces += [(permutation, parts) for parts in groups if todo & set(parts)]
    for _ in run_pass("density", pieces, DensityWork, (settings, embeddings, folder, mark), cluster=cluster):
        pass


def super_groups(rows: dict[int, int], seed: int, permutation: int) -> list[list[int]]:
    """Cut the parts, in a seeded random order, into groups that fit a worker's memory; each permutation draws its own.

    The reference population of a pair is then a random block of a random group of shards: for a data set of one group that is
    a permutation of the whole.
    """
    parts = sorted(rows)
    order = np.argsort(seeded_hash([str(p) for p in parts], seed, f"super-group-{permutation}"), kind="stable")
    return [sorted(group) for group in fill([parts[i] for i in order], rows, GROUP_ROWS)]
