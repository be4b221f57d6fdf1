"""The figures of the theory in words, for their alternative texts."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd


def describe_success(predictions: pd.DataFrame) -> str:
    """Put ``plot_success`` into words.

    Args:
        predictions: Output of ``prediction_frame``.

    Returns:
        One sentence per quadratic.
    """
    sentences = [
        f"{row['name']}: predicted limit {row.formula:.1%}, window {row.lower:.1%} to {row.upper:.1%}; half of the random "
        f"subspaces meet at {row.random:.1%}, half of those with zeros in the removed places at {row.coordinates:.1%}."
        for _, row in predictions.iterrows()
    ]
    return "Share of trials that meet against the sparsity. " + " ".join(sentences)


def describe_ball(places: pd.DataFrame) -> str:
    """Put ``plot_ball`` into words.

    Args:
        places: Output of ``ball_places``.

    Returns:
        One sentence per dimension.
    """
    sentences = [
        f"D = {row.dimension:,.0f}: predicted limit {row.formula:.1%}, window {row.lower:.1%} to {row.upper:.1%}, probability "
        f"one half at {row.half:.1%}."
        for _, row in places.iterrows()
    ]
    return "Exact probability that a random subspace meets a ball. " + " ".join(sentences)


def describe_orientations(limits: pd.DataFrame, shown: list[str]) -> str:
    """Put ``plot_orientations`` into words.

    Args:
        limits: Output of ``orientation_table``.
        shown: Names of the quadratics that are drawn.

    Returns:
        One sentence per quadratic.
    """
    sentences = []
    for _, row in limits[limits.spectrum.isin(shown)].iterrows():
        values = ", ".join(f"{value:.1%} ({label})" for label, value in row.iloc[2:].items())
        sentences.append(f"{row.spectrum}: predicted limit {row.iloc[1]:.1%}; the rise passes epsilon at {values}.")
    return "Smallest rise over epsilon against the sparsity for several kinds of eigenvectors. " + " ".join(sentences)


def describe_scaling(scaling: pd.DataFrame) -> str:
    """Put ``plot_scaled_weights`` into words.

    Args:
        scaling: Output of ``scaling_frame``.

    Returns:
        One sentence per network.
    """
    sentences = []
    for title, part in scaling.groupby("title", sort=False):
        means = part.groupby("factor").sparsity.mean()
        values = ", ".join(f"{value:.1%} at c = {factor:g}" for factor, value in means.items())
        sentences.append(
            f"{title}: predicted limit {values}; all intervals lie in {part.low.min():.1%} to {part.high.max():.1%}."
        )
    return "Removable fraction, and removed fraction for weights times c, against the distance R. " + " ".join(
        sentences
    )


def describe_rescaling(growth: pd.DataFrame, rescaling: pd.DataFrame) -> str:
    """Put ``plot_rescaling`` into words.

    Args:
        growth: Output of ``growth_frame``.
        rescaling: Output of ``rescaling_frame``.

    Returns:
        Two sentences.
    """
    first, last = growth.iloc[0], growth.iloc[-1]
    span: Mapping[str, str] = {
        name: f"{rescaling[name].min():.1%} to {rescaling[name].max():.1%}"
        for name in ("formula", "measured", "formula_fixed", "measured_fixed")
    }
    return (
        f"Left, all weights times {first.factor:g} to {last.factor:g}: with its own Hessian the formula goes from "
        f"{first.formula:.1%} to {last.formula:.1%}, with the Hessian held fixed from {first.held:.1%} to {last.held:.1%}; "
        f"measured {first.measured:.1%} to {last.measured:.1%}. Right, the same function at every factor: with masks by "
        f"magnitude the formula lies in {span['formula']} and the measured limit in {span['measured']}; with the masks of "
        f"factor one in {span['formula_fixed']} and {span['measured_fixed']}."
    )


def describe_bounds(limits: pd.DataFrame) -> str:
    """Put ``plot_bounds`` into words.

    Args:
        limits: Output of ``bound_limits``.

    Returns:
        One sentence per quadratic.
    """
    sentences = [
        f"{row['name']}: formula {row.formula:.1%}, trace bound {row.bound:.1%}; half of the trace sits in "
        f"{row['holds_50%']:.1%} of the eigenvalues."
        for _, row in limits.iterrows()
    ]
    return "Removable fraction against the sparsity by the formula and by the trace bound. " + " ".join(sentences)


def describe_traces(table: pd.DataFrame) -> str:
    """Put ``plot_traces`` into words.

    Args:
        table: Output of ``trace_frame``.

    Returns:
        One sentence per network.
    """
    sentences = [
        f"{title}: formula {part.formula.mean():.1%}, trace bound {part.bound.mean():.1%}, measured "
        f"{part.measured.mean():.1%}; half of the trace sits in about {part['holds_50%'].mean():.2%} of the eigenvalues."
        for title, part in table.groupby("title", sort=False)
    ]
    return "Limits by the formula and by the trace, and the share of the trace in the largest eigenvalues. " + " ".join(
        sentences
    )
