"""The finished audits of clean models that a suspect is held against, checked before any worker starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipsan.stages.audit.displacement import descends
from clipsan.stages.audit.peers import LEAST_PEERS
from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.model.clip import Clip

from ..core.commit import DamagedPartError, fingerprint, read_part
from ..core.config import ConfigError, as_tree
from ..core.place import AnyPath, place_of
from ..core.run_folder import RunFolder, flatten, read_run_yaml, read_summary
from .settings import AuditConfig


@dataclass(frozen=True, slots=True)
class Peer:
    """A finished audit of a clean model."""

    home: AnyPath
    """Its run folder."""
    suspect: str
    """Fingerprint of its model."""


def find_peers(settings: AuditConfig, clip: Clip, names: Sequence[str], decides: Mapping[str, Any]) -> tuple[Peer, ...]:
    """Return the peers that the settings name.

    Args:
        settings: of the audit.
        clip: the suspect.
        names: of the labels.
        decides: what the fingerprint of the audit is of; but for its `model` that of a peer is of the same.

    Raises:
        ConfigError: one does not fit, or there are too few.
    """
    if not settings.peers:
        return ()
    found: dict[str, Peer] = {}
    texts = class_embeddings(clip, names, settings.templates)
    for root in settings.peers:
        try:
            peer = _peer(root, settings, clip, decides)
            theirs = np.array(
                read_part(peer.home / "clouds", 0).column("suspect").combine_chunks().field("text").to_pylist()
            )
        except (ConfigError, DamagedPartError, OSError) as error:
            raise ConfigError(f"peers: {error}") from error
        if peer.suspect in found:
            raise ConfigError(
                f"peers: {root} is of the same model as {found[peer.suspect].home}; name each clean model once"
            )
        if not descends(texts, theirs):
            raise ConfigError(
                f"peers: {root} is of a model that was not tuned from the one that the suspect was tuned from (their texts have not "
                "a space in common), and labels of other trainings do not stand alike"
            )
        found[peer.suspect] = peer
    if len(found) < LEAST_PEERS:
        raise ConfigError(
            f"peers: {len(found)} clean model, and how much they scatter is seen of {LEAST_PEERS} at least; audit another"
        )
    return tuple(found.values())


def _peer(root: str, settings: AuditConfig, clip: Clip, decides: Mapping[str, Any]) -> Peer:
    folder = RunFolder(place_of(root))
    record = read_run_yaml(folder.root)
    if record["verb"] != "audit":
        raise ConfigError(f"{root} holds a run of `clipsan {record['verb']}`, and no audit")
    if not folder.is_finished:
        raise ConfigError(f"{root}: that audit is not finished; run it again, it goes on")
    summary = read_summary(folder.root)
    suspect = str(summary.get("suspect"))
    if suspect == clip.fingerprint:
        raise ConfigError(f"{root} is an audit of the suspect itself")
    if record["fingerprint"] != fingerprint({**decides, "model": suspect}):
        raise ConfigError(
            f"{root} was made {_otherwise(summary, record, settings, decides)}; audit that model as this one"
        )
    return Peer(folder.root, suspect)


def _otherwise(
    summary: Mapping[str, Any], record: Mapping[str, Any], settings: AuditConfig, decides: Mapping[str, Any]
) -> str:
    """Say how another audit was made, compared with this one."""
    before, now = summary.get("reference"), decides["reference"]
    if before != now:
        return "without a reference" if before is None else f"with {'a' if now is None else 'another'} reference"
    if summary.get("labels") != list(decides["names"]):
        return "with other labels"
    old, new = flatten(record["config"]), flatten(as_tree(settings))
    names = sorted(
        name
        for name in old.keys() | new.keys()
        if name.split(".")[0] in decides["settings"] and old.get(name) != new.get(name)
    )
    return f"with another {', '.join(names[:5])}" if names else "with other images or by another version of clipsan"
