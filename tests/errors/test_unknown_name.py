"""unknown_name: the sentence for a name that is not in a registry."""

from __future__ import annotations

import pytest

from prunelimit.errors import PruneLimitError, unknown_name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("mnst", "mnist"), ("MNIST", "mnist"), ("fashion_mnist", "fashion-mnist"), ("digit", "digits")],
)
def test_nearest_name_is_suggested(name: str, nearest: str) -> None:
    assert f"Did you mean {nearest!r}?" in str(unknown_name("dataset", name, ["mnist", "fashion-mnist", "digits"]))


def test_nothing_is_suggested_when_nothing_is_near() -> None:
    assert "Did you mean" not in str(unknown_name("dataset", "zzz", ["mnist"]))


@pytest.mark.parametrize("name", ["mnst", 7, None, ""])
def test_kind_name_and_choices_are_named(name: object) -> None:
    message = str(unknown_name("dataset", name, ["b", "a"]))
    assert f"dataset={name!r}" in message
    assert "a, b" in message


def test_it_is_a_value_error() -> None:
    assert isinstance(unknown_name("x", "y", ["z"]), PruneLimitError)
    assert issubclass(PruneLimitError, ValueError)
