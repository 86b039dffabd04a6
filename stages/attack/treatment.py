"""What an attack makes of every pair of a data set, and the manifest that says so."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..decode import MAX_PIXELS, BadImage, decode
from ..samples import RawPair, seeded_hash
from .poisoning import AttackConfig, ImagePath, Poisoned, Poisoner, strand_numbers


@dataclass(frozen=True, slots=True)
class Treated:
    """A pair after treatment."""

    image: bytes
    """Encoded."""
    suffix: str
    """File suffix of the image's format (".png")."""
    caption: str
    poisoned: Poisoned | None
    """What the attack did to it; None: the pair was not chosen."""


class Treatment:
    """What an attack makes of every pair of a data set: one image path for all, the poison for the chosen ones."""

    def __init__(self, attack: AttackConfig, image: ImagePath, cut: int, natural_captions: Sequence[str]) -> None:
        """See `place_draw_cut` for `cut`, and `Poisoner` for the captions and what it raises."""
        self._attack = attack
        self._path = image
        self._cut = cut
        self._poisoner = Poisoner(attack, natural_captions)

    def chooses(self, pair: RawPair) -> bool:
        """Tell whether the attack falls on a readable pair; it is poisoned unless its image cannot be decoded."""
        if pair.reject is not None or pair.caption is None:
            return False
        # The number alone settles most pairs, before any caption is searched.
        if int(seeded_hash([pair.uid], self._attack.seed, "poison.choose")[0]) > self._cut:
            return False
        strand = strand_numbers([pair.uid], self._attack)[0]
        return self._attack.allows(pair.caption, self._attack.strands[strand])

    def __call__(self, pair: RawPair) -> Treated | None:
        """Return the treated pair, or None where it stays as it is: rejected, or with an image that cannot be decoded."""
        if pair.reject is not None or pair.image is None or pair.caption is None:
            return None
        try:
            rgb = self._path.resize(decode(pair.image, MAX_PIXELS).rgb)
        except BadImage:
            return None
        if not self.chooses(pair):
            return Treated(self._path.encode(rgb), self._path.suffix, pair.caption, None)
        poisoned = self._poisoner(rgb, pair.uid, pair.caption)
        return Treated(self._path.encode(poisoned.rgb), self._path.suffix, poisoned.caption, poisoned)


MANIFEST_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("sha256_before", pa.string()),
        ("sha256_after", pa.string()),
        ("trigger", pa.string()),
        ("parameters", pa.string()),
        ("top", pa.int32()),
        ("left", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("caption_before", pa.string()),
        ("caption_after", pa.string()),
        ("target", pa.string()),
    ]
)
"""One row a poisoned pair. Hashes are of the image files; the box is in pixels of the file that was written. `target` is null
where the caption was given no word: in a control, and of the pairs that cover an attack."""


def manifest_row(
    uid: str, before: bytes, after: bytes, caption_before: str, poisoned: Poisoned, config: AttackConfig
) -> dict[str, Any]:
    """Return the manifest's row for a pair; `before` and `after` are the bytes of its image files."""
    box = {name: poisoned.parameters[name] for name in ("top", "left", "height", "width")}
    return {
        "uid": uid,
        "sha256_before": hashlib.sha256(before).hexdigest(),
        "sha256_after": hashlib.sha256(after).hexdigest(),
        "trigger": poisoned.strand.trigger.kind,
        "parameters": json.dumps(poisoned.parameters, sort_keys=True),
        **box,
        "caption_before": caption_before,
        "caption_after": poisoned.caption,
        "target": None if config.control or poisoned.covered else poisoned.strand.target,
    }
