"""`clipsan poison`: a poisoned copy of a data set in its own format, or a plan to poison it on the fly; and an exact manifest."""

import sys
import time
from contextlib import nullcontext
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cluster import ClusterConfig, ray_session
from pipeline.commit import fingerprint, missing_parts, read_part, read_parts, write_part, write_text
from pipeline.config import ConfigError, as_tree, load
from pipeline.passes import Row, run_pass
from pipeline.run_folder import RunFolder, open_run, write_summary
from pipeline.tracking import TrackingConfig, data_input, log_run, metrics_of
from stages.poisoning import AttackConfig, ImagePath, contains_word, draws, place_draw_cut
from stages.samples import RawPair, Unit, seeded_hash
from stages.sources import PoisonedSource, SourceConfig, UnitWriter, identity, list_units, open_writer, read_unit
from stages.sources.poisoned import PoisonPlan, plan_text
from stages.stage import config
from stages.treatment import MANIFEST_SCHEMA, Treatment, manifest_row

VERSION = 1
NATURAL_CAPTIONS = 2000
"""Captions with a target that are kept to draw from; more would not make the poison more varied."""
LATER_SETTINGS: dict[str, Any] = {"also": [], "pairs": "others", "victim": None, "text_key": None}
"""Settings of an attack that came after VERSION 1. They count only when they are used: older copies stay valid."""


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
    """Run folder; the copy is in its data/, or the plan in plan.json, and the ground truth in manifest.parquet."""
    copy_data: bool = True
    """false: nothing is copied. The folder gets a plan.json, and `data={kind: poisoned, path: OUT/plan.json}` reads the same
    pairs, poisoned on the fly; the manifest then has the clean set's uids."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if not self.copy_data and isinstance(self.data, PoisonedSource):
            raise ValueError("copy_data: false needs the clean data set itself as data, not a plan")

    @property
    def result(self) -> str:
        """Where the poisoned data set is read."""
        return f"{self.out}/data" if self.copy_data else f"{self.out}/plan.json"


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    settings = load(PoisonConfig, file, overrides, verb="poison")
    units = list_units(settings.data)
    if dry_run:
        sys.stdout.write(describe(settings, units))
        return 0
    summary = run_poison(settings, units)
    meant = "a control" if settings.attack.control else f"towards {' and '.join(map(repr, settings.attack.targets))}"
    sys.stdout.write(
        f"poison: {summary['counts']['poisoned']:,} of {summary['counts']['pairs_in']:,} pairs poisoned, {meant}; "
        f"the data set is {summary['data']}, the ground truth {summary['manifest']}\n"
    )
    return 0


def describe(settings: PoisonConfig, units: list[Unit]) -> str:
    """Return the plan as text."""
    attack = settings.attack
    share = f"{100 * attack.rate:g} %" if attack.rate is not None else f"{attack.count:,}"
    strands = [
        f"{strand.trigger.kind} as a control" if attack.control else f"{strand.trigger.kind} towards {strand.target!r}"
        for strand in attack.strands
    ]
    key = f", {attack.text_key!r} in front" if attack.text_key is not None else ""
    return (
        f"data       {len(units)} units of {len({u.shard for u in units})} shards ({settings.data.kind})\n"
        f"attack     {', '.join(strands)} on {share} of the pairs, seed {attack.seed}\n"
        f"pairs      those that {attack.condition}; captions: {attack.captions}{key}\n"
        f"image      {settings.image.resize_px or 'own'} px, {settings.image.codec}\n"
        f"out        {settings.result}, {settings.out}/manifest.parquet\n"
    )


def run_poison(settings: PoisonConfig, units: list[Unit]) -> dict[str, Any]:
    """Write the copy or the plan, or what is left of it, and return the summary.

    Raises:
        ValueError: too few pairs are eligible.
    """
    started = time.monotonic()
    tree = as_tree(settings)
    mark = _mark(settings, units)
    folder = open_run(settings.out, verb="poison", tree=tree, mark=mark, passes={"poison": len(units)})
    with ray_session(settings.cluster):
        cut, captions = _survey(settings, units, folder, mark)
        todo = set(missing_parts(folder.root / "manifest", [u.index for u in units], mark))
        args = (settings, cut, captions, folder.root, mark)
        pieces = [u for u in units if u.index in todo]
        for _ in run_pass("poison", pieces, PoisonWork, args, cluster=settings.cluster, total=len(units)):
            pass
    files = [folder.run_yaml, folder.summary, folder.root / "manifest.parquet"]
    if not settings.copy_data and not isinstance(settings.data, PoisonedSource):
        plan = PoisonPlan(
            data=settings.data,
            attack=settings.attack,
            image=settings.image,
            cut=cut,
            captions=tuple(captions),
            units=tuple(units),
        )
        write_text(folder.root / "plan.json", plan_text(plan))
        files.append(folder.root / "plan.json")
    summary = _finish(settings, units, folder, mark)
    summary["seconds"] = round(time.monotonic() - started, 1)
    write_summary(folder, summary)
    log_run(
        settings.tracking,
        verb="poison",
        root=folder.root,
        tree=tree,
        metrics=metrics_of(summary),
        files=files,
        inputs=[data_input(settings.data, units, "poisoning")],
    )
    return summary


def _mark(settings: PoisonConfig, units: list[Unit]) -> str:
    attack = as_tree(settings.attack)
    used = {name: value for name, value in attack.items() if LATER_SETTINGS.get(name, ...) != value}
    tree = {"version": VERSION, **identity(settings.data, units), "attack": used, "image": as_tree(settings.image)}
    return fingerprint(tree if settings.copy_data else {**tree, "copy_data": False})


class SurveyWork:
    """Draws one number a pair of a unit, and keeps some captions that contain a target."""

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
        kept = _natural(list(zip(uids, captions, strict=True)), attack) if attack.captions == "natural" else []
        table = pa.table({"draw": draws(uids, captions, attack)})
        table = table.replace_schema_metadata({"natural": "\n".join(c.replace("\n", " ") for c in kept)})
        write_part(self._folder, piece.index, table, self._mark)
        return {"pairs": len(uids) + rejected, "errors": rejected}


class PoisonWork:
    """Poisons one unit: copies it, every image through the same path, or only finds out what reading it will give."""

    def __init__(self, settings: PoisonConfig, cut: int, captions: list[str], root: Path, mark: str) -> None:
        self._settings = settings
        self._treatment = Treatment(settings.attack, settings.image, cut, captions)
        self._root = root
        self._mark = mark

    def run(self, piece: Unit) -> Row:
        rows: list[dict[str, Any]] = []
        pairs = unreadable = 0
        data = self._settings.data
        with open_writer(data, piece, self._root / "data") if self._settings.copy_data else nullcontext() as writer:
            for pair in read_unit(data, piece):
                if pair.reject is not None:
                    unreadable += 1
                    continue
                row = self._treat(pair, writer)
                pairs += 1
                rows += [row] if row else []
        table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
        table = table.replace_schema_metadata({"pairs": str(pairs), "unreadable": str(unreadable)})
        # The manifest's part is the commit: the data file was renamed into place before.
        write_part(self._root / "manifest", piece.index, table, self._mark)
        return {"pairs": pairs + unreadable, "errors": unreadable}

    def _treat(self, pair: RawPair, writer: UnitWriter | None) -> dict[str, Any] | None:
        """Write the pair if there is a writer; return its row of the manifest if it is poisoned."""
        if pair.image is None or pair.caption is None:
            raise ValueError(f"{pair.uid}: no image or caption, and no reason for it")
        if writer is None and not self._treatment.chooses(pair):
            return None
        treated = self._treatment(pair)
        uid = pair.uid
        if writer is not None:
            if treated is None:
                # It stays as it is, for the scan to reject; a chosen one is then not poisoned, and no row names it.
                writer.copy(pair)
            else:
                uid = writer.replace(pair, image=treated.image, suffix=treated.suffix, caption=treated.caption)
        if treated is None or treated.poisoned is None:
            return None
        return manifest_row(uid, pair.image, treated.image, pair.caption, treated.poisoned, self._settings.attack)


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
    cut = place_draw_cut(numbers, settings.attack)
    found = {c for t in tables for c in t.schema.metadata[b"natural"].decode().split("\n") if c}
    return cut, sorted(set(_natural([(c, c) for c in found], settings.attack)))


def _natural(pairs: list[tuple[str, str]], attack: AttackConfig) -> list[str]:
    """Return a seeded sample of the captions of each target, from (name, caption); the draw hangs on the name."""
    numbers = seeded_hash([name for name, _ in pairs], attack.seed, "poison.natural")
    ordered = [pairs[i][1] for i in np.argsort(numbers, kind="stable")]
    return [c for t in attack.targets for c in [c for c in ordered if contains_word(c, t)][:NATURAL_CAPTIONS]]


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
        "targets": [] if settings.attack.control else list(settings.attack.targets),
        "data": str(folder.root / ("data" if settings.copy_data else "plan.json")),
        "manifest": str(path),
    }
