"""Frozen descriptions of runs, and the hash that names them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Self

from prunelimit.errors import PruneLimitError, unknown_name

#: Raised whenever the same spec would give a different result or another record layout.
RESULT_FORMAT = 1


def added(default: Any) -> Any:
    """Declare a field that joined its spec later.

    At its default value it is left out of the spec's dictionary and hash, so that the records and checkpoints made before
    keep their names.

    Args:
        default: What specs without the field meant.

    Returns:
        The field, for the body of the class.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def part_seed(seed: int, number: int) -> int:
    """Derive the seed of one epoch, stage or other part from that of the whole, so that a part resumed is the same part."""
    return (seed * 1_000_003 + number) % 2**63


def _plain(spec: Spec) -> dict[str, Any]:
    """Give the fields with their values, nested specs likewise, without later fields that are at their default."""
    found = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if not (field.metadata.get("added") and value == field.default):
            found[field.name] = _plain(value) if isinstance(value, Spec) else value
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything that determines a result, and nothing else.

    Subclasses add the fields. Two specs with equal fields have the same hash in every process and on every machine.
    """

    def __post_init__(self) -> None:
        """Bring numbers to the type of their field, so that equal specs have equal hashes; refuse other types."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))
            elif field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                raise PruneLimitError(f"{field.name}={value!r} must be a whole number.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values, nested specs included; see :func:`added` for those left out."""
        return json.loads(json.dumps(_plain(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a spec from :meth:`to_dict`.

        Args:
            values: Field names with their values.

        Returns:
            The spec.

        Raises:
            PruneLimitError: If a field is unknown or missing.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise unknown_name(f"{cls.__name__} field", name, fields)
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        except TypeError as error:
            raise PruneLimitError(f"{cls.__name__} is incomplete: {error}.") from error

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that name the run: spec type, fields and result format."""
        named = {"type": type(self).__name__, "format": RESULT_FORMAT, **self.to_dict()}
        text = json.dumps(named, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
