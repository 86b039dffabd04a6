"""The passes of a scan, from raw pairs to verdicts: what each reads, and where it commits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from clipsan.stages.detectors import Findings, TrustedMoments, build_suite
from clipsan.stages.detectors.streaming import StreamingDetector
from clipsan.stages.detectors.trigger_words import TriggerWord, WordCounts, merge_words, trigger_words
from clipsan.stages.detectors.whitening import trusted_moments
from clipsan.stages.files import Unreachable
from clipsan.stages.samples import Unit
from clipsan.stages.sources import list_units
from clipsan.stages.sources.common import inside
from clipsan.stages.verdicts import Cut, Judge, Reason, usual_copies

from ..core.cluster import PoolConfig
from ..core.commit import FingerprintError, missing_parts, write_bytes, write_part
from ..core.config import ConfigError
from ..core.parts import Parts
from ..core.pass_ import Pass
from ..core.place import place_of, remove_tree
from ..core.run_folder import RunFolder
from ..data.pixels import Pictures
from ..data.rewrite import RewriteWork, forget_broken
from ..proof.inquiry import Inquiry
from ..proof.prove import Proof
from ..proof.views import Views
from .inputs import SameWork, Unread, check_unchanged, forget_others
from .losses import Losses
from .plan import DataSet, Plan
from .shared import settle_shared
from .work import (
    CombineWork,
    DensityWork,
    EmbedWork,
    JudgeWork,
    ScoreWork,
    ShareWork,
    SummaryWork,
    WordsWork,
    density_pieces,
    merge_all,
)

DENSITY_SHARES = 8
"""Workers of the density pass that share what a worker of the embed pass has of a GPU: a block keeps a core busy with its forest and
ranks for tens of milliseconds, and a GPU with its distances for a few."""


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan under way: what it is asked to do, and where its tables lie."""

    plan: Plan
    folder: RunFolder
    embeddings: Parts
    unread: Unread
    """What could not be read and is not in them."""

    @property
    def scores(self) -> Parts:
        """The score of every pair by every detector, and the ensemble's."""
        return self.embeddings.beside(self.folder.scores)

    @property
    def verdicts(self) -> Parts:
        """The product."""
        return self.embeddings.beside(self.folder.verdicts)

    @property
    def quarantine(self) -> frozenset[str]:
        """Reasons that keep a pair out of the clean copy."""
        always = (Reason.PROVEN_TRIGGER, Reason.SHARED_UID)
        return frozenset(reason.value for reason in (*self.plan.config.quarantine, *always))

    def over_parts(self, name: str, folder: str, fingerprint: str) -> Pass:
        """Return a pass that commits a part for each part of the embeddings."""
        return Pass(
            name=name,
            cluster=self.plan.config.cluster,
            run=self.folder,
            folder=folder,
            fingerprint=fingerprint,
            pairs=self.embeddings.total,
        )

    def records(self, name: str) -> Pass:
        """Return a pass whose records come in the order of the data set."""
        return Pass(name=name, cluster=self.plan.config.cluster, pairs=self.embeddings.total, ordered=True)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the scan says of the data set as a whole."""

    findings: Findings
    cut: Cut
    """From which score a pair is flagged."""
    proof: Proof

    @property
    def targets(self) -> tuple[str, ...]:
        """Concepts named as targets of a backdoor: by the statistics, and by a proven trigger."""
        return tuple(dict.fromkeys((*self.findings.targets, *self.proof.triggers.values())))


def embed_pairs(plan: Plan, folder: RunFolder) -> Scan:
    """Embed every pair, or check the embeddings of an earlier run.

    Raises:
        ConfigError: the earlier run is of other pairs or not finished; the data changed since this run began; or no pair could
            be read.
        Unreachable: no shard can be reached.
    """
    settings = plan.config
    told: dict[int, str] = {}
    if settings.embeddings is not None:
        embeddings = _earlier(plan, folder)
    else:
        _check_unchanged(plan, folder)
        embeddings = _embed(plan, folder, plan.pairs, told)
    unread = Unread.of(plan.pairs.units, embeddings, told)
    if not embeddings.rows:
        raise Unreachable(f"data: none of the shards could be read: {unread.reason}")
    forget_others(folder, unread)
    if not embeddings.total:
        shards = len({unit.shard for unit in plan.pairs.units})
        hint = Losses.of_run(Parts.of(folder.rejected), scanned=0, shards=shards).hint
        raise ConfigError(
            f"data: none of the pairs could be read; {folder.rejected} says why" + (f": {hint}" if hint else "")
        )
    return Scan(plan, folder, embeddings, unread)


def _check_unchanged(plan: Plan, folder: RunFolder) -> None:
    pairs = plan.pairs
    work = SameWork(pairs.source, plan.embed.max_pixels, Parts.of(folder.embeddings), Parts.of(folder.rejected))
    about = pairs.source.about_pairs(pairs.units)
    check = Pass(name="compare", cluster=plan.config.cluster, pairs=about, ordered=True)
    check_unchanged(check, folder, pairs.source, pairs.units, work)


def _embed(
    plan: Plan,
    folder: RunFolder,
    pairs: DataSet,
    told: dict[int, str] | None = None,
    *,
    name: str = "embed",
    home: str = "",
) -> Parts:
    """Embed the pairs that are not yet; `told` takes why pieces are left undone, without it none is."""
    settings = plan.config
    embed = Pass(
        name=name,
        cluster=settings.cluster,
        run=folder,
        folder=f"{home}embeddings",
        rejected=f"{home}rejected",
        fingerprint=pairs.fingerprint,
        pairs=pairs.source.about_pairs(pairs.units),
        loads_model=True,
        encoders=settings.cluster.apart,
        leaves_undone=told is not None,
    )
    work = EmbedWork(pairs.source, settings.model, plan.embed, settings.cluster.device)
    for done in embed.each({unit.index: unit for unit in pairs.units}, work):
        if done.undone and told is not None:
            told[done.key] = done.undone
    return Parts.of(embed.home)


def _earlier(plan: Plan, folder: RunFolder) -> Parts:
    given = plan.config.embeddings
    assert given is not None
    earlier = RunFolder(place_of(given))
    units = plan.pairs.units
    try:
        numbers = [unit.index for unit in units]
        missing = missing_parts(earlier.embeddings, numbers, plan.pairs.fingerprint)
        missing += missing_parts(earlier.rejected, numbers, plan.pairs.fingerprint)
    except FingerprintError:
        raise FingerprintError(
            f"embeddings={given}: they were made of other data, by another model or with other `embed` settings; "
            "leave `embeddings` out to embed again"
        ) from None
    if missing:
        raise ConfigError(
            f"embeddings={given}: {len(set(missing))} of {len(units)} parts are missing; finish that run first"
        )
    for part in earlier.rejected.glob("part-*.parquet"):
        write_bytes(folder.rejected / part.name, part.read_bytes())
    return Parts.of(earlier.embeddings)


def score_pairs(scan: Scan) -> Findings:
    """Learn, score and combine; return what the detectors say of the data set as a whole."""
    settings, embeddings, fingerprint = scan.plan.config.detectors, scan.embeddings, scan.plan.score_fingerprint
    suite = build_suite(
        settings,
        pairs=embeddings.total,
        trusted=_trusted_moments(scan),
        scale=scan.plan.scale,
        offered=scan.plan.offered,
    )
    density = scan.over_parts("density", "work/density", fingerprint)
    gpus = scan.plan.config.cluster.gpus_per_worker
    if gpus:
        # what holds the GPU here is no model, but it is given back in the same way
        density = replace(density, loads_model=True, pool=PoolConfig(gpus_per_worker=gpus / DENSITY_SHARES))
    work = DensityWork(settings.density, embeddings, "cuda" if gpus else "cpu")
    density.do(density_pieces(embeddings.rows, settings.density), work)
    states = _learn(scan, "learn", suite.detectors, embeddings)
    score = scan.over_parts("score", "work/scores", fingerprint)
    score.do(
        embeddings.pieces,
        ScoreWork(
            detectors=suite.detectors,
            states=states,
            embeddings=embeddings,
            density=density.home,
            permutations=settings.density.permutations,
        ),
    )
    raw = embeddings.beside(score.home)
    ensemble = suite.ensemble(states)
    (state,) = _learn(scan, "weigh", [ensemble], raw)
    combine = scan.over_parts("combine", "scores", fingerprint)
    combine.do(embeddings.pieces, CombineWork(ensemble, state, raw))
    findings = suite.findings(states, ensemble, state)
    return replace(findings, trigger_words=_trigger_words(scan, findings)) if findings.targets else findings


def _trigger_words(scan: Scan, findings: Findings) -> dict[str, tuple[TriggerWord, ...]]:
    """Return the words that go with the accusation, of each named concept."""
    vocabulary = findings.vocabulary
    concepts = [name for name in findings.targets if name in vocabulary.names]
    work = WordsWork(vocabulary, concepts, findings.threshold, scan.embeddings, scan.scores)
    counts: dict[str, WordCounts] = {}
    for done in scan.records("words").each(scan.embeddings.chunks(), work):
        counts = merge_words(counts, done.record) if counts else done.record
    return {concept: trigger_words(vocabulary, concept, found) for concept, found in counts.items()}


def _trusted_moments(scan: Scan) -> TrustedMoments | None:
    trusted = scan.plan.trusted
    if trusted is None:
        return None
    embeddings = _embed(scan.plan, scan.folder, trusted, name="embed trusted", home="work/trusted/")
    return trusted_moments(embeddings.tables(["image"]), sample_rows=scan.plan.config.detectors.lorex.sample_rows)


def _learn(scan: Scan, name: str, detectors: Sequence[StreamingDetector], table: Parts) -> list[Any]:
    """Run the learning rounds of all detectors together, one pass over the table a round; return their states."""
    states = [detector.start() for detector in detectors]
    chunks = table.chunks()
    for number in range(max((d.rounds for d in detectors), default=0)):
        active = [i for i, d in enumerate(detectors) if d.rounds > number]
        learning = [detectors[i] for i in active]
        work = SummaryWork(learning, [states[i] for i in active], table)
        merged: list[Any] = []
        for done in scan.records(f"{name} {number + 1}").each(chunks, work):
            merged = merge_all(learning, merged, done.record) if merged else done.record
        for i, summary in zip(active, merged, strict=True):
            states[i] = _updated(scan, f"{name} {number + 1}", detectors[i], states[i], summary)
    return states


def _updated(scan: Scan, name: str, detector: StreamingDetector, state: Any, summary: Any) -> Any:
    """Return the next state of a detector; what of the update can be worked out apart is spread over the workers."""
    spread = scan.records(f"{name}, shares")
    shares = None if spread.is_alone else detector.shares(state, summary)
    if shares is None:
        return detector.update(state, summary)
    # shares are written, for all of them together are as large as what the detector keeps of the data set
    home = scan.folder.work / "shares"
    count = 0
    for share in shares.tables:
        write_part(home, count, share, scan.plan.score_fingerprint)
        count += 1
    found = [done.record for done in spread.each(range(count), ShareWork(detector, shares.common, home))]
    remove_tree(home)
    return detector.update_with(state, summary, found)


def inquiry_of(scan: Scan, findings: Findings, cut: Cut) -> Inquiry | None:
    """Return what is asked of the passes that prove; None without an oracle."""
    plan, settings = scan.plan, scan.plan.config
    if settings.oracle is None or plan.proof_fingerprint is None:
        return None
    return Inquiry(
        pictures=Pictures(settings.data, settings.embed.max_pixels),
        units=plan.pairs.units,
        model=settings.model,
        layers=plan.layers,
        embeddings=scan.embeddings,
        findings=findings,
        cut=cut.value,
        oracle=settings.oracle,
        settings=settings.proof,
        seed=settings.seed,
        cluster=settings.cluster,
        folder=scan.folder,
        fingerprint=plan.proof_fingerprint,
    )


def judge_pairs(scan: Scan, judgement: Judgement) -> None:
    """Write the verdicts; pairs that share a uid are kept out together."""
    findings, proof = judgement.findings, judgement.proof
    judge = Judge(
        judgement.cut.value,
        frozenset(judgement.targets),
        findings.mixture_speaks,
        scan.plan.config.odd,
        proof.triggers,
        findings.beyond,
        usual_copies(scan.scores.column("image_duplicates")),
    )
    verdict = scan.over_parts("verdict", "verdicts", scan.plan.verdict_fingerprint)
    verdict.do(scan.embeddings.pieces, JudgeWork(judge, Views.of(proof), scan.embeddings, scan.scores))
    settle_shared(
        scan.records("uids"), scan.records("shared uids"), scan.verdicts, scan.quarantine, scan.plan.verdict_fingerprint
    )


def write_copy(scan: Scan, kind: Literal["clean", "quarantine"]) -> None:
    """Write the data set again in its own format: the pairs of one kind. Shards that were not read to their end are left out."""
    plan = scan.plan
    units = [unit for unit in list_units(plan.pairs.source) if unit.shard not in scan.unread.shards]
    work = RewriteWork(
        source=plan.pairs.source,
        copy=kind,
        quarantine=scan.quarantine,
        verdicts=scan.verdicts,
        out=scan.folder.root / kind,
    )
    write = scan.over_parts(f"write {kind}", f"work/write-{kind}", plan.verdict_fingerprint)
    forget_broken(write.home, work.out)
    parts = parts_of(units, plan.pairs.units)
    write.do({unit.index: (unit, parts[unit.index]) for unit in units}, work)


def parts_of(units: Sequence[Unit], pieces: Sequence[Unit]) -> dict[int, list[int]]:
    """Return the pieces that each unit was cut into, by its index: a copy has the files that its data set has."""
    of_shard: dict[tuple[str, str], list[Unit]] = {}
    for piece in pieces:
        of_shard.setdefault((piece.path, piece.shard), []).append(piece)
    return {
        unit.index: [piece.index for piece in of_shard.get((unit.path, unit.shard), ()) if inside(unit, piece.start)]
        for unit in units
    }
