"""The pages in a real browser: no script of a payload runs, no request is made. Skipped where there is no Chromium (Debian: chromium)."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.payloads import PAGES, filled, raw_page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
BUDGET_MS = 3000
"""Of the browser's own clock, which it runs ahead of."""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(PROGRAMS)})")
    return found


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """Address of a server on this machine, and the paths that it is asked for."""
    paths: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def opened(browser: str, html: str, home: Path) -> str:
    """Open a page and return what the browser made of it."""
    file = home / "page.html"
    file.write_text(html, encoding="utf-8")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={home / 'profile'}", f"--virtual-time-budget={BUDGET_MS}", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([browser, *flags, file.as_uri()], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_drill_notices_a_careless_page(browser: str, asked: tuple[str, list[str]], tmp_path: Path) -> None:
    server, paths = asked
    texts = [text for name, text in filled(server).items() if name not in ("refresh", "base", "a form")]
    assert 'data-ran="yes"' in opened(browser, raw_page(texts), tmp_path)
    assert {"/script", "/img", "/import"} <= set(paths)


@pytest.mark.parametrize("name", list(PAGES))
def test_a_page_of_payloads_runs_and_asks_nothing(
    browser: str, asked: tuple[str, list[str]], tmp_path: Path, name: str
) -> None:
    server, paths = asked
    made = opened(browser, PAGES[name](list(filled(server).values())), tmp_path)
    assert 'data-ran="yes"' not in made
    assert paths == []
    assert "<h2" in made
    if name == "report":  # its own script does run
        assert '<div class="tools" id="wall-tools">' in made
