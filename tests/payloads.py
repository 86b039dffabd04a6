"""What strangers write into captions, keys, labels and names, and every page of clipsan with all of it in every text."""

from collections.abc import Callable

import numpy as np

from clipsan.stages.report import audit, bench, page, story, sweep
from clipsan.stages.report.content import (
    ConceptRow,
    DetectorPanel,
    DossierPanel,
    Example,
    FlaggedPair,
    MapPoints,
    Measured,
    RejectedExample,
    ScanReport,
    Truth,
)
from clipsan.stages.report.figures import thumbnail

RUN = "document.documentElement.setAttribute('data-ran','yes');fetch('{server}/script')"
"""What every script among the payloads does."""
PAYLOADS = {
    "script": f"<script>{RUN}</script>",
    "script that closes others": f"</script></style></title></textarea><script>{RUN}</script>",
    "event of an image": f'"><img src=x onerror="{RUN}">',
    "event of a body": f"' onmouseover='{RUN}' onfocus='{RUN}' autofocus tabindex='1",
    "event of SVG": f"<svg onload=\"{RUN}\"><animate onbegin=\"{RUN}\" attributeName=x dur=1s></svg>",
    "SVG in SVG": f"</text></svg><svg><script>{RUN}</script></svg>",
    "MathML": f'<math><mtext><table><mglyph><style><img src=x onerror="{RUN}"></style></mglyph></table></mtext></math>',
    "a link that runs": f'<a href="javascript:{RUN}">x</a><iframe src="javascript:{RUN}"></iframe>',
    "an iframe of its own": f"<iframe srcdoc=\"<script>parent.{RUN}</script>\"></iframe>",
    "a picture from elsewhere": '<img src="{server}/img"><picture><source srcset="{server}/srcset"></picture>',
    "style": '<style>@import "{server}/import"; body {{ background: url({server}/background) }}</style>',
    "style in an attribute": '" style="background:url({server}/attribute)" x="',
    "a style sheet": '<link rel=stylesheet href="{server}/sheet"><link rel=prefetch href="{server}/prefetch">',
    "refresh": '<meta http-equiv=refresh content="0;url={server}/refresh">',
    "base": '<base href="{server}/">',
    "a form": '<form action="{server}/form"><input autofocus onfocus="this.form.submit()"></form>',
    "media": '<video src="{server}/video" autoplay></video><audio src="{server}/audio"></audio><object data="{server}/object"></object>',
    "a template of the page": "{{{{ 7*7 }}}}{{% include '/etc/passwd' %}}{{{{ ''.__class__.__mro__ }}}}",
    "Markdown": "`</code><script>" + RUN + "</script>` [x](javascript:alert(1)) **b**",
    "a comment": f"<!--><script>{RUN}</script>-->",
    "CDATA": f"<![CDATA[<script>{RUN}</script>]]>",
    "entities": "&lt;script&gt;alert(1)&lt;/script&gt; &#x3c;script&#x3e;",
    "characters that reorder": "\u202egnp.exe\u2066 \u200f <b>",
    "control characters": "\x1b]0;owned\x07\x00\ufffe <script\x0c>",
    "a lone surrogate": "\udcff\ud800<script>",
}  # fmt: skip
"""By what they try; `{server}` is an address, doubled braces are single ones."""


def filled(server: str) -> dict[str, str]:
    """Return the payloads with an address to call."""
    return {name: text.format(server=server) for name, text in PAYLOADS.items()}


def picture(seed: int) -> bytes:
    return thumbnail(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def dossiers(texts: list[str]) -> tuple[DossierPanel, ...]:
    """Return a proven trigger a text, with it in every field that a page shows."""
    rate, none = (Measured(pct=p, low_pct=max(0, p - 5), high_pct=min(100, p + 5), trials=32) for p in (90.0, 2.0))
    return tuple(
        DossierPanel(
            id=text,
            kind=text,
            targets=(text,),
            picture=picture(1),
            mask=picture(2),
            heat=picture(3),
            place=text,
            flips=rate,
            control=none,
            proven=True,
            pairs=5,
            carriers=7,
            examples=(Example(before=picture(4), after=picture(5), label_before=text, label_after=text),),
            words=(text,),
        )
        for text in texts
    )


def scan_page(texts: list[str]) -> str:
    pairs = [
        FlaggedPair(
            uid=text,
            caption=text,
            picture=picture(rank),
            score=1.0,
            rank=rank,
            reasons=(text,),
            concept=text,
            scores={text: 1.0},
            truth=bool(rank % 2),
            heat=picture(rank),
            verdict=text,
            trigger_id=text,
        )
        for rank, text in enumerate(texts, 1)
    ]
    flags = np.arange(30) < 6
    panels = tuple(
        DetectorPanel(name=text, edges=np.linspace(0, 1, 6), counts=np.full(5, 9), flagged=np.zeros(5, int), cut=0.5)
        for text in texts
    )
    return page.render(
        ScanReport(
            title=texts[0],
            pairs_in=100 + len(texts),
            verdicts=100,
            flagged_pairs=len(texts),
            rejected=dict.fromkeys(texts, 1),
            rejected_examples=tuple(RejectedExample(uid=text, reason=text) for text in texts),
            decision=" ".join(texts),
            targets=tuple(texts),
            trigger_words={text: (text,) for text in texts},
            next_steps=tuple(texts),
            dossiers=dossiers(texts),
            concepts=tuple(ConceptRow(name=text, pairs=9, statistic=1.0, flagged=1, named=True) for text in texts),
            concept_threshold=0.5,
            flagged=tuple(pairs),
            detectors=panels,
            map=MapPoints(xy=np.random.default_rng(0).normal(size=(30, 2)), flagged=flags, accused=~flags),
            truth=Truth(poisoned=8, found=1),
            settings={text: text for text in texts},
            versions={text: text for text in texts},
            fingerprint=texts[0],
        )
    )


def audit_page(texts: list[str]) -> str:
    rows = (audit.LabelRow(name=text, lead=1.0, displaced=0.5, p=0.1, flips_pct=50.0, accused=True) for text in texts)
    return audit.render(
        audit.AuditReport(
            title=texts[0],
            headline=texts[0],
            why=" ".join(texts),
            bad=True,
            images=9,
            labels=tuple(rows),
            dossiers=dossiers(texts),
            next_steps=tuple(texts),
            settings={text: text for text in texts},
            versions={text: text for text in texts},
            fingerprint=texts[0],
        )
    )


def story_page(texts: list[str]) -> str:
    both = story.Compared(words=" ".join(texts), before=90.0, after=2.0, before_ci95=None, after_ci95=None, good=True)
    return story.render(
        story.StoryReport(
            title=texts[0],
            headline=texts[0],
            why=" ".join(texts),
            bad=True,
            pairs=9,
            poisoned=1,
            flagged=1,
            rejected=1,
            named=tuple(texts),
            dossiers=dossiers(texts),
            attack=" ".join(texts),
            compared=(both,),
            steps=tuple(story.StepLine(name=text, said=text, seconds=1.0, link="scan/report.html") for text in texts),
            kept={text: text for text in texts},
            settings={text: text for text in texts},
            versions={text: text for text in texts},
            fingerprint=texts[0],
        )
    )


def sweep_page(texts: list[str]) -> str:
    lines = tuple(
        sweep.TrialLine(
            number=number,
            state="finished",
            settings=(text,),
            steps=1,
            steps_planned=1,
            objective_pct=10.0,
            accuracy_pct=80.0,
            resistivity=0.1,
            true_asr_pct=1.0,
            on_front=True,
            recommended=number == 0,
            error=text,
        )
        for number, text in enumerate(texts)
    )
    named = {f"proven_{text}_asr_pct": 1.0 for text in texts}
    return sweep.render(
        sweep.SweepReport(
            title=texts[0],
            objective="proven",
            labelled=True,
            rule=" ".join(texts),
            max_loss_points=3.0,
            before={"accuracy_pct": 80.0, "objective_pct": 90.0},
            settings_names=(texts[0],),
            lines=lines,
            final_before=named,
            final_after=named,
            settings=dict.fromkeys(texts, "x"),
            versions=dict.fromkeys(texts, "x"),
            fingerprint=texts[0],
        )
    )


def bench_page(texts: list[str]) -> str:
    figures = bench.Measured(auroc=(0.9,), average_precision=(0.8,), recall_1=(0.7,))
    curve = np.array([[0, 0], [1, 1]], float)
    return bench.render(
        bench.BenchReport(
            title=texts[0],
            min_asr_pct=90.0,
            lines=tuple(
                bench.AttackLine(name=text, seed=0, control=False, state="failed", named=text, note=text)
                for text in texts
            ),
            detectors=tuple(texts),
            matrix={text: dict.fromkeys(texts, figures) for text in texts},
            curves={text: dict.fromkeys(texts, curve) for text in texts},
            off_chance=tuple(texts),
            settings=dict.fromkeys(texts, "x"),
            versions=dict.fromkeys(texts, "x"),
            fingerprint=texts[0],
        )
    )


PAGES: dict[str, Callable[[list[str]], str]] = {
    "report": scan_page,
    "audit": audit_page,
    "story": story_page,
    "sweep": sweep_page,
    "bench": bench_page,
}
"""By the name of the page: what makes it, with every text of a list in every place that shows a text."""


def raw_page(texts: list[str]) -> str:
    """Return the page that a careless tool would make: it shows that a drill notices what the payloads do."""
    return f"<!doctype html><title>x</title><body><p>{'</p><p>'.join(text.encode('utf-8', 'replace').decode() for text in texts)}</p>"
