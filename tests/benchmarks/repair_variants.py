"""The rows of the repair table: methods and their settings. Light to import, for what repairs on a GPU."""

from dataclasses import dataclass

PAIRS, DEV_PHOTOS = 2500, 1500
EPOCHS = 6
STEPS = EPOCHS * (PAIRS // 128)
SAME = (f"steps={STEPS}", "method.batch_size=128")
"""What all trained methods have in common."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
PAR_RATES = (1e-5, 3e-5, 1e-4)
RVPT_RATES = (3e-3, 1e-2, 3e-2, 1e-1)
"""Of which a sweep, or the development split, chooses. PAR starts at ten times its rate, and with frozen batch normalisation, as it was
published, 3e-4 leaves a small model no accuracy at all."""
CHOSEN = "development split"
"""By a sweep on a development attack, of `clipsan sweep` or as one."""
MOST_LOST_POINTS = 3.0
"""Of accuracy on the development photos, that a rate may cost."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A row's method and its settings."""

    method: str
    """A file of conf/repair."""
    settings: tuple[str, ...] = ()
    lr: float | None = None
    """Its rate, where no sweep has been made on this machine. None: the method's own, or it has none."""
    lr_from: str = "by hand"
    """Where that rate is from."""
    rates: tuple[float, ...] = RATES
    """Of which the sweep chooses."""
    same: bool = True
    """Whether it makes the steps that all make; not the papers' own settings, nor what trains on the scan's set alone."""


VARIANTS: dict[str, Variant] = {
    "finetune": Variant("finetune", lr=3e-3),
    "finetune-published": Variant("finetune", same=False),
    "cleanclip": Variant("cleanclip", lr=3e-3),
    "cleanclip-published": Variant("cleanclip", same=False),
    "cleanclip-supervised": Variant(
        "cleanclip-supervised", ("method.schedule={kind: cosine, warmup_steps: 10}",), lr=3e-3
    ),
    "par": Variant("par", ("method.tau=auto",), lr=3e-5, lr_from=CHOSEN, rates=PAR_RATES),
    "par-2.15": Variant("par", ("method.tau=2.15",), lr=3e-5, lr_from=f"{CHOSEN}, of par", rates=PAR_RATES),
    "par-live": Variant("par", ("method.tau=auto", "method.freeze_batch_norm=false"), lr=3e-4),
    "par-published": Variant("par", same=False),
    "rvpt": Variant("rvpt", ("method.shots=125", "method.first_block=1", "method.tokens=50"), lr=0.1, rates=RVPT_RATES),
    "rvpt-published": Variant("rvpt", ("method.first_block=1",), same=False),
    "eftclip": Variant("eftclip", ("method.epochs=6", "method.batch_size=64", "method.lr=1e-3"), same=False),
    "unlearn": Variant("unlearn", lr=1e-3),
    "tbar": Variant("tbar", ("method.lr=1e-4", "method.scale=5"), same=False),
    "project": Variant("project", same=False),
}
"""Row -> what is run. The papers' rates are those of pretrained models that a small one, trained with 2e-3, hardly notices (see
`clipsan evaluate`'s rebound); RVPT's first prompted block is the paper's quarter of the depth."""
