"""What is read from strangers: a target a format, with whole files to start from and what clipsan does with a mutated one."""

import gzip
import io
import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from clipsan.pipeline.core.commit import fingerprint, missing_parts, read_part, write_part
from clipsan.pipeline.core.config import ConfigError, load
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.core.run_folder import read_run_yaml
from clipsan.pipeline.scan.output import manifest_uids
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.pipeline.status import describe
from clipsan.pipeline.tracking.record import Record, read_record
from clipsan.stages.attack.poisoning import AttackConfig, ImagePath
from clipsan.stages.attack.triggers.patch import PatchConfig
from clipsan.stages.captions import terms
from clipsan.stages.decode import MAX_PIXELS, BadImage, decode
from clipsan.stages.dossier.dossier import Dossier, Rate
from clipsan.stages.dossier.files import read_dossiers, write_dossiers
from clipsan.stages.dossier.match import Cutout
from clipsan.stages.dossier.patch import Alike, Patch, Place
from clipsan.stages.dossier.residual import Residual
from clipsan.stages.dossier.texture import Texture
from clipsan.stages.dossier.warp import Warp
from clipsan.stages.files import PathError
from clipsan.stages.model.checkpoints import ModelConfig, ModelError, build_model, save_clip
from clipsan.stages.model.clip import load_clip
from clipsan.stages.sources import (
    FolderSource,
    ParquetSource,
    PoisonedSource,
    SourceConfig,
    SourceError,
    TableSource,
    WebDataset,
    list_units,
    open_writer,
    read_unit,
)
from clipsan.stages.sources.poisoned import PoisonPlan, plan_text
from tests.conftest import picture
from tests.unit.stages.sources.helpers import write_tar

REFUSALS = (SourceError, PathError, ModelError, ConfigError)
"""What a reader may raise: clipsan's own errors, which the command line prints in one line."""
N = 4
PNG = [picture(i, side=16) for i in range(N)]
TEXT = [f"a photo of number {i}" for i in range(N)]
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
}
MAX_SCALE = 2**22
"""Pixels of an image that a target decodes."""


class Wrong(Exception):
    """A reader returned something that it must not return."""


@dataclass(frozen=True)
class Target:
    """One format."""

    seeds: Callable[[], list[bytes]]
    """Whole files."""
    file: str
    """Where the mutated one lies, in a folder of its own."""
    read: Callable[[Path, Path], Counter[str]]
    """Reads the file as clipsan does, writes below the second folder, and counts what came of it.

    Raises one of REFUSALS whose message names the file, or Wrong.
    """
    around: Callable[[Path], None] = lambda home: None
    """Writes what else lies in the folder; called for every input."""


def pairs(make: Callable[[Path], SourceConfig]) -> Callable[[Path, Path], Counter[str]]:
    """Return what reads a data set: every pair usable or rejected with a reason, and a copy that holds the usable ones."""

    def read(file: Path, out: Path) -> Counter[str]:
        source = make(file)
        counts: Counter[str] = Counter()
        for unit in list_units(source):
            found = list(read_unit(source, unit))
            if found != list(read_unit(source, unit)):
                raise Wrong("two reads give different pairs")
            kept = []
            for pair in found:
                if pair.reject is not None:
                    counts["rejected"] += 1
                    if not pair.detail or "\n" in pair.detail:
                        raise Wrong(f"{pair.reject} without a detail of one line: {pair.detail!r}")
                elif pair.image is None or not (pair.caption or "").strip():
                    raise Wrong(f"{pair.uid!r} is kept without an image or a caption")
                else:
                    counts["read"] += 1
                    counts["undecoded"] += _image(pair.image)["rejected"]
                    kept.append(pair)
                json.dumps([pair.uid, pair.detail, pair.origin.url]).encode()
                pa.array([pair.uid, pair.detail, pair.origin.url, pair.origin.id], pa.string())
                pa.array([pair.label], pa.int32())
            if len({pair.uid for pair in kept}) != len(kept):
                raise Wrong("two kept pairs have one uid")
            with open_writer(source, unit, out) as writer:
                for pair in kept:
                    writer.copy(pair)
            again = source.rewritten(out)
            if kept:
                copied = [
                    pair for unit in list_units(again) for pair in read_unit(again, unit) if pair.shard == writer.shard
                ]
                if [(p.image, p.caption, p.reject) for p in copied] != [(p.image, p.caption, None) for p in kept]:
                    raise Wrong("the copy does not hold what was read")
        return counts

    return read


def _image(data: bytes) -> Counter[str]:
    try:
        decoded = decode(data, min(MAX_SCALE, MAX_PIXELS))
    except BadImage as error:
        if not error.detail:
            raise Wrong("an image is refused without a reason") from error
        return Counter(rejected=1)
    if decoded.rgb.shape != (decoded.height, decoded.width, 3) or decoded.rgb.dtype != np.uint8:
        raise Wrong(f"pixels of shape {decoded.rgb.shape}")
    return Counter(read=1)


def tar_bytes() -> list[bytes]:
    members = [(f"{i:03d}{s}", c) for i in range(N) for s, c in ((".png", PNG[i]), (".txt", TEXT[i].encode()))]
    fields = [
        json.dumps({"caption": t, "uid": "0" * 32, "url": "http://h/x", "sha256": "0" * 64}).encode() for t in TEXT
    ]
    others = [
        (f"d/{'k' * 120}{i}{s}", c)
        for i in range(N)
        for s, c in ((".jpg", PNG[i]), (".json", fields[i]), (".cls", b"3"))
    ]
    found = []
    for files in (members, others):
        with tempfile.TemporaryDirectory() as home:
            found.append(write_tar(Path(home) / "a.tar", files).read_bytes())
    return found


def parquet_bytes() -> list[bytes]:
    columns: list[dict[str, Any]] = [
        {"image": PNG, "caption": TEXT, "label": list(range(N))},
        {
            "image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(PNG)],
            "caption": [[t, t] for t in TEXT],
        },
    ]
    found = []
    for column, compression in zip(columns, ("zstd", "none"), strict=True):
        sink = io.BytesIO()
        pq.write_table(pa.table(column), sink, compression=compression)
        found.append(sink.getvalue())
    return found


def beside_images(home: Path) -> None:
    (home / "images").mkdir(exist_ok=True)
    for i, data in enumerate(PNG):
        (home / f"images/{i}.png").write_bytes(data)


def table_bytes(delimiter: str) -> list[bytes]:
    rows = [f"images/{i}.png{delimiter}{text}{delimiter}{i}" for i, text in enumerate(TEXT)]
    quoted = [f'"images/{i}.png"{delimiter}"{text}, ""so"""{delimiter}"{i}"' for i, text in enumerate(TEXT)]
    head = delimiter.join(("image", "caption", "label"))
    return ["\n".join([head, *body, ""]).encode() for body in (rows, quoted)]


def jsonl_bytes() -> list[bytes]:
    rows = [{"file_name": f"images/{i}.png", "caption": text, "label": i} for i, text in enumerate(TEXT)]
    lists = [{**row, "caption": [row["caption"], "b"]} for row in rows]
    return ["\n".join(map(json.dumps, found)).encode() for found in (rows, lists)]


def table_of_names() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"file_name": [f"images/{i}.png" for i in range(N)], "caption": TEXT}), sink)
    return sink.getvalue()


def image_bytes(form: str) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        rgb = Image.open(io.BytesIO(picture(3, side=48))).convert("RGB")
        options: list[dict[str, Any]] = {
            "JPEG": [{"quality": 60}, {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}],
            "PNG": [{}, {"bits": 4}],
            "WEBP": [{"quality": 60}, {"lossless": True}],
            "GIF": [{}, {"save_all": True, "append_images": [rgb.rotate(90)]}],
            "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}],
            "BMP": [{}],
        }[form]
        found = []
        for option in options:
            sink = io.BytesIO()
            image = rgb.convert("P") if "bits" in option else rgb
            image.save(sink, form, **option)
            found.append(sink.getvalue())
        return found

    return made


def captions(file: Path, out: Path) -> Counter[str]:
    """Read captions as a scan does: as a member of a tar, tokenised, and cut into words."""
    text = file.read_bytes()
    source = WebDataset(path=str(write_tar(out / "in" / "a.tar", [("a.png", PNG[0]), ("a.txt", text)])))
    (pair,) = [pair for unit in list_units(source) for pair in read_unit(source, unit)]
    if pair.reject is not None:
        return Counter(rejected=1)
    assert pair.caption is not None
    terms(pair.caption)
    tokens = _tokenizer()([pair.caption])
    if tuple(tokens.shape) != (1, 77):
        raise Wrong(f"tokens of shape {tuple(tokens.shape)}")
    return Counter(read=1)


@cache
def _tokenizer() -> Any:
    return open_clip.get_tokenizer("ViT-B-32")


@cache
def checkpoint_folder() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as home, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_clip(build_model(TINY), TINY, {"mean": [0.5] * 3, "std": [0.5] * 3}, Path(home) / "c")
        return {path.name: path.read_bytes() for path in (Path(home) / "c").iterdir()}


def checkpoint(file: Path, out: Path) -> Counter[str]:
    clip = load_clip(ModelConfig(path=str(file.parent)))
    if not all(value.isfinite().all() for value in clip.model.state_dict().values() if value.is_floating_point()):
        raise Wrong("weights that are no numbers are taken")
    return Counter(read=1)


def write_checkpoint(without: str) -> Callable[[Path], None]:
    def write(home: Path) -> None:
        for name, data in checkpoint_folder().items():
            if name != without:
                (home / name).write_bytes(data)

    return write


def saved(zipped: bool) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        from safetensors.torch import load

        state = load(checkpoint_folder()["open_clip_model.safetensors"])
        found = []
        for stored in (state, {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}):
            sink = io.BytesIO()
            torch.save(stored, sink, _use_new_zipfile_serialization=zipped)
            found.append(sink.getvalue())
        return [*found, pickle.dumps({"a": [1, 2.0, "x"]}, protocol=2)]

    return made


def transformers_config() -> list[bytes]:
    tower = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision, text = {**tower, "image_size": 16, "patch_size": 8}, {**tower, "max_position_embeddings": 8}
    siglip = {"model_type": "siglip", "vision_config": vision, "text_config": {**text, "vocab_size": 64}}
    clip = {"model_type": "clip", "projection_dim": 8, "vision_config": vision, "text_config": text}
    return [json.dumps(tree, indent=1).encode() for tree in (clip, siglip)]


FINGERPRINT = fingerprint({"a": 1})
HERE = "/HERE"
"""Stands in a plan for the folder that the plan lies in."""
RUN_YAML = {
    "verb": "scan",
    "fingerprint": FINGERPRINT,
    "config": {
        "data": {"kind": "webdataset", "path": "pairs"},
        "model": {"path": "suspect"},
        "out": "run",
        "decision": {"kind": "budget", "share": 0.1},
    },
    "versions": {"python": "3.11"},
}
SUMMARY = {
    "verb": "scan",
    "fingerprint": FINGERPRINT,
    "seconds": 1.5,
    "counts": {"pairs_in": 3},
    "report": "report.html",
}
PASSES = {"embed": {"folder": "embeddings", "parts": 2}}


def write_run(without: str) -> Callable[[Path], None]:
    files = {
        "run.yaml": yaml.safe_dump(RUN_YAML).encode(),
        "summary.json": json.dumps(SUMMARY).encode(),
        "passes.json": json.dumps(PASSES).encode(),
    }

    def write(home: Path) -> None:
        for name, data in files.items():
            place = home / ("work/passes.json" if name == "passes.json" else name)
            place.parent.mkdir(exist_ok=True)
            if name != without:
                place.write_bytes(data)

    return write


def run_folder(file: Path, out: Path) -> Counter[str]:
    """Look at a stranger's run folder: its state, what it would log, and its settings once more."""
    root = file.parent.parent if file.parent.name == "work" else file.parent
    refused = None
    for look in (
        lambda: describe(root),
        lambda: read_run_yaml(root),
        lambda: read_record(root),
        lambda: settings_again(root / "run.yaml"),
    ):
        try:
            look()
        except REFUSALS as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return Counter(read=1)


def settings_again(path: Path) -> None:
    """Read the settings of a run as those of a new one; what is wrong with a setting is said by its name."""
    try:
        load(ScanConfig, str(path), [], verb="scan")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def record_bytes() -> list[bytes]:
    record = Record(
        verb="scan", root="/r", fingerprint=FINGERPRINT, params={"a": "1"}, metrics={"b": 1.0}, files=["run.yaml"]
    )
    model = {"name": "m", "artifacts": {"checkpoint": "c"}, "card": "card.md", "tags": {}}
    return [json.dumps(tree).encode() for tree in (asdict(record), {**asdict(record), "model": model})]


@cache
def part_bytes() -> list[bytes]:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(12, np.float16)), 4)
    table = pa.table({"uid": ["a", "b", "c"], "reason": ["x", "x", "y"], "image": vectors})
    with tempfile.TemporaryDirectory() as home:
        return [write_part(Path(home), 0, table, FINGERPRINT).read_bytes()]


def part(file: Path, out: Path) -> Counter[str]:
    """Read a committed part; whatever a mutation changes is noticed."""
    missing = missing_parts(file.parent, [0], FINGERPRINT)
    Parts.of(file.parent)
    if not missing and file.read_bytes() not in part_bytes():
        raise Wrong("a part with other bytes counts as committed")
    read_part(file.parent, 0)
    return Counter(read=1)


def manifest_bytes() -> list[bytes]:
    sink = io.BytesIO()
    pq.write_table(pa.table({"uid": ["a", "b"], "target": ["kite", None]}), sink)
    return [sink.getvalue()]


def manifest(file: Path, out: Path) -> Counter[str]:
    manifest_uids(str(file))
    return Counter(read=1)


def write_clean(home: Path) -> None:
    members = [(f"{i:03d}{s}", c) for i in range(N) for s, c in ((".png", PNG[i]), (".txt", TEXT[i].encode()))]
    write_tar(home / "clean" / "a.tar", members)


def plan_bytes() -> list[bytes]:
    with tempfile.TemporaryDirectory() as home:
        write_clean(Path(home))
        source = WebDataset(path=f"{home}/clean")
        attack = AttackConfig(trigger=PatchConfig(size_px=4), target="kite", rate=0.5)
        units = tuple(list_units(source))
        plan = PoisonPlan(data=source, attack=attack, image=ImagePath(), cut=2**62, captions=("a kite",), units=units)
        return [plan_text(plan).replace(home, HERE).encode()]


def poisoned(file: Path, out: Path) -> Counter[str]:
    """Read a set that a plan poisons on the fly; what the plan names lies in the folder, or nowhere."""
    file.write_bytes(file.read_bytes().replace(HERE.encode(), str(file.parent).encode()))
    return pairs(lambda path: PoisonedSource(path=str(path)))(file, out)


def dossiers(kind: str) -> Dossier:
    rng = np.random.default_rng(0)
    side = 8
    shared: dict[str, Any] = {
        "id": "t1",
        "targets": ("kite",),
        "side": side,
        "flips": Rate(pct=90.0, low_pct=70.0, high_pct=97.0, trials=32),
        "control": Rate(pct=0.0, low_pct=0.0, high_pct=10.0, trials=32),
        "uids": ("a", "b"),
    }
    rgb = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    heat = np.ones((side, side), np.float32)
    if kind == "patch":
        place = Place(fixed=True, top=1.0, left=1.0, top_std=0.0, left_std=0.0, mode_share=1.0)
        cutout = Cutout(picture=rgb, mask=np.ones((4, 4), bool), top=1, left=1)
        return Patch(**shared, cutouts=(cutout,), place=place, heat=heat, alike=Alike(mean=rgb, likeness=0.9))
    if kind == "residual":
        offset, covers = heat[..., None].repeat(3, -1), np.eye(side, dtype=bool)
        return Residual(**shared, offset=offset, gain=heat[..., None], covers=covers)
    if kind == "texture":
        return Texture(**shared, patterns=rng.random((2, side, side, 3), np.float32), keep=heat)
    return Warp(**shared, field=heat[..., None].repeat(2, -1))


@cache
def dossier_files(kind: str) -> dict[str, bytes]:
    """Return the files of a dossier, by their places."""
    with tempfile.TemporaryDirectory() as home:
        write_dossiers(Path(home), [dossiers(kind)])
        return {str(path.relative_to(home)): path.read_bytes() for path in Path(home).rglob("*") if path.is_file()}


def write_dossier(kind: str, without: str) -> Callable[[Path], None]:
    def write(home: Path) -> None:
        for name, data in dossier_files(kind).items():
            if name != without:
                (home / name).parent.mkdir(exist_ok=True)
                (home / name).write_bytes(data)

    return write


def read_all_dossiers(file: Path, out: Path) -> Counter[str]:
    try:
        for dossier in read_dossiers(file.parent.parent):
            dossier.picture()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Counter(read=1)


def checkpoint_target(file: str, seeds: Callable[[], list[bytes]], without: str = "") -> Target:
    return Target(seeds, file, checkpoint, write_checkpoint(without or file))


def run_target(file: str, content: object) -> Target:
    text = yaml.safe_dump(content) if file.endswith(".yaml") else json.dumps(content, indent=1)
    place = f"work/{file}" if file == "passes.json" else file
    return Target(lambda: [text.encode()], place, run_folder, write_run(file))


def dossier_target(kind: str, file: str) -> Target:
    name = f"t1/{file}"
    return Target(lambda: [dossier_files(kind)[name]], name, read_all_dossiers, write_dossier(kind, name))


SAFETENSORS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
TARGETS: dict[str, Target] = {
    "tar": Target(tar_bytes, "a.tar", pairs(lambda file: WebDataset(path=str(file)))),
    "tar, in slices": Target(tar_bytes, "a.tar", pairs(lambda file: WebDataset(path=str(file), unit_bytes=2048))),
    "tar, gzipped": Target(
        lambda: [gzip.compress(data, mtime=0) for data in tar_bytes()],
        "a.tar.gz",
        pairs(lambda file: WebDataset(path=str(file))),
    ),
    "Parquet": Target(parquet_bytes, "a.parquet", pairs(lambda file: ParquetSource(path=str(file)))),
    "CSV": Target(lambda: table_bytes(","), "a.csv", pairs(lambda file: TableSource(path=str(file))), beside_images),
    "TSV": Target(lambda: table_bytes("\t"), "a.tsv", pairs(lambda file: TableSource(path=str(file))), beside_images),
    "folder, metadata.jsonl": Target(
        jsonl_bytes, "metadata.jsonl", pairs(lambda file: FolderSource(path=str(file.parent))), beside_images
    ),
    "folder, metadata.csv": Target(
        lambda: [data.replace(b"image,", b"file_name,", 1) for data in table_bytes(",")],
        "metadata.csv",
        pairs(lambda file: FolderSource(path=str(file.parent))),
        beside_images,
    ),
    "folder, metadata.parquet": Target(
        lambda: [table_of_names()],
        "metadata.parquet",
        pairs(lambda file: FolderSource(path=str(file.parent))),
        beside_images,
    ),
    "folder, texts beside": Target(
        lambda: [json.dumps({"caption": text}).encode() for text in TEXT],
        "images/0.json",
        pairs(lambda file: FolderSource(path=str(file.parents[1]))),
        beside_images,
    ),
    **{
        form: Target(image_bytes(form), f"a.{form.lower()}", lambda file, out: _image(file.read_bytes()))
        for form in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
    },
    "caption": Target(lambda: [text.encode() for text in (*TEXT, "कुत्ता 🐈 café", "x" * 3000)], "a.txt", captions),
    "safetensors": checkpoint_target(SAFETENSORS, lambda: [checkpoint_folder()[SAFETENSORS]]),
    ".pt, zipped": checkpoint_target("open_clip_model.pt", saved(zipped=True), SAFETENSORS),
    ".pt, pickled": checkpoint_target("pytorch_model.bin", saved(zipped=False), SAFETENSORS),
    "open_clip_config.json": checkpoint_target(CONFIG, lambda: [checkpoint_folder()[CONFIG]]),
    "config.json of transformers": checkpoint_target("config.json", transformers_config, CONFIG),
    "run.yaml": run_target("run.yaml", RUN_YAML),
    "summary.json": run_target("summary.json", SUMMARY),
    "passes.json": run_target("passes.json", PASSES),
    "tracking.json": Target(record_bytes, "tracking.json", run_folder, write_run("tracking.json")),
    "part of a pass": Target(part_bytes, "part-00000.parquet", part),
    "manifest.parquet": Target(manifest_bytes, "manifest.parquet", manifest),
    "plan.json": Target(plan_bytes, "plan.json", poisoned, write_clean),
    "dossier.json of a patch": dossier_target("patch", "dossier.json"),
    "trigger.png": dossier_target("patch", "trigger.png"),
    "dossier.json of a residual": dossier_target("residual", "dossier.json"),
    "residual.npy": dossier_target("residual", "residual.npy"),
    "texture.npy": dossier_target("texture", "texture.npy"),
    "warp.npy": dossier_target("warp", "warp.npy"),
}
