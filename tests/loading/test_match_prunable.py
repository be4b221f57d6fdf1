"""match_prunable: names, patterns and the default."""

from __future__ import annotations

import pytest
from torch import nn

from prunelimit import PruneLimitError
from prunelimit.loading import load_made, load_object
from prunelimit.models.parameters import match_prunable


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.last = nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 2)
        self.mix.out_proj.weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["default"], ["first.weight", "last.weight"]),
        (["last.weight", "first.weight"], ["first.weight", "last.weight"]),
        (["*.in_proj_weight", "default"], ["first.weight", "mix.in_proj_weight", "last.weight"]),
        (["mix.*weight"], ["mix.in_proj_weight"]),  # the other one is frozen
        (["mix.out_proj.weight"], ["mix.out_proj.weight"]),  # refused where it is used, with the reason
        (["?irst.*"], ["first.weight"]),
        (["?irst.*", "first.bias"], ["first.weight", "first.bias"]),
        ([], []),
    ],
)
def test_patterns(patterns: list[str], expected: list[str]) -> None:
    assert match_prunable(Net(), patterns) == expected


@pytest.mark.parametrize("pattern", ["frist.weight", "nothing*", "*.bias", ""])
def test_pattern_that_fits_nothing(pattern: str) -> None:
    with pytest.raises(PruneLimitError, match=r"^prunable=.* is unknown.*first\.weight"):
        match_prunable(Net(), ["default", pattern])


def failing() -> None:
    raise KeyError("no such thing. Really")


def refusing() -> None:
    raise PruneLimitError("said already.")


def test_functions_that_fail_are_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    with pytest.raises(PruneLimitError, match=r"^data='.*' fails, with KeyError \('no such thing; Really'\)"):
        load_made(f"{__name__}:failing", "data")
    with pytest.raises(PruneLimitError, match=r"^said already\.$"):
        load_made(f"{__name__}:refusing", "data")
    (tmp_path / "broken_module_of_a_user.py").write_text("import os\n1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PruneLimitError, match=r"^data='.*' cannot be imported, with ZeroDivisionError"):
        load_object("broken_module_of_a_user:data", "data")
