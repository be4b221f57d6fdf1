"""Every page of the built book, opened in a browser: formulas, errors, foreign requests, pictures, links."""

import functools
import http.server
import threading
from urllib.parse import unquote, urlsplit

import pytest

from prunelimit.book import toc_pages
from prunelimit.experiments.store import repository

pytestmark = pytest.mark.browser

HTML = repository() / "_build" / "html"
PAGES = [f"{page}.html" for page in toc_pages(repository() / "_toc.yml")]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def visits(browser, address):
    """What happened on each page, visited once."""
    seen = {}
    for name in PAGES:
        page = browser.new_page()
        log = {"errors": [], "foreign": [], "failed": []}
        page.on("console", lambda m, log=log: log["errors"].append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e, log=log: log["errors"].append(str(e)))
        page.on("requestfailed", lambda r, log=log: log["failed"].append(r.url))
        page.on(
            "request",
            lambda r, log=log: None if r.url.startswith((address, "data:", "blob:")) else log["foreign"].append(r.url),
        )
        page.goto(f"{address}/{name}", wait_until="load")
        if page.locator(".math").count():
            page.wait_for_selector("mjx-container", state="attached", timeout=30_000)
        page.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
        log["math"] = page.locator("span.math, div.math").count()
        log["rendered"] = page.locator("mjx-container").count()
        log["broken"] = page.locator("mjx-merror").count()
        log["raw"] = page.evaluate("/\\\\\\(|\\\\\\[|\\$\\$/.test(document.querySelector('article')?.innerText || '')")
        log["images"] = page.evaluate(
            "[...document.querySelectorAll('article img')].map(i => [i.alt, i.getAttribute('src'), i.naturalWidth])"
        )
        log["links"] = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
        log["ids"] = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        page.close()
        seen[name] = log
    return seen


@pytest.mark.parametrize("name", PAGES)
def test_formulas_are_rendered(visits, name):
    log = visits[name]
    assert log["rendered"] >= log["math"]
    assert not log["broken"]
    assert not log["raw"]


@pytest.mark.parametrize("name", PAGES)
def test_nothing_goes_wrong_and_no_other_host_is_asked(visits, name):
    log = visits[name]
    assert (log["errors"], log["foreign"], log["failed"]) == ([], [], [])


@pytest.mark.parametrize("name", PAGES)
def test_pictures_are_there_and_have_a_real_text_equivalent(visits, name):
    for alt, source, width in visits[name]["images"]:
        assert width > 0, source
        assert len(alt.split()) >= 5, f"{source}: {alt!r}"
        assert source.rsplit("/", 1)[-1] not in alt  # what MyST-NB fills in where nobody wrote a text


def test_figure_pages_have_their_figures(visits):
    for name in ("notebooks/fig02.html", "notebooks/fig04.html", "notebooks/tab02.html", "book/index.html"):
        assert visits[name]["images"], name


@pytest.mark.parametrize("name", PAGES)
def test_internal_links_lead_somewhere(visits, address, name):
    for link in visits[name]["links"]:
        if not link.startswith(address):
            continue
        parts = urlsplit(link)
        path = unquote(parts.path).lstrip("/") or "index.html"
        assert (HTML / path).is_file(), link
        if parts.fragment and path in visits:
            assert unquote(parts.fragment) in visits[path]["ids"], link


def test_the_book_works_from_a_folder(browser):
    page = browser.new_page()
    page.goto((HTML / "book" / "limit.html").as_uri())
    page.wait_for_selector("mjx-container", state="attached", timeout=30_000)
    page.close()


def test_download_and_launch_buttons_point_at_the_notebook_in_the_repository(visits):
    links = " ".join(visits["notebooks/fig02.html"]["links"])
    assert "blob/main/notebooks/fig02.ipynb" in links
    assert "main?urlpath=lab/tree/notebooks/fig02.ipynb" in links
