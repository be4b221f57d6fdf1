"""Keep every page of the book free of requests to other hosts.

Two things would leave the reader's machine otherwise. MathJax is by default fetched from a content network: here it is
copied into the book from the ``sphinx-mathjax-offline`` package, so that formulas render offline and from ``file://``.
Jupyter Book always loads ``sphinx_thebe``, whose loader script points at another host even if no page uses it: here it
is taken out of every page. That no page asks for anything else is the business of the browser test, not of this file.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.errors import ExtensionError

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

#: Module that carries MathJax. The hyphens rule out an ``import`` statement.
PACKAGE = "sphinx-mathjax-offline"

#: What the pages need of MathJax 3: the bundle, its fonts, and what its accessibility menu loads on demand.
PARTS = (
    "tex-chtml-full.js",
    "output/chtml/fonts",
    "a11y",
    "input/mml.js",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
    "sre/mathmaps/nemeth.json",
)

#: Texts by which a script of sphinx-thebe is recognised, in its file name or its body.
THEBE = ("thebe", "THEBE_JS_URL")


def mathjax_folder() -> Path:
    """Find the MathJax distribution inside the installed package.

    Returns:
        The folder that holds ``tex-chtml-full.js``.

    Raises:
        ExtensionError: If the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ExtensionError(f"{PACKAGE} is not installed: the book serves MathJax from it (pip install {PACKAGE}).")
    return Path(spec.submodule_search_locations[0]) / "static" / "mathjax"


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy MathJax into the finished HTML book; runs on Sphinx's ``build-finished``.

    Args:
        app: The application that built the book.
        exception: What ended the build early, or ``None``.
    """
    if exception is not None or app.builder.format != "html":
        return
    source, target = mathjax_folder(), Path(app.outdir) / "_static" / "mathjax"
    for part in PARTS:
        copy = target / part
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, copy, dirs_exist_ok=True)
        else:
            shutil.copy2(source / part, copy)


def is_thebe(script: Any) -> bool:
    """Say whether a script of a page belongs to sphinx-thebe.

    Args:
        script: An entry of the page's ``script_files``: an object with ``filename`` and ``attributes``, or a string.

    Returns:
        ``True`` if its name or its inline body is thebe's.
    """
    name = str(getattr(script, "filename", script) or "")
    body = (getattr(script, "attributes", None) or {}).get("body") or ""
    return any(text in name or text in body for text in THEBE)


def drop_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Take thebe's scripts out of one page; runs on Sphinx's ``html-page-context``.

    Args:
        app: The application; not used.
        pagename: Name of the page; not used.
        templatename: Name of its template; not used.
        context: What the template sees; its ``script_files`` are filtered.
        doctree: The page's document; not used.
    """
    del app, pagename, templatename, doctree
    context["script_files"] = [script for script in context["script_files"] if not is_thebe(script)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the two handlers with Sphinx.

    Args:
        app: The application.

    Returns:
        What Sphinx wants to know about the extension.
    """
    app.connect("build-finished", copy_mathjax)
    app.connect("html-page-context", drop_thebe, priority=900)  # after sphinx-thebe has added its own
    return {"version": "1.0", "parallel_read_safe": True, "parallel_write_safe": True}
