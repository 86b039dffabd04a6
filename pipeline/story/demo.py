"""`clipsan demo`: the whole story in one command, on data that it makes itself.

Render -> poison -> train a suspect model and its clean twin -> measure the attack -> scan the twin, as a control -> the story of
`clipsan run` on the suspect: scan, clean copy, repair, figures before and after, report.
"""

import sys
import time
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from clipsan.stages.attack.poisoning import AttackConfig
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.oracle import OracleConfig
from clipsan.stages.sources import ParquetSource
from clipsan.stages.stage import config
from clipsan.stages.verdicts import Decision

from ..core.cluster import ClusterConfig, ray_session
from ..core.commit import fingerprint
from ..core.config import as_tree, load
from ..core.run_folder import RunFolder, open_run, read_summary, write_summary
from ..evaluate import verb as evaluate
from ..evaluate.settings import EvaluateConfig, EvaluationAttack
from ..poison import verb as poison
from ..poison.plan import PoisonConfig
from ..proof.inquiry import ProofConfig
from ..scan import verb as scan
from ..tracking.record import TrackingConfig, metrics_of
from ..tracking.send import below, log_folder, log_run
from ..train import verb as train
from . import verb as run
from .demo_data import DemoData, DemoSet, make_data
from .settings import RunConfig
from .steps import ScanStep

STORY = "story"
"""Folder of what `clipsan run` does, below the demo's."""


@config
class DemoTraining:
    """How the demo's two models are trained."""

    model: ModelConfig
    """Architecture."""
    epochs: int
    """Passes over the pairs."""
    batch_size: int
    """Pairs of a global batch."""
    lr: float
    """Peak learning rate."""
    seed: int = 0
    """Of weights and order."""


@config
class DemoConfig:
    """Everything that decides the demo."""

    data: DemoData
    """Rendered scenes, or CIFAR-10."""
    attack: AttackConfig
    """The attack that the scan shall find."""
    training: DemoTraining
    """The suspect model and its clean twin."""
    templates: list[str]
    """Sentences for zero-shot classification."""
    decision: Decision
    """Where the scan cuts."""
    oracle: OracleConfig
    """What segments the pictures of suspicious pairs, to prove the trigger."""
    proof: ProofConfig
    """How far the proof goes."""
    repair: dict[str, Any]
    """How the suspect model is repaired: settings of `clipsan repair`."""
    out: str
    """Run folder; each verb has its own folder in it."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers, threads, GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""


def command(file: str | None, overrides: list[str], dry_run: bool) -> int:
    """Run the verb from the command line."""
    settings = load(DemoConfig, file, overrides, verb="demo")
    if dry_run:
        sys.stdout.write(describe(settings))
        return 0
    sys.stdout.write(story(run_demo(settings)))
    return 0


def describe(settings: DemoConfig) -> str:
    """Return the plan as text."""
    rate = settings.attack.count_of(settings.data.pairs)
    return (
        f"data       {settings.data.kind}: {settings.data.pairs:,} pairs, {settings.data.test_pairs:,} held out\n"
        f"attack     {settings.attack.trigger.kind} on {rate} pairs towards {settings.attack.target!r}\n"
        f"training   twice {settings.training.epochs} epochs, batch {settings.training.batch_size}\n"
        f"steps      data, poison, train suspect, train twin, evaluate both, scan twin; then the story: scan suspect, repair, "
        f"evaluate\n"
        f"out        {settings.out}\n"
    )


def run_demo(settings: DemoConfig) -> dict[str, Any]:
    """Tell the story, or the rest of it; every step that an earlier run finished is skipped."""
    started = time.monotonic()
    tree = as_tree(settings)
    decides = ("data", "attack", "training", "templates", "decision", "oracle", "proof", "repair")
    mark = fingerprint({name: tree[name] for name in decides})
    folder = open_run(settings.out, verb="demo", tree=tree, fingerprint=mark)
    root = folder.root
    with (
        below(settings.tracking, verb="demo", root=root, tree=tree) as tracking,
        ray_session(settings.cluster),
    ):
        steps = replace(settings, tracking=tracking)
        pairs = make_data(settings.data, root / "data", settings.cluster)
        poisoned = _poison(steps, pairs, root)
        suspect = _train(steps, poisoned, root / "suspect")
        twin = _train(steps, pairs.train, root / "twin")
        evaluation = _evaluate(steps, pairs, suspect, root / "evaluate")
        twin_evaluation = _evaluate(steps, pairs, twin, root / "evaluate-twin")
        clean = _scan(steps, pairs.train, twin, root / "scan-twin")
        told = run.run_story(_story(steps, pairs, poisoned, suspect, root))
    found = read_summary(root / STORY / ScanStep.name)
    summary = {
        "verb": "demo",
        "fingerprint": mark,
        "seconds": round(time.monotonic() - started, 1),
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
    write_summary(folder, summary)
    _log(settings, folder, tree, summary)
    return summary


def _log(settings: DemoConfig, folder: RunFolder, tree: Any, summary: dict[str, Any]) -> None:
    files = [Path(summary["report"]), folder.run_yaml, folder.summary]
    metrics = metrics_of(summary)
    if log_run(settings.tracking, verb="demo", root=folder.root, tree=tree, metrics=metrics, files=files) is not None:
        log_folder(settings.tracking, folder.root)


def story(summary: dict[str, Any]) -> str:
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
        mark = "  <- named as the target of a backdoor" if concept["named"] else ""
        lines.append(f"{concept['name']:<20}{concept['n']:>8}{concept['statistic']:>11.2f}{mark}")
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


def repair_lines(summary: dict[str, Any]) -> list[str]:
    """Return what became of the suspect model."""
    if not summary["after"]:
        return ["", f"repair       none: {summary['why']}"]
    heading = f"{'repair by ' + summary['method']:<32}{'before':>10}{'after':>10}"
    return ["", heading, *run.table(summary), f"{summary['outcome']:<12} {summary['why']}"]


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
    step = train.TrainConfig(
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
    return ModelConfig(path=str(train.run_train(step).checkpoint))


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
    step = scan.ScanConfig(
        data=data,
        model=model,
        out=str(out),
        decision=settings.decision,
        oracle=settings.oracle,
        proof=settings.proof,
        cluster=settings.cluster,
        tracking=settings.tracking,
    )
    return scan.run_scan(scan.make_plan(step))
