"""The text side of `clipsan audit` alone: which word reaches which label most, and does it tell models with a text key from clean ones?

    python -m tests.benchmarks.audit_words --root runs/audit               models of the benchmark: clean ones and dual keys
    python -m tests.benchmarks.audit_words --root runs/audit --development  clean ones and those with a word for the only trigger

A line a model; `python -m tests.benchmarks.audit_models` makes them. Texts and one forward pass of the scenes: no trigger is sought.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from clipsan.pipeline.audit.settings import AuditConfig
from clipsan.pipeline.audit.work import word_pieces
from clipsan.stages.audit.displacement import Clouds, nearest
from clipsan.stages.audit.judge import Judge
from clipsan.stages.audit.verdict import proven, spent
from clipsan.stages.audit.words import Heard, Listener, key, standing, vocabulary
from clipsan.stages.model.clip import ModelConfig, load_clip
from tests.benchmarks.audit_models import cells, development_cells
from tests.benchmarks.audit_packing import CHECKPOINT, TRUTH
from tests.benchmarks.audit_training import KNOWN, NAMES, Scenes

SCENES = 1500
SEED = 5


def heard_in(home: Path, pixels: np.ndarray) -> dict[str, object]:
    """Listen to one model as an audit with its defaults does, and return a line about the word that stands out most."""
    started = time.monotonic()
    settings = AuditConfig(model=ModelConfig(path=str(home / CHECKPOINT)), out="")
    judge = Judge(load_clip(settings.model), NAMES, settings.templates)
    seen, texts = judge.seen(pixels), np.asarray(judge.labels)
    listener = Listener(judge.clip, NAMES, settings.templates[0], Clouds.of(seen, nearest(seen, texts), len(NAMES)))
    words = vocabulary(settings.key_words, NAMES)
    best: dict[int, Heard] = {}
    for piece in word_pieces(words).values():
        for one in listener.furthest(piece):
            if one.label not in best or one.reach > best[one.label].reach:
                best[one.label] = one
    found = list(best.values())
    p, ahead = standing(found)
    first = int(np.lexsort((-ahead, p))[0])
    word = key(judge.clip, NAMES, texts, found[first], p=float(p[first]), ahead=float(ahead[first]))
    truth = json.loads((home / TRUTH).read_text(encoding="utf-8"))
    attack = truth["attack"]
    return {
        "model": home.name,
        "key": None if attack is None else KNOWN[attack].word,
        "target": truth["target"],
        "word": word.word,
        "label": NAMES[word.label],
        "p": f"{float(spent(np.asarray(word.p), 'words', ('labels', 'words'))):.2g}",
        "reach": f"{word.reach:.2f}",
        "flips_pct": round(word.flips.pct),
        "control_pct": round(word.control.pct),
        "proven": proven(word),
        "seconds": round(time.monotonic() - started),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Listen to the models and print a line about each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="some models")
    parser.add_argument("--root", type=Path, default=Path("runs/audit"), help="where the models lie")
    parser.add_argument("--development", action="store_true", help="the models on which constants may be chosen")
    given = parser.parse_args(arguments)
    wanted = [
        cell.name
        for cell in (development_cells() if given.development else cells())
        if cell.attack is None or KNOWN[cell.attack].word is not None or cell.name in given.names
    ]
    homes = [given.root / name for name in wanted if not given.names or name in given.names]
    homes = [home for home in homes if (home / TRUTH).is_file()]
    if not homes:
        parser.error(f"no model below {given.root}: python -m tests.benchmarks.audit_models {given.root}")
    torch.set_num_threads(1)
    pixels = Scenes.draw(SCENES, SEED).pixels
    for home in homes:
        sys.stdout.write(" ".join(f"{name}={value}" for name, value in heard_in(home, pixels).items()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
