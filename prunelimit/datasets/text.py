"""Text without a download: what Python's standard library says about itself.

:func:`load_text` gives the language reference that ``help()`` shows, as characters for a language model;
:func:`load_sentences` sentences from docstrings, each with the package that it comes from as its class. Both differ from one
release of Python to the next, so nothing is pinned: the digests belong into the record of what was made of them.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from prunelimit.datasets.sources import SPLITS
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.files import sha256

#: The characters of a corpus, whatever Python's release: a line break and printable ASCII. All others become "?".
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))

#: One paragraph in so many is for testing.
TEST_EVERY = 10

#: Class to the module of the standard library whose docstrings stand for it: the same in Python 3.11 to 3.13.
PACKAGES = {
    "asyncio": "asyncio",
    "decimal": "_pydecimal",
    "email": "email",
    "logging": "logging",
    "turtle": "turtle",
    "unittest": "unittest",
    "urllib": "urllib",
    "xml": "xml",
}

#: Fewest and most words of a sentence.
WORDS = (6, 20)


@dataclasses.dataclass(frozen=True)
class Text:
    """A corpus of characters.

    Attributes:
        codes: Split name to ``(n,)`` int64, places in ``ALPHABET``.
        digests: Split name to the SHA-256 of its characters.
    """

    codes: dict[str, Tensor]
    digests: dict[str, str]

    def windows(self, split: str, length: int, count: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Cut a split into windows for a model that predicts the next character.

        Args:
            split: ``"train"`` or ``"test"``.
            length: Characters per window, T.
            count: So many windows without overlap, drawn at random; ``None`` for all, in order.
            seed: Seed of the drawing; a smaller count with the same seed is part of a larger one.

        Returns:
            Inputs and targets, each ``(windows, T)``: the target of a character is the one after it.

        Raises:
            PruneLimitError: If the split is unknown or has not so many windows.
        """
        if split not in self.codes:
            raise unknown_name("split", split, self.codes)
        codes = self.codes[split]
        most = 0 if length < 1 else (len(codes) - 1) // length
        if most == 0 or (count is not None and not 1 <= count <= most):
            raise PruneLimitError(
                f"length={length}, count={count} must be positive, and {split} has {len(codes):,} characters: ask for fewer."
            )
        inputs, targets = (codes[shift : shift + most * length].view(most, length) for shift in (0, 1))
        if count is None:
            return inputs, targets
        chosen = torch.randperm(most, generator=torch.Generator().manual_seed(seed))[:count]
        return inputs[chosen], targets[chosen]


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Sentences with classes.

    Attributes:
        texts: Split name to the sentences.
        labels: Split name to ``(n,)`` int64, places in ``classes``.
        classes: Names of the classes.
        digests: Split name to the SHA-256 of its sentences and labels.
    """

    texts: dict[str, list[str]]
    labels: dict[str, Tensor]
    classes: tuple[str, ...]
    digests: dict[str, str]


def encode(text: str) -> Tensor:
    r"""Turn text into places in ``ALPHABET``.

    Args:
        text: Any text; characters that the alphabet lacks become ``"?"``.

    Returns:
        ``(characters,)`` int64.

    Example:
        >>> encode("A\n~é").tolist()
        [34, 0, 95, 32]
    """
    places = {letter: place for place, letter in enumerate(ALPHABET)}
    return torch.tensor([places.get(letter, places["?"]) for letter in text], dtype=torch.int64)


def decode(codes: Iterable[int]) -> str:
    """Turn places in ``ALPHABET`` back into text.

    Args:
        codes: The places.

    Returns:
        The text.
    """
    return "".join(ALPHABET[int(code)] for code in codes)


def load_text() -> Text:
    """Load the language reference in ``pydoc_data.topics`` as characters.

    A paragraph that occurs in several topics is taken once, so that none is both for training and for testing.

    Returns:
        The corpus: nine paragraphs in ten for training, every tenth for testing.

    Raises:
        PruneLimitError: If this Python came without the module.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise PruneLimitError(
            "this Python has no pydoc_data.topics, the text to train on: install its full library."
        ) from error
    # Through the alphabet first: paragraphs that differ by other characters alone are the same one here.
    cleaned = (re.split(r"\n{2,}", decode(encode(topics[name])).strip("\n")) for name in sorted(topics))
    paragraphs = list(dict.fromkeys(part for parts in cleaned for part in parts))
    parts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number, paragraph in enumerate(paragraphs, 1):
        parts["test" if number % TEST_EVERY == 0 else "train"].append(paragraph)
    codes = {split: encode("\n\n".join(part)) for split, part in parts.items()}
    return Text(codes, {split: sha256(part.numpy().astype("uint8")) for split, part in codes.items()})


def load_sentences(train: int, test: int) -> Sentences:
    """Load sentences from the docstrings of the packages in ``PACKAGES``; sources are read, nothing is imported.

    A sentence that two packages share is left out. Which ones are taken depends on their digests alone, so that a smaller
    training set is part of a larger one.

    Args:
        train: Sentences per class for training.
        test: Sentences per class for testing.

    Returns:
        The sentences, the classes mixed.

    Raises:
        PruneLimitError: If a class has not so many, or a package is missing.
    """
    if train < 1 or test < 1:
        raise PruneLimitError(f"train={train}, test={test} must be at least 1: they are sentences per class.")
    found = {name: set(_sentences(module)) for name, module in PACKAGES.items()}
    shared = Counter(sentence for part in found.values() for sentence in part)
    rows: dict[str, list[tuple[str, str, int]]] = {split: [] for split in SPLITS}
    for label, (name, part) in enumerate(found.items()):
        order = sorted((hashlib.sha256(s.encode()).hexdigest(), s, label) for s in part if shared[s] == 1)
        if len(order) < train + test:
            raise PruneLimitError(
                f"train={train} and test={test} sentences per class are too many: {name} has {len(order)} in this Python."
            )
        # Test sentences from the other end, so that they stay the same when the training set grows.
        rows["train"] += order[:train]
        rows["test"] += order[-test:]
    mixed = {split: sorted(part) for split, part in rows.items()}
    return Sentences(
        {split: [text for _, text, _ in part] for split, part in mixed.items()},
        {split: torch.tensor([label for *_, label in part]) for split, part in mixed.items()},
        tuple(PACKAGES),
        {
            split: sha256("\n".join(f"{label} {text}" for _, text, label in part).encode())
            for split, part in mixed.items()
        },
    )


def _sentences(module: str) -> Iterator[str]:
    """Give the plain sentences of a module's docstrings, those of its submodules included."""
    for docstring in _docstrings(module):
        for paragraph in re.split(r"\n\s*\n", docstring):
            if ">>>" in paragraph or paragraph.startswith(" "):
                continue  # code
            for sentence in re.split(r'(?<=[.!?]) +(?=[A-Z"])', " ".join(paragraph.split())):
                if WORDS[0] <= len(sentence.split()) <= WORDS[1] and sentence.endswith(".") and sentence.isascii():
                    yield sentence


def _docstrings(module: str) -> Iterator[str]:
    """Read every docstring in a module's or package's sources."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise PruneLimitError(f"this Python has no source of {module}, whose docstrings are the data: use a full one.")
    origin = Path(spec.origin)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
                yield docstring
