"""The steps of `clipsan run`: each is a verb with a run folder of its own, OUT/STEP, and is skipped where that is finished.

A step that is to take part is a class here and a name in STEPS; what it needs of the steps before it lies in their folders.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.files import Unreachable

from ..core.config import ConfigError, as_tree, validate
from ..core.run_folder import UNREAD, finished, read_summary
from ..data.choice import class_index
from ..evaluate import plan as evaluate
from ..evaluate.plan import read_classes
from ..evaluate.settings import EvaluateConfig
from ..repair import plan as repair_plan
from ..repair import verb as repair
from ..repair.settings import RepairConfig
from ..scan import verb as scan
from ..scan.losses import unread_said
from ..scan.plan import ScanConfig
from ..tracking.record import TrackingConfig
from ..tracking.versions import Version
from .settings import RunConfig

T = TypeVar("T")

Summaries = Mapping[str, dict[str, Any]]
"""Name of a finished step -> its summary."""


class Step(ABC):
    """One verb of the story."""

    name: ClassVar[str]
    sections: ClassVar[Mapping[str, str]]
    """How settings of the run begin that are settings of the step -> how they begin there."""

    def __init__(self, settings: RunConfig, tracking: TrackingConfig, versions: Mapping[str, Version]) -> None:
        self.settings = settings
        self.root = Path(settings.out).expanduser().resolve()
        self.tracking = tracking
        self.versions = {
            own + key.removeprefix(begin): version
            for begin, own in self.sections.items()
            for key, version in versions.items()
            if key.startswith(begin)
        }

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @abstractmethod
    def check(self) -> None:
        """Refuse what can be known to fail, before anything starts.

        Raises:
            ConfigError, ValueError, OSError: with the section and the setting.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return the step's plan as text, as far as it can be known now."""

    @abstractmethod
    def idle(self, before: Summaries) -> str | None:
        """Return why there is nothing to do, None where there is."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Do the step, or what is left of it, and return its summary."""

    def section(self, schema: type[T], given: Mapping[str, Any], **own: Any) -> T:
        """Return the settings of a verb: the story's section, and what the story itself fills in."""
        shared = {"cluster": as_tree(self.settings.cluster), "tracking": as_tree(self.tracking)}
        try:
            return validate(schema, {**given, **shared, **own}, verb=self.name)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None


class ScanStep(Step):
    """Verdicts, proofs, the clean copy and the quarantine, the compact set."""

    name = "scan"
    sections: ClassVar[Mapping[str, str]] = {"model": "model", "scan.": ""}

    def config(self) -> ScanConfig:
        s = self.settings
        own = {"data": as_tree(s.data), "model": as_tree(s.model), "out": str(self.folder)}
        return self.section(ScanConfig, s.scan, **own)

    def check(self) -> None:
        scan.VERB.plan(self.config())

    def describe(self) -> str:
        return scan.VERB.plan(self.config()).describe()

    def idle(self, before: Summaries) -> str | None:
        return None

    def run(self) -> dict[str, Any]:
        plan = scan.VERB.plan(self.config())
        summary = finished(self.folder, plan.fingerprint) or scan.VERB.go(plan, self.versions)
        if UNREAD in summary:
            raise Unreachable(f"scan: {unread_said(summary)}")
        return summary


class RepairStep(Step):
    """The repaired checkpoint, measured before and after."""

    name = "repair"
    sections: ClassVar[Mapping[str, str]] = {"model": "model", "repair.": "", "evaluate.": "evaluate."}

    def config(self) -> RepairConfig:
        s = self.settings
        own = {
            "model": as_tree(s.model),
            "scan": str(self.root / ScanStep.name),
            "evaluate": self._evaluation(),
            "register": s.register,
            "max_asr_pct": s.max_asr_pct,
            "max_loss_points": s.max_loss_points,
            "out": str(self.folder),
        }
        given = s.repair if s.attack_known else {"unseen": {}, **s.repair}
        return self.section(RepairConfig, given, **own)

    def check(self) -> None:
        settings = self.config()
        repair_plan.check_out(settings)
        repair_plan.check_batch(settings)
        if settings.evaluate is not None:
            own = {"model": as_tree(settings.model), "out": str(self.folder), "templates": list(settings.templates)}
            found = self.section(EvaluateConfig, {**own, **settings.evaluate})
            evaluate.make_plan(found)

    def describe(self) -> str:
        found = read_summary(self.root / ScanStep.name) if self._scanned else {UNREAD: "all"}
        if UNREAD not in found:
            why = self.idle({ScanStep.name: found})
            return repair.VERB.plan(self.config()).describe() if why is None else f"nothing    {why}\n"
        settings, evaluation = self.config(), self.settings.evaluate
        attack = ""
        if evaluation is not None:
            attack = ": the given attack" if evaluation.get("attack") else ": the triggers that the scan proves"
        return (
            f"suspect    {settings.model.path} (only read)\n"
            f"scan       {settings.scan}, which is still to do\n"
            f"data       {'the pairs that it calls clean' if settings.data is None else settings.data.path}\n"
            f"method     {settings.method.kind}, seed {settings.seed}\n"
            f"evaluate   {'nothing' if evaluation is None else 'before and after'}{attack}\n"
            f"out        {settings.out}\n"
        )

    def idle(self, before: Summaries) -> str | None:
        found = before[ScanStep.name]
        return None if proven(found) or self.settings.force else unproven(found)

    def run(self) -> dict[str, Any]:
        return repair.VERB.go(repair.VERB.plan(self.config()), self.versions)

    @property
    def _scanned(self) -> bool:
        return (self.root / ScanStep.name / "summary.json").is_file()

    def _evaluation(self) -> dict[str, Any] | None:
        """Return the section with the proven triggers for an attack where it names none; a scan must have been made for that."""
        given = self.settings.evaluate
        if given is None or given.get("attack") is not None or not self._scanned:
            return given
        strands = proven_strands(self.root / ScanStep.name)
        if not strands:
            return given
        first, *also = strands
        classes = read_classes(given["classes"])
        known = class_index(tuple(classes))
        # an accused concept that is none of the classes becomes one, so that something can be taken for it
        classes += [target for target in dict.fromkeys(s["target"] for s in strands) if target.casefold() not in known]
        return {**given, "classes": classes, "attack": {**first, "also": also}}


STEPS: tuple[type[Step], ...] = (ScanStep, RepairStep)
"""In order."""


def proven(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the proven triggers of a scan's summary."""
    found: list[dict[str, Any]] = summary.get("proof", {}).get("triggers", [])
    return found


def unproven(summary: Mapping[str, Any]) -> str:
    """Return what a scan found that proves nothing, in a clause."""
    named = ", ".join(summary["targets"])
    return (
        f"the scan names {named} but proves no trigger" if named else "the scan names no concept and proves no trigger"
    )


def proven_strands(scanned: Path) -> list[dict[str, Any]]:
    """Return the proven triggers of a scan as the strands of an attack, in their order."""
    return [
        {"trigger": {"kind": "proven", "path": str(scanned / "triggers" / dossier.id)}, "target": dossier.targets[0]}
        for dossier in read_dossiers(scanned / "triggers")
    ]
