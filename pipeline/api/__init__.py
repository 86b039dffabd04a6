"""clipsan from Python: every verb as a function, with the settings of its command.

    from clipsan import poison, scan

    made = poison(data={"kind": "webdataset", "path": "pairs/*.tar"}, attack="patch", out="runs/poison")
    found = scan("decision=budget", data=..., model={"path": "suspect"}, out="runs/scan")
    found.summary["targets"]
    found.table("verdicts").to_pandas()

A function takes what its command takes: a file of settings (without one conf/VERB.yaml), `key.path=value` overrides, and
sections by name, as plain trees, names of files in conf/, or configuration objects. Or it takes one configuration object that
holds everything. What an earlier call with the same settings has finished is not done again.

Nothing heavy is imported before the first call, and a Ray that is running in the process already is used as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from clipsan.pipeline.core.place import AnyPath
    from clipsan.stages.audit.guard import Guard
    from clipsan.stages.selection import Selection

CLASSES = {
    "ConfigError": "pipeline.core.config",
    "ClusterConfig": "pipeline.core.cluster",
    "TrackingConfig": "pipeline.tracking.record",
    "ScanConfig": "pipeline.scan.plan",
    "AuditConfig": "pipeline.audit.settings",
    "PoisonConfig": "pipeline.poison.plan",
    "TrainConfig": "pipeline.train.plan",
    "RepairConfig": "pipeline.repair.settings",
    "EvaluateConfig": "pipeline.evaluate.settings",
    "EvaluationAttack": "pipeline.evaluate.settings",
    "RunConfig": "pipeline.story.settings",
    "SweepConfig": "pipeline.sweep.settings",
    "BenchConfig": "pipeline.bench.settings",
    "TriggerRunConfig": "pipeline.trigger.plan",
    "ModelConfig": "stages.model.checkpoints",
    "AttackConfig": "stages.attack.poisoning",
    "ImagePath": "stages.attack.poisoning",
    "WebDataset": "stages.sources",
    "ParquetSource": "stages.sources",
    "TableSource": "stages.sources",
    "FolderSource": "stages.sources",
    "PoisonedSource": "stages.sources",
    "Selection": "stages.selection",
    "UnknownPair": "stages.selection",
}
"""Class that can be imported from here -> the module that has it."""

__all__ = [
    "Finished",
    "audit",
    "bench",
    "evaluate",
    "guard",
    "poison",
    "repair",
    "run",
    "scan",
    "select",
    "sweep",
    "train",
    "trigger",
    *CLASSES,
]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a verb left."""

    summary: dict[str, Any]
    """The figures, as in summary.json."""
    folder: "AnyPath"
    """The run folder: a path, or one on an object store, which has the same methods for reading."""

    @classmethod
    def of(cls, folder: "str | AnyPath") -> "Finished":
        """Return a run that was finished earlier, or a step of one: of `clipsan run`, FOLDER/scan and FOLDER/repair.

        Raises:
            ConfigError: no finished run of clipsan is there.
        """
        from clipsan.pipeline.core.config import ConfigError
        from clipsan.pipeline.core.place import place_of
        from clipsan.pipeline.core.run_folder import RunFolder, read_summary

        run = RunFolder(place_of(folder))
        if not run.is_finished:
            raise ConfigError(f"{folder}: no finished run of clipsan there")
        return cls(read_summary(run.root), run.root)

    @property
    def tables(self) -> list[str]:
        """Names of the tables that are there: verdicts, scores, ... of a scan; manifest of a poisoning; predictions, ..."""
        from clipsan.pipeline.core.run_folder import RunFolder
        from clipsan.pipeline.core.tables import table_names

        return table_names(RunFolder(self.folder))

    def table(self, name: str) -> "pa.Table":
        """Return a table whole, the rows in the order of the data set.

        Raises:
            ConfigError: there is none of that name; the message lists those that there are.
        """
        from clipsan.pipeline.core.config import ConfigError
        from clipsan.pipeline.core.run_folder import RunFolder
        from clipsan.pipeline.core.tables import read_table

        if name not in self.tables:
            raise ConfigError(f"{name}: no such table in {self.folder}; there are {', '.join(self.tables) or 'none'}")
        return read_table(RunFolder(self.folder), name)


def scan(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Find the poisoned pairs of a data set: verdicts, report, clean copy."""
    return _done("scan", settings, overrides, sections)


def audit(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Tell whether a checkpoint is backdoored, towards what and with which trigger."""
    return _done("audit", settings, overrides, sections)


def poison(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Write a poisoned copy of a data set with an exact manifest."""
    return _done("poison", settings, overrides, sections)


def train(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Train or fine-tune a CLIP on pairs."""
    return _done("train", settings, overrides, sections)


def repair(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Repair a suspect checkpoint."""
    return _done("repair", settings, overrides, sections)


def evaluate(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Measure zero-shot accuracy, ASR and accuracy under trigger of a model."""
    return _done("evaluate", settings, overrides, sections)


def run(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Do the whole story: scan, clean copy, repair, figures before and after, report, registry."""
    return _done("run", settings, overrides, sections)


def sweep(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Search a repair's settings without knowing the attack."""
    return _done("sweep", settings, overrides, sections)


def bench(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Measure attacks x detectors in one table."""
    return _done("bench", settings, overrides, sections)


def trigger(settings: Any = None, *overrides: str, **sections: Any) -> Finished:
    """Make the optimised patch of BadCLIP on a clean model."""
    return _done("trigger", settings, overrides, sections)


def select(
    scan: Any, *, data: str | list[str] | None = None, unknown: Literal["error", "drop"] = "error"
) -> "Selection":
    """Return the filter that drops from a training what a finished scan flagged or rejected; see Selection for its two uses.

        kept = clipsan.select("runs/scan")
        webdataset.WebDataset(shards).compose(kept).decode("pil")
        kept.of(rows, uids)

    Args:
        scan: a run folder, or what `scan` returned.
        data: the shards as the loader names them, where they lie at another place now than when they were scanned.
        unknown: what becomes of a pair that is none of the scan's: it is an error, or dropped and counted.

    Raises:
        ConfigError: there is no finished scan, or its shards are not there.
    """
    from clipsan.pipeline.core.config import ConfigError
    from clipsan.pipeline.data.selected import selection

    try:
        return selection(scan.folder if isinstance(scan, Finished) else scan, data=data, unknown=unknown)
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def guard(
    model: str | Path, dossier: str | Path, clean: "Sequence[np.ndarray]", *, false_alarms: float = 0.01
) -> "Guard":
    """Return what flags pictures that carry a proven trigger: `guard(model, "runs/audit", clean)(picture).flagged`.

    Args:
        model: the checkpoint that serves: a folder, or models:/NAME/VERSION or models:/NAME@ALIAS of the MLflow registry at
            MLFLOW_TRACKING_URI or, where that is not set, beside the run folder.
        dossier: the run folder of a scan or an audit, or one folder of its triggers/.
        clean: pictures without a trigger, `[H, W, 3] uint8`; some 400 a trigger. The guard's `false_alarms` is measured
            on half of them.
        false_alarms: share of clean pictures that may be flagged.

    Raises:
        ConfigError: no proven trigger there, another model's, too few clean pictures, or no such model.
    """
    from clipsan.pipeline.core.config import ConfigError
    from clipsan.pipeline.tracking.record import TrackingConfig
    from clipsan.pipeline.tracking.versions import find_version, names_version
    from clipsan.stages.audit.guard import Guard
    from clipsan.stages.dossier.files import read_dossier, read_dossiers
    from clipsan.stages.model.clip import ModelConfig, load_clip

    folder = Path(dossier).expanduser()
    try:
        one = (folder / "dossier.json").is_file()
        found = (read_dossier(folder),) if one else read_dossiers(folder / "triggers")
        given = ModelConfig(path=str(model))
        if names_version(given.path):
            given = find_version(TrackingConfig(), folder.absolute().parents[1] if one else folder, str(model)).model(
                given
            )
        return Guard(load_clip(given), found, clean, false_alarms=false_alarms)
    except (ValueError, OSError) as error:
        raise ConfigError(f"guard: {folder}: {error}") from error


def _done(name: str, settings: Any, overrides: tuple[str, ...], sections: dict[str, Any]) -> Finished:
    """Run a verb, or what is left of it.

    Raises:
        ConfigError: a setting or an input must be changed; nothing has started.
    """
    from clipsan.pipeline.core.config import ConfigError
    from clipsan.pipeline.core.place import place_of
    from clipsan.pipeline.verbs import verb_of

    verb = verb_of(name)
    try:
        checked = verb.check(_settings(verb.config, name, settings, overrides, sections))
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    return Finished(verb.finish(checked), place_of(checked.plan.config.out))


def _settings(schema: type[Any], verb: str, settings: Any, overrides: tuple[str, ...], sections: dict[str, Any]) -> Any:
    """Return the configuration object that a call means."""
    import yaml

    from clipsan.pipeline.core.config import ConfigError, as_tree, load, validate

    if settings is not None and not isinstance(settings, (str, Path)):
        if not isinstance(settings, schema):
            raise ConfigError(f"{verb}: takes a {schema.__name__} or a file of settings, not {type(settings).__name__}")
        if overrides or sections:
            raise ConfigError(f"{verb}: a {schema.__name__} holds all settings; change it with dataclasses.replace")
        return validate(schema, as_tree(settings), verb=verb)
    words = [*([] if settings is None else [str(settings)]), *overrides]
    file = words.pop(0) if words and "=" not in words[0] else None
    given = [f"{key}={yaml.safe_dump(as_tree(value), default_flow_style=True)}" for key, value in sections.items()]
    return load(schema, file, [*words, *given], verb=verb)


def __getattr__(name: str) -> Any:
    if name not in CLASSES:
        raise AttributeError(f"module 'clipsan' has no attribute {name!r}")
    return getattr(import_module(f"clipsan.{CLASSES[name]}"), name)
