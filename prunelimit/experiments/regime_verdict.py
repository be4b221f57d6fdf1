"""The verdict on the three-regime paper, claim by claim, by rules that stand beside it.

They were written before the grids were measured; the page says which of them were made stricter afterwards.

The digitised map of the published figure stands beside every claim that it can speak to; the verdict is about our grids alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from prunelimit.experiments import (
    advice_cells,
    advice_frames,
    advice_tables,
    diagram_frames,
    synthesis_frames,
    synthesis_relations,
)
from prunelimit.experiments.regime_grids import find_grid
from prunelimit.experiments.verdict import Finding
from prunelimit.landscape.diagrams import Diagram, heat_correlations, reference_diagram

#: Rank correlation from which on a trend counts as one.
STRONG = 0.5

#: Radius of SAM at which the tuning begins, the usual one on CIFAR-10.
DEFAULT_RHO = 0.05


def _share(good: Sequence[bool]) -> str:
    """Turn one answer per grid into a verdict."""
    if not good:
        return "not decided"
    return "holds" if all(good) else "holds in part" if sum(good) * 2 >= len(good) else "does not hold"


def _trend(heat: pd.DataFrame, column: str, claim: str, what: str) -> Finding:
    """Judge a rank correlation that the model wants near one on every grid; the first row is the digitised map's."""
    rule = f"holds if the rank correlation is above {STRONG:g} on every grid of ours, in part if on half of them"
    own = heat.iloc[1:].dropna(subset=[column])
    text = ", ".join(f"{row.axis} {getattr(row, column):+.2f}" for row in own.itertuples()) or "no record"
    measured = f"rank correlation of {what}: {text}; on the digitised map {heat[column].iloc[0]:+.2f}"
    return Finding(claim, _share([value > STRONG for value in own[column]]), measured, rule, "diagrams")


def _turns(heat: pd.DataFrame) -> Finding:
    """Judge whether the temperature that is best depends on the density, in the way that the model says.

    Opposite signs alone would not do: by chance they come up on every second grid.
    """
    claim = (
        "Heat helps where few weights are left, and harms where many are: the best temperature depends on the density"
    )
    rule = f"holds if the rank correlation of temperature and test error is below −{STRONG:g} in the sparsest column and above {STRONG:g}"
    rule += " in the densest one of every grid of ours, in part if on half of them"
    own = heat.iloc[1:].dropna(subset=["error_low", "error_high"])
    ends = [f"{row.axis} {row.error_low:+.2f} and {row.error_high:+.2f}" for row in own.itertuples()]
    first = heat.iloc[0]
    text = ", ".join(ends) or "no record"
    measured = f"rank correlation at the lowest and at the highest density: {text}; digitised {first.error_low:+.2f} and {first.error_high:+.2f}"
    return Finding(
        claim, _share(list((own.error_low < -STRONG) & (own.error_high > STRONG))), measured, rule, "diagrams"
    )


def transition_findings(diagrams: Sequence[Diagram]) -> list[Finding]:
    """Judge the claims about where the regimes lie.

    Args:
        diagrams: Our grids, averaged over dense seeds; those without a cell are passed over.

    Returns:
        The findings.
    """
    heat = heat_correlations([reference_diagram(), *(diagram for diagram in diagrams if len(diagram.frame))])
    return [
        _trend(
            heat, "lmc_density", "Load parts the children: fewer weights, less connected", "density and connectivity"
        ),
        _trend(
            heat,
            "lmc_low",
            "Heat connects where few weights are left",
            "temperature and connectivity at the lowest density",
        ),
        _turns(heat),
    ]


#: Which grids count for a decision: where evidence and judgement are the same numbers, a rule that looks at the test error is
#: right by construction.
_COUNTED = "every grid of ours that other dense seeds judge"


def _judged_by_others(cells: pd.DataFrame) -> list[str]:
    """List the grids in which no decision is judged by the numbers that it saw; the digitised map is none of them."""
    return [str(title) for title, part in cells.groupby("title", sort=False) if part.held_out.all()]


def _gains(own: pd.DataFrame, name: str = "gain") -> str:
    """Write the gains of some grids in points, with their intervals."""
    written = []
    for row in own.to_dict("records"):
        mean, low, high = (100 * row[f"{name}{end}"] for end in ("", "_low", "_high"))
        written.append(f"{row['title']}: {mean:+.1f}" + ("" if low != low else f" [{low:+.1f}, {high:+.1f}]"))
    return "; ".join(written) or "no record"


def direction_finding(cells: pd.DataFrame) -> Finding:
    """Judge whether the regime tells which way to turn the temperature.

    Args:
        cells: Output of ``advice_cells.stack``, the digitised map included.

    Returns:
        The finding.
    """
    claim = "The regime tells whether to raise or to lower the temperature"
    rule = f"holds if the direction is right more often than always raising and than always lowering on {_COUNTED}, in part if on half"
    summary = advice_tables.summary_frame(advice_frames.directions_frame(cells))
    shares = summary.pivot_table(index="title", columns="rule", values="right", sort=False)
    rivals = shares[["always raise", "always lower"]].max(axis=1)
    text = ", ".join(
        f"{title}: {shares.advice[title]:.0%} (best constant {rivals[title]:.0%})" for title in shares.index
    )
    counted = [title for title in _judged_by_others(cells) if title in shares.index]
    verdict = _share([bool(shares.advice[title] > rivals[title]) for title in counted])
    return Finding(claim, verdict, f"right directions: {text}", rule, "raise_or_lower")


def choice_findings(cells: pd.DataFrame) -> list[Finding]:
    """Judge whether connectivity with error, or with similarity, chooses a better network than the dense accuracy.

    Args:
        cells: Output of ``advice_cells.stack``, the digitised map included.

    Returns:
        A finding for each of the two.
    """
    rule = f"holds if the gain over the network with the best dense accuracy is above 0 with its whole interval on {_COUNTED}, in part if on half"
    summary = advice_tables.summary_frame(advice_frames.choices_frame(cells))
    found = []
    for name, words in {"lmc+error": "test error", "lmc+cka": "similarity"}.items():
        own = summary[(summary.rule == name) & summary.title.isin(_judged_by_others(cells))]
        text = f"gain in points: {_gains(own)}. Over the choice by the children's test error alone: {_gains(own, 'beyond')}"
        claim = f"Connectivity with {words} chooses a better network to prune than dense accuracy"
        found.append(Finding(claim, _share(list(own.gain_low > 0)), text, rule, "choose_model"))
    return found


def radius_finding(cells: pd.DataFrame) -> Finding:
    """Judge whether tuning SAM's radius by the regimes beats leaving it alone.

    Args:
        cells: Output of ``advice_cells.stack``.

    Returns:
        The finding.
    """
    claim = "The regimes tune the radius of SAM for pruning"
    rule = f"holds if the gain over the default radius is above 0 with its whole interval on {_COUNTED}, in part if on half"
    radii = cells[cells.title.str.startswith(find_grid("rho").title) & cells.title.isin(_judged_by_others(cells))]
    summary = advice_tables.summary_frame(advice_frames.rho_frame(radii, DEFAULT_RHO))
    own = summary[summary.rule == "step"]
    return Finding(
        claim, _share(list(own.gain_low > 0)), f"gain over {DEFAULT_RHO:g} in points: {_gains(own)}", rule, "tune_rho"
    )


def regime_findings() -> list[Finding]:
    """Judge every claim about the regimes from the records that there are, the question of the synthesis last.

    Returns:
        The findings, in the order of the book.
    """
    frames = advice_cells.load_grids(None, None)
    cells = advice_cells.stack([advice_cells.reference_cells(), *advice_cells.prepared_grids(frames)])
    diagrams = [diagram_frames.grid_diagram(*pair) for pair in diagram_frames.load_frames()]
    together = synthesis_frames.all_cells()
    relations = {title: synthesis_relations.relation_frame(part) for title, part in together.items()}
    return [
        *transition_findings(diagrams),
        direction_finding(cells),
        *choice_findings(cells),
        radius_finding(cells),
        *synthesis_relations.findings(relations),
    ]
