"""A cell of a bench: one attack with one seed, as verbs one after the other; what of it is done, and what came of it.

A step is one verb with a run folder of its own, OUT/cells/CELL/STEP. Beside the folder lies STEP.fingerprint, of everything that
decides the step and the steps before it; a step is done when that fits and its summary is there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsan.stages.attack.poisoning import AttackConfig

from ..core.commit import FingerprintError, write_text
from ..core.run_folder import read_summary
from ..core.verb import Summary, Verb


@dataclass(frozen=True, slots=True)
class Step:
    """One verb of a cell."""

    name: str
    """Name of its folder within the cell's."""
    verb: Verb[Any, Any]
    settings: Any
    """Of the verb."""
    fingerprint: str

    @property
    def kind(self) -> str:
        """Name of the verb: steps of one kind take about as long."""
        return self.verb.name

    @property
    def folder(self) -> Path:
        return Path(self.settings.out)

    @property
    def fingerprint_file(self) -> Path:
        return self.folder.with_name(f"{self.name}.fingerprint")

    @property
    def done(self) -> bool:
        return self.fingerprint_file.is_file() and (self.folder / "summary.json").is_file()

    def check(self) -> None:
        """Refuse results that other settings made.

        Raises:
            FingerprintError: they are there.
        """
        if self.fingerprint_file.is_file() and self.fingerprint_file.read_text(encoding="utf-8") != self.fingerprint:
            raise FingerprintError(
                f"{self.folder} was made with other settings, other input or another version of clipsan; "
                f"remove it and {self.fingerprint_file.name} (and the steps after it), or give another `out`"
            )

    def run(self) -> None:
        """Do the step, or what is left of it."""
        write_text(self.fingerprint_file, self.fingerprint)
        self.verb.start(self.settings)


@dataclass(frozen=True, slots=True)
class Cell:
    """One attack (or control) with one seed."""

    name: str
    attack_name: str
    seed: int
    control: bool
    attack: AttackConfig | None
    """None: clean."""
    model_of: str
    """The cell in whose folder the model is trained: its own, but for an identity control, which trains on the clean set."""
    steps: tuple[Step, ...]
    """In order; the scan is last."""

    def step(self, name: str) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)

    def summary(self, name: str) -> Summary | None:
        """Return the summary of a step; None before it is done, or without such a step."""
        step = self.step(name)
        return read_summary(step.folder) if step is not None and step.done else None

    @property
    def asr_pct(self) -> float | None:
        """The measured ASR; None before it is measured or without an attack."""
        evaluated = self.summary("evaluate")
        asr = None if evaluated is None else evaluated["evaluation"].get("asr_pct")
        return None if asr is None else float(asr)

    def is_admitted(self, min_asr_pct: float) -> bool:
        """Tell whether the cell's model is worth a scan: any control's, and that of an attack that works."""
        asr = self.asr_pct
        return self.control or (asr is not None and asr >= min_asr_pct)

    def left(self, min_asr_pct: float) -> list[Step]:
        """Return the steps that are still to do; the scan of a model that is known to be refused is not."""
        refused = self.summary("evaluate") is not None and not self.is_admitted(min_asr_pct)
        return [step for step in self.steps if not step.done and not (refused and step.name == "scan")]

    def seconds(self) -> dict[str, float]:
        """Return step -> seconds of the finished steps, each as its last run took."""
        return {step.name: float(read_summary(step.folder)["seconds"]) for step in self.steps if step.done}
