"""The compact data set from which `clipsan repair` learns: which pair plays which role, and what becomes of it.

EftCLIP's compact set as we reconstruct it: (i) victims without their trigger, under a caption that their pictures bear out;
(ii) clean pairs of other labels with the recovered trigger, under their own captions; (iii) genuine pairs of each affected
label; (iv) replay of unsuspicious pairs; 1 : 1 : 1 : 2. Candidates are drawn part by part and merged, so no process sees all
pairs; every draw depends on uid and seed.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
from PIL import Image

from ..samples import seeded_hash
from ..stage import Fraction, Seed, config, part_of
from .dossier import Dossier

CAPTION = "a photo of a {}."
SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("caption", pa.string()),
        ("uid", pa.string()),
        ("role", pa.string()),
        ("label", pa.string()),
        ("target", pa.string()),
        ("trigger_id", pa.string()),
    ]
)
"""One row a pair: a PNG at the model's input size and its caption, as `data=parquet` reads them; the pair's uid in the scanned
set; its role; what the picture shows (null if no concept says); for victims and triggered pairs the label that the trigger
means and the trigger's id."""


class RepairRole(StrEnum):
    """What a pair teaches; the values are the names of `stages.repair.objective.Role` in lower case."""

    VICTIM_CLEANED = "victim_cleaned"
    """The trigger is taken out, and the caption says what is left."""
    TRIGGER_PASTED = "trigger_pasted"
    """The trigger is put in, and the caption stays."""
    GENUINE = "genuine"
    """The affected label itself."""
    REPLAY = "replay"
    """Everything else, so that nothing is forgotten."""


SHARES = {RepairRole.VICTIM_CLEANED: 1, RepairRole.GENUINE: 1, RepairRole.TRIGGER_PASTED: 1, RepairRole.REPLAY: 2}
"""In the order in which a pair that could play several roles gets one: victims are the scarcest."""


@config
class RepairSetConfig:
    """How large the repair set is."""

    pairs: int = 1000
    """Most pairs in it. Fewer if there are few victims: the ratio is kept down to 200 pairs."""
    label_share: Fraction = 0.2
    """Share of a role's pairs that one label may have, a fraction; more only where other labels run out."""
    seed: Seed = 0
    """Of the draws and of the places of triggers."""

    def __post_init__(self) -> None:
        if not 200 <= self.pairs <= 5000:
            raise ValueError(
                "pairs must be between 200 and 5,000: a compact set is what repairs, not a second training set"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A pair that may play a role."""

    draw: int
    """The smaller, the sooner it is taken."""
    uid: str
    role: RepairRole
    label: str | None
    """Concept of its caption; of a victim, which the caption lies about, the trigger's id, for the cap."""
    trigger_id: str | None


def candidates(
    uids: Sequence[str],
    labels: Sequence[str | None],
    trigger_ids: Sequence[str | None],
    suspect: Sequence[bool],
    dossiers: Sequence[Dossier],
    options: RepairSetConfig,
) -> list[Candidate]:
    """Return the candidates of one part of the data set, no more than the whole set can use; all arguments one entry a pair.

    Args:
        uids: of the scanned pairs.
        labels: a concept of the caption, or None.
        trigger_ids: the dossier whose trigger the pair is proven to carry, or None.
        suspect: whether the verdict is not `clean`; such pairs are at most victims.
        dossiers: of the proven triggers.
        options: size and seed.
    """
    targets = {target for dossier in dossiers for target in dossier.targets}
    known = {dossier.id for dossier in dossiers}
    picks = seeded_hash(list(uids), options.seed, "repair.trigger")
    draws = {role: seeded_hash(list(uids), options.seed, f"repair.{role}") for role in RepairRole}
    found: list[Candidate] = []
    for i, uid in enumerate(uids):
        label, trigger_id = labels[i], trigger_ids[i]
        if trigger_id in known:
            found.append(_candidate(draws, i, uid, RepairRole.VICTIM_CLEANED, trigger_id, trigger_id))
        if trigger_id is not None or suspect[i]:
            continue
        found.append(_candidate(draws, i, uid, RepairRole.REPLAY, label, None))
        if label in targets:
            found.append(_candidate(draws, i, uid, RepairRole.GENUINE, label, None))
        elif label is not None and dossiers:
            dossier = dossiers[int(picks[i]) % len(dossiers)]
            found.append(_candidate(draws, i, uid, RepairRole.TRIGGER_PASTED, label, dossier.id))
    return merge(found, [], options)


def _candidate(
    draws: Mapping[RepairRole, np.ndarray],
    i: int,
    uid: str,
    role: RepairRole,
    label: str | None,
    trigger_id: str | None,
) -> Candidate:
    return Candidate(draw=int(draws[role][i]), uid=uid, role=role, label=label, trigger_id=trigger_id)


def merge(left: Sequence[Candidate], right: Sequence[Candidate], options: RepairSetConfig) -> list[Candidate]:
    """Return the candidates of two parts that can still be needed: the first `options.pairs` of each role and label."""
    kept: Counter[tuple[RepairRole, str | None]] = Counter()
    found: list[Candidate] = []
    for candidate in sorted([*left, *right], key=_order):
        kept[candidate.role, candidate.label] += 1
        if kept[candidate.role, candidate.label] <= options.pairs:
            found.append(candidate)
    return found


def plan(found: Sequence[Candidate], options: RepairSetConfig) -> dict[str, Candidate]:
    """Return uid -> the role that it plays, from the merged candidates of all parts; no pair plays two.

    The unit of the ratio 1 : 1 : 1 : 2 is the number of victims, at least 40 and at most a fifth of `options.pairs`. Where a
    role falls short, pairs with the trigger pasted make up for it, which teach what victims do, and then replay.
    """
    by_role: dict[RepairRole, list[Candidate]] = defaultdict(list)
    for candidate in sorted(found, key=_order):
        by_role[candidate.role].append(candidate)
    unit = min(options.pairs // sum(SHARES.values()), max(40, len(by_role[RepairRole.VICTIM_CLEANED])))
    chosen: dict[str, Candidate] = {}
    missing = 0
    for role, share in SHARES.items():
        extra = missing if role in (RepairRole.TRIGGER_PASTED, RepairRole.REPLAY) else 0
        free = [candidate for candidate in by_role[role] if candidate.uid not in chosen]
        taken = _take(free, share * unit + extra, options.label_share)
        chosen |= {candidate.uid: candidate for candidate in taken}
        missing += share * unit - len(taken)
    return dict(sorted(chosen.items()))


def _take(ordered: list[Candidate], wanted: int, label_share: float) -> list[Candidate]:
    """Take the first ones, no label more often than its cap; the cap doubles while other labels run out."""
    cap = max(1, part_of(label_share, wanted))
    taken: list[Candidate] = []
    while ordered and len(taken) < wanted:
        count = Counter(candidate.label for candidate in taken)
        left: list[Candidate] = []
        for candidate in ordered:
            if len(taken) < wanted and count[candidate.label] < cap:
                count[candidate.label] += 1
                taken.append(candidate)
            else:
                left.append(candidate)
        ordered, cap = left, 2 * cap
    return taken


def _order(candidate: Candidate) -> tuple[int, str, str]:
    return candidate.draw, candidate.uid, candidate.role


def make_row(
    chosen: Candidate,
    rgb: np.ndarray,
    caption: str,
    dossiers: Mapping[str, Dossier],
    options: RepairSetConfig,
    *,
    region: np.ndarray | None = None,
    label: str | None = None,
) -> dict[str, object] | None:
    """Return a row of `SCHEMA`, or None for a victim of which nobody knows where the trigger sits or what else it shows.

    Args:
        chosen: the pair's role.
        rgb: `[S, S, 3] uint8`, the pair's image as the model sees it.
        caption: its own.
        dossiers: by id.
        options: the seed of a trigger's place.
        region: `[S, S] bool`, a victim's proven region, where there is one.
        label: what a victim's picture shows without the trigger: a label that its regions support, or else that the suspect
            model gives to `dossier.remove`; None if that is the target, or nothing.
    """
    dossier = None if chosen.trigger_id is None else dossiers[chosen.trigger_id]
    image: np.ndarray | None = rgb
    if chosen.role is RepairRole.VICTIM_CLEANED and dossier is not None:
        image = dossier.remove(rgb, region)
        if image is None or label is None or label in dossier.targets:
            return None
        caption = CAPTION.format(label)
    elif chosen.role is RepairRole.TRIGGER_PASTED and dossier is not None:
        rng = np.random.default_rng(int(seeded_hash([chosen.uid], options.seed, "repair.place")[0]))
        image = dossier.apply(rgb, rng)
    return {
        "image": _png(np.asarray(image)),
        "caption": caption,
        "uid": chosen.uid,
        "role": chosen.role.value,
        "label": label if chosen.role is RepairRole.VICTIM_CLEANED else chosen.label,
        "target": None if dossier is None else dossier.targets[0],
        "trigger_id": chosen.trigger_id,
    }


def _png(rgb: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG", compress_level=6)
    return file.getvalue()
