"""An audit, checked before any worker starts: the checkpoint, the vocabulary, the images."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from pathlib import Path

import numpy as np

from clipsan.stages.audit.outliers import LEAST_LABELS
from clipsan.stages.audit.words import FUNCTION_WORDS
from clipsan.stages.captions import JOINED, normalise
from clipsan.stages.decode import BadImage, decode
from clipsan.stages.model.clip import Clip, ModelConfig, load_clip
from clipsan.stages.samples import CAPTION_REJECTS, RawPair, Unit, seeded_hash
from clipsan.stages.scenes.scene import SceneConfig, render
from clipsan.stages.scenes.shapes import CONCEPTS
from clipsan.stages.sources import identity, list_units, read_unit

from ..core.commit import fingerprint
from ..core.config import ConfigError, as_tree
from ..evaluate.plan import read_classes
from ..tracking.record import DataInput, data_input
from .peers import Peer, find_peers
from .settings import AuditConfig

AUDIT_VERSION = 8
"""Raised when the code comes to find something else from the same settings, so that old parts are refused."""
FREE = ("out", "cluster", "tracking", "limits", "peers")
SEPARATE = ("model", "reference", "images", "classes", "captions")
"""Settings that decide nothing of what is found of the model itself, and those that enter the fingerprint by their content."""
READ_PER_IMAGE = 32
"""Pairs that are read at most for each image on which triggers are sought: the draw is made from them."""
SPARE = 2
"""Images that are drawn for each that is wanted, in case some cannot be read."""
LEAST_IMAGES = 16
WORD = re.compile(rf"(?:[^\W\d_][{JOINED}]*){{3,}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked audit."""

    config: AuditConfig
    names: tuple[str, ...]
    """The vocabulary; empty until it is sought."""
    clip: Clip
    reference_fingerprint: str | None
    gallery: np.ndarray
    """`[M, S, S, 3] uint8`, as the model sees them: what labels are compared on by how far their texts stand from pictures."""
    inputs: tuple[DataInput, ...]
    fingerprint: str
    peers: tuple[Peer, ...] = ()

    @property
    def pictures(self) -> np.ndarray:
        """`[N, S, S, 3] uint8`: those that triggers are sought and tried on, the first of the gallery."""
        return self.gallery[: self.config.count]

    @property
    def tasks(self) -> list[tuple[str, tuple[int, ...]]]:
        """Kind and labels of each task of the screening."""
        size = self.config.labels_per_task
        labels = range(len(self.names))
        chunks = [tuple(labels[start : start + size]) for start in range(0, len(labels), size)]
        return [(kind, chunk) for kind in self.config.screening_kinds for chunk in chunks]

    def describe(self) -> str:
        """Return the plan as text for --dry-run."""
        c = self.config
        shown = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        named = f"{len(self.names)}: {shown}" if self.names else f"{c.sought} at most, sought"
        lines = [
            f"suspect    {self.clip.fingerprint[:12]} {c.model.path}, {self.clip.image_size} px (only read)",
            f"reference  {'none' if self.reference_fingerprint is None else self.reference_fingerprint[:12]}",
            *([f"peers      {len(self.peers)} clean models"] if self.peers else []),
            f"images     {len(self.pictures)} ({'rendered scenes' if c.images is None else c.images.kind})",
            f"labels     {named}; compared on {min(c.compared, len(self.gallery))} images",
            f"screening  {', '.join(c.screening_kinds)}; {c.screening.steps} steps of {c.screening.images_per_label} images a label, "
            f"{len(self.tasks)} tasks",
            f"inversion  of {c.candidates} labels at most as {', '.join(c.kinds)}; {c.inversion.steps} steps of "
            f"{c.inversion.images_per_label} images",
            f"workers    {c.cluster.describe()}",
            f"out        {c.out}  ({self.fingerprint[:12]})",
        ]
        return "\n".join(lines) + "\n"


def make_plan(settings: AuditConfig) -> Plan:
    """Check everything that can be checked before a worker starts.

    Raises:
        ConfigError, ValueError, OSError: no images, too few labels to compare any, a checkpoint that is no CLIP, a reference with
            another input.
    """
    names = _vocabulary(settings)
    clip = load_clip(settings.model)
    reference = None if settings.reference is None else _reference(settings.reference, clip)
    units = [] if settings.images is None else list_units(settings.images)
    gallery = _scenes(settings, clip) if settings.images is None else _drawn(settings, units, clip)
    tree = as_tree(settings)
    decides = {
        "version": AUDIT_VERSION,
        "settings": {name: value for name, value in tree.items() if name not in (*FREE, *SEPARATE)},
        "model": clip.fingerprint,
        "reference": None if reference is None else reference.fingerprint,
        "images": None if settings.images is None else identity(settings.images, units),
        "names": names,
    }
    return Plan(
        config=settings,
        names=names,
        clip=clip,
        reference_fingerprint=None if reference is None else reference.fingerprint,
        gallery=gallery,
        inputs=() if settings.images is None else (data_input(settings.images, units, "evaluation"),),
        fingerprint=fingerprint(decides),
        peers=find_peers(settings, clip, names, decides),
    )


def _vocabulary(settings: AuditConfig) -> tuple[str, ...]:
    if settings.sought:
        return ()
    if settings.captions is not None:
        names = _mined(settings.captions, settings.words)
    else:
        names = list(CONCEPTS) if settings.classes is None else read_classes(settings.classes)
    where = "classes" if settings.captions is None else "captions"
    doubled = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    if doubled:
        raise ConfigError(f"{where}: {doubled[0]!r} is named twice; every label must differ from the others")
    if len(names) <= LEAST_LABELS:
        raise ConfigError(
            f"{where}: {len(names)} labels, and a label is judged by what {LEAST_LABELS} others show: of so few any model would be "
            "called clean; add names of other things that the model knows"
        )
    return tuple(names)


def _mined(path: str, words: int) -> list[str]:
    """Return the words of a caption file that name something, the most frequent first; a word counts once a caption."""
    try:
        with Path(path).expanduser().open(encoding="utf-8", errors="replace") as lines:
            found = Counter(word for line in lines for word in set(WORD.findall(normalise(line))))
    except OSError as error:
        raise ConfigError(f"captions={path}: cannot be read: {error.strerror}") from None
    named = [word for word, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))]
    return [word for word in named if word not in FUNCTION_WORDS][:words]


def _reference(model: ModelConfig, clip: Clip) -> Clip:
    found = load_clip(model)
    if found.image_size != clip.image_size:
        raise ConfigError(
            f"reference: takes {found.image_size} px and the suspect {clip.image_size}; give a clean model of the same architecture"
        )
    if found.fingerprint == clip.fingerprint:
        raise ConfigError("reference: is the suspect checkpoint itself; give a clean model of the same architecture")
    return found


def _scenes(settings: AuditConfig, clip: Clip) -> np.ndarray:
    scenes = SceneConfig(count=_wanted(settings), side_px=max(16, clip.image_size), seed=settings.seed)
    return np.stack([render(i, scenes).rgb for i in range(scenes.count)])


def _wanted(settings: AuditConfig) -> int:
    return max(settings.count, settings.compared)


def _drawn(settings: AuditConfig, units: list[Unit], clip: Clip) -> np.ndarray:
    """Return a seeded draw of the images; of a large set it is made from the first units in a seeded order."""
    draws = seeded_hash([f"{unit.shard}:{unit.start}" for unit in units], settings.seed, "audit.units")
    wanted = _wanted(settings)
    pairs = _pairs(settings, [units[i] for i in np.argsort(draws, kind="stable")])
    chosen = nsmallest(
        SPARE * wanted,
        islice(pairs, max(READ_PER_IMAGE * settings.count, SPARE * wanted)),
        key=lambda pair: (int(seeded_hash([pair.uid], settings.seed, "audit.images")[0]), pair.uid),
    )
    found: list[np.ndarray] = []
    for pair in chosen:
        if len(found) == wanted:
            break
        try:
            rgb = decode(pair.image or b"", settings.max_pixels).rgb
        except BadImage:
            continue
        found.append(np.ascontiguousarray(clip.preprocess(rgb).numpy().transpose(1, 2, 0)))
    if len(found) < LEAST_IMAGES:
        raise ConfigError(
            f"images: {len(found)} could be read, and an audit needs {LEAST_IMAGES} at least; leave images out for rendered scenes"
        )
    return np.stack(found)


def _pairs(settings: AuditConfig, units: list[Unit]) -> Iterator[RawPair]:
    assert settings.images is not None
    for unit in units:
        for pair in read_unit(settings.images, unit):
            if pair.image is not None and (pair.reject is None or pair.reject in CAPTION_REJECTS):
                yield pair
