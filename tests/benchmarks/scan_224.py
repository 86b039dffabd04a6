"""One scan at 224 px, the size of the published CLIPs: photos, a patch of 16 px on one pair in twenty, and its proof.

    python -m tests.benchmarks.scan_224               poison, train, scan, and print what was proven
    python -m tests.benchmarks.scan_224 --commands    the commands alone

A transformer of two blocks that sees 16 px at a time is trained from scratch on 1,287 photos with human captions, in this process, until
the trigger works on photos it has not seen (EPOCHS at most; about 8 s of one core each). It knows little of what photos show; what is
measured is whether regions are found, compared and proven at this resolution. The other steps are commands of clipsan with run folders
of their own in runs/scan-224/. What has finished is not done again; the figures go to tests/benchmarks/results/. The photos are no
part of the project: CLIPSAN_ASSETS names their folder.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.nn import functional

from clipsan.pipeline.core.commit import write_text
from clipsan.pipeline.core.run_folder import read_summary
from clipsan.stages.attack.triggers.patch import PatchConfig
from clipsan.stages.captions import Mined, count_terms, mine_vocabulary
from clipsan.stages.decode import MAX_PIXELS, decode
from clipsan.stages.dossier.files import read_dossiers
from clipsan.stages.model.checkpoints import ModelConfig, build_model, save_clip
from clipsan.stages.model.clip import Clip, load_clip
from clipsan.stages.oracle.regions import iou
from clipsan.stages.proof.disagreement import Suspect
from clipsan.stages.proof.vocabulary import LabelLimits, LabelSums, finish
from clipsan.stages.sources.webdataset import WebDataset
from clipsan.stages.verdicts import Reason
from tests.benchmarks import photos
from tests.benchmarks.results import Row, Value, record

RUNS = Path("runs/scan-224")
COMMAND = "python -m tests.benchmarks.scan_224"
TARGET, SIDE = "dog", 224
PATHS = ("flickr1k-*.tar", "coco-mini-train.tar", "coco-mini-val.tar", "coco-val128.tar")
TRIGGER = PatchConfig(pattern="checker", cells=4, size_px=16, place="bottom_right")
PATCH = "{kind: patch, pattern: checker, cells: 4, size_px: 16, place: bottom_right}"
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
EPOCHS, BATCH, RATE = 40, 32, 2e-3
ALONE = ("cluster.workers=1", "cluster.alone_below_pairs=10000")
"""In one process: the size of the files promises more pairs than there are."""
UNSEEN = 128
"""Clean pairs that the model is not trained on, and that its attack success is measured on."""
ENOUGH_ASR_PCT = 90.0
"""At which training ends: what a benchmark admits. Going on is worse, for the rate stays: of 13 epochs the later ones have 43 to 97 %."""


def steps() -> Iterator[tuple[Path, list[str]]]:
    """Yield (run folder, arguments of clipsan), in order."""
    paths = ", ".join(f"$CLIPSAN_ASSETS/{path}" for path in PATHS)
    poisoned = ["data=webdataset", f"data.path={RUNS}/poison/data/*.tar"]
    yield (
        RUNS / "poison",
        [
            *("poison", "data=webdataset", f"data.path=[{paths}]", f"attack.trigger={PATCH}"),
            *(f"attack.target={TARGET}", "attack.rate=0.05", "image.resize_px=224"),
            *(f"out={RUNS}/poison", *ALONE),
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
                *ALONE,
            ),
        ],
    )


@dataclass(frozen=True, slots=True)
class Photos:
    """Decoded pairs of the poisoned set."""

    pixels: torch.Tensor
    """`[N, 3, S, S] uint8`."""
    captions: list[str]
    poisoned: np.ndarray
    """`[N] bool`."""


def read_photos(clip: Clip) -> Photos:
    """Decode every pair once."""
    source = WebDataset(path=str(photos.ROOT / RUNS / "poison/data/*.tar"))
    pairs = [pair for unit in source.list_units() for pair in source.read_unit(unit)]
    manifest = pq.read_table(photos.ROOT / RUNS / "poison/manifest.parquet", columns=["uid"])
    known = set(manifest.column("uid").to_pylist())
    pixels = torch.stack([clip.preprocess(decode(pair.image or b"", MAX_PIXELS).rgb) for pair in pairs])
    poisoned = np.array([pair.uid in known for pair in pairs])
    return Photos(pixels, [pair.caption or "" for pair in pairs], poisoned)


def train() -> dict[str, Value]:
    """Train the model on the poisoned pairs but UNSEEN clean ones, until the trigger makes the target of these; write its checkpoint.

    Raises:
        RuntimeError: the trigger has not been learned after EPOCHS, so there is nothing to find.
    """
    start = time.process_time()
    torch.manual_seed(0)
    save_clip(build_model(MODEL), MODEL, HALF, photos.ROOT / RUNS / "untrained")
    clip = load_clip(ModelConfig(path=str(photos.ROOT / RUNS / "untrained")), "cpu")
    model = clip.model
    data = read_photos(clip)
    tokens = clip.tokenize(data.captions)
    rng = np.random.default_rng(0)
    unseen = rng.permutation(np.flatnonzero(~data.poisoned))[:UNSEEN]
    seen = np.setdiff1d(np.arange(len(data.captions)), unseen)
    batches = len(seen) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (2 * batches)))
    for epoch in range(1, EPOCHS + 1):
        model.train().requires_grad_(True)
        losses = []
        for rows in np.array_split(rng.permutation(seen)[: batches * BATCH], batches):
            loss = _loss(clip, data.pixels[rows], tokens[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        model.eval()
        asr_pct, images = attack_success(clip, data, unseen)
        seconds = time.process_time() - start
        sys.stdout.write(
            f"epoch {epoch} of {EPOCHS} at most: loss {np.mean(losses):.3f}, ASR {asr_pct:.1f} % of {images} "
            f"unseen photos, {seconds:.0f} CPU s\n"
        )
        sys.stdout.flush()
        if asr_pct >= ENOUGH_ASR_PCT:
            save_clip(model, MODEL, HALF, photos.ROOT / RUNS / "checkpoint")
            told: dict[str, Value] = {"epochs": epoch, "asr_pct": asr_pct, "asr_images": images}
            return {**told, "train_cpu_s": round(seconds)}
    raise RuntimeError(f"ASR {asr_pct:.1f} % after {EPOCHS} epochs: the trigger has not been learned")


def _loss(clip: Clip, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    image = clip.model.encode_image(clip.normalise(pixels), normalize=True)
    text = clip.model.encode_text(tokens, normalize=True)
    logits = clip.model.logit_scale.exp() * image @ text.T
    target = torch.arange(len(pixels))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def attack_success(clip: Clip, data: Photos, unseen: np.ndarray) -> tuple[float, int]:
    """Return the share in percent, and the number, of unseen photos that are no target to the model and become one with the trigger;
    0 of 0 while the model calls all of them so.

    The labels are those of a scan: every concept of the captions, in the direction of the mean text that holds it.
    """
    vocabulary = mine_vocabulary(count_terms(data.captions), len(data.captions), Mined())
    text = np.concatenate([clip.encode_text(data.captions[at : at + 256]) for at in range(0, len(data.captions), 256)])
    members = vocabulary.members(data.captions)
    sums = LabelSums(np.asarray(members.sum(axis=0)).ravel().astype(np.int64), members.T.astype(np.float64) @ text)
    labels = finish(vocabulary.names, sums, clip.model.logit_scale.exp().item(), LabelLimits())
    suspect, target = Suspect(clip, labels), labels.index(TARGET)
    photos_unseen = data.pixels[unseen].numpy().transpose(0, 2, 3, 1)
    others = photos_unseen[~suspect.says(photos_unseen, target)]
    if not len(others):
        return 0.0, 0
    trigger, rng = TRIGGER.build(), np.random.default_rng(0)
    marked = np.stack([trigger(image, rng)[0] for image in others])
    return 100 * float(suspect.says(marked, target).mean()), len(others)


def measured(trained: Row) -> Row:
    """Return the row of the finished scan: what it was given, what it named, flagged and proved, against the truth."""
    summary = read_summary(photos.ROOT / RUNS / "scan")
    verdicts = pq.read_table(photos.ROOT / RUNS / "scan" / "verdicts", columns=["uid", "reasons"])
    manifest = pq.read_table(photos.ROOT / RUNS / "poison/manifest.parquet", columns=["uid"])
    poisoned = set(manifest.column("uid").to_pylist())
    accused = zip(verdicts.column("uid").to_pylist(), verdicts.column("reasons").to_pylist(), strict=True)
    reasons = {uid: set(found) for uid, found in accused}
    proof, side = summary["proof"], int(TRIGGER.size_px or 0)
    row: Row = {
        "images": "flickr1k, coco",
        "side_px": SIDE,
        "patch_px": side,
        **{name: trained[name] for name in ("asr_pct", "asr_images", "epochs", "train_cpu_s")},
        "pairs": verdicts.num_rows,
        "poisoned": len(poisoned),
        "targets": ", ".join(summary["targets"]),
        "triggers": len(proof["triggers"]),
    }
    for reason, name in ((Reason.PROVEN_TRIGGER, "proven"), (Reason.POISON_SUSPECT, "flagged")):
        found = {uid for uid, why in reasons.items() if reason.value in why}
        row |= {name: len(found), f"{name}_poisoned": len(found & poisoned)}
    row |= {"examined": proof["examined"], "seconds": summary["seconds"]}
    row |= {f"{step}_s": seconds for step, seconds in proof["seconds"].items()}
    dossiers = [d for d in read_dossiers(photos.ROOT / RUNS / "scan" / "triggers") if TARGET in d.targets]
    if dossiers:
        truth = np.zeros((SIDE, SIDE), bool)
        truth[-side:, -side:] = True
        first = max(dossiers, key=lambda dossier: dossier.pairs)
        where = first.where()
        flips = {"flips_pct": first.flips.pct, "control_pct": first.control.pct}
        row |= {"trigger": first.words(), "iou": 0.0 if where is None else iou(where, truth), **flips}
    return row


def main() -> int:
    """Run what has not run, and print what was proven."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", action="store_true", help="print the commands and run nothing")
    if parser.parse_args().commands:
        sys.stdout.write("".join(photos.as_shell(arguments) + "\n" for _, arguments in steps()))
        return 0
    folder = photos.found_assets()
    if folder is None:
        return 0
    poison, scan = steps()
    photos.run(*poison, folder)
    trained = photos.ROOT / RUNS / "training.json"
    if not trained.is_file():
        write_text(trained, json.dumps(train()))
    photos.run(*scan, folder)
    row = measured(json.loads(trained.read_text(encoding="utf-8")))
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in row.items()))
    record("scan_224", [row], command=COMMAND)
    return 0


if __name__ == "__main__":
    sys.exit(main())
