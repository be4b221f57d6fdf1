"""The browser that the pages are opened in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from prunelimit.experiments.store import repository

HTML = repository() / "_build" / "html"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = os.environ.get("PRUNELIMIT_REQUIRE_BROWSER") == "1"

# Chromium as a test needs it: no sandbox for root, no calls home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    problem = (
        "no Chromium is installed"
        if BROWSER is None
        else ""
        if HTML.is_dir()
        else "the book is not built: run make book"
    )
    if problem and REQUIRED:
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()
