"""The exercises of the book: every one has a hidden solution, and every solution's code runs and holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunelimit.experiments.store import repository

BOOK = repository() / "book"
CHAPTERS = sorted(path for part in ("theory", "regimes") for path in (BOOK / part).glob("*.md"))


def directives(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Find directives written with any fence: the argument and everything up to the closing fence."""
    for start in re.finditer(rf"^(?P<fence>`{{3,}}|:{{3,}})\{{{name}\}} *(?P<argument>.*)$", text, re.MULTILINE):
        closing = re.compile(rf"^{re.escape(start['fence'])}\s*$", re.MULTILINE).search(text, start.end())
        assert closing, f"{name} {start['argument']} is not closed"
        yield start["argument"].strip(), text[start.end() : closing.start()]


def code_blocks(body: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```\s*$", body, re.MULTILINE | re.DOTALL)


def solutions() -> list[tuple[Path, str, str]]:
    return [(path, label, body) for path in CHAPTERS for label, body in directives(path.read_text(), "solution")]


BLOCKS = [
    pytest.param(code, id=f"{label}-{number}")
    for _, label, body in solutions()
    for number, code in enumerate(code_blocks(body), 1)
]


def test_directives_and_blocks_are_found() -> None:
    text = "````{solution} ex-a\n:class: dropdown\n```python\nx = 1\n```\n````\n\n:::{solution} ex-b\nno code\n:::\n"
    found = dict(directives(text, "solution"))
    assert list(found) == ["ex-a", "ex-b"]
    assert code_blocks(found["ex-a"]) == ["x = 1\n"]
    assert not code_blocks(found["ex-b"])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_has_goals_and_exercises_with_hidden_solutions(path: Path) -> None:
    text = path.read_text()
    assert all(word in text for word in ("**Goals.**", "**Time.**"))
    labels = [re.search(r":label: *(\S+)", body)[1] for _, body in directives(text, "exercise")]  # type: ignore[index]
    solved = list(directives(text, "solution"))
    assert 3 <= len(labels) <= 5
    assert sorted(labels) == sorted(label for label, _ in solved)
    for label, body in solved:
        assert ":class: dropdown" in body, label
        assert code_blocks(body), label


@pytest.mark.parametrize("code", BLOCKS)
def test_solution_runs_and_holds(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "assert" in code
    exec(compile(code, "solution", "exec"), {"__name__": "solution"})
    capsys.readouterr()
