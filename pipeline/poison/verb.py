"""`clipsan poison`: a poisoned copy of a data set in its own format, or a plan to poison it on the fly; and an exact manifest."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipsan.stages.attack.poisoning import place_draw_cut
from clipsan.stages.sources.poisoned import PoisonPlan, plan_text

from ..core.commit import read_part, read_parts, write_text
from ..core.config import ConfigError
from ..core.pass_ import Pass
from ..core.run_folder import RunFolder
from ..core.verb import Job, Result, Summary, Verb
from ..tracking.record import data_input
from .plan import Plan, PoisonConfig, make_plan
from .work import PoisonWork, SurveyWork, natural


def run(plan: Plan, job: Job) -> Result:
    """Write the copy or the plan, or what is left of it.

    Raises:
        ConfigError: no pair could be read.
        ValueError: too few pairs are eligible.
    """
    settings, folder = plan.config, job.folder
    cut, captions = _survey(plan, folder)
    poisoning = _over_units(plan, folder, name="poison", home="manifest")
    poisoning.do({u.index: u for u in plan.units}, PoisonWork(settings, cut, captions, folder.local))
    files = [folder.local / "manifest.parquet"]
    if not settings.copy_data:
        drawn = PoisonPlan(
            data=settings.data,
            attack=settings.attack,
            image=settings.image,
            cut=cut,
            captions=tuple(captions),
            units=tuple(plan.units),
        )
        write_text(folder.local / "plan.json", plan_text(drawn))
        files.append(folder.local / "plan.json")
    return Result(
        summary=_summary(plan, folder), files=files, inputs=[data_input(settings.data, plan.units, "poisoning")]
    )


def _over_units(plan: Plan, folder: RunFolder, *, name: str, home: str) -> Pass:
    return Pass(
        name=name,
        cluster=plan.config.cluster,
        run=folder,
        folder=home,
        fingerprint=plan.fingerprint,
        pairs=plan.config.data.about_pairs(plan.units),
    )


def _survey(plan: Plan, folder: RunFolder) -> tuple[int, list[str]]:
    """Return the largest draw that is poisoned, and the natural captions, from all pairs (8 bytes a pair in memory)."""
    settings = plan.config
    survey = _over_units(plan, folder, name="survey", home="work/survey")
    survey.do({u.index: u for u in plan.units}, SurveyWork(settings.data, settings.attack))
    tables = list(read_parts(survey.home, [u.index for u in plan.units]))
    numbers = np.concatenate([t.column("draw").to_numpy() for t in tables])
    if not len(numbers):
        raise ConfigError(f"data: no pair of {settings.data.path} could be read")
    cut = place_draw_cut(numbers, settings.attack)
    found = {c for t in tables for c in t.schema.metadata[b"natural"].decode().split("\n") if c}
    return cut, sorted(set(natural([(c, c) for c in found], settings.attack)))


def _summary(plan: Plan, folder: RunFolder) -> Summary:
    settings = plan.config
    parts = [read_part(folder.local / "manifest", u.index) for u in plan.units]
    manifest = pa.concat_tables([t.replace_schema_metadata(None) for t in parts])
    path = folder.local / "manifest.parquet"
    pq.write_table(manifest, path)
    unreadable = sum(int(t.schema.metadata[b"unreadable"]) for t in parts)
    pairs = sum(int(t.schema.metadata[b"pairs"]) for t in parts)
    return {
        "counts": {
            "pairs_in": pairs + unreadable,
            "written": pairs,
            "rejected": unreadable,
            "poisoned": manifest.num_rows,
        },
        "targets": [] if settings.attack.control else list(settings.attack.targets),
        "data": str(folder.local / ("data" if settings.copy_data else "plan.json")),
        "manifest": str(path),
    }


def closing(summary: Summary) -> str:
    """Return the last line of a poisoning."""
    meant = f"towards {' and '.join(map(repr, summary['targets']))}" if summary["targets"] else "a control"
    return (
        f"poison: {summary['counts']['poisoned']:,} of {summary['counts']['pairs_in']:,} pairs poisoned, {meant}; "
        f"the data set is {summary['data']}, the ground truth {summary['manifest']}"
    )


VERB = Verb(name="poison", config=PoisonConfig, plan=make_plan, run=run, closing=closing)
