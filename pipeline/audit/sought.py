"""Labels that nobody names: what the model itself takes pictures for, asked of every word of the tokenizer's vocabulary."""

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from clipsan.stages.audit.judge import Judge
from clipsan.stages.audit.outliers import LEAST_LABELS
from clipsan.stages.audit.sought import best_words, labels_of
from clipsan.stages.audit.words import vocabulary

from ..core.commit import read_part
from ..core.config import ConfigError
from ..core.pass_ import Done
from ..core.run_folder import RunFolder
from .plan import Plan
from .screening import pass_of
from .work import SuspectWork, word_pieces

WORDS_TRIED = 8000
PICTURES = 500
"""That are named, where so many are at hand."""
SOUGHT_SCHEMA = pa.schema([("word", pa.string()), ("cosine", pa.float64())])
"""One row a picture: the word of a task that fits it best."""


@dataclass(frozen=True)
class SeekWork(SuspectWork):
    """Names pictures; a piece is some words."""

    def do(self, piece: Any, tools: dict[str, Judge]) -> Done:
        judge = tools["suspect"]
        found = best_words(judge.clip, judge.seen(self.pictures), piece, self.settings.templates)
        rows = [{"word": word, "cosine": cosine} for word, cosine in found]
        return Done(pairs=len(piece), parts=(pa.Table.from_pylist(rows, schema=SOUGHT_SCHEMA),))


def with_labels(plan: Plan, folder: RunFolder) -> Plan:
    """Return the plan with its labels: those that it has, or those that are sought.

    Raises:
        ConfigError: the pictures are taken for too few words to compare any.
    """
    if plan.names:
        return plan
    words, pictures = vocabulary(WORDS_TRIED, ()), plan.gallery[:PICTURES]
    seeking = pass_of(plan, folder, "sought")
    chunks = word_pieces(words)
    seeking.do(chunks, SeekWork(plan.config, (words[0],), pictures))
    tables = [read_part(seeking.home, i).to_pylist() for i in chunks]
    named = [max(rows, key=lambda row: row["cosine"])["word"] for rows in zip(*tables, strict=True)]
    names = labels_of(named, plan.config.sought)
    if len(names) <= LEAST_LABELS:
        raise ConfigError(
            f"sought: the {len(named)} images are taken for {len(names)} words, and a label is judged by what {LEAST_LABELS} others show; "
            "give more images, or classes"
        )
    return replace(plan, names=tuple(names))
