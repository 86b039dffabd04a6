"""One scan at 224 px, the size of the published CLIPs: photos, a patch of 16 px on one pair in twenty, and its proof.

    python -m tests.benchmarks.scan_224               poison, train, scan, and print what was proven
    python -m tests.benchmarks.scan_224 --commands    the commands alone

A small ResNet is trained from scratch on 1,287 photos with human captions, so it knows little of what they show; what is measured
is whether regions are found, compared and proven at this resolution. Every step is a command of clipsan with a run folder of its
own in runs/scan-224/ and is skipped when that run has finished. The photos are no part of the project: CLIPSAN_ASSETS names their
folder.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from clipsan.pipeline.core.commit import write_text
from clipsan.pipeline.core.run_folder import read_summary
from clipsan.stages.dossier.files import read_dossiers
from tests.benchmarks import photos

RUNS = Path("runs/scan-224")
TARGET = "dog"
PATHS = ("flickr1k-*.tar", "coco-mini-train.tar", "coco-mini-val.tar", "coco-val128.tar")
PATCH = "{kind: patch, pattern: checker, cells: 4, size_px: 16, place: bottom_right}"
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}


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
        RUNS / "train",
        [
            *("train", *poisoned, f"model.config={RUNS}/model.json", "epochs=20", "batch_size=64", "lr=2e-3"),
            *(f"out={RUNS}/train", "cluster.workers=1"),
        ],
    )
    yield (
        RUNS / "scan",
        [
            *("scan", *poisoned, f"model.path={RUNS}/train/checkpoint", f"manifest={RUNS}/poison/manifest.parquet"),
            *(
                "oracle=superpixels",
                "proof.precision=bf16",
                "proof.held_out=96",
                f"out={RUNS}/scan",
                "cluster.workers=1",
            ),
        ],
    )


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
    write_text(photos.ROOT / RUNS / "model.json", json.dumps(MODEL, indent=2))
    for out, arguments in steps():
        photos.run(out, arguments, folder)
    sys.stdout.write(told())
    return 0


if __name__ == "__main__":
    sys.exit(main())
