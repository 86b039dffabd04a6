"""Passes 3 to 5 of the scan: from what the statistics suspect to triggers that are proven, and the pairs that carry them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipsan.stages.detectors.trigger_words import TriggerWord
from clipsan.stages.dossier.dossier import Dossier, number
from clipsan.stages.dossier.files import write_dossiers
from clipsan.stages.dossier.find_patches import find_patches
from clipsan.stages.dossier.rivals import settle
from clipsan.stages.proof.affected import LabelEvidence, affected_labels
from clipsan.stages.proof.examine import EVIDENCE_SCHEMA
from clipsan.stages.proof.features import FeatureProof
from clipsan.stages.proof.survival import ClaimProfile
from clipsan.stages.proof.vocabulary import LabelSums, finish, merge
from clipsan.stages.report.content import Example

from ..core.cluster import check_pool
from ..core.commit import part_path, read_part, write_part
from ..core.config import ConfigError
from ..core.kept import kept_clip
from ..core.pass_ import Pass
from ..core.place import AnyPath, remove_tree, written
from ..data.pixels import Pixels, PixelWork, pieces_of
from .carriers import find_carriers
from .inquiry import Inquiry
from .plan import Claims, Group, Selection, follow, paying, plan_proof
from .work import (
    ExamineWork,
    FeatureWork,
    GroupWork,
    LabelWork,
    Learned,
    LearnWork,
    ProfileWork,
    Subject,
    VerifyWork,
    WarpWork,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was proven."""

    dossiers: tuple[Dossier, ...] = ()
    affected: tuple[LabelEvidence, ...] = ()
    features: tuple[FeatureProof, ...] = ()
    """Of concepts without a trigger: what sets their sides apart inside the model, a weaker proof that makes no verdict."""
    profiles: tuple[ClaimProfile, ...] = ()
    """Of the concepts whose sides were compared: which side's claim survives what."""
    examined: int = 0
    """Pairs that the oracle has looked at."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each step."""
    oracle_nodes: int = 0
    """Machines that the oracle ran on."""
    examples: dict[str, tuple[Example, ...]] = field(default_factory=dict)
    """Trigger id -> held-out pictures without it and with it, and what the model takes them for."""
    evidence: AnyPath | None = None
    carriers: AnyPath | None = None
    subject: Subject | None = None
    """What the workers held, for passes that come after the verdicts."""

    @property
    def triggers(self) -> dict[str, str]:
        """Trigger id -> target."""
        return {dossier.id: dossier.targets[0] for dossier in self.dossiers}

    def figures(self) -> dict[str, Any]:
        """Return what summary.json says of the proof."""
        return {
            "examined": self.examined,
            "affected_labels": [e.label for e in self.affected if e.affected],
            "feature_transplants": [asdict(found) for found in self.features],
            "claim_profiles": [asdict(found) for found in self.profiles],
            "seconds": self.seconds,
            "oracle_nodes": self.oracle_nodes,
            "triggers": [
                {
                    "id": d.id,
                    "kind": d.kind,
                    "targets": list(d.targets),
                    "pairs_before_sweep": d.pairs,
                    "pairs": d.carriers,
                    "flip_rate_pct": d.flips.pct,
                    "flip_rate_pct_ci95": [d.flips.low_pct, d.flips.high_pct],
                    "control_flip_rate_pct": d.control.pct,
                    "trigger_words": list(d.trigger_words),
                }
                for d in self.dossiers
            ],
        }


def prove(inquiry: Inquiry) -> Proof:
    """Run the passes, or what is left of them.

    Raises:
        ConfigError: the oracle's pool asks for what no node of the cluster has.
    """
    check_pool(inquiry.settings.pool)
    selection = plan_proof(inquiry.scores, inquiry.findings, inquiry.cut, inquiry.settings, inquiry.seed)
    least = inquiry.settings.examine.completed_on + 2
    if not selection.examined or len(Group.uids(selection.held_out)) < least:
        return Proof()
    clock = _Clock()
    subject, pixels = _prepare(inquiry, selection)
    clock.stop("prepare")
    evidence, nodes = _examine(inquiry, subject, selection)
    clock.stop("examine")
    settings = inquiry.settings
    candidates: list[Dossier] = [*find_patches(evidence, seed=inquiry.seed, limits=settings.limits.patches)]
    candidates += _found(inquiry.on_model("groups"), selection.groups, GroupWork(subject, pixels, settings))
    open_ = _unexplained(inquiry, subject, candidates)
    candidates += _found(inquiry.on_model("warps"), open_, WarpWork(subject, settings))
    learned = _verify(inquiry, subject, candidates)
    explained = {target for trigger in learned for target in trigger.dossier.targets}
    profiles = _profiles(inquiry, ProfileWork(subject, pixels, settings), selection.groups)
    features = _inside(inquiry, subject, pixels, selection.groups, explained)
    clock.stop("prove")
    own = set(evidence.filter(evidence.column("proven")).column("uid").to_pylist())
    carriers, dossiers = find_carriers(inquiry, subject, learned, own)
    dossiers = tuple(_with_words(dossier, inquiry.findings.trigger_words) for dossier in dossiers)
    clock.stop("sweep")
    remove_tree(inquiry.folder.root / "triggers")
    with written(inquiry.folder.root / "triggers") as folder:
        write_dossiers(folder, dossiers)
    return Proof(
        dossiers=dossiers,
        features=features,
        profiles=profiles,
        affected=_affected(inquiry, evidence, dossiers),
        examined=evidence.num_rows,
        seconds=clock.seconds,
        oracle_nodes=nodes,
        examples={trigger.dossier.id: trigger.examples for trigger in learned},
        evidence=inquiry.folder.root / "evidence",
        carriers=carriers,
        subject=subject,
    )


def _with_words(dossier: Dossier, found: Mapping[str, Sequence[TriggerWord]]) -> Dossier:
    """Return the dossier with the trigger words of its targets."""
    words = dict.fromkeys(one.word for target in dossier.targets for one in found.get(target, ()))
    return replace(dossier, trigger_words=tuple(words))


def _affected(inquiry: Inquiry, evidence: pa.Table, dossiers: Sequence[Dossier]) -> tuple[LabelEvidence, ...]:
    """Return what the examined pairs say of their labels, by how suspicious each of them was."""
    examined = evidence.column("uid").combine_chunks()
    suspicion: dict[str, float] = {}
    for table in inquiry.scores.tables(["uid", "concept_spectral"]):
        table = table.filter(pc.is_in(table.column("uid"), value_set=examined))
        suspicion |= zip(table.column("uid").to_pylist(), table.column("concept_spectral").to_pylist(), strict=True)
    targets = {target for dossier in dossiers for target in dossier.targets}
    own = np.array([suspicion[uid] for uid in examined.to_pylist()], np.float64)
    return affected_labels(evidence, own, targets, limits=inquiry.settings.limits.affected)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def stop(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step] = round(now - self._last, 1)
        self._last = now


def _prepare(inquiry: Inquiry, selection: Selection) -> tuple[Subject, Pixels]:
    """Learn the labels and fetch the pictures."""
    vocabulary = inquiry.findings.vocabulary
    work = LabelWork(vocabulary, inquiry.embeddings)
    sums: LabelSums | None = None
    for done in inquiry.on_tables("labels").each(inquiry.embeddings.chunks(), work):
        sums = done.record if sums is None else merge(sums, done.record)
    if sums is None:
        raise ConfigError("data: there is no pair to learn labels from")
    clip = kept_clip(inquiry.model)
    wanted = selection.pictures
    fetch = inquiry.on_tables("pictures", "work/proof/pixels")
    fetch.do(pieces_of(inquiry.units, wanted), PixelWork(inquiry.pictures, inquiry.model))
    pixels = Pixels(fetch.home, tuple(sorted(wanted)), clip.image_size)
    subject = Subject(
        model=inquiry.model,
        device=inquiry.device,
        labels=finish(
            vocabulary.names,
            sums,
            clip.model.logit_scale.exp().item(),
            inquiry.settings.limits.labels,
            inquiry.findings.guests,
        ),
        held_out=pixels.read(Group.uids(selection.held_out)),
        seed=inquiry.seed,
        precision=inquiry.settings.precision,
    )
    return subject, pixels


def _examine(inquiry: Inquiry, subject: Subject, selection: Selection) -> tuple[pa.Table, int]:
    """Return the evidence of all examined pairs, and on how many nodes it was made; 0 if it was there already.

    A claim of which pairs are proven is followed, in rounds, while that pays; all rounds together look at twice the budget at
    most. Each round has a folder of its own, so that a stopped scan goes on with the same ones.
    """
    work = ExamineWork(
        subject=subject,
        pictures=inquiry.pictures,
        oracle=inquiry.oracle,
        settings=inquiry.settings.examine,
        labeller=inquiry.settings.labeller,
    )
    claims, left = selection.claims, selection.examined
    rounds: list[Pass] = []
    tables: list[pa.Table] = []
    nodes: set[str] = set()
    while claims and left >= 0:
        number = len(rounds)
        rounds.append(
            inquiry.on_model(f"oracle, round {number + 1}" if number else "oracle", f"work/proof/oracle-{number}")
        )
        nodes |= {done.node for done in rounds[-1].do(pieces_of(inquiry.units, claims), work)}
        fresh = [read_part(rounds[-1].home, index, EVIDENCE_SCHEMA.names) for index in sorted(claims)]
        tables += fresh
        claims = _next(inquiry, pa.concat_tables(fresh), tables, selection.examined)
        left -= sum(len(uids) for uids in claims.values())
    _write_evidence(inquiry, rounds)
    return pa.concat_tables(tables), len(nodes)


def _next(inquiry: Inquiry, last: pa.Table, tables: Sequence[pa.Table], first: int) -> Claims:
    """Return the pairs to examine after the `last` of some rounds, the first of which examined `first` pairs."""
    limits = inquiry.settings.limits.choice
    worth = paying(last.column("claim").to_pylist(), last.column("proven").to_pylist(), limits)
    if not worth:
        return {}
    examined = {uid for table in tables for uid in table.column("uid").to_pylist()}
    return follow(inquiry.scores, inquiry.findings, worth, examined, count=max(limits.followed, first // 8))


def _write_evidence(inquiry: Inquiry, rounds: Sequence[Pass]) -> None:
    """Write the evidence of all rounds as one part a unit."""
    for index in inquiry.embeddings.numbers:
        found = [read_part(one.home, index) for one in rounds if part_path(one.home, index).exists()]
        if found:
            write_part(inquiry.folder.root / "evidence", index, pa.concat_tables(found), inquiry.fingerprint)


def _found(search: Pass, pieces: Sequence[Any], work: GroupWork | WarpWork) -> list[Dossier]:
    return [done.record for done in search.each(pieces, work) if done.record is not None]


def _unexplained(inquiry: Inquiry, subject: Subject, found: Sequence[Dossier]) -> list[str]:
    """Return the concepts that the statistics name and neither a patch nor a residual explains."""
    if len(subject.held_out) < inquiry.settings.limits.warp.least_images:
        return []
    explained = {target for dossier in found for target in dossier.targets}
    known = set(subject.labels.names)
    return [name for name in inquiry.findings.targets if name in known and name not in explained]


def _inside(
    inquiry: Inquiry, subject: Subject, pixels: Pixels, groups: Sequence[Group], explained: set[str]
) -> tuple[FeatureProof, ...]:
    """Return what sets the sides of those concepts apart inside the model that no trigger explains."""
    others = [group for group in groups if group.concept not in {*explained, *inquiry.findings.targets}]
    open_ = [group for group in groups if group.concept not in explained]
    search = inquiry.on_model("inside the model")
    work = FeatureWork(subject, pixels, inquiry.settings, others)
    return tuple(done.record for done in search.each(open_, work) if done.record is not None)


def _profiles(inquiry: Inquiry, work: ProfileWork, groups: Sequence[Group]) -> tuple[ClaimProfile, ...]:
    search = inquiry.on_model("claim profiles")
    return tuple(done.record for done in search.each(groups, work) if done.record is not None)


def _verify(inquiry: Inquiry, subject: Subject, candidates: Sequence[Dossier]) -> list[Learned]:
    """Return the candidates that flip a larger held-out set, numbered, each with what the model makes of it."""
    verified = [
        done.record
        for done in inquiry.on_model("verify").each(candidates, VerifyWork(subject, inquiry.settings.examine))
    ]
    limits, proves = inquiry.settings.limits, inquiry.settings.examine.proves
    named, divided = inquiry.findings.targets, [split.concept for split in inquiry.findings.splits]
    standing = [d for d in verified if d.stands(named, proves, limits.standing, divided)]
    proven = number(settle(standing, limits.rivals))
    learn = inquiry.on_model("learn triggers")
    return [done.record for done in learn.each(proven, LearnWork(subject, inquiry.layers, limits.carriers))]
