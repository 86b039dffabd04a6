"""A verb: what every command of clipsan does in the same way, around what it alone does.

Settings in, a plan that is checked before any worker starts, `--dry-run`, the run folder, Ray for the length of the work, the clock,
the report, summary.json, one run in MLflow, the closing line and the exit status.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Protocol, TypeVar

from clipsan.stages.files import is_address
from clipsan.stages.listing import takes_in
from clipsan.stages.sources import SourceConfig

from ..tracking.record import REGISTERED, DataInput, Judged, ModelRecord, TrackingConfig, metrics_of, version_tags
from ..tracking.send import below, log_folder, log_run, registered, untracked
from ..tracking.versions import Version, by_paths, find_versions, keep
from .cluster import ClusterConfig, ray_session
from .commit import write_text
from .config import ConfigError, as_tree, load
from .masking import masked
from .place import AnyPath, place_of
from .run_folder import RunFolder, open_run, read_summary, write_summary

Summary = dict[str, Any]
"""What stands in summary.json."""


class Plan(Protocol):
    """A verb's settings, checked and resolved before any worker starts."""

    @property
    def config(self) -> Any:
        """The settings; each verb's have `out` and `tracking`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the result."""
        ...

    def describe(self) -> str:
        """Return the plan as text, for --dry-run."""
        ...


C = TypeVar("C")
P = TypeVar("P", bound=Plan)


@dataclass(frozen=True, slots=True)
class Job:
    """Where a verb does its work."""

    folder: RunFolder
    tracking: TrackingConfig
    """For verbs within this one."""
    versions: Mapping[str, Version] = field(default_factory=dict)
    """Those of a model registry that the settings named, by the setting."""


@dataclass(frozen=True, slots=True)
class Checked(Generic[C, P]):
    """What a verb is to do, and can do."""

    settings: C
    """As they were given."""
    plan: P
    """Of the settings with paths in place of versions of a model registry."""
    versions: Mapping[str, Version]
    """Those that the settings name, by the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A part of a run that MLflow shows as a run below it: a cell of a bench, a trial of a sweep."""

    verb: str
    root: AnyPath
    tree: Any
    metrics: Mapping[str, float]
    files: Sequence[AnyPath] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a verb leaves when its work is done."""

    summary: Summary
    """But for `verb` and `seconds`; `fingerprint` where it is not the plan's."""
    page: Callable[[Summary], str] | None = None
    """Renders report.html from the summary."""
    metrics: Mapping[str, Any] | None = None
    """What MLflow shows as numbers beside the seconds, nested; None: those of the summary."""
    files: Sequence[AnyPath] = ()
    """Artifacts beside report.html, run.yaml and summary.json."""
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[DataInput] = ()
    model: ModelRecord | None = None
    """To be registered."""
    judged: Judged | None = None
    """A registered version that it says something of."""
    children: Sequence[Child] = ()
    step_with_model: str | None = None
    """Folder of the step, below the run's, that registers the model of the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb(Generic[C, P]):
    """One command: `clipsan NAME`, and `go` from Python."""

    name: str
    config: type[C]
    plan: Callable[[C], P]
    """Checks everything that can be checked before a worker starts. Raises ConfigError, ValueError, OSError."""
    run: Callable[[P, Job], Result]
    """Does the work, or what is left of it."""
    closing: Callable[[Summary], str]
    """The last lines on the screen."""
    status: Callable[[Summary], int] = lambda _: 0
    """Exit status of a run that came to its end."""
    cluster: Callable[[P], ClusterConfig | None] = lambda plan: plan.config.cluster
    """What Ray is started with or joined; None: the verb needs none."""
    is_whole: Callable[[P, RunFolder], bool] | None = None
    """Whether a finished run is taken as it is; None: a run always looks for itself what is left."""
    again: Callable[[P, RunFolder, Summary], Result] | None = None
    """What such a run leaves, from its summary: its model may have to be registered only now. None: that is not done."""
    has_steps: bool = False
    """Whether verbs within it are MLflow runs below its own."""
    forecast: Callable[[P], str] | None = None
    """What a plan will take, as lines below it for --dry-run."""
    changed: Callable[[P, RunFolder], str | None] = lambda plan, before: None
    """Says what of the input is another than at the run that is in a folder, where the verb wrote it down."""
    on_stores: bool = False
    """Whether its run folder may lie on an object store."""

    def command(self, file: str | None, overrides: list[str], dry_run: bool) -> int:
        """Run it from the command line and return the exit status."""
        checked = self.check(load(self.config, file, overrides, verb=self.name))
        plan = checked.plan
        if dry_run:
            place = self._place(plan)
            sys.stdout.write(masked(plan.describe()))
            for key, version in checked.versions.items():
                sys.stdout.write(f"registry   {version.name} is {key}\n")
            if self.forecast is not None:
                sys.stdout.write(masked(self.forecast(plan)))
            if (why_not := untracked(plan.config.tracking, place)) is not None:
                sys.stdout.write(f"tracking   none: {why_not}\n")
            return 0
        summary = self.finish(checked)
        sys.stdout.write(masked(self.closing(summary)).rstrip("\n") + "\n")
        return self.status(summary)

    def start(self, settings: C) -> Summary:
        """Check the settings, run them or what is left of them, and return the summary."""
        return self.finish(self.check(settings))

    def check(self, settings: C) -> Checked[C, P]:
        """Find the versions of a model registry that the settings name, and check what can be checked before a worker starts.

        Raises:
            ConfigError: a version is not to be had; and whatever `plan` raises.
        """
        versions = find_versions(settings)
        return Checked(settings, self.plan(by_paths(settings, versions)), versions)

    def go(self, plan: P, versions: Mapping[str, Version]) -> Summary:
        """Run a plan, or what is left of it, and return the summary; `versions` are those whose files its settings name, by the setting."""
        return self.finish(Checked(plan.config, plan, versions))

    def finish(self, checked: Checked[C, P]) -> Summary:
        """Do what has been checked, or what is left of it, and return the summary."""
        started = time.monotonic()
        plan, versions = checked.plan, checked.versions
        folder = self._opened(plan)
        if any(version.fetched for version in versions.values()):
            versions = keep(versions, folder)
            plan = self.plan(by_paths(checked.settings, versions))
            folder = self._opened(plan)
        tree = as_tree(plan.config)
        if self.is_whole is not None and folder.summary.is_file() and self.is_whole(plan, folder):
            return self._kept(plan, folder, tree)
        result = self._worked(plan, folder, tree, versions)
        summary: Summary = {
            "verb": self.name,
            "fingerprint": plan.fingerprint,
            "seconds": round(time.monotonic() - started, 1),
            **({"models": {key: version.name for key, version in versions.items()}} if versions else {}),
            **result.summary,
        }
        if result.page is not None:
            write_text(folder.report, result.page(summary))
        write_summary(folder, summary)
        return self._told(plan, folder, tree, result, summary)

    def _kept(self, plan: P, folder: RunFolder, tree: Any) -> Summary:
        """Return the summary of a finished run that is taken as it is, its model registered where that is asked for only now."""
        summary = read_summary(folder.root)
        name = getattr(plan.config, "register", None)
        wanted = name is not None and plan.config.tracking.enabled and summary.get("checkpoint") is not None
        if not wanted or str(summary.get("registered")).startswith(f"{REGISTERED}{name}/"):
            return summary
        if self.again is None:
            sys.stderr.write(
                f"{self.name}: {folder.root} is finished and taken as it is; no model is registered now as {name}\n"
            )
            return summary
        return self._told(plan, folder, tree, self.again(plan, folder, summary), summary)

    def _told(self, plan: P, folder: RunFolder, tree: Any, result: Result, summary: Summary) -> Summary:
        """Log a run, and return its summary with the version of the model that this registered, if any."""
        registered_as = self._log(plan.config, folder, tree, result, summary)
        if registered_as is not None and registered_as != summary.get("registered"):
            summary["registered"] = registered_as
            write_summary(folder, summary)
        return summary

    def _opened(self, plan: P) -> RunFolder:
        self._place(plan)
        return open_run(
            plan.config.out,
            verb=self.name,
            tree=as_tree(plan.config),
            fingerprint=plan.fingerprint,
            changed=lambda before: self.changed(plan, before),
        )

    def _place(self, plan: P) -> AnyPath:
        """Return where the run folder lies.

        Raises:
            ConfigError: on an object store, which is no place for this verb's; or where the data would take in what it writes.
        """
        out = str(plan.config.out)
        if not self.on_stores and is_address(out.removeprefix("file://")):
            raise ConfigError(
                f"out={masked(out)}: the run folder of `clipsan {self.name}` lies on a local or shared file system; those of scan, train, "
                "repair and evaluate may lie on an object store"
            )
        check_apart(plan.config)
        return place_of(out)

    def _worked(self, plan: P, folder: RunFolder, tree: Any, versions: Mapping[str, Version]) -> Result:
        tracking, cluster = plan.config.tracking, self.cluster(plan)
        with ExitStack() as stack:
            if self.has_steps:
                tracking = stack.enter_context(below(tracking, verb=self.name, root=folder.root, tree=tree))
            if cluster is not None:
                stack.enter_context(ray_session(cluster))
            return self.run(plan, Job(folder, tracking, versions))

    def _log(self, settings: Any, folder: RunFolder, tree: Any, result: Result, summary: Summary) -> str | None:
        """Log the run and what stands below it; return the version of the model that it registered, if any."""
        tracking, name = settings.tracking, getattr(settings, "register", None)
        logged = log_run(
            tracking,
            verb=self.name,
            root=folder.root,
            tree=tree,
            metrics=metrics_of(
                summary if result.metrics is None else {"seconds": summary["seconds"], **result.metrics}
            ),
            files=[folder.report, folder.run_yaml, folder.summary, *result.files],
            tags={**result.tags, **version_tags(summary.get("models", {}))},
            inputs=result.inputs,
            model=result.model,
            judged=result.judged,
        )
        if logged is None:
            return None
        for child in result.children:
            log_run(
                tracking,
                verb=child.verb,
                root=child.root,
                tree=child.tree,
                metrics=child.metrics,
                files=list(child.files),
                parent=logged,
            )
        if not self.has_steps:
            return registered(logged, name) if result.model is not None else None
        where = dict(log_folder(tracking, folder.root))
        return registered(where.get(folder.root / result.step_with_model), name) if result.step_with_model else None


def check_apart(settings: Any) -> None:
    """Refuse a run folder that lies in a folder of the data which is listed whole: the same command again would take the run's own
    files for data.

    Raises:
        ConfigError: it lies there.
    """
    for one in fields(settings):
        source = getattr(settings, one.name)
        folder = takes_in(source.path, settings.out) if isinstance(source, SourceConfig) else None
        if folder is not None:
            raise ConfigError(
                f"out={masked(settings.out)}: it lies in {masked(folder)}, all of which is data ({one.name}.path), so that another run "
                f"would take this one's files for data; give another `out`, or name the files, as {masked(folder)}/*.SUFFIX"
            )
