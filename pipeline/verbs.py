"""The verbs of clipsan by name; the module of each is imported only when it is asked for."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.verb import Verb


@dataclass(frozen=True, slots=True)
class Entry:
    """One verb, as far as it is known without its module."""

    module: str
    """Below the package pipeline."""
    text: str
    """What it does, for --help."""
    has_write: bool = False
    """Whether `--write` chooses copies of the data."""
    note: str | None = None
    """What --help says beneath the options."""


VERBS = {
    "scan": Entry("scan.verb", "find the poisoned pairs of a data set: verdicts, report, clean copy", has_write=True),
    "audit": Entry(
        "audit.verb",
        "tell whether a checkpoint from outside is backdoored, towards what and with which trigger, without its data",
        note="Exit status: 0 clean; 3 suspicious, so a person must look; 4 backdoored; 2 a setting or an input must be changed; "
        "130 stopped by Ctrl-C, 143 by SIGTERM; 1 anything else.",
    ),
    "poison": Entry("poison.verb", "write a poisoned copy of a data set with an exact manifest"),
    "train": Entry("train.verb", "train or fine-tune a CLIP on pairs"),
    "repair": Entry(
        "repair.verb",
        "repair a suspect checkpoint: fine-tune, CleanCLIP, PAR, RVPT, EftCLIP, or unlearn what a scan flags",
    ),
    "sweep": Entry(
        "sweep.verb",
        "search a repair's settings with Ray Tune, without knowing the attack: Pareto front and a recommended model",
    ),
    "sweep-detectors": Entry(
        "detector_sweep.verb",
        "search the detectors' settings with Ray Tune on a scan's embeddings, by the pairs that it has proven",
    ),
    "evaluate": Entry("evaluate.verb", "zero-shot accuracy, ASR and accuracy under trigger of a model"),
    "run": Entry(
        "story.verb",
        "the whole story for a batch queue: scan, clean copy, repair, figures before and after, report, registry",
        note="Exit status: 0 the scan accuses nothing, or the model is repaired as max_asr_pct and max_loss_points ask; 3 a "
        "backdoor was found and no model meets them, so a person must look (summary.json says why); 2 a setting or an input "
        "must be changed; 130 stopped by Ctrl-C, 143 by SIGTERM; 1 anything else. After a stop or a kill the same command goes on.",
    ),
    "trigger": Entry("trigger.verb", "make the optimised patch of BadCLIP on a clean model"),
    "bench": Entry(
        "bench.verb",
        "attacks x detectors in one table: poison, train, measure and scan every cell of a matrix",
    ),
    "demo": Entry(
        "story.demo", "the whole story on rendered scenes (or CIFAR-10): poison, train, scan, repair, report"
    ),
}


def verb_of(name: str) -> "Verb[Any, Any]":
    """Return a verb of VERBS; Ray and torch come with its module, which takes seconds."""
    verb: Verb[Any, Any] = import_module(f".{VERBS[name].module}", __package__).VERB
    return verb
