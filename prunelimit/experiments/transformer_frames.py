"""Recorded limits of transformers as data frames, and in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.checks import pick_names
from prunelimit.curvature import Spectrum
from prunelimit.curvature.quadrature import gauss_rule
from prunelimit.experiments.frames import fine_distance
from prunelimit.experiments.store import load_record
from prunelimit.experiments.transformers import CRITERIA, EXPERIMENT, SPECS, TransformerSpec
from prunelimit.limit import PruningLimit, formula_limit

#: Width of an interval from which on it says nothing.
WIDE = 0.4

TITLES = {
    "vit": "vision transformer, digits",
    "gpt": "GPT, characters",
    "minilm": "all-MiniLM-L6-v2, sentences",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded transformer.

    Attributes:
        name: Key of ``SPECS``.
        spec: What was run.
        record: What came out.
        formula: The limit by the formula, solved from the record.
    """

    name: str
    spec: TransformerSpec
    record: dict[str, Any]
    formula: PruningLimit

    @property
    def title(self) -> str:
        """What tables and figures call it."""
        return TITLES[self.name]


def load_cases(names: str | Sequence[str] | None = None) -> list[Case]:
    """Read the records that there are, and solve the formula for each.

    Args:
        names: Keys of ``SPECS``; ``None`` for all.

    Returns:
        A case per record.

    Raises:
        PruneLimitError: If a name is unknown.
    """
    cases = []
    for name in pick_names("network", names, SPECS):
        spec = SPECS[name]
        record = load_record(EXPERIMENT, spec)
        if record is not None:
            found = Spectrum.from_dict(record["spectrum"])
            limit = formula_limit(found, fine_distance(record), spec.epsilon, examples=record["examples"])
            cases.append(Case(name, spec, record, limit))
    return cases


def network_frame(cases: Sequence[Case]) -> pd.DataFrame:
    """List the networks and what the formula says of each.

    Args:
        cases: The records.

    Returns:
        One row per network: ``title``, ``parameters``, ``prunable``, ``examples`` (windows, images or sentences), ``train_loss``,
        ``test_loss``, ``test_accuracy``, ``products``, ``negative`` (share of the sum of absolute eigenvalues that negative
        ones have, as probed), ``formula``, ``formula_low``, ``formula_high`` and ``resolved``.
    """
    rows = []
    for case in cases:
        dense, (low, high) = case.record["dense"], case.formula.interval
        rows.append(
            {
                "title": case.title,
                "parameters": case.record["parameters"],
                "prunable": case.record["total"],
                "examples": case.spec.examples,
                **{key: dense[key] for key in ("train_loss", "test_loss", "test_accuracy")},
                "products": case.record["spectrum"]["products"],
                "negative": _negative_share(Spectrum.from_dict(case.record["spectrum"])),
                "formula": case.formula.sparsity,
                "formula_low": low,
                "formula_high": high,
                "resolved": case.formula.resolved,
            }
        )
    return pd.DataFrame(rows)


def _negative_share(found: Spectrum) -> float:
    rules = [gauss_rule(probe.alpha, probe.beta) for probe in found.probes]
    nodes, weights = (np.concatenate(parts) for parts in zip(*rules, strict=True))
    sizes = np.abs(nodes) * weights
    return float(sizes[nodes < 0].sum() / sizes.sum())


def criterion_frame(cases: Sequence[Case]) -> pd.DataFrame:
    """Put the limits of every criterion beside the formula's, which knows no criterion.

    Args:
        cases: The records.

    Returns:
        One row per network and criterion: ``title``, ``criterion``, ``measured`` (largest sparsity found with the loss within
        epsilon), ``directional`` (its prediction, missing where it was not made), ``error`` (that minus the measured one), ``formula``,
        ``inside`` (whether the measured limit lies in the formula's interval), and ``rise_at_half`` and ``accuracy_at_half`` at
        sparsity 0.5, where 2:4 is complete.
    """
    rows = []
    for case in cases:
        low, high = case.formula.interval
        for name in case.spec.criteria:
            found = case.record["criteria"][name]
            half = next((p for p in found["sweep"] if p["sparsity"] == 0.5), None)
            measured = found["measured"]["sparsity"]
            directional = found["directional"]["sparsity"] if "directional" in found else None
            rows.append(
                {
                    "title": case.title,
                    "criterion": CRITERIA[name],
                    "measured": measured,
                    "directional": directional,
                    "error": None if directional is None else directional - measured,
                    "formula": case.formula.sparsity,
                    "inside": low <= measured <= high,
                    "rise_at_half": None if half is None else half["train_loss"] - case.record["dense"]["train_loss"],
                    "accuracy_at_half": None if half is None else half["test_accuracy"],
                }
            )
    frame = pd.DataFrame(rows)
    return frame.astype({"directional": float, "error": float}) if rows else frame


def transformer_sweeps(cases: Sequence[Case]) -> pd.DataFrame:
    """List the losses of pruned transformers.

    Args:
        cases: The records.

    Returns:
        One row per network, criterion and sparsity: ``title``, ``criterion``, ``sparsity``, ``rise`` (of the training loss, in nats)
        and ``test_accuracy``.
    """
    return pd.DataFrame(
        [
            {
                "title": case.title,
                "criterion": CRITERIA[name],
                "sparsity": point["sparsity"],
                "rise": point["train_loss"] - case.record["dense"]["train_loss"],
                "test_accuracy": point["test_accuracy"],
            }
            for case in cases
            for name in case.spec.criteria
            for point in case.record["criteria"][name]["sweep"]
        ]
    )


def _points(error: float, tolerance: float) -> str:
    """Write an error in points of sparsity; below the width of the brackets there is none to be seen."""
    return "less than the width of its bracket" if abs(error) < tolerance else f"{100 * error:+.1f} points"


def transformer_findings(cases: Sequence[Case]) -> list[str]:
    """Say where predictions and measurements agree and where they do not, one sentence or two per network.

    Args:
        cases: The records.

    Returns:
        The sentences, in Markdown.
    """
    lines = []
    for case in cases:
        frame = criterion_frame([case]).set_index("criterion")
        low, high = case.formula.interval
        measured = frame.measured
        best = measured.idxmax()
        inside = frame.index[frame.inside].tolist()
        known = frame.dropna(subset="error")
        value = case.formula.sparsity
        side = "above all" if value > measured.max() else "below all" if value < measured.min() else "among the"
        text = (
            f"**{case.title}.** The formula's {value:.1%} ({low:.1%} to {high:.1%}"
            f"{'' if case.formula.resolved else ', not resolved'}) lies {side} measured limits, of which {best} has the "
            f"highest, {measured.max():.1%}; "
            + (
                "none is in its interval."
                if not inside
                else f"in its interval: {'all' if len(inside) == len(frame) else 'only ' + ', '.join(inside)}."
            )
            + (" An interval so wide decides nothing." if high - low > WIDE else "")
        )
        if len(known):
            off = ", ".join(f"{name} {_points(row.error, case.spec.tolerance)}" for name, row in known.iterrows())
            text += f" The second-order expansion along the path is off by: {off}."
        lines.append(text)
    return lines
