"""The command line: clipsan VERB [FILE.yaml] [key.path=value ...] [--dry-run]."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module

VERBS = {
    "scan": "find the poisoned pairs of a data set: verdicts, report, clean copy",
    "poison": "write a poisoned copy of a data set with an exact manifest",
    "train": "train or fine-tune a CLIP on pairs",
    "repair": "repair a suspect checkpoint: fine-tune, CleanCLIP, PAR, RVPT, EftCLIP, or unlearn what a scan flags",
    "sweep": "search a repair's settings with Ray Tune, without knowing the attack: Pareto front and a recommended model",
    "sweep-detectors": "search the detectors' settings with Ray Tune on a scan's embeddings, by the pairs that it has proven",
    "evaluate": "zero-shot accuracy, ASR and accuracy under trigger of a model",
    "run": "the whole story for a batch queue: scan, clean copy, repair, figures before and after, report, registry",
    "trigger": "make the optimised patch of BadCLIP on a clean model",
    "bench": "attacks x detectors in one table: poison, train, measure and scan every cell of a matrix",
    "demo": "the whole story on rendered scenes (or CIFAR-10): poison, train, scan, repair, report",
}

FOLDER_VERBS = {
    "status": "what is done and what is left of a run, from its committed files alone",
    "log": "log a finished run folder, and those in it, to MLflow: after its server was away, or to another one",
}
"""Verbs that take a run folder in place of a file of settings."""
MODULES = {
    **{name: f"{name}.verb" for name in ("scan", "poison", "train", "repair", "sweep", "evaluate", "trigger", "bench")},
    "sweep-detectors": "detector_sweep.verb",
    "run": "story.verb",
    "demo": "story.demo",
    "status": "status",
    "log": "tracking.log",
}
"""Where each verb lives."""
RUN_STATUS = (
    "Exit status: 0 the scan accuses nothing, or the model is repaired as max_asr_pct and max_loss_points ask; 3 a backdoor was "
    "found and no model meets them, so a person must look (summary.json says why); 2 a setting or an input must be changed; "
    "130 stopped by Ctrl-C, 143 by SIGTERM; 1 anything else. After a stop or a kill the same command goes on."
)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 2 the user must change something, 130 or 143 stopped, 1 anything else.

    `run` has RUN_STATUS.
    """
    options, overrides = _parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from .core.config import ConfigError
    from .core.masking import one_line
    from .core.stop import exit_status, stoppable

    try:
        with stoppable():
            if options.verb in FOLDER_VERBS:
                return _command(options.verb)(options.file, overrides)
            if options.write:
                overrides.append(f"write=[{options.write}]")
            return _command(options.verb)(options.file, overrides, options.dry_run)
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"clipsan {options.verb}: stopped; the same command goes on from what is committed\n")
        return exit_status(stop)
    except (ConfigError, ValueError, OSError) as error:
        if os.environ.get("CLIPSAN_DEBUG"):
            raise
        sys.stderr.write(f"clipsan {options.verb}: {one_line(error)}\n")
        return 2


def _command(verb: str) -> Callable[..., int]:
    # Ray and torch take seconds to import, and only the verb's own module needs them.
    module = import_module(f".{MODULES[verb]}", __package__)
    command: Callable[..., int] = module.VERB.command if hasattr(module, "VERB") else module.command
    return command


def _parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="clipsan",
        description="Sanitizer for CLIP: finds backdoor-poisoned image-text pairs and repairs the model that learned them.",
        epilog="Settings: key.path=value overrides a key of the YAML file; conf/ shows them all. CLIPSAN_DEBUG=1 shows tracebacks.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text, epilog=RUN_STATUS if verb == "run" else None)
        sub.add_argument("settings", nargs="*", metavar="FILE.yaml | key=value", help=f"default file: conf/{verb}.yaml")
        sub.add_argument("--dry-run", action="store_true", help="print the resolved plan and stop")
        sub.add_argument("--write", default="", help="scan: clean, quarantine, or both with a comma")
    for verb, text in FOLDER_VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        sub.add_argument(
            "settings", nargs="+", metavar="RUN", help="run folder" + ("; tracking.uri=..." if verb == "log" else "")
        )
    # argparse stops to collect settings at the first option between them; what is left over are settings too.
    options, more = parser.parse_known_args(arguments)
    overrides: list[str] = []
    if options.verb in FOLDER_VERBS:
        options.file, *overrides = options.settings
    unknown = [*overrides, *more] if options.verb == "status" else [word for word in more if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.verb in FOLDER_VERBS:
        return options, [*overrides, *more]
    options.file = None
    for setting in [*options.settings, *more]:
        if "=" not in setting and options.file is None:
            options.file = setting
        else:
            overrides.append(setting)
    return options, overrides


if __name__ == "__main__":
    sys.exit(main())
