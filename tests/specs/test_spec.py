"""Spec: the hash that names a run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from prunelimit import specs
from prunelimit.errors import PruneLimitError
from prunelimit.specs import Spec, added


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Spec):
    """A spec of every kind of field."""

    name: str
    rate: float = 0.1
    steps: tuple[int, ...] = (1, 2)
    size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Spec):
    """A spec inside a spec."""

    inner: Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Later(Spec):
    """A spec that a field joined later, inside another one."""

    inner: Example
    many: tuple[float, ...] = added(())
    how: str = added("old")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twin(Spec):
    """The fields of ``Example`` under another name."""

    name: str
    rate: float = 0.1
    steps: tuple[int, ...] = (1, 2)
    size: int | None = None


SCRIPT = """
import dataclasses, sys
from prunelimit.specs import Spec

@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Spec):
    size: int | None = None
    steps: tuple[int, ...] = (1, 2)
    name: str
    rate: float = 0.1

assert "torch" not in sys.modules, "specs must not wait for torch"
print(Example(name="a", rate=0.3).hash)
"""


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_hash_is_the_same_in_another_process(hash_seed: str) -> None:
    # The fields stand in another order there, and Python's own hashes differ.
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == Example(name="a", rate=0.3).hash


def test_hash_is_sixteen_hexadecimal_digits() -> None:
    found = Example(name="a").hash
    assert len(found) == 16
    int(found, 16)


def test_any_changed_field_changes_the_hash() -> None:
    base = Example(name="a")
    others = [{"name": "b"}, {"rate": 0.2}, {"steps": (2, 1)}, {"size": 3}]
    hashes = {base.hash} | {dataclasses.replace(base, **other).hash for other in others}
    assert len(hashes) == 5


def test_default_and_spelled_out_default_are_the_same_run() -> None:
    assert Example(name="a", rate=0.1).hash == Example(name="a").hash


@pytest.mark.parametrize(("one", "other"), [({"rate": 1}, {"rate": 1.0}), ({"rate": 0}, {"rate": 0.0})])
def test_equal_specs_have_equal_hashes(one: dict[str, float], other: dict[str, float]) -> None:
    # Once wrong: 1 and 1.0 are equal fields, but their JSON differs, and so do the hashes.
    assert Example(name="a", **one) == Example(name="a", **other)
    assert Example(name="a", **one).hash == Example(name="a", **other).hash


def test_type_is_part_of_the_hash() -> None:
    assert Twin(name="a").hash != Example(name="a").hash


def test_result_format_is_part_of_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Example(name="a").hash
    monkeypatch.setattr(specs, "RESULT_FORMAT", specs.RESULT_FORMAT + 1)
    assert Example(name="a").hash != before


def test_dict_is_plain_json_and_builds_the_same_spec() -> None:
    spec = Example(name="a", steps=(3, 4), size=7)
    values = json.loads(json.dumps(spec.to_dict()))
    assert values == spec.to_dict()
    assert Example.from_dict(values) == spec


def test_nested_specs_become_nested_dictionaries() -> None:
    assert Outer(inner=Example(name="a")).to_dict()["inner"]["name"] == "a"


def test_later_field_at_its_default_changes_neither_hash_nor_dictionary() -> None:
    now = Later(inner=Example(name="a"))
    then = Outer(inner=Example(name="a"))
    assert now.to_dict() == then.to_dict()
    # The type's name is part of a hash, so the older class must have had the same one.
    older = dataclasses.make_dataclass(
        "Later", [("inner", "Example")], bases=(Spec,), namespace={}, frozen=True, kw_only=True
    )
    assert now.hash == older(inner=Example(name="a")).hash
    assert Later(inner=Example(name="a"), how="old", many=()).hash == now.hash


def test_later_field_with_another_value_counts() -> None:
    base = Later(inner=Example(name="a"))
    others = [dataclasses.replace(base, how="new"), dataclasses.replace(base, many=(1.0,))]
    assert len({spec.hash for spec in [base, *others]}) == 3
    assert others[0].to_dict()["how"] == "new"
    assert "many" not in others[0].to_dict()
    assert [Later.from_dict(spec.to_dict() | {"inner": spec.inner}) for spec in others] == others


def test_later_field_counts_inside_another_spec() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Around(Spec):
        later: Later

    plain, new = (Around(later=Later(inner=Example(name="a"), how=how)) for how in ("old", "new"))
    assert "how" not in plain.to_dict()["later"]
    assert new.to_dict()["later"]["how"] == "new"
    assert plain.hash != new.hash


def test_unknown_field_is_refused_with_the_nearest() -> None:
    with pytest.raises(PruneLimitError, match=r"Example field='rat' is unknown\. Did you mean 'rate'\?"):
        Example.from_dict({"name": "a", "rat": 1})


def test_missing_field_is_refused() -> None:
    with pytest.raises(PruneLimitError, match=r"Example is incomplete.*name"):
        Example.from_dict({"rate": 1.0})


def test_spec_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example(name="a").name = "b"  # type: ignore[misc]
