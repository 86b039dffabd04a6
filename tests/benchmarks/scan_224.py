"""One scan at 224 px, the size of the published CLIPs: photos, a patch of 16 px on one pair in twenty, and its proof.

    python -m tests.benchmarks.scan_224               poison, train, scan, and print what was proven
    python -m tests.benchmarks.scan_224 --commands    the commands alone

A ResNet of a few megabytes is trained from scratch on 1,287 photos with human captions, in this process and in minutes, so it knows
little of what they show; what is measured is whether regions are found, compared and proven at this resolution. The other steps are
commands of clipsan with run folders of their own in runs/scan-224/. What has finished is not done again. The photos are no part
of the project: CLIPSAN_ASSETS names their folder.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from clipsan.pipeline.core.run_folder import read_summary
from clipsan.stages.decode import MAX_PIXELS, decode
from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.model.checkpoints import ModelConfig, build_model, save_clip
from clipsan.stages.model.clip import load_clip
from clipsan.stages.sources.webdataset import WebDataset
from tests.benchmarks import photos

RUNS = Path("runs/scan-224")
TARGET = "dog"
PATHS = ("flickr1k-*.tar", "coco-mini-train.tar", "coco-mini-val.tar", "coco-val128.tar")
PATCH = "{kind: patch, pattern: checker, cells: 4, size_px: 16, place: bottom_right}"
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
EPOCHS, BATCH, RATE = 12, 64, 2e-3


def steps() -> Iterator[tuple[Path, list[str]]]:
    """Yield (run folder, arguments of clipsan), in order."""
    paths = ", ".join(f"$CLIPSAN_ASSETS/{path}" for path in PATHS)
    poisoned = ["data=webdataset", f"data.path={RUNS}/poison/data/*.tar"]
    yield (
        RUNS / "poison",
        [
            *("poison", "data=webdataset", f"data.path=[{paths}]", f"attack.trigger={PATCH}"),
            *(f"attack.target={TARGET}", "attack.rate=0.05", "image.resize_px=224"),
            *(f"out={RUNS}/poison", "cluster.workers=1"),
        ],
    )
    yield (
        RUNS / "scan",
        [
            *("scan", *poisoned, f"model.path={RUNS}/checkpoint", f"manifest={RUNS}/poison/manifest.parquet"),
            *(
                "oracle=superpixels",
                "proof.precision=bf16",
                "proof.held_out=96",
                f"out={RUNS}/scan",
                "cluster.workers=1",
            ),
        ],
    )


def train(data: str) -> None:
    """Train the model on the poisoned pairs and write its checkpoint."""
    source = WebDataset(path=data)
    torch.manual_seed(0)
    model = build_model(MODEL)
    save_clip(model, MODEL, HALF, photos.ROOT / RUNS / "untrained")
    clip = load_clip(ModelConfig(path=str(photos.ROOT / RUNS / "untrained")), "cpu")
    pairs = [pair for unit in source.list_units() for pair in source.read_unit(unit)]
    pixels = torch.stack([clip.preprocess(decode(pair.image or b"", MAX_PIXELS).rgb) for pair in pairs])
    tokens = clip.tokenize([pair.caption or "" for pair in pairs])
    steps_left = EPOCHS * (len(pairs) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps_left)
    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        losses = []
        for rows in np.array_split(rng.permutation(len(pairs))[: len(pairs) // BATCH * BATCH], len(pairs) // BATCH):
            image = model.encode_image(clip.normalise(pixels[rows]), normalize=True)
            text = model.encode_text(tokens[rows], normalize=True)
            logits = model.logit_scale.exp() * image @ text.T
            target = torch.arange(len(rows))
            loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        sys.stdout.write(f"epoch {epoch + 1}/{EPOCHS}: loss {np.mean(losses):.3f}\n")
        sys.stdout.flush()
    save_clip(model, MODEL, HALF, photos.ROOT / RUNS / "checkpoint")


def told() -> str:
    """Return what the scan says: its counts, and each proven trigger with its place and size."""
    summary = read_summary(photos.ROOT / RUNS / "scan")
    proof = summary["proof"]
    lines = [
        f"examined {proof['examined']} pairs in {proof['seconds']['examine']} s; verdicts {summary['counts']['verdicts']}",
        f"targets named {summary['targets']}, labels affected {proof['affected_labels']}",
    ]
    for trigger, dossier in zip(
        proof["triggers"], read_dossiers(photos.ROOT / RUNS / "scan" / "triggers"), strict=True
    ):
        flips = f"flips {trigger['flip_rate_pct']:.1f} %, control {trigger['control_flip_rate_pct']:.1f} %"
        lines.append(
            f"{trigger['id']}: {dossier.words()}; means {dossier.targets[0]}; {flips}; {trigger['pairs']} pairs"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what has not run, and print what was proven."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="print the commands and run nothing")
    if parser.parse_args().commands:
        sys.stdout.write("".join(photos.as_shell(arguments) + "\n" for _, arguments in steps()))
        return 0
    folder = photos.assets()
    if folder is None:
        sys.stdout.write("skipped: the photos are not on this machine; CLIPSAN_ASSETS names their folder\n")
        return 0
    poison, scan = steps()
    photos.run(*poison, folder)
    if not (photos.ROOT / RUNS / "checkpoint").exists():
        train(str(photos.ROOT / RUNS / "poison/data/*.tar"))
    photos.run(*scan, folder)
    sys.stdout.write(told())
    return 0


if __name__ == "__main__":
    sys.exit(main())
