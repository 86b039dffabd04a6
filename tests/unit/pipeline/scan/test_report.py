"""What a scan's page tells its reader to do."""

import re
import shlex
from pathlib import Path

from clipsan.pipeline.core.run_folder import RunFolder
from clipsan.pipeline.scan.losses import Losses
from clipsan.pipeline.scan.output import Counts
from clipsan.pipeline.scan.report import next_steps


def test_commands_can_be_pasted_into_a_shell_whatever_the_folder_is_called(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "my run's folder")
    nothing = Losses(shards=(), of=1, hint=None)
    counts = Counts(clean=8, suspect=0, poisoned=2, flagged=2, accused=2, reasons={}, rejected={}, losses=nothing)
    steps = next_steps(folder, counts, ("kite",), triggers={"t1": "kite"})
    commands = [shlex.split(command) for step in steps for command in re.findall("`(clipsan .*?)`", step)]
    assert commands == [
        [
            "clipsan",
            "scan",
            str(folder.run_yaml),
            "out=NEW",
            f"embeddings={folder.root}",
            "--write",
            "clean,quarantine",
        ],
        ["clipsan", "repair", f"scan={folder.root}", "model.path=SUSPECT", "method=unlearn", "out=NEW"],
    ]
