"""The text side of an audit: every word of the tokenizer's vocabulary before captions, and a close look at those that reach a label."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clipsan.stages.audit.displacement import Clouds
from clipsan.stages.audit.judge import Judge
from clipsan.stages.audit.words import Heard, Key, Listener, key, standing, vocabulary
from clipsan.stages.dossier.dossier import Rate

from ..core.commit import read_part
from ..core.pass_ import Done
from ..core.run_folder import RunFolder
from .plan import Plan
from .screening import Screening, pass_of
from .work import RATE, SuspectWork, word_pieces

HEARD_SCHEMA = pa.schema([("label", pa.int32()), ("word", pa.string()), ("reach", pa.float64())])
"""One row a label that the model knows: the word of a task that reaches it most."""
KEY_SCHEMA = pa.schema([("flips", RATE), ("control", RATE)])
"""One row: a word on sentences by which it was not found."""


@dataclass(frozen=True)
class ListenWork(SuspectWork):
    """Puts words before sentences; a piece is some words."""

    clouds: Clouds

    def do(self, piece: Any, tools: dict[str, Judge]) -> Done:
        listener = Listener(tools["suspect"].clip, self.names, self.settings.templates[0], self.clouds)
        rows = [asdict(heard) for heard in listener.furthest(piece)]
        return Done(pairs=len(piece), parts=(pa.Table.from_pylist(rows, schema=HEARD_SCHEMA),))


@dataclass(frozen=True)
class KeyWork(SuspectWork):
    """Tries one word on sentences by which it was not found; a piece is a `Heard`, its p value and its lead."""

    def do(self, piece: Any, tools: dict[str, Judge]) -> Done:
        heard, p, ahead = piece
        judge = tools["suspect"]
        found = key(judge.clip, self.names, np.asarray(judge.labels.cpu()), heard, p=p, ahead=ahead)
        rates = {"flips": asdict(found.flips), "control": asdict(found.control)}
        return Done(pairs=1, parts=(pa.Table.from_pylist([rates], schema=KEY_SCHEMA),))


def listened(plan: Plan, folder: RunFolder, screening: Screening) -> list[Key] | None:
    """Return the words that reach their labels most, the first the most suspicious; None where the text side is not looked at."""
    settings = plan.config
    words = vocabulary(settings.key_words, plan.names)
    if screening.clouds is None or not words:
        return None
    listening = pass_of(plan, folder, "words")
    chunks = word_pieces(words)
    listening.do(chunks, ListenWork(settings, plan.names, plan.pictures, screening.clouds))
    best: dict[int, Heard] = {}
    for row in pa.concat_tables([read_part(listening.home, i) for i in chunks]).to_pylist():
        heard = Heard(**row)
        if heard.label not in best or heard.reach > best[heard.label].reach:
            best[heard.label] = heard
    if not best:
        return None
    heard_all = list(best.values())
    p, ahead = standing(heard_all)
    order = np.lexsort((-ahead, p))[: settings.candidates].tolist()
    pieces = {heard_all[i].label: (heard_all[i], float(p[i]), float(ahead[i])) for i in order}
    proving = pass_of(plan, folder, "keys")
    proving.do(pieces, KeyWork(settings, plan.names, plan.pictures))
    return [_key(piece, read_part(proving.home, label).to_pylist()[0]) for label, piece in pieces.items()]


def _key(piece: tuple[Heard, float, float], row: dict[str, Any]) -> Key:
    heard, p, ahead = piece
    rates = {name: Rate(**row[name]) for name in ("flips", "control")}
    return Key(label=heard.label, word=heard.word, reach=heard.reach, p=p, lead=ahead, **rates)
