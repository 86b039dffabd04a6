"""The passes that prove: what a worker does to a unit, to a group or to a trigger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from clipsan.stages.captions import Vocabulary
from clipsan.stages.decode import decode
from clipsan.stages.dossier.carriers import Direction, fit_direction, score_table, without_trigger
from clipsan.stages.dossier.dossier import Dossier, Rate, hits_of, rate, verify
from clipsan.stages.dossier.residual import LEAST_CLEAN, LEAST_GROUP, ResidualProof, prove_sides
from clipsan.stages.dossier.texture import TextureProof, prove_texture
from clipsan.stages.dossier.warp import WarpProof, prove_warp
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.oracle import OracleConfig, build_oracle
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.examine import ExamineConfig, Examiner, evidence_table
from clipsan.stages.proof.labeller import Labeller
from clipsan.stages.proof.vocabulary import Labels, merge, summarise
from clipsan.stages.report.dossiers import examples
from clipsan.stages.samples import Unit
from clipsan.stages.sources import SourceConfig, read_unit

from ..core.commit import read_part, write_part
from ..core.pass_old import Row
from ..data.pixels import read_pixels
from .plan import Group

EXAMPLES = 4
"""Held-out pictures that the report shows with each trigger, of those among the first TRIED that are no target already."""
TRIED = 32


@dataclass(frozen=True, slots=True)
class Bench:
    """What every worker that runs the suspect model holds."""

    model: ModelConfig
    device: str
    labels: Labels
    held_out: np.ndarray
    """`[K, S, S, 3] uint8`, inconspicuous pictures."""
    seed: int
    precision: Literal["f32", "bf16"] = "f32"
    """Of the forward passes that count flips."""

    def load(self) -> Clip:
        """Return the suspect model."""
        return load_clip(self.model, self.device, precision=self.precision)


class LabelWork:
    """Sums of the text embeddings of each concept, over a run of parts."""

    def __init__(self, vocabulary: Vocabulary, embeddings: Path) -> None:
        self._vocabulary = vocabulary
        self._embeddings = embeddings

    def run(self, piece: Sequence[int]) -> Row:
        sums = None
        rows = 0
        for index in piece:
            table = read_part(self._embeddings, index, ["caption", "text"])
            rows += table.num_rows
            fresh = summarise(self._vocabulary, table)
            sums = fresh if sums is None else merge(sums, fresh)
        return {"pairs": rows, "sums": sums}


class ExamineWork:
    """Passes 3 and 4 on single pairs: the oracle's view of the chosen pairs of a unit, and the proof of their regions."""

    def __init__(
        self,
        bench: Bench,
        oracle: OracleConfig,
        settings: ExamineConfig,
        labeller: ModelConfig | None,
        source: SourceConfig,
        max_pixels: int,
        evidence: Path,
        mark: str,
    ) -> None:
        clip = bench.load()
        trusted = Labeller(load_clip(labeller, bench.device), bench.labels.names) if labeller else None
        limits = replace(settings, held_out=min(settings.held_out, len(bench.held_out)), seed=bench.seed)
        segmenter = build_oracle(oracle, bench.device)
        self._examiner = Examiner(clip, segmenter, bench.labels, bench.held_out, limits, trusted)
        self._source = source
        self._max_pixels = max_pixels
        self._evidence = evidence
        self._mark = mark

    def run(self, piece: tuple[Unit, dict[str, str]]) -> Row:
        unit, claims = piece
        rows = []
        for pair in read_unit(self._source, unit):
            if pair.reject is None and pair.image is not None and pair.uid in claims:
                rgb = decode(pair.image, self._max_pixels).rgb
                rows.append(self._examiner.examine(pair.uid, rgb, claims[pair.uid]))
        write_part(self._evidence, unit.index, evidence_table(rows), self._mark)
        return {"pairs": len(rows)}


class GroupWork:
    """Pass 4 on groups: what the pictures of a concept's flagged side have in common that others lack, in the mean or else in
    the spectrum."""

    def __init__(self, bench: Bench, pixels: Path, parts: Sequence[int]) -> None:
        self._bench = bench
        self._clip = bench.load()
        self._pixels = pixels
        self._parts = parts

    def run(self, piece: Group) -> Row:
        size = self._clip.image_size
        uids = [Group.uids(side) for side in (piece.flagged, piece.rest)]
        flagged, rest = (read_pixels(self._pixels, side, size, self._parts) for side in uids)
        bench = self._bench
        third = len(bench.held_out) // 3
        held_out, clean = bench.held_out[:third], bench.held_out[third:]
        done = len(flagged) + len(rest)
        if len(flagged) < LEAST_GROUP or len(clean) // 2 < max(LEAST_CLEAN, LEAST_GROUP):
            return {"pairs": done, "dossiers": []}
        suspect = Suspect(self._clip, bench.labels)
        sides = prove_sides(suspect, bench.labels.index(piece.concept), flagged, rest, clean, held_out)
        found = sides.carrier
        if found is not None:
            carriers = uids[0] if found is sides.flagged else uids[1]
            return {"pairs": done, "dossiers": [residual_dossier(found, piece.concept, carriers)]}
        for side, pictures in zip(uids, (flagged, rest), strict=True):
            if len(pictures) < LEAST_GROUP:
                continue
            claim = bench.labels.index(piece.concept)
            drawn = prove_texture(suspect, claim, pictures, clean, held_out, seed=bench.seed)
            if drawn is not None and drawn.proven:
                return {"pairs": done, "dossiers": [texture_dossier(drawn, piece.concept, side)]}
        return {"pairs": done, "dossiers": []}


def residual_dossier(proof: ResidualProof, claim: str, uids: Sequence[str]) -> Dossier:
    """Return the dossier of a trigger that lies over the whole image; `uids [n]` are those of the group."""
    region = proof.shift.region()
    return Dossier(
        id="",
        kind="residual",
        targets=(claim,),
        side=len(proof.shift.pattern),
        flips=_share(proof.flips, proof.trials),
        control=_share(proof.control_flips, proof.trials),
        uids=_carrying(uids, proof.members),
        heat=None if region is None else region.mask.astype(np.float32),
        effect=proof.shift.offset.astype(np.float32),
        gain=proof.shift.gain,
        strength=proof.strength,
    )


def texture_dossier(proof: TextureProof, claim: str, uids: Sequence[str]) -> Dossier:
    """Return the dossier of a trigger that is drawn anew for every image; `uids [n]` are those of the group."""
    return Dossier(
        id="",
        kind="texture",
        targets=(claim,),
        side=len(proof.texture.keep),
        flips=_share(proof.flips, proof.trials),
        control=_share(proof.control_flips, proof.trials),
        uids=_carrying(uids, proof.members),
        effect=proof.texture.patterns,
        band=proof.texture.keep,
    )


def warp_dossier(proof: WarpProof, claim: str) -> Dossier:
    """Return the dossier of a warp; it rests on no pair, the sweep back finds those that carry it."""
    return Dossier(
        id="",
        kind="warp",
        targets=(claim,),
        side=len(proof.field),
        flips=_share(proof.flips, proof.trials),
        control=_share(proof.control_flips, proof.trials),
        uids=(),
        effect=proof.field,
    )


def _share(hits: int, trials: int) -> Rate:
    return rate((np.arange(trials) < hits).astype(np.int64), np.ones(trials, np.int64))


def _carrying(uids: Sequence[str], members: np.ndarray) -> tuple[str, ...]:
    return tuple(sorted(uid for uid, carries in zip(uids, members, strict=True) if carries))


class WarpWork:
    """Pass 4 on concepts that are named and have no trigger yet: the smooth warp that makes other images one of them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._clip = load_clip(bench.model, bench.device)

    def run(self, piece: str) -> Row:
        bench = self._bench
        suspect = Suspect(self._clip, bench.labels)
        found = prove_warp(self._clip, suspect, bench.labels.index(piece), bench.held_out, seed=bench.seed)
        return {"pairs": len(bench.held_out), "dossiers": [warp_dossier(found, piece)] if found.proven else []}


class VerifyWork:
    """Whether a trigger flips a larger held-out set than the pairs that it was found on were tried with."""

    def __init__(self, bench: Bench) -> None:
        self._held_out = bench.held_out
        self._seed = bench.seed
        self._hits = hits_of(Suspect(bench.load(), bench.labels))

    def run(self, piece: Dossier) -> Row:
        found = piece
        if piece.kind == "patch":
            found = verify(self._hits, piece, self._held_out, seed=self._seed)
        return {"pairs": len(self._held_out), "dossier": found}


class DirectionWork:
    """Where a proven trigger moves the model's features."""

    def __init__(self, bench: Bench, layers: Sequence[str]) -> None:
        self._bench = bench
        self._clip = load_clip(bench.model, bench.device)
        self._layers = layers

    def run(self, piece: Dossier) -> Row:
        bench = self._bench
        direction = fit_direction(self._clip, bench.held_out, piece, self._layers, seed=bench.seed)
        others = [i for i, name in enumerate(self._name(bench.held_out[:TRIED])) if name not in piece.targets]
        shown = examples(piece, bench.held_out[others[:EXAMPLES]], self._name, seed=bench.seed) if others else ()
        return {"pairs": len(bench.held_out), "direction": direction, "examples": shown}

    def _name(self, images: np.ndarray) -> list[str]:
        labels = self._bench.labels
        return [labels.names[i] for i in Suspect(self._clip, labels)(images).argmax(axis=1)]


class SweepWork:
    """Pass 5 on the cache: which pairs of a part that claim a trigger's target look as if they carry it."""

    def __init__(self, triggers: Sequence[tuple[Dossier, Direction]], vocabulary: Vocabulary, embeddings: Path) -> None:
        self._triggers = triggers
        self._vocabulary = vocabulary
        self._embeddings = embeddings

    def run(self, piece: int) -> Row:
        table = read_part(self._embeddings, piece)
        members = self._vocabulary.members(table.column("caption").to_pylist()).tocsc()
        uids = table.column("uid").to_pylist()
        found: dict[str, Hits] = {}
        for dossier, direction in self._triggers:
            claims = np.zeros(table.num_rows, bool)
            for target in dossier.targets:
                claims[members[:, self._vocabulary.names.index(target)].indices] = True
            score = score_table(direction, table) - direction.threshold
            for row in np.flatnonzero(claims & (score >= 0)):
                found.setdefault(uids[row], []).append((dossier.id, float(score[row])))
        for hits in found.values():
            hits.sort(key=lambda hit: -hit[1])
        return {"pairs": table.num_rows, "part": piece, "candidates": found}


Hits = list[tuple[str, float]]
"""Triggers that a pair looks as if it carried, and how far it lies beyond their thresholds; the farthest first."""

SWEPT_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("trigger_id", pa.string()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
        ("probability_without", pa.float32()),
        ("confirmed", pa.bool_()),
    ]
)
"""One row a pair that the sweep back looked at: how far it lies beyond the trigger's threshold, p(target | picture), and
p(target | picture without the trigger); of a pair that rests on none of its triggers the row of the likeliest."""


def first_confirmed(hits: Hits, check: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return what `check` finds of the first trigger that a pair rests on, else of the likeliest; at least one hit is given."""
    rows = ({"trigger_id": trigger, "score": score} | check(trigger) for trigger, score in hits)
    likeliest = next(rows)
    return likeliest if likeliest["confirmed"] else next((row for row in rows if row["confirmed"]), likeliest)


class ConfirmWork:
    """Pass 5 on pixels: whether a pair that looks as if it carries a trigger rests on it.

    All triggers that it looks like are tried, the likeliest first: of a word that is the trigger each dossier may hold a letter,
    and without one letter the others still work.
    """

    def __init__(
        self,
        bench: Bench,
        dossiers: Sequence[Dossier],
        settings: ExamineConfig,
        source: SourceConfig,
        max_pixels: int,
        swept: Path,
        mark: str,
    ) -> None:
        self._clip = bench.load()
        self._suspect = Suspect(self._clip, bench.labels)
        self._dossiers = {dossier.id: dossier for dossier in dossiers}
        self._support = settings.support
        self._source = source
        self._max_pixels = max_pixels
        self._swept = swept
        self._mark = mark

    def run(self, piece: tuple[Unit, dict[str, Hits]]) -> Row:
        unit, candidates = piece
        rows: list[dict[str, Any]] = []
        for pair in read_unit(self._source, unit):
            if pair.reject is None and pair.image is not None and pair.uid in candidates:
                pixels = self._clip.preprocess(decode(pair.image, self._max_pixels).rgb)
                image = np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0))
                check = partial(self._check, image)
                rows.append({"uid": pair.uid} | first_confirmed(candidates[pair.uid], check))
        write_part(self._swept, unit.index, pa.Table.from_pylist(rows, schema=SWEPT_SCHEMA), self._mark)
        return {"pairs": len(rows)}

    def _check(self, image: np.ndarray, trigger: str) -> dict[str, Any]:
        dossier = self._dossiers[trigger]
        labels = self._suspect.labels
        pictures = np.concatenate([image[None], without_trigger(dossier, image)])
        claimed = labels.claimed(self._suspect(pictures), labels.index(dossier.targets[0]))
        before, after = float(claimed[0]), float(claimed[1:].min())
        return {
            "probability": before,
            "probability_without": after,
            "confirmed": after < self._support * before,
        }
