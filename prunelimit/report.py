"""The report a practitioner wants: every limit of one network, which layers hold it back, and what would have to change."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import nn

from prunelimit.adapters import Adapted
from prunelimit.changes import FURTHER, Change, measured_rise, needed_change
from prunelimit.curvature.data import LossFunction
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.layers import (
    Groups,
    LayerLimits,
    layers_adapted,
    left_out,
    left_out_line,
    left_out_values,
    unit_masks,
    unit_path,
    units_and_names,
)
from prunelimit.limit import MEANING, UNBOUNDED, FlatError, PruningLimit, default_epsilon
from prunelimit.predict import METHODS, SHARDED, Settings, adapt_shared, check_apart, predict_adapted
from prunelimit.processes import is_sharded
from prunelimit.pruning.magnitude import prunable_parameters
from prunelimit.pruning.paths import PruningPath
from prunelimit.pruning.structured import Units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Methods of a report, unless told otherwise.
USUAL = ("formula", "directional", "refit", "measured")

#: A fall of the measured loss between two cuts, in parts of epsilon, from which on it does not count as rising steadily.
FALL = 0.2


@dataclasses.dataclass(frozen=True)
class Report:
    """Every limit of one network.

    Attributes:
        name: What the network is called.
        limits: Method to limit, all for one epsilon and the same data; :attr:`table` has them in rows.
        layers: A limit for each layer alone, and its part in the rise of the common cut at the limit; ``None`` if not asked for.
        changes: What each wanted limit needs, by the formula; empty without the formula.
        left_out: Parameters that do not count as prunable, and why; see :func:`~prunelimit.layers.left_out`.
        epsilon: Tolerated rise of the training loss, in its units.
        seconds: Time that the whole report took.
        skipped: Methods that were asked for and cannot be had, and why.
    """

    name: str
    limits: dict[str, PruningLimit]
    layers: LayerLimits | None
    changes: tuple[Change, ...]
    left_out: pd.DataFrame
    epsilon: float
    seconds: float
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """The limits, one row per method.

        Columns: ``method``, ``sparsity``, ``low`` and ``high`` (its interval), ``resolved``, and its cost: ``products``
        (curvature), ``evaluations`` (of the loss) and ``seconds``.
        """
        costs = ("products", "evaluations", "seconds")
        rows = [
            (name, limit.sparsity, *limit.interval, limit.resolved, *(limit.cost.get(kind, 0.0) for kind in costs))
            for name, limit in self.limits.items()
        ]
        names = ["method", "sparsity", "low", "high", "resolved", *costs]
        return pd.DataFrame(rows, columns=names).astype({"products": int, "evaluations": int})

    @property
    def total(self) -> int:
        """Number of prunable weights, D."""
        return next(iter(self.limits.values())).total

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
        lines = [f"The loss may rise by {self.epsilon:.4g} over {first.examples:,} {first.terms}."]
        if "measured" in self.limits:
            lines.append(
                f"One cut by magnitude can remove {self.limits['measured'].sparsity:.1%} of the weights: measured."
            )
            lines += [f"But {UNBOUNDED}."] * self.limits["measured"].unbounded
            lines += self._about_falls()
        if self.gain is not None:
            gained = f"gain {self.gain:.1%} of the weights" if self.gain > 0 else "gain nothing"
            lines.append(f"Letting the kept weights move would {gained}, by refitting on the same data.")
        wide = [name for name in self.limits if name in ("formula", "cone", "cut") and not self.limits[name].resolved]
        if wide:
            lines.append(f"Not resolved: {', '.join(wide)}; more steps or probes narrow the interval.")
        lines += self._about_layers()
        lines += [f"Left out: {name}, {why}." for name, why in self.skipped.items()]
        lines += [line for change in self.changes for line in change.sentences(self.epsilon)]
        left = left_out_line(self.left_out, self.total)
        return [*lines, left] if left else lines

    def describe(self) -> str:
        """Return the findings as Markdown, a point each."""
        return "\n".join(f"- {line}" for line in self.findings())

    def _about_falls(self) -> list[str]:
        """Say where a cut that takes more raises the loss less, so that it may reach epsilon more than once."""
        curve = self.limits["measured"].curve.sort_values("sparsity")
        falls = -curve.rise.diff()
        if not falls.max() > FALL * self.epsilon:
            return []
        place = int(falls.argmax())
        before, after = curve.iloc[place - 1], curve.iloc[place]
        return [
            f"The loss does not rise steadily along the cut ({before.rise:+.3g} at {before.sparsity:.1%}, {after.rise:+.3g} at "
            f"{after.sparsity:.1%}): it may reach what is tolerated more than once, and the measured limit is the place that "
            "bisection came to."
        ]

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
            f"{row.layer} ({_share(row.of_rise)} of what raises the loss, {_share(row.of_removed)} of the cut)"
            for row in worst.itertuples()
        ]
        return [
            f"At a cut of {self.layers.common:.1%}, these layers hold the network back: {', '.join(named)}."
        ] * bool(named)

    def __repr__(self) -> str:
        """Show everything as text."""
        lines = [f"Pruning report: {self.name}, {self.total:,} prunable weights", ""]
        for name, limit in self.limits.items():
            low, high = limit.interval
            lines.append(f"  {name:<12} {limit.sparsity:6.1%}  ({low:.1%} to {high:.1%})  {MEANING[name]}")
        lines += ["", self.describe()]
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
            "changes": [change.to_dict() for change in self.changes],
            "left_out": left_out_values(self.left_out),
            "skipped": self.skipped,
            "findings": self.findings(),
            "products": self.products,
            "seconds": self.seconds,
        }

    def _repr_html_(self) -> str:
        """Show findings and tables in a notebook; :meth:`plot` draws them."""
        from prunelimit.report_page import report_tables

        return report_tables(self)

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
    units: Units | None = None,
    targets: Sequence[float] = (),
    curvature: str = "hessian",
    steps: int = 64,
    probes: int = 1,
    seed: int = 0,
    low_memory: bool = False,
    name: str = "",
    progress: Callable[[str], None] | None = None,
    shard_parameters: bool = False,
) -> Report:
    """Predict and measure how far a network can be pruned, by several methods, layer by layer, and what holds it back.

    Args:
        model: As for :func:`~prunelimit.predict_limit`.
        loss_fn: As there.
        data: As there; read once.
        epsilon: As there.
        prunable: As there.
        methods: Methods of :func:`~prunelimit.predict_limit`. The dearest of the usual four is ``"refit"``.
        layers: Whether to find a limit for each layer alone, by the directional method, about ten products each.
        groups: Name to parameters that count as one layer; by default each prunable parameter by itself.
        units: What leaves together, as for :class:`~prunelimit.pruning.UnitOrder`; by default single weights.
        targets: Sparsities that you want to reach: the report says what each needs, by the formula. By default five points
            more than its limit.
        curvature: As for :func:`~prunelimit.predict_limit`.
        steps: As there.
        probes: As there.
        seed: As there.
        low_memory: As there.
        name: What to call the network; by default its class.
        progress: Called with the name of each part before it begins.
        shard_parameters: As for :func:`~prunelimit.predict_limit`, also for a network that is sharded already. All processes make
            the report, without units, and without the methods that need whole vectors in one process.

    Returns:
        The report.

    Raises:
        PruneLimitError: If an argument cannot be used; the message names it and the fix.
    """
    _check(methods, targets)
    check_apart(loss_fn, curvature)
    start, tell = time.monotonic(), progress or (lambda part: None)
    adapted = adapt_shared(model, loss_fn, data, shard_parameters)
    methods, skipped = _possible(methods, sharded=is_sharded(adapted.model))
    units, prunable = units_and_names(adapted.model, units, prunable, groups)
    masks = unit_masks(adapted.model, units, list(prunable_parameters(adapted.model, prunable)))
    settings = Settings(
        prunable, curvature, methods[0], steps, probes, seed, low_memory=low_memory, masks=masks, progress=False
    )
    if epsilon is None:
        epsilon = default_epsilon(adapted.model, adapted.loss_fn, adapted.batches)
    limits = {}
    for method in methods:
        tell(method)
        try:
            limits[method] = predict_adapted(adapted, epsilon, dataclasses.replace(settings, method=method))
        except FlatError:
            if method == methods[-1] and not limits:
                raise
            skipped[method] = "which needs a loss with curvature, and there is none"
    by_layer = None
    if layers:
        tell("layers")
        common = next(limits[m].sparsity for m in ("measured", "directional", *limits) if m in limits)
        directional = dataclasses.replace(settings, method="directional")
        by_layer = layers_adapted(adapted, epsilon, directional, groups, min(common, 1 - 1e-9), units)
    changes: tuple[Change, ...] = ()
    if "formula" in limits:
        tell("changes")
        path = unit_path(adapted.model, units, prunable)
        changes = tuple(_changes(adapted, limits["formula"], path, epsilon, targets))
    aside, name, seconds = left_out(adapted.model, prunable), name or type(model).__name__, time.monotonic() - start
    return Report(name, limits, by_layer, changes, aside, epsilon, seconds, skipped)


def _share(part: Any) -> str:
    return f"{part:.0%}" if part >= 0.005 else "under 1%"


def _check(methods: Sequence[str], targets: Sequence[float]) -> None:
    """Refuse what no report can be made of, before anything is computed."""
    if not methods:
        raise PruneLimitError(f"methods is empty: name at least one of {', '.join(METHODS)}.")
    for method in methods:
        if method not in METHODS:
            raise unknown_name("methods", method, METHODS)
    for target in targets:
        if not 0 < target < 1:
            raise PruneLimitError(f"targets has {target!r}: a target is a fraction of weights to remove, in (0, 1).")
    if targets and "formula" not in methods:
        raise PruneLimitError("targets needs the formula, which says what they take: name it in methods.")


def _possible(methods: Sequence[str], *, sharded: bool) -> tuple[list[str], dict[str, str]]:
    """Tell the methods that a network allows from those that it does not, with the reason."""
    skipped = {}
    if sharded:
        why = "which needs whole vectors in one process, and the parameters are sharded"
        skipped = {method: why for method in methods if method not in SHARDED}
    possible = [method for method in methods if method not in skipped]
    if not possible:
        raise PruneLimitError(f"methods={list(methods)} with sharded parameters: name one of {', '.join(SHARDED)}.")
    return possible, skipped


def _changes(
    adapted: Adapted, formula: PruningLimit, path: PruningPath, epsilon: float, targets: Sequence[float]
) -> Iterator[Change]:
    """Say what each wanted limit needs; by default a little more than the formula's."""
    now = formula.sparsity
    if not targets and now < 1:
        targets = [min(now + FURTHER, (1 + now) / 2)]  # near one, half of the way that is left
    for wanted in targets if formula.spectrum is not None else ():
        assert formula.spectrum is not None
        change = needed_change(formula.spectrum, path.distance, epsilon, wanted)
        yield dataclasses.replace(change, rise=measured_rise(adapted, path, wanted))
