"""The report a practitioner wants: every limit of one network, which layers hold it back, and what would have to change."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq
from torch import nn

from prunelimit.adapters import adapt
from prunelimit.curvature.data import LossFunction
from prunelimit.curvature.quadrature import Spectrum
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.layers import Groups, LayerLimits, layers_adapted
from prunelimit.limit import PruningLimit, default_epsilon
from prunelimit.predict import METHODS, Settings, check_apart, predict_adapted
from prunelimit.pruning.magnitude import MagnitudePath

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Methods of a report, unless told otherwise.
USUAL = ("formula", "directional", "refit", "measured")

#: What each method says, for readers who have not read the book.
MEANING = {
    "formula": "the theorem: how far some network with so few weights is within reach",
    "cone": "the theorem for any random subspace, knowing the step",
    "cut": "the theorem for a subspace perpendicular to the step, as a cut's is",
    "directional": "second order along the cut itself, kept weights as they are",
    "refit": "the kept weights may move, mask fixed",
    "measured": "one cut for real, kept weights as they are",
}

#: How far beyond the limit the advice looks, in sparsity.
FURTHER = 0.05


@dataclasses.dataclass(frozen=True)
class Change:
    r"""What has to change for the formula's limit to be higher.

    The formula's equation, :math:`1 - d(2 \epsilon / R^2) / D = s`, knows curvature, distance and tolerance only through
    :math:`R^2 H / \epsilon`. At the wanted sparsity, with the present distance R there, that product has to become
    ``factor`` times what it is. Each of the others does it alone.

    Attributes:
        sparsity: The wanted limit.
        factor: What the curvature has to be multiplied by, below one: flatter.
        interval: The same with the high and the low end of the effective dimension; infinite where that end leaves room for
            any curvature.
    """

    sparsity: float
    factor: float
    interval: tuple[float, float]

    @property
    def weights(self) -> float:
        """What the weights that are cut have to be multiplied by, at the same curvature."""
        return self.factor**0.5

    @property
    def epsilon(self) -> float:
        """What the tolerated rise has to be multiplied by, for the same network."""
        return 1 / self.factor if self.factor else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; infinity, for which JSON has no number, becomes ``None``."""
        low, high = self.interval
        values = {"curvature": self.factor, "curvature_low": low, "curvature_high": high}
        values |= {"weights": self.weights, "epsilon": self.epsilon}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        return {"sparsity": self.sparsity, **finite}


def needed_change(found: Spectrum, distance: np.ndarray, epsilon: float, sparsity: float) -> Change:
    """Solve the formula's equation for the curvature that a higher limit needs.

    Args:
        found: The spectrum.
        distance: ``(D + 1,)`` distances R, as in :class:`~prunelimit.pruning.magnitude.MagnitudePath`.
        epsilon: Tolerated rise of the loss.
        sparsity: The wanted limit, in ``(0, 1)``.

    Returns:
        The change; a factor above one means that there is room already, zero that no curvature seen is small enough.

    Raises:
        PruneLimitError: If the sparsity is out of range or nothing but zeros would be removed.
    """
    radius = float(distance[round(sparsity * (len(distance) - 1))]) if 0 < sparsity < 1 else 0.0
    if not radius:
        raise PruneLimitError(f"sparsity={sparsity!r} must lie in (0, 1), where weights that are not zero are removed.")
    now = 2 * epsilon / radius**2

    def factor(which: int) -> float:
        def gap(log_mu: float) -> float:
            share = found.effective_dimension(np.array([np.exp(log_mu)]))[which] / found.dimension
            return float(np.asarray(share).item()) - (1 - sparsity)

        low, high = np.log(now) - 60, np.log(now) + 60
        if gap(low) <= 0:
            return float("inf")
        return 0.0 if gap(high) >= 0 else float(now / np.exp(brentq(gap, low, high, xtol=1e-10)))

    value, *ends = (factor(which) for which in range(3))
    return Change(sparsity, value, (min(ends), max(ends)))


@dataclasses.dataclass(frozen=True)
class Report:
    """Every limit of one network.

    Attributes:
        name: What the network is called.
        limits: Method to limit, all for one epsilon and the same data.
        layers: A limit for each layer alone, and its part in the rise of the common cut at the limit; ``None`` if not asked for.
        change: What five more points need, by the formula; ``None`` without the formula.
        epsilon: Tolerated rise of the training loss, in nats.
        seconds: Time that the whole report took.
    """

    name: str
    limits: dict[str, PruningLimit]
    layers: LayerLimits | None
    change: Change | None
    epsilon: float
    seconds: float

    @property
    def gain(self) -> float | None:
        """What refitting the kept weights would gain over one cut, in sparsity; ``None`` if either is missing."""
        if not {"refit", "measured"} <= set(self.limits):
            return None
        return self.limits["refit"].sparsity - self.limits["measured"].sparsity

    @property
    def products(self) -> int:
        """Curvature products of the whole report."""
        costs = [limit.cost for limit in self.limits.values()] + ([self.layers.cost] if self.layers else [])
        return round(sum(cost.get("products", 0) for cost in costs))

    def findings(self) -> list[str]:
        """Say what the numbers mean, a sentence each."""
        first = next(iter(self.limits.values()))
        lines = [f"The loss may rise by {self.epsilon:.4g} nats over {first.examples:,} {first.terms}."]
        if "measured" in self.limits:
            lines.append(
                f"One cut by magnitude can remove {self.limits['measured'].sparsity:.1%} of the weights: measured."
            )
        if self.gain is not None:
            gained = f"gain {self.gain:.1%} of the weights" if self.gain > 0 else "gain nothing"
            lines.append(f"Letting the kept weights move would {gained}, by refitting on the same data.")
        wide = [name for name in self.limits if name in ("formula", "cone", "cut") and not self.limits[name].resolved]
        if wide:
            lines.append(f"Not resolved: {', '.join(wide)}; more steps or probes narrow the interval.")
        lines += self._about_layers()
        if self.change is not None and 0 < self.change.factor < 1:
            low, high = self.change.interval
            lines.append(
                f"For the formula's limit to be {self.change.sparsity:.1%}, curvature times squared distance has to fall to "
                f"{self.change.factor:.3g} of what it is ({low:.3g} to {f'{high:.3g}' if high < 1 else 'no change'}): "
                f"flatter by that factor, or the weights that are cut smaller, {self.change.weights:.3g} times as large at "
                f"the same curvature, or a tolerated rise {self.change.epsilon:.3g} times as large."
            )
        return lines

    def _about_layers(self) -> list[str]:
        """Name the layers that take more of the rise than of the removed weights."""
        if self.layers is None or self.layers.common is None:
            return []
        table = self.layers.table
        rise, removed = table.rise.clip(lower=0), table.removed * table.weights
        if not (rise.sum() > 0 and removed.sum() > 0):
            return []
        shares = table.assign(of_rise=rise / rise.sum(), of_removed=removed / removed.sum())
        worst = shares[shares.of_rise > shares.of_removed].nlargest(3, "of_rise")
        named = [
            f"{row.layer} ({row.of_rise:.0%} of what raises the loss, {row.of_removed:.0%} of the cut)"
            for row in worst.itertuples()
        ]
        return [
            f"At a cut of {self.layers.common:.1%}, these layers hold the network back: {', '.join(named)}."
        ] * bool(named)

    def __str__(self) -> str:
        """Show everything as text."""
        lines = [f"Pruning report: {self.name}, {next(iter(self.limits.values())).total:,} prunable weights", ""]
        for name, limit in self.limits.items():
            low, high = limit.interval
            lines.append(f"  {name:<12} {limit.sparsity:6.1%}  ({low:.1%} to {high:.1%})  {MEANING[name]}")
        lines += ["", *(f"- {line}" for line in self.findings())]
        if self.layers is not None:
            lines += ["", repr(self.layers)]
        return "\n".join([*lines, "", f"Cost: {self.products} curvature products, {self.seconds:.3g} seconds"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "epsilon": self.epsilon,
            "limits": {name: limit.to_dict() for name, limit in self.limits.items()},
            "gain": self.gain,
            "layers": None if self.layers is None else self.layers.to_dict(),
            "change": None if self.change is None else self.change.to_dict(),
            "findings": self.findings(),
            "products": self.products,
            "seconds": self.seconds,
        }

    def to_html(self) -> str:
        """Return one page that needs nothing else: tables, findings and the figure inside."""
        from prunelimit.report_page import report_page

        return report_page(self)

    def plot(self) -> Figure:
        """Draw the limits with their intervals, and the layers."""
        from prunelimit.report_page import plot_report

        return plot_report(self)


def limit_report(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Any,
    *,
    epsilon: float | None = None,
    prunable: Sequence[str] | None = None,
    methods: Sequence[str] = USUAL,
    layers: bool = True,
    groups: Groups | None = None,
    curvature: str = "hessian",
    steps: int = 64,
    probes: int = 1,
    seed: int = 0,
    name: str = "",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Predict and measure how far a network can be pruned, by several methods, layer by layer, and what holds it back.

    Args:
        model: As for :func:`~prunelimit.predict_limit`.
        loss_fn: As there.
        data: As there; read once.
        epsilon: As there.
        prunable: As there.
        methods: Methods of :func:`~prunelimit.predict_limit`.
        layers: Whether to find a limit for each layer alone, by the directional method, about ten products each.
        groups: Name to parameters that count as one layer; by default each prunable parameter by itself.
        curvature: As for :func:`~prunelimit.predict_limit`.
        steps: As there.
        probes: As there.
        seed: As there.
        name: What to call the network; by default its class.
        progress: Called with the name of each part before it begins.

    Returns:
        The report.

    Raises:
        PruneLimitError: If an argument cannot be used; the message names it and the fix.
    """
    if not methods:
        raise PruneLimitError(f"methods is empty: name at least one of {', '.join(METHODS)}.")
    for method in methods:
        if method not in METHODS:
            raise unknown_name("methods", method, METHODS)
    check_apart(loss_fn, curvature)
    start, tell = time.monotonic(), progress or (lambda part: None)
    if groups is not None and prunable is None:
        prunable = [parameter for group in groups.values() for parameter in group]
    settings = Settings(prunable, curvature, methods[0], steps, probes, seed, progress=False)
    adapted = adapt(model, loss_fn, data)
    if epsilon is None:
        epsilon = default_epsilon(adapted.model, adapted.loss_fn, adapted.batches)
    limits = {}
    for method in methods:
        tell(method)
        limits[method] = predict_adapted(adapted, epsilon, dataclasses.replace(settings, method=method))
    by_layer = None
    if layers:
        tell("layers")
        common = next(limits[m].sparsity for m in ("measured", "directional", methods[0]) if m in limits)
        directional = dataclasses.replace(settings, method="directional")
        by_layer = layers_adapted(adapted, epsilon, directional, groups, min(common, 1 - 1e-9))
    change = None
    if "formula" in limits and limits["formula"].spectrum is not None:
        now = limits["formula"].sparsity
        # Near one, half of the way that is left.
        wanted, distance = min(now + FURTHER, (1 + now) / 2), MagnitudePath(adapted.model, prunable).distance
        change = needed_change(limits["formula"].spectrum, distance, epsilon, wanted)
    return Report(name or type(model).__name__, limits, by_layer, change, epsilon, time.monotonic() - start)
