"""The command line: clipsan VERB [FILE.yaml] [key.path=value ...] [--dry-run]."""

import argparse
import os
import sys
import warnings
from importlib import import_module

from .verbs import VERBS, verb_of

FOLDER_VERBS = {
    "status": ("status", "what is done and what is left of a run, from its committed files alone"),
    "log": (
        "tracking.log",
        "log a finished run folder, and those in it, to MLflow: after its server was away, or to another one",
    ),
}
"""Verbs that take a run folder in place of a file of settings: module and help of each."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 2 the user must change something, 130 or 143 stopped, 1 anything else.

    Of a run that came to its end the verb says: 1 where a cell, a trial or a shard is missing, and 3 as `clipsan run` has it. 1 is also
    an input that cannot be reached: the same command goes on from what is committed.
    """
    options, settings = _parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from clipsan.stages.files import Unreachable

    from .core.config import ConfigError
    from .core.masking import one_line
    from .core.stop import exit_status, stoppable

    try:
        with stoppable():
            return _run(options, settings)
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"clipsan {options.verb}: stopped; the same command goes on from what is committed\n")
        return exit_status(stop)
    except Unreachable as error:
        if os.environ.get("CLIPSAN_DEBUG"):
            raise
        sys.stderr.write(
            f"clipsan {options.verb}: {one_line(error)}; the same command goes on from what is committed\n"
        )
        return 1
    except (ConfigError, ValueError, OSError) as error:
        if os.environ.get("CLIPSAN_DEBUG"):
            raise
        sys.stderr.write(f"clipsan {options.verb}: {one_line(error)}\n")
        return 2


def _run(options: argparse.Namespace, settings: list[str]) -> int:
    if options.verb in FOLDER_VERBS:
        module, _ = FOLDER_VERBS[options.verb]
        folder, *overrides = settings
        status: int = import_module(f".{module}", __package__).command(folder, overrides)
        return status
    file = next((word for word in settings if "=" not in word), None)
    overrides = [word for word in settings if word is not file]
    if getattr(options, "write", ""):
        overrides.append(f"write=[{options.write}]")
    return verb_of(options.verb).command(file, overrides, options.dry_run)


def _parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and beside them the words that are none, in their order."""
    parser = argparse.ArgumentParser(
        prog="clipsan",
        description="Sanitizer for CLIP: finds backdoor-poisoned image-text pairs and repairs the model that learned them.",
        epilog="Settings: key.path=value overrides a key of the YAML file; conf/ shows them all. CLIPSAN_DEBUG=1 shows tracebacks.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, entry in VERBS.items():
        sub = verbs.add_parser(verb, help=entry.text, description=entry.text, epilog=entry.note)
        sub.add_argument("settings", nargs="*", metavar="FILE.yaml | key=value", help=f"default file: conf/{verb}.yaml")
        sub.add_argument("--dry-run", action="store_true", help="print the resolved plan and stop")
        if entry.has_write:
            sub.add_argument("--write", default="", help="clean, quarantine, or both with a comma")
    for verb, (_, text) in FOLDER_VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        sub.add_argument(
            "settings", nargs="+", metavar="RUN", help="run folder" + ("; tracking.uri=..." if verb == "log" else "")
        )
    # argparse stops to collect settings at the first option between them; what is left over are settings too.
    options, more = parser.parse_known_args(arguments)
    words = [*options.settings, *more]
    unknown = words[1:] if options.verb == "status" else [word for word in more if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options, words


if __name__ == "__main__":
    sys.exit(main())
