"""The tables of the oracles and of what the scan proves with one."""

from functools import partial

from tests.benchmarks.results import Row
from tests.benchmarks.sections import Column, Section, Table

PHOTOS, SCENES, ATTACKED = "coco-val128", "scenes", "tiny-imagenet20"
ATTACKED_VIT = f"{ATTACKED}, vit"

SEGMENTS = (
    Column("oracle", "oracle"),
    Column("images", "images"),
    Column("true segments", "segments"),
    Column("regions an image", "regions", 1),
    Column("mean IoU of the best region", "mean_iou"),
    Column("segments at IoU .5 %", "covered_pct", 1),
    Column("label precision %", "label_precision_pct", 1),
    Column("label recall %", "label_recall_pct", 1),
    Column("mean IoU of the classes", "class_iou"),
    Column("CPU seconds an image", "seconds_per_image"),
)
PROVEN = (
    Column("attack", "attack"),
    Column("seed", "seed"),
    Column("poisoned", "poisoned"),
    Column("examined", "examined"),
    Column("triggers proven", "proven_triggers"),
    Column("kind", "kinds"),
    Column("labels affected", "labels_found"),
    Column("flips %", "flip_rate_pct", 1),
    Column("control %", "control_flip_rate_pct", 1),
    Column("regions proven on the trigger", "localised"),
    Column("median IoU", "iou_median"),
    Column("IoU at least .5 %", "iou_half_pct", 1),
)
PAIRS = (
    Column("attack", "attack"),
    Column("seed", "seed"),
    Column("poisoned", "poisoned"),
    Column("called poisoned before the search", "before_sweep"),
    Column("precision %", "before_sweep_precision_pct", 1),
    Column("recall %", "before_sweep_recall_pct", 1),
    Column("after it", "after_sweep"),
    Column("precision %", "after_sweep_precision_pct", 1),
    Column("recall %", "after_sweep_recall_pct", 1),
    Column("suspect or poisoned", "suspect"),
    Column("precision %", "suspect_precision_pct", 1),
    Column("recall %", "suspect_recall_pct", 1),
    Column("seconds per 1,000 pairs", "seconds_per_1000", 1),
)


def of_set(name: str, rows: list[Row]) -> list[Row]:
    """Return what each oracle sees in one set of images, the one with the best regions first."""
    return sorted((row for row in rows if row["set"] == name), key=lambda row: -float(row["mean_iou"]))  # type: ignore[arg-type]


def attacked(name: str, rows: list[Row]) -> list[Row]:
    """Return what was proven on each model of one set, the clean one last."""
    found = [row for row in rows if row["set"] == name]
    return sorted(found, key=lambda row: (not row["poisoned"], str(row["attack"]), row["seed"]))


QUALITY = Section(
    "oracle",
    (
        Table(SEGMENTS, partial(of_set, PHOTOS), "Photos:"),
        Table(SEGMENTS[:-1], partial(of_set, SCENES), "Rendered scenes, where a small SAM was trained:"),
    ),
)
PROOF = Section(
    "oracle",
    (
        Table(PROVEN, partial(attacked, ATTACKED), "Triggers:"),
        Table(PAIRS, partial(attacked, ATTACKED), "Pairs:"),
        Table(PROVEN, partial(attacked, ATTACKED_VIT), "Triggers, with a ViT:"),
        Table(PAIRS, partial(attacked, ATTACKED_VIT), "Pairs, with a ViT:"),
    ),
)

PER_IMAGE = Section(
    "per_image",
    (
        Table(
            (
                Column("oracle", "oracle"),
                Column("accusations kept", "prune"),
                Column("photos", "photos"),
                Column("first label right %", "top1_pct", 1),
                Column("ASR %", "asr_pct", 1),
                Column("detected, of those it fooled %", "detected_pct", 1),
                Column("target named %", "target_named_pct", 1),
                Column("clean photos accused %", "falsely_accused_pct", 1),
            ),
            lambda rows: sorted(rows, key=lambda row: (str(row["oracle"]), str(row["prune"]))),
        ),
    ),
)
