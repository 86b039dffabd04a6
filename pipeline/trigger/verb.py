"""`clipsan trigger`: the optimised patch of BadCLIP, from the attacker's own clean model and a sample of pairs.

One process without Ray: the loop is sequential, and small by default (2,000 pairs, 10 epochs). It goes on after a stop from
the last finished epoch, to the same bytes.
"""

from pathlib import Path

import torch
from PIL import Image

from clipsan.stages.attack.badclip import PatchOptimiser, encode_pairs, encode_target, measure
from clipsan.stages.model.clip import load_clip

from ..core.commit import whole
from ..core.config import ConfigError, as_tree
from ..core.progress import Progress
from ..core.run_folder import RunFolder
from ..core.verb import Job, Result, Summary, Verb
from .plan import Plan, TriggerRunConfig, make_plan
from .sample import decoded, sample_pairs

SHOWN = ("counts", "no_patch", "start", "patch")
"""What of the summary MLflow shows as numbers."""


def run(plan: Plan, job: Job) -> Result:
    """Make the patch, or what is left of it.

    Raises:
        ConfigError: too few usable pairs with or without the target.
    """
    settings = plan.config
    torch.set_num_threads(settings.threads)
    clip = plan.clip if settings.device == "cpu" else load_clip(settings.model, settings.device)
    sampled = sample_pairs(settings, plan.units)
    others = decoded(sampled.others, clip, settings.max_pixels)
    named = decoded(sampled.target, clip, settings.max_pixels)
    kept = len(others.images) - settings.sample.held_out
    _check_counts(settings, kept, len(named.images))
    pairs = encode_pairs(clip, others.images[:kept], others.captions[:kept])
    held_out = encode_pairs(clip, others.images[kept:], others.captions[kept:])
    target = encode_target(clip, named.images, named.captions)
    optimiser = PatchOptimiser(clip, pairs, target, settings.badclip)
    start = optimiser.pixels()
    _optimise(settings, job.folder, optimiser, kept)
    picture = _picture(job.folder)
    with whole(picture) as temporary:
        Image.fromarray(optimiser.pixels()).save(temporary, "PNG")
    tried = {"no_patch": None, "start": start, "patch": optimiser.pixels()}
    summary: Summary = {
        "settings": as_tree(settings),
        "counts": {
            "pairs_in": sampled.seen,
            "pairs": kept,
            "held_out": len(held_out.images),
            "target_pairs": len(named.images),
            "rejected": others.rejected + named.rejected,
        },
        **{name: measure(clip, held_out, target, patch, settings.badclip) for name, patch in tried.items()},
        "epochs": optimiser.losses,
        "size_px": len(start),
        "image_size_px": clip.image_size,
        "picture": str(picture),
        "path": str(job.folder.summary),
    }
    return Result(summary=summary, metrics={name: summary[name] for name in SHOWN}, files=[picture])


def closing(summary: Summary) -> str:
    """Return the last line of a trigger."""
    before, after = summary["start"]["flip_pct"], summary["patch"]["flip_pct"]
    return (
        f"trigger: {summary['picture']} turns {after:.1f} % of held-out images into {summary['settings']['target']!r} on the "
        f"clean model (random start {before:.1f} %, no patch {summary['no_patch']['flip_pct']:.1f} %)"
    )


def _check_counts(settings: TriggerRunConfig, pairs: int, target_pairs: int) -> None:
    if target_pairs == 0:
        raise ConfigError(f"target={settings.target}: no usable pair of the data has it in its caption as whole words")
    if pairs < settings.badclip.batch_size:
        raise ConfigError(
            f"sample: only {max(pairs, 0)} usable pairs without {settings.target!r} are left beside the "
            f"{settings.sample.held_out} held out; badclip.batch_size needs {settings.badclip.batch_size}"
        )


def _optimise(settings: TriggerRunConfig, folder: RunFolder, optimiser: PatchOptimiser, pairs: int) -> None:
    """Run the epochs that are left; each commits its state."""
    path = folder.local / "work" / "state.pt"
    if path.is_file():
        optimiser.restore(torch.load(path, map_location=settings.device, weights_only=True))
    done, total = len(optimiser.losses), settings.badclip.epochs
    with Progress("epochs", total=total, done=done) as progress:
        for _ in range(done, total):
            optimiser.run_epoch()
            with whole(path) as temporary:
                torch.save(optimiser.state(), temporary)
            progress.advance(pairs=pairs)


def _picture(folder: RunFolder) -> Path:
    return folder.local / "patch.png"


VERB = Verb(
    name="trigger",
    config=TriggerRunConfig,
    plan=make_plan,
    run=run,
    closing=closing,
    cluster=lambda plan: None,
    is_whole=lambda plan, folder: _picture(folder).is_file(),
)
