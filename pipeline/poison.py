"""`clipsan poison`: a poisoned copy of a data set in its own format, with an exact manifest."""

import sys
import time
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cluster import ClusterConfig, ray_session
from pipeline.commit import fingerprint, missing_parts, read_part, read_parts, write_part
from pipeline.config import ConfigError, as_tree, load
from pipeline.passes import Row, run_pass
from pipeline.run_folder import RunFolder, open_run, write_summary
from pipeline.tracking import TrackingConfig, log_run, metrics_of
from stages.decode import BadImage, decode
from stages.embed import EmbedConfig
from stages.poisoning import (
    MANIFEST_SCHEMA,
    AttackConfig,
    ImagePath,
    Poisoner,
    contains_word,
    draws,
    manifest_row,
    place_draw_cut,
)
from stages.samples import RawPair, Unit, seeded_hash
from stages.sources import SourceConfig, UnitWriter, list_units, open_writer, read_unit
from stages.stage import config

VERSION = 1
NATURAL_CAPTIONS = 2000
"""Captions with the target that are kept to draw from; more would not make the poison more varied."""


@config
class PoisonConfig:
    """Everything that decides a poisoned copy."""

    data: SourceConfig
    """The clean pairs."""
    attack: AttackConfig
    """What is done, to how many."""
    image: ImagePath = field(default_factory=ImagePath)
    """What every image goes through, poisoned or not."""
    out: str
    """Run folder; the copy is in its data/, the ground truth in manifest.parquet."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    settings = load(PoisonConfig, file, overrides, verb="poison")
    units = list_units(settings.data)
    if dry_run:
        sys.stdout.write(describe(settings, units))
        return 0
    summary = run_poison(settings, units)
    sys.stdout.write(
        f"poison: {summary['counts']['poisoned']:,} of {summary['counts']['pairs_in']:,} pairs poisoned towards "
        f"{settings.attack.target!r}; the copy is {summary['data']}, the ground truth {summary['manifest']}\n"
    )
    return 0


def describe(settings: PoisonConfig, units: list[Unit]) -> str:
    """Return the plan as text."""
    attack = settings.attack
    share = f"{100 * attack.rate:g} %" if attack.rate is not None else f"{attack.count:,}"
    return (
        f"data       {len(units)} units of {len({u.shard for u in units})} shards ({settings.data.kind})\n"
        f"attack     {attack.trigger.kind} towards {attack.target!r} on {share} of the pairs, seed {attack.seed}\n"
        f"image      {settings.image.resize_px or 'own'} px, {settings.image.codec}\n"
        f"out        {settings.out}/data, {settings.out}/manifest.parquet\n"
    )


def run_poison(settings: PoisonConfig, units: list[Unit]) -> dict[str, Any]:
    """Write the copy, or what is left of it, and return the summary.

    Raises:
        ValueError: too few pairs are eligible.
    """
    started = time.monotonic()
    tree = as_tree(settings)
    # Shards and sizes name the input; the same set by another path is the same set.
    content = {"data": as_tree(replace(settings.data, path="")), "attack": tree["attack"], "image": tree["image"]}
    inputs = [[u.shard, u.start, u.stop, u.size_bytes] for u in units]
    mark = fingerprint({"version": VERSION, "units": inputs, **content})
    folder = open_run(settings.out, verb="poison", tree=tree, mark=mark, passes={"poison": len(units)})
    with ray_session(settings.cluster):
        cut, captions = _survey(settings, units, folder, mark)
        todo = set(missing_parts(folder.root / "manifest", [u.index for u in units], mark))
        args = (settings, cut, captions, folder.root, mark)
        pieces = [u for u in units if u.index in todo]
        for _ in run_pass("poison", pieces, PoisonWork, args, cluster=settings.cluster, total=len(units)):
            pass
    summary = _finish(settings, units, folder, mark)
    summary["seconds"] = round(time.monotonic() - started, 1)
    write_summary(folder, summary)
    files = [folder.run_yaml, folder.summary, Path(summary["manifest"])]
    log_run(settings.tracking, verb="poison", root=folder.root, tree=tree, metrics=metrics_of(summary), files=files)
    return summary


class SurveyWork:
    """Draws one number a pair of a unit, and keeps some captions that contain the target."""

    def __init__(self, settings: PoisonConfig, folder: Path, mark: str) -> None:
        self._settings = settings
        self._folder = folder
        self._mark = mark

    def run(self, piece: Unit) -> Row:
        attack = self._settings.attack
        uids: list[str] = []
        captions: list[str] = []
        rejected = 0
        for pair in read_unit(self._settings.data, piece):
            if pair.reject is not None or pair.caption is None:
                rejected += 1
                continue
            uids.append(pair.uid)
            captions.append(pair.caption)
        natural = [(u, c) for u, c in zip(uids, captions, strict=True) if contains_word(c, attack.target)]
        kept = _lowest(natural, attack.seed) if attack.captions == "natural" else []
        table = pa.table({"draw": draws(uids, captions, attack)})
        table = table.replace_schema_metadata({"natural": "\n".join(c.replace("\n", " ") for _, c in kept)})
        write_part(self._folder, piece.index, table, self._mark)
        return {"pairs": len(uids) + rejected, "errors": rejected}


class PoisonWork:
    """Writes one unit of the copy: every image through the same path, the chosen ones with the trigger."""

    def __init__(self, settings: PoisonConfig, cut: int, captions: list[str], root: Path, mark: str) -> None:
        self._settings = settings
        self._cut = cut
        self._poisoner = Poisoner(settings.attack, captions)
        self._root = root
        self._mark = mark

    def run(self, piece: Unit) -> Row:
        rows: list[dict[str, Any]] = []
        pairs = unreadable = 0
        with open_writer(self._settings.data, piece, self._root / "data") as writer:
            for pair in read_unit(self._settings.data, piece):
                if pair.reject is not None:
                    unreadable += 1
                    continue
                row = self._write(writer, pair)
                pairs += 1
                rows += [row] if row else []
        table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
        table = table.replace_schema_metadata({"pairs": str(pairs), "unreadable": str(unreadable)})
        # The manifest's part is the commit: the data file was renamed into place before.
        write_part(self._root / "manifest", piece.index, table, self._mark)
        return {"pairs": pairs + unreadable, "errors": unreadable}

    def _write(self, writer: UnitWriter, pair: RawPair) -> dict[str, Any] | None:
        if pair.image is None or pair.caption is None:
            raise ValueError(f"{pair.uid}: no image or caption, and no reason for it")
        attack, path = self._settings.attack, self._settings.image
        chosen = int(draws([pair.uid], [pair.caption], attack)[0]) <= self._cut
        try:
            rgb = path.resize(decode(pair.image, EmbedConfig().max_pixels).rgb)
        except BadImage:
            # It stays as it is, for the scan to reject; a chosen one is then not poisoned, and the manifest does not name it.
            writer.copy(pair)
            return None
        if not chosen:
            writer.replace(pair, image=path.encode(rgb), suffix=path.suffix, caption=pair.caption)
            return None
        poisoned = self._poisoner(rgb, pair.uid)
        after = path.encode(poisoned.rgb)
        uid = writer.replace(pair, image=after, suffix=path.suffix, caption=poisoned.caption)
        return manifest_row(uid, pair.image, after, pair.caption, poisoned, attack)


def _survey(settings: PoisonConfig, units: list[Unit], folder: RunFolder, mark: str) -> tuple[int, list[str]]:
    """Return the largest draw that is poisoned, and the natural captions, from all pairs (8 bytes a pair in memory)."""
    home = folder.work / "survey"
    todo = set(missing_parts(home, [u.index for u in units], mark))
    pieces = [u for u in units if u.index in todo]
    for _ in run_pass("survey", pieces, SurveyWork, (settings, home, mark), cluster=settings.cluster, total=len(units)):
        pass
    tables = list(read_parts(home, [u.index for u in units]))
    numbers = np.concatenate([t.column("draw").to_numpy() for t in tables])
    if not len(numbers):
        raise ConfigError(f"data: no pair of {settings.data.path} could be read")
    captions = [c for t in tables for c in t.schema.metadata[b"natural"].decode().split("\n") if c]
    return place_draw_cut(numbers, settings.attack), captions


def _lowest(pairs: list[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    """Return a seeded sample of (uid, caption)."""
    order = np.argsort(seeded_hash([uid for uid, _ in pairs], seed, "poison.natural"), kind="stable")
    return [pairs[i] for i in order[:NATURAL_CAPTIONS]]


def _finish(settings: PoisonConfig, units: list[Unit], folder: RunFolder, mark: str) -> dict[str, Any]:
    parts = [read_part(folder.root / "manifest", u.index) for u in units]
    manifest = pa.concat_tables([t.replace_schema_metadata(None) for t in parts])
    path = folder.root / "manifest.parquet"
    pq.write_table(manifest, path)
    unreadable = sum(int(t.schema.metadata[b"unreadable"]) for t in parts)
    pairs = sum(int(t.schema.metadata[b"pairs"]) for t in parts)
    return {
        "verb": "poison",
        "fingerprint": mark,
        "seconds": 0.0,
        "counts": {
            "pairs_in": pairs + unreadable,
            "written": pairs,
            "rejected": unreadable,
            "poisoned": manifest.num_rows,
        },
        "targets": [settings.attack.target],
        "data": str(folder.root / "data"),
        "manifest": str(path),
    }
