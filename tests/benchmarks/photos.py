"""Real photos end to end: poison, train, evaluate and scan tiny-imagenet20, and scan human-captioned photos.

    python -m tests.benchmarks.photos                          every cell
    python -m tests.benchmarks.photos patch-1.0 clean          these cells; others may run beside
    python -m tests.benchmarks.photos --commands patch-1.0     the commands alone

Every step is a command of clipsan with a run folder of its own in runs/photos/CELL/, and is skipped when that run has finished.
The figures go to tests/benchmarks/results/. The photos are no part of the project: CLIPSAN_ASSETS names their folder.
"""

import argparse
import csv
import io
import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from clipsan.pipeline.core.commit import write_text
from clipsan.pipeline.core.run_folder import read_summary
from tests.benchmarks.figures import ADMITTED_ASR_PCT, PHOTO_COMMANDS, attack_row, detector_rows, scan_row
from tests.benchmarks.results import Row, Value, record

ROOT = Path(__file__).resolve().parents[2]
RUNS = Path("runs/photos")
"""Relative to ROOT, where every command is run."""
COMMAND = "python -m tests.benchmarks.photos"

DATA = "tiny-imagenet20"
MODEL = "resnet10t-64"
SEED = 0
TARGET = "banana"
TEMPLATES = '["a photo of a {}.", "a good photo of the {}.", "a close-up photo of a {}."]'
"""Prompts of the evaluation: the model has learned to read from its training captions alone, and these are among them."""
TRAINING = (
    "model.config=conf/model/resnet10t-64.json",
    "epochs=12",
    "batch_size=128",
    "lr=2e-3",
    "precision=bf16",
    "cluster.workers=1",
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One poisoned set with its model; without an attack the clean twin."""

    name: str
    attack: str | None = None
    rate: float | None = None

    @property
    def home(self) -> Path:
        return RUNS / self.name

    @property
    def triggers(self) -> tuple[str, ...]:
        """What the model is shown: its own trigger, the clean twin both."""
        return (self.attack,) if self.attack else ("patch", "blend")

    @property
    def rate_pct(self) -> float:
        return round(100 * self.rate, 6) if self.rate is not None else 0.0

    def evaluation(self, trigger: str) -> Path:
        return self.home / ("evaluate" if trigger == self.triggers[0] else f"evaluate-{trigger}")


@dataclass(frozen=True, slots=True)
class Photos:
    """A set of human-captioned photos, scanned with a model that was not trained on it, to see that its format is read."""

    name: str
    data: str
    path: str
    format: str


RATES = {"patch": (0.01, 0.005, 0.003, 0.002), "blend": (0.01, 0.005, 0.002, 0.001)}
CELLS = [Cell(f"{attack}-{100 * rate:.1f}", attack, rate) for attack, rates in RATES.items() for rate in rates]
CELLS.append(Cell("clean"))

SUSPECT = Path("runs/photos/patch-1.0/train/checkpoint")
"""The model that the human-captioned photos are scanned with."""
UNPACKED = RUNS / "unpacked"
FORMATS = [
    Photos("flickr1k", "webdataset", "$CLIPSAN_ASSETS/flickr1k-*.tar", "WebDataset"),
    Photos("coco-val128", "webdataset", "$CLIPSAN_ASSETS/coco-val128.tar", "WebDataset"),
    Photos("coco-mini", "webdataset", "$CLIPSAN_ASSETS/coco-mini-*.tar", "WebDataset"),
    Photos("flickr1k-folder", "folder", str(UNPACKED), "image folder with metadata.csv"),
    Photos("flickr1k-tsv", "table", str(UNPACKED / "pairs.tsv"), "TSV with image paths"),
]


def assets() -> Path | None:
    """Return the folder of real photos, or None where it is not."""
    folder = Path(os.environ.get("CLIPSAN_ASSETS", ROOT.parent / "shared" / "assets")).resolve()
    return folder if folder.is_dir() else None


def found_assets() -> Path | None:
    """Return the folder of real photos; where it is not, that is said, and there is nothing to do."""
    folder = assets()
    if folder is None:
        sys.stdout.write("skipped: the photos are not on this machine; CLIPSAN_ASSETS names their folder\n")
    return folder


def steps(cell: Cell) -> Iterator[tuple[Path, list[str]]]:
    """Yield (run folder, arguments of clipsan) of a cell, in order; `$CLIPSAN_ASSETS` stands for the folder of photos."""
    home = cell.home
    pairs = f"{home}/poison/data/*.parquet" if cell.attack else "$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet"
    labelled = "data=labelled-parquet"
    if cell.attack:
        yield (
            home / "poison",
            [
                *("poison", labelled, "data.path=$CLIPSAN_ASSETS/tiny-imagenet20-train-*.parquet"),
                *(f"attack={cell.attack}", f"attack.target={TARGET}", f"attack.rate={cell.rate:g}"),
                *(f"out={home}/poison", "cluster.workers=1"),
            ],
        )
    yield home / "train", ["train", labelled, f"data.path={pairs}", *TRAINING, f"out={home}/train"]
    model = f"model.path={home}/train/checkpoint"
    for trigger in cell.triggers:
        out = cell.evaluation(trigger)
        yield (
            out,
            [
                *("evaluate", labelled, "data.path=$CLIPSAN_ASSETS/tiny-imagenet20-val.parquet", model),
                *(f"classes={RUNS}/classes.yaml", f"templates={TEMPLATES}"),
                *(f"attack.trigger={trigger}", f"attack.target={TARGET}", f"out={out}", "cluster.workers=1"),
            ],
        )
    scan = ["scan", labelled, f"data.path={pairs}", model]
    truth = [f"manifest={home}/poison/manifest.parquet"] if cell.attack else []
    yield home / "scan", [*scan, *truth, f"out={home}/scan", "cluster.workers=1"]
    if cell.rate == max(RATES["patch"]):
        # LoREx needs pairs that are known to be clean; everything else is scored again on the same embeddings.
        trusted = (
            "trusted={kind: parquet, path: $CLIPSAN_ASSETS/tiny-imagenet20-val.parquet, label: label, "
            'captions_from_labels: {seed: 0, names: names, templates: ["a photo of a {}."]}}'
        )
        again = [f"embeddings={home}/scan", trusted, f"out={home}/scan-trusted", "cluster.workers=1"]
        yield home / "scan-trusted", [*scan, *truth, *again]


def format_step(photos: Photos) -> tuple[Path, list[str]]:
    """Return (run folder, arguments of clipsan) of one set of human-captioned photos."""
    out = RUNS / photos.name
    where = [f"data={photos.data}", f"data.path={photos.path}", f"model.path={SUSPECT}"]
    return out, ["scan", *where, f"out={out}", "cluster.workers=1"]


def as_shell(arguments: list[str]) -> str:
    """Return a command as one types it, with the folder of photos as a variable."""
    quoted = []
    for argument in arguments:
        text = shlex.quote(argument)
        if "$CLIPSAN_ASSETS" in argument:
            escaped = argument.replace("\\", "\\\\").replace('"', '\\"')
            text = f'"{escaped}"'
        quoted.append(text)
    return "clipsan " + " ".join(quoted)


def run(folder: Path, arguments: list[str], photos: Path) -> None:
    """Run one command of clipsan unless it has finished before.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on standard error.
    """
    if (ROOT / folder / "summary.json").is_file():
        sys.stdout.write(f"done before: {folder}\n")
        return
    execute(arguments, photos)


def execute(arguments: list[str], photos: Path) -> None:
    """Run one command of clipsan.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on standard error.
    """
    sys.stdout.write(as_shell(arguments) + "\n")
    sys.stdout.flush()
    real = [argument.replace("$CLIPSAN_ASSETS", str(photos)) for argument in arguments]
    subprocess.run([sys.executable, "-m", "clipsan.pipeline", *real], cwd=ROOT, check=True)


def run_cell(cell: Cell, photos: Path) -> None:
    """Run a cell and store its figures."""
    write_classes(photos)
    for folder, arguments in steps(cell):
        run(folder, arguments, photos)
    store(cell)


def store(cell: Cell) -> None:
    """Store the figures of a finished cell."""
    home = ROOT / cell.home
    name: dict[str, Value] = {"data": DATA, "attack": cell.attack or "clean", "rate_pct": cell.rate_pct}
    model: dict[str, Value] = {"model": MODEL, "seed": SEED}
    trained = read_summary(home / "train")
    poisoned = read_summary(home / "poison")["counts"]["poisoned"] if cell.attack else 0
    attacks = [
        attack_row(
            {**name, "trigger": trigger, **model},
            read_summary(ROOT / cell.evaluation(trigger))["evaluation"],
            pairs=trained["counts"]["used"],
            poisoned=poisoned,
        )
        for trigger in cell.triggers
    ]
    asr = attacks[0]["asr_pct"]
    known: dict[str, Value] = {"admitted": cell.attack is not None and asr is not None and asr >= ADMITTED_ASR_PCT}
    scan = read_summary(home / "scan")
    detection = [scan_row({**name, **model, **known}, scan, TARGET if cell.attack else None)]
    if cell.attack:
        detection += detector_rows({**name, **model, **known}, scan)
    if (home / "scan-trusted" / "summary.json").is_file() and cell.attack:
        trusted = detector_rows({**name, **model, **known}, read_summary(home / "scan-trusted"))
        detection += [row for row in trusted if row["detector"] == "lorex"]
    record("attacks", attacks, command=PHOTO_COMMANDS)
    record("detection", detection, command=PHOTO_COMMANDS)


def run_format(photos: Photos, folder: Path) -> None:
    """Scan one set of human-captioned photos and store what came of it."""
    if photos.path.startswith(str(UNPACKED)):
        unpack(folder / "flickr1k-00000.tar", ROOT / UNPACKED)
    out, arguments = format_step(photos)
    run(out, arguments, folder)
    cell: Row = {"data": photos.name, "attack": "none", "rate_pct": 0.0, "model": MODEL, "seed": SEED}
    row = scan_row({**cell, "format": photos.format, "admitted": False}, read_summary(ROOT / out), None)
    record("detection", [row], command=PHOTO_COMMANDS)


def write_classes(photos: Path) -> None:
    """Write the class names, by index, for `clipsan evaluate`."""
    table = pq.read_table(photos / "tiny-imagenet20-val.parquet", columns=["label", "names"])
    names = dict(zip(table.column("label").to_pylist(), table.column("names").to_pylist(), strict=True))
    write_text(ROOT / RUNS / "classes.yaml", yaml.safe_dump([names[label] for label in sorted(names)]))


def unpack(tar: Path, folder: Path) -> None:
    """Write the pairs of a tar as image files, with metadata.csv and pairs.tsv that name them."""
    if (folder / "pairs.tsv").is_file():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    captions: dict[str, str] = {}
    images: dict[str, str] = {}
    with tarfile.open(tar) as opened:
        for member in opened:
            key, _, suffix = member.name.partition(".")
            content = opened.extractfile(member)
            if content is None:
                continue
            if suffix == "txt":
                captions[key] = content.read().decode("utf-8").strip()
            elif suffix == "jpg":
                images[key] = f"images/{Path(key).name}.jpg"
                (folder / images[key]).write_bytes(content.read())
    rows = [(images[key], captions[key]) for key in images if key in captions]
    write_text(folder / "metadata.csv", _delimited([("file_name", "caption"), *rows], ","))
    write_text(folder / "pairs.tsv", _delimited([("image", "caption"), *rows], "\t"))


def _delimited(rows: list[tuple[str, str]], delimiter: str) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return file.getvalue()


def main() -> int:
    """Run the chosen cells, or print their commands."""
    known = {cell.name: cell for cell in (*CELLS, *FORMATS)}
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--commands", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--store", action="store_true", help="store the figures of finished cells and run nothing")
    options = parser.parse_args()
    unknown = [name for name in options.cells if name not in known]
    if unknown:
        parser.error(f"no cell {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.cells or known]
    if options.commands:
        for cell in chosen:
            for _, arguments in steps(cell) if isinstance(cell, Cell) else [format_step(cell)]:
                sys.stdout.write(as_shell(arguments) + "\n")
        return 0
    folder = found_assets()
    if folder is None:
        return 0
    for cell in chosen:
        if isinstance(cell, Photos):
            run_format(cell, folder)
        elif options.store:
            store(cell)
        else:
            run_cell(cell, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
