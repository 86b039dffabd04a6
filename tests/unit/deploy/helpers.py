"""What the tests of deploy/ share: the commands in its files as settings, what these ask of nodes, and misspelled copies of a tree."""

import copy
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
FILES = sorted(
    path
    for path in DEPLOY.rglob("*")
    if path.is_file() and path.name not in (".env", "README.md") and path.suffix != ".lock"
)
SETTINGS = {
    "scan": "clipsan.pipeline.scan.plan.ScanConfig",
    "repair": "clipsan.pipeline.repair.settings.RepairConfig",
    "sweep": "clipsan.pipeline.sweep.settings.SweepConfig",
    "run": "clipsan.pipeline.story.settings.RunConfig",
}
"""Verb -> configuration class, imported where a command is checked: torch comes with it."""
COMMAND = re.compile(rf"(?:clipsan|clipsan\.sbatch|submit\.sh|clipsan:[\w.-]+)\s+((?:{'|'.join(SETTINGS)})\s.*)")

Bundle = dict[str, float]


def lines(text: str) -> list[str]:
    """Lines of a file without the comment signs, those that go on after a backslash joined."""
    plain = "\n".join(re.sub(r"^\s*#+ ?", "", line) for line in text.splitlines())
    return re.sub(r"\\\n\s*", "", plain).splitlines()


def commands(file: Path) -> Iterator[list[str]]:
    """Verb and words of every whole clipsan command that a file shows."""
    for line in lines(file.read_text()):
        found = COMMAND.search(line)
        if found and " ... " not in line:
            yield shlex.split(found[1], comments=True)


def settings_of(words: list[str]) -> Any:
    """Return the configuration object of a command; raises ConfigError where clipsan would."""
    from clipsan.pipeline.core.config import load

    verb, *rest = words
    module, _, name = SETTINGS[verb].rpartition(".")
    files = [word for word in rest if "=" not in word]
    return load(
        getattr(import_module(module), name),
        files[0] if files else None,
        [word for word in rest if "=" in word],
        verb=verb,
    )


def demands(settings: Any) -> list[tuple[Bundle, int]]:
    """What the workers of a verb take, and how many of each there are at a time."""
    cluster = settings.cluster
    worker = {"CPU": float(cluster.threads_per_worker), "GPU": cluster.gpus_per_worker}
    if type(settings).__name__ == "SweepConfig":
        return [(worker, (settings.concurrent or 1) * settings.workers_per_trial)]
    wanted = [(worker, cluster.workers or 1)]
    if type(settings).__name__ == "ScanConfig" and settings.proof.pool.resources:
        pool = settings.proof.pool
        gpus = cluster.gpus_per_worker if pool.gpus_per_worker is None else pool.gpus_per_worker
        wanted.append(({**worker, "GPU": gpus, **pool.resources}, pool.workers or cluster.workers or 1))
    return wanted


def places(bundle: Bundle, nodes: Mapping[str, Any]) -> int:
    """How many such workers the node types (max_workers, resources) hold at their largest."""
    return sum(
        node["max_workers"]
        * int(min(node["resources"].get(name, 0) / amount for name, amount in bundle.items() if amount))
        for node in nodes.values()
    )


def misspellings(tree: Any, free: re.Pattern[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Copies of a tree with one key misspelled each, with its dotted path; what lies at a path that matches `free` may be named at will."""
    for way in list(_keys(tree, ())):
        name = ".".join(str(step) for step in way)
        if free.search(name):
            continue
        wrong = copy.deepcopy(tree)
        node = wrong
        for step in way[:-1]:
            node = node[step]
        node[f"{way[-1]}x"] = node.pop(way[-1])
        yield name, wrong


def _keys(tree: Any, way: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*way, key)
            yield from _keys(value, (*way, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _keys(value, (*way, index))
