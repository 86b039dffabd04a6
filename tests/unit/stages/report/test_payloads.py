"""Every page with every payload in every text: nothing but text comes of them. `pytest -v` prints a row a page and payload."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from tests.payloads import PAGES, PAYLOADS, filled

SERVER = "http://canary.example"
LOADING = ("src", "srcset", "href", "action", "formaction", "data", "poster", "background", "ping", "xlink:href")
FORBIDDEN = {
    "iframe",
    "object",
    "embed",
    "base",
    "form",
    "link",
    "video",
    "audio",
    "source",
    "frame",
    "applet",
    "portal",
    "math",
}


class Read(HTMLParser):
    """Elements with attributes, and what stands in scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            self.inside[self._open].append(data)


@pytest.mark.parametrize("payload", list(PAYLOADS))
@pytest.mark.parametrize("name", list(PAGES))
def test_a_payload_stays_text(name: str, payload: str) -> None:
    text = filled(SERVER)[payload]
    html = PAGES[name]([text])
    html.encode("utf-8")
    page, plain = Read(html), Read(PAGES[name](["plain"]))
    # what stands in backticks is shown as code
    tags, expected = ([tag for tag, _ in found.tags if tag != "code"] for found in (page, plain))
    assert tags == expected, "a payload became an element"
    assert page.inside == plain.inside
    for tag, attributes in page.tags:
        assert tag not in FORBIDDEN
        assert not [attribute for attribute in attributes if attribute.startswith("on")]
        for attribute in LOADING:
            value = attributes.get(attribute)
            assert (
                value is None
                or value == "scan/report.html"
                or value.startswith(("#", "data:image/png;", "data:image/jpeg;"))
            )
        assert SERVER not in (attributes.get("style") or "")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", html)


@pytest.mark.parametrize("name", list(PAGES))
def test_the_policy_of_a_page_allows_its_own_script_and_nothing_else(name: str) -> None:
    page = Read(PAGES[name](list(filled(SERVER).values())))
    policies = [
        attributes["content"] or "" for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes
    ]
    (policy,) = policies
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";") if rule.strip())
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    scripts = ["".join(page.inside["script"])] if page.inside["script"] else []
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in scripts]
    assert rules.get("script-src", "") == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert sum(tag == "script" for tag, _ in page.tags) == len(scripts)
