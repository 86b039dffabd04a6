"""`clipsan demo`: the whole story in one command, on data that it makes itself.

Render -> poison -> train a suspect model and its clean twin -> measure the attack -> scan the twin, as a control -> the story of
`clipsan run` on the suspect: scan, clean copy, repair, figures before and after, report.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.sources import ParquetSource

from ..core.config import as_tree
from ..core.run_folder import read_summary
from ..core.verb import Job, Result, Summary, Verb
from ..evaluate import verb as evaluate
from ..evaluate.settings import EvaluateConfig, EvaluationAttack
from ..poison import verb as poison
from ..poison.plan import PoisonConfig
from ..scan import verb as scan
from ..scan.plan import ScanConfig
from ..train import verb as train
from ..train.plan import TrainConfig
from . import verb as story
from .demo_data import DemoSet
from .demo_plan import DemoConfig, Plan, make_plan
from .settings import RunConfig
from .steps import ScanStep

STORY = "story"
"""Folder of what `clipsan run` does, below the demo's."""


def run(plan: Plan, job: Job) -> Result:
    """Tell the story, or the rest of it; every step that an earlier run finished is skipped."""
    settings, root = replace(plan.config, tracking=job.tracking), job.folder.local
    pairs = settings.data.make(job.folder, settings.cluster)
    poisoned = _poison(settings, pairs, root)
    suspect = _train(settings, poisoned, root / "suspect")
    twin = _train(settings, pairs.train, root / "twin")
    evaluation = _evaluate(settings, pairs, suspect, root / "evaluate")
    twin_evaluation = _evaluate(settings, pairs, twin, root / "evaluate-twin")
    clean = _scan(settings, pairs.train, twin, root / "scan-twin")
    told = story.VERB.start(_story(settings, pairs, poisoned, suspect, root))
    found = read_summary(root / STORY / ScanStep.name)
    summary: Summary = {
        "counts": found["counts"],
        "poisoned": found["poisoned"],
        "poisoned_flagged": found["poisoned_flagged"],
        "poisoned_proven": found["poisoned_proven"],
        "proof": found["proof"],
        "target": settings.attack.target,
        "targets": found["targets"],
        "concepts": found["concepts"],
        "detection": found["detection"],
        "evaluation": evaluation,
        **{name: told[name] for name in ("outcome", "why", "before", "after", "method", "checkpoint", "registered")},
        "twin": {
            "evaluation": twin_evaluation,
            "targets": clean["targets"],
            "flagged": clean["counts"]["flagged"],
            "triggers": len(clean["proof"]["triggers"]),
            "concepts": clean["concepts"],
            "report": clean["report"],
        },
        "scan_report": found["report"],
        "report": told["report"],
    }
    return Result(summary=summary, files=[Path(told["report"])])


def closing(summary: Summary) -> str:
    """Return the closing screen."""
    evaluation, twin = summary["evaluation"], summary["twin"]
    counts = summary["counts"]
    lines = [
        "",
        f"pairs        {counts['pairs_in']:,}, of which {summary['poisoned']} are poisoned towards {summary['target']!r}",
        f"suspect      clean accuracy {evaluation['clean_accuracy_pct']:.1f} %, attack success rate {evaluation['asr_pct']:.1f} %",
        f"clean twin   clean accuracy {twin['evaluation']['clean_accuracy_pct']:.1f} %, "
        f"attack success rate {twin['evaluation']['asr_pct']:.1f} %",
        "",
        f"{'detector':<20}{'AUROC':>8}{'AP':>8}   recall in the most suspicious 0.1 / 1 / 10 %",
    ]
    for name, figures in summary["detection"].items():
        recall = " / ".join(f"{100 * figures['recall_at'][b]:.0f}" for b in ("0.001", "0.01", "0.1"))
        lines.append(f"{name:<20}{figures['auroc']:>8.3f}{figures['average_precision']:>8.3f}   {recall} %")
    lines += ["", f"{'concept':<20}{'pairs':>8}{'statistic':>11}"]
    for concept in summary["concepts"][:4]:
        note = "  <- named as the target of a backdoor" if concept["named"] else ""
        lines.append(f"{concept['name']:<20}{concept['n']:>8}{concept['statistic']:>11.2f}{note}")
    proven = summary["proof"]["triggers"]
    for trigger in proven:
        flips, control = trigger["flip_rate_pct"], trigger["control_flip_rate_pct"]
        lines += [
            "",
            f"proven       {trigger['id']}: a {trigger['kind']} that turns {flips:.0f} % of held-out pictures into "
            f"{', '.join(trigger['targets'])!r} (control {control:.0f} %), on {trigger['pairs']} pairs",
        ]
    lines += [
        "",
        f"scan         named {', '.join(summary['targets']) or 'no concept'}; flagged {counts['flagged']} pairs, "
        f"{summary['poisoned_flagged']} of the {summary['poisoned']} poisoned ones among them",
        f"verdicts     {counts['verdicts']['poisoned']} poisoned, {summary['poisoned_proven']} of them rightly; "
        f"{counts['verdicts']['suspect']} suspect",
        f"clean twin   named {', '.join(twin['targets']) or 'no concept'}; flagged {twin['flagged']} pairs; "
        f"{twin['triggers']} triggers proven",
        *repair_lines(summary),
        "",
        f"evidence     {summary['scan_report']}",
        f"report       {summary['report']}",
        f"done in {summary['seconds']:.0f} s",
        "",
    ]
    return "\n".join(lines)


def repair_lines(summary: Summary) -> list[str]:
    """Return what became of the suspect model."""
    if not summary["after"]:
        return ["", f"repair       none: {summary['why']}"]
    heading = f"{'repair by ' + summary['method']:<32}{'before':>10}{'after':>10}"
    return ["", heading, *story.table(summary), f"{summary['outcome']:<12} {summary['why']}"]


def _story(
    settings: DemoConfig, pairs: DemoSet, poisoned: ParquetSource, suspect: ModelConfig, root: Path
) -> RunConfig:
    """Return the story of the suspect: the real attack measures the repair, the scan and the repair know nothing of it."""
    return RunConfig(
        data=poisoned,
        model=suspect,
        scan={
            "decision": as_tree(settings.decision),
            "oracle": as_tree(settings.oracle),
            "proof": as_tree(settings.proof),
            "manifest": str(root / "poison" / "manifest.parquet"),
            "write": ["clean", "quarantine"],
        },
        repair={"templates": settings.templates, **settings.repair},
        evaluate={
            "data": as_tree(pairs.test),
            "classes": pairs.classes,
            "templates": settings.templates,
            "attack": as_tree(EvaluationAttack.of(settings.attack)),
        },
        out=str(root / STORY),
        cluster=settings.cluster,
        tracking=settings.tracking,
    )


def _poison(settings: DemoConfig, pairs: DemoSet, root: Path) -> ParquetSource:
    step = PoisonConfig(
        data=pairs.train,
        attack=settings.attack,
        out=str(root / "poison"),
        cluster=settings.cluster,
        tracking=settings.tracking,
    )
    poison.VERB.start(step)
    return ParquetSource(path=str(root / "poison" / "data" / "*.parquet"), label="label", key="key")


def _train(settings: DemoConfig, data: ParquetSource, out: Path) -> ModelConfig:
    how = settings.training
    step = TrainConfig(
        data=data,
        model=how.model,
        out=str(out),
        epochs=how.epochs,
        batch_size=how.batch_size,
        lr=how.lr,
        seed=how.seed,
        precision="bf16",
        cluster=settings.cluster,
        tracking=settings.tracking,
    )
    return ModelConfig(path=train.VERB.start(step)["checkpoint"])


def _evaluate(settings: DemoConfig, pairs: DemoSet, model: ModelConfig, out: Path) -> dict[str, Any]:
    step = EvaluateConfig(
        data=pairs.test,
        model=model,
        classes=pairs.classes,
        templates=settings.templates,
        attack=EvaluationAttack.of(settings.attack),
        out=str(out),
        cluster=settings.cluster,
        tracking=settings.tracking,
    )
    figures: dict[str, Any] = evaluate.VERB.start(step)["evaluation"]
    return figures


def _scan(settings: DemoConfig, data: ParquetSource, model: ModelConfig, out: Path) -> dict[str, Any]:
    step = ScanConfig(
        data=data,
        model=model,
        out=str(out),
        decision=settings.decision,
        oracle=settings.oracle,
        proof=settings.proof,
        cluster=settings.cluster,
        tracking=settings.tracking,
    )
    return scan.VERB.start(step)


VERB = Verb(name="demo", config=DemoConfig, plan=make_plan, run=run, closing=closing, has_steps=True)
