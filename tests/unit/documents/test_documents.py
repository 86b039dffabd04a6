"""The documents hold together: links lead somewhere, the README is one screen and a bit, and stages/README.md leaves no method out."""

import re
from pathlib import Path

import pytest

from clipsan.pipeline.core.config import conf_folder
from clipsan.stages.detectors import OPTIONAL, DetectorsConfig, build_suite
from tests.unit.documents.helpers import DOCUMENTS, FENCE, ROOT, SPAN, anchors, fences, links

README = ROOT / "README.md"
STAGES = ROOT / "stages" / "README.md"


def spans(path: Path) -> set[str]:
    return set(SPAN.findall(FENCE.sub("", path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_link_leads_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in links(text):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_link_is_lost_and_files_that_are_named_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("```") % 2 == 0
    for name in re.findall(r"`((?:stages|pipeline|conf|deploy|tests)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_readme_is_short_and_its_first_screen_says_what_to_do() -> None:
    text = README.read_text(encoding="utf-8").splitlines()
    assert len(text) <= 150
    top = "\n".join(text[:40])
    for part in ("![", "make demo", "make test", "<!-- table:before-after -->", "| you have | run | you get |"):
        assert part in top, part


def test_the_readme_speaks_of_the_product() -> None:
    text = README.read_text(encoding="utf-8")
    assert re.findall(r"(?i)\b(mended|no longer|earlier version|used to|formerly|rewritten|refactor\w*)\b", text) == []


def test_every_verb_is_led_to_from_the_readme() -> None:
    from clipsan.pipeline.cli import FOLDER_VERBS, VERBS

    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert [verb for verb in {**VERBS, **FOLDER_VERBS} if f"clipsan {verb}" not in text] == []


@pytest.mark.parametrize("group", ["attack", "oracle", "repair"])
def test_every_file_of_a_group_is_described(group: str) -> None:
    files = {path.stem for path in (conf_folder() / group).glob("*.yaml")}
    assert files - spans(STAGES) == set()


def test_every_score_column_is_described() -> None:
    suite = build_suite(DetectorsConfig(), pairs=10, trusted=None, offered=OPTIONAL)
    columns = {*suite.columns, "lorex", "ensemble"}
    assert columns - spans(STAGES) == set()


def test_every_file_that_stages_names_is_there() -> None:
    named = {span for span in spans(STAGES) if re.fullmatch(r"[\w/]+(\.py|/)", span) and "/" in span}
    assert len(named) > 5
    assert [name for name in named if not (STAGES.parent / name).exists() and not (ROOT / name).exists()] == []


def test_every_file_of_deploy_is_described() -> None:
    from tests.unit.deploy.helpers import DEPLOY, FILES

    named = " ".join(spans(DEPLOY / "README.md"))
    assert [path.name for path in FILES if path.name not in named] == []


def test_every_data_format_and_every_exit_status_is_described() -> None:
    from clipsan.pipeline.core.stop import INTERRUPTED, TERMINATED
    from clipsan.pipeline.story.ending import STATUS
    from clipsan.stages.audit.verdict import STATUS as AUDITED

    readme, deploy = README.read_text(encoding="utf-8"), (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    for kind in ("webdataset", "parquet", "table", "folder"):
        assert f"`data={kind} " in readme
    assert {str(status) for status in (*STATUS.values(), *AUDITED.values(), 1, 2, INTERRUPTED, TERMINATED)} == {
        status for row in re.findall(r"^\| (\d+(?:, \d+)*) \|", deploy, re.M) for status in row.split(", ")
    }


def test_nothing_refers_to_what_is_not_here() -> None:
    """Neither to documents outside the repository, nor to what somebody would have to ask for."""
    absent = re.compile("|".join(("spec" + "s/", "DESI" + r"GN\b", "ST" + r"ACK\.md", r"\.\./sha" + "red/")))
    files = [path for top in ("pipeline", "stages", "conf", "deploy", "tests") for path in (ROOT / top).rglob("*")]
    texts = [path for path in [*files, README] if path.suffix in (".py", ".md", ".yaml", ".sh", ".sbatch")]
    assert [str(path) for path in texts if absent.search(path.read_text(encoding="utf-8"))] == []


def test_python_is_python() -> None:
    for path in DOCUMENTS:
        for shown in fences(path.read_text(encoding="utf-8"), "python"):
            compile(shown, str(path), "exec")
