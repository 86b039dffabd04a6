"""What a document shows: its commands, its pieces of Python, its links; and the small world in which the commands are tried."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipsan.pipeline.core.commit import read_part, write_part
from clipsan.pipeline.core.config import as_tree, load
from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.pipeline.poison.plan import PoisonConfig
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.stages.sources import WebDataset, list_units
from clipsan.stages.sources.poisoned import PoisonPlan, plan_text
from tests.conftest import NOUNS, caption, picture, write_shards
from tests.unit.pipeline.repair.scan import write_scan

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [
    ROOT / path
    for path in ("README.md", "conf/README.md", "deploy/README.md", "stages/README.md", "tests/benchmarks/RESULTS.md")
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(\S+)")
PROGRAMS = ("clipsan", "python", "make", "ray", "pip", "kubectl", "docker", "sbatch", "deploy/submit.sh", ".")
SHARDS, PAIRS = 2, 10
PHOTOS = 20
"""Images of the folder; an audit asks for 16."""
CLASSES = (*NOUNS, "banana")


def fences(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return [body for found, body in FENCE.findall(text) if found == language]


def shell(text: str) -> Iterator[tuple[list[str], bool]]:
    """Words of every command that a document shows, and whether it is whole: those in running text may be parts of one."""
    plain = FENCE.sub("", text)
    whole = [line for body in fences(text, "sh") for line in re.sub(r"\\\n\s*", "", body).splitlines()]
    whole += re.findall(r"^    (\S.*)$", plain, re.M)
    parts = [" ".join(span.split()) for span in SPAN.findall(plain)]
    for line, is_whole in [*((line, True) for line in whole), *((line, False) for line in parts)]:
        if (PROGRAM.match(line) or ["", ""])[1] not in PROGRAMS:
            continue
        for command in re.split(r";\s", line):
            yield shlex.split(command, comments=True), is_whole


def anchors(text: str) -> set[str]:
    """Names by which the headings of a document can be linked to."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", head.casefold()).replace(" ", "-") for head in heads}


def links(text: str) -> list[str]:
    """Targets of the links and pictures of a document."""
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text))


def make_world(home: Path, checkpoint: Path) -> Path:
    """Lay out a folder in which the paths that the documents name lead to tiny data, models and finished runs."""
    data = home / "data"
    for folder in (data, data / "cc3m", data / "clean", data / "flickr30k"):
        write_shards(folder, shards=SHARDS, pairs=PAIRS)
    rows = [
        {"image": picture(i), "caption": caption(i), "label": i % len(CLASSES), "names": CLASSES[i % len(CLASSES)]}
        for i in range(4 * len(CLASSES))
    ]
    for name in ("pairs/00000", "clean/00000", "train-0", "train", "val", "dev", "photos-0"):
        (data / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), data / f"{name}.parquet")
    (data / "photos").mkdir()
    for i in range(PHOTOS):
        (data / "photos" / f"{i}.png").write_bytes(picture(i))
    (data / "photos" / "metadata.csv").write_text(
        "file_name,caption\n" + "".join(f"{i}.png,a kite\n" for i in range(PHOTOS))
    )
    (data / "pairs.csv").write_text("image,caption\nphotos/0.png,a kite\n")
    (home / "classes.yaml").write_text(yaml.safe_dump(list(CLASSES)))
    (home / "synonyms.txt").write_text("photo: picture\n")
    models = ("runs/model/checkpoint", "runs/train/checkpoint", "runs/clean/checkpoint")
    for place in ("checkpoints/suspect", "checkpoints/outside", "checkpoints/clip", "suspect", *models):
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).symlink_to(checkpoint)
    pairs = WebDataset(path=f"{data / 'cc3m'}/*.tar")
    _scan(home / "runs" / "scan", pairs, checkpoint)
    _audit(home / "runs" / "audit", home / "runs" / "scan")
    for name in ("sig", "poisoned"):
        _plan(home / "runs" / name / "plan.json", pairs)
    for name in ("story", "demo"):
        (home / "runs" / name).symlink_to(home / "runs" / "scan")
    (home / "runs" / "detectors").mkdir()
    (home / "runs" / "detectors" / "detectors.yaml").symlink_to(ROOT / "conf" / "detectors" / "default.yaml")
    (home / "conf").symlink_to(ROOT / "conf")
    for shown in fences((ROOT / "stages" / "README.md").read_text(encoding="utf-8"), "python"):
        (home / shown.splitlines()[0].removeprefix("# ")).write_text(shown)
    return home


def _scan(root: Path, data: WebDataset, checkpoint: Path) -> None:
    """A finished scan that has proven a trigger, as far as repairs, sweeps and status read it."""
    write_scan(root, data, pairs=PAIRS, proven=True)
    settings = load(
        ScanConfig, None, [f"data.path={data.path}", f"model.path={checkpoint}", f"out={root}"], verb="scan"
    )
    record = yaml.safe_load((root / "run.yaml").read_text())
    (root / "run.yaml").write_text(yaml.safe_dump({**record, "config": as_tree(settings)}))
    counts = {"pairs_in": SHARDS * PAIRS, "flagged": 1}
    (root / "summary.json").write_text(json.dumps({"targets": ["kite"], "seconds": 1.0, "counts": counts}))
    passes = {"verdict": {"folder": "verdicts", "parts": SHARDS}}
    RunFolder(root).work.mkdir(exist_ok=True)
    RunFolder(root).passes.write_text(json.dumps(passes))
    first, *others = read_part(root / "verdicts", 0).to_pylist()
    proven = pa.Table.from_pylist([{**first, "verdict": "poisoned"}, *others])
    write_part(root / "verdicts", 0, proven, "mark")


def _audit(root: Path, scan: Path) -> None:
    """A finished audit that has proven the scan's trigger, as far as repairs read it."""
    shutil.copytree(scan, root)
    record = yaml.safe_load((root / "run.yaml").read_text())
    (root / "run.yaml").write_text(yaml.safe_dump({**record, "verb": "audit"}))
    summary = json.loads((root / "summary.json").read_text())
    (root / "summary.json").write_text(json.dumps({**summary, "labels": list(CLASSES)}))


def _plan(path: Path, data: WebDataset) -> None:
    """What `clipsan poison copy_data=false` leaves."""
    settings = load(PoisonConfig, None, [f"data.path={data.path}", "attack=sig", "attack.target=kite"], verb="poison")
    drawn = PoisonPlan(
        data=data, attack=settings.attack, image=settings.image, cut=2**60, captions=(), units=tuple(list_units(data))
    )
    path.parent.mkdir(parents=True)
    path.write_text(plan_text(drawn))


def at_home(word: str, home: Path) -> str:
    """Return a word with the places of a document turned into those of the world, and its shards into two."""
    word = re.sub(r"s3://bucket/(suspect|runs/)", rf"{home}/\1", word)
    word = word.replace("s3://bucket/", f"{home}/data/").replace("/usr/share/wordnet", f"{home}/synonyms.txt")
    word = re.sub(r"(?<![\w.}])/(data|shared)/", lambda m: f"{home}/" + ("data/" if m[1] == "data" else ""), word)
    return re.sub(r"\{(\d{5})\.\.\d{5}\}", rf"{{\1..{SHARDS - 1:05d}}}", word)


VERB_OF = {
    "data": "scan",
    "cluster": "scan",
    "detectors": "scan",
    "decision": "scan",
    "oracle": "scan",
    "repair": "repair",
}
"""Folder of conf/ -> the verb whose settings its files name alone, as `key=value`."""


def headed(path: Path) -> Iterator[list[str]]:
    """Words of every command in the comments of a YAML file, and of every `key=value` that stands there alone."""
    comments = "\n".join(re.findall(r"^# ?(.*)$", path.read_text(encoding="utf-8"), re.M))
    joined = re.sub(r"\\?\n {4,}(?=[\w.]+=)", " ", comments)
    for line in joined.splitlines():
        shown = re.split(r" {3,}", line.strip())[0]
        if command := re.search(r"(?:^|: +)clipsan (?=[a-z-]+( |$))(.*)", shown):
            yield ["clipsan", *shlex.split(command[2])]
        elif re.match(r" {2,}'?[\w.]+=", line):
            verb = path.stem if path.parent.name == "conf" else VERB_OF[path.parent.name]
            yield ["clipsan", verb, *shlex.split(shown)]
